"""Who may read the admin address: each check of a request, and what is wrong with the file of tokens."""

from __future__ import annotations

from typing import NamedTuple


class AccessChecked(NamedTuple):
    """A request was allowed or refused; `method` and `result` are words of `agent.kube.authn`. `detail` has the reason
    of a refusal, without a secret."""

    method: str
    result: str
    detail: str = ""


class TokenFileProblem(NamedTuple):
    """The file of tokens, or one line of it, cannot be used as it is; `detail` names it and has no token."""

    detail: str
