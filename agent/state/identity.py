"""Who serves at an address: the pod and the node, as far as discovery knows them."""

from __future__ import annotations

from typing import Final, NamedTuple


class Identity(NamedTuple):
    """The pod (`namespace/name`), the node, and the uid of the pod behind an address, empty where unknown."""

    pod: str = ""
    node: str = ""
    uid: str = ""

    @property
    def namespace(self) -> str:
        """The namespace of the pod."""
        return self.pod.rpartition("/")[0]

    @property
    def pod_name(self) -> str:
        """The name of the pod in its namespace."""
        return self.pod.rpartition("/")[2]

    def replaced_by(self, later: Identity) -> str:
        """Why `later` is another server than this one, or the empty string. A name that was unknown before is no
        change; a name that is unknown now is one, because the server behind the address is no longer known. A pod that
        was deleted and made again under its name has another uid."""
        if self.pod and later.pod != self.pod:
            return "another_pod"
        if self.uid and later.uid != self.uid:
            return "another_pod"
        return "another_node" if self.node and later.node != self.node else ""


UNIDENTIFIED: Final = Identity()
