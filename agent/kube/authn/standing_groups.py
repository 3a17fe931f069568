"""The groups that every API server of Kubernetes adds or trusts by itself.

Each authenticated user is in `system:authenticated`, to which RBAC binds the right to read discovery. Members of
`system:masters` may do everything, and no review is needed; the aggregation layer probes an API as one of them.
"""

from __future__ import annotations

from typing import Final

from agent.kube.authn.access import AccessCheck
from agent.kube.authn.identity import UserIdentity
from agent.kube.authn.reviews import AccessAnswer, Attributes

AUTHENTICATED: Final = "system:authenticated"
MASTERS: Final = "system:masters"


class StandingGroups:
    """An AccessCheck that reviews with these groups by another one."""

    def __init__(self, permissions: AccessCheck) -> None:
        self._permissions = permissions

    async def may(self, identity: UserIdentity, attributes: Attributes) -> AccessAnswer:
        """Whether the identity may do this. Raises CannotCheck."""
        if MASTERS in identity.groups:
            return AccessAnswer(True, "")
        if AUTHENTICATED not in identity.groups:
            identity = identity._replace(groups=(*identity.groups, AUTHENTICATED))
        return await self._permissions.may(identity, attributes)
