"""The rule file with the runbooks where they are served.

In `igw.rules.yaml` an alert's link leads to the agent at its usual admin address, which serves its own runbooks. That
is right on the agent's machine, or behind a forwarded port. For everybody else
`python -m alerts.render --runbooks http://igw.example:9090/runbooks` prints the rules with another address: an agent's,
or that of a wiki with the pages of `alerts/runbooks`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).parent / "igw.rules.yaml"
_HERE: Final = "runbook_url: http://127.0.0.1:9090/runbooks/"
_ADDRESS: Final = re.compile(r"https?://[^\s\"'{}\\]+")  # plain in YAML, and nothing that a template would take up


def text(runbooks: str) -> str:
    """The rules with each runbook below the address `runbooks`. ValueError where that is no address."""
    if not _ADDRESS.fullmatch(runbooks):
        raise ValueError(f"--runbooks {runbooks}: write the address of the folder, such as https://wiki.example/igw")
    return FILE.read_text("utf-8").replace(_HERE, f"runbook_url: {runbooks.rstrip('/')}/")


def main() -> int:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m alerts.render", description="Print the alert rules.")
    parser.add_argument("--runbooks", required=True, metavar="URL", help="where your people read the runbooks")
    try:
        print(text(parser.parse_args().runbooks), end="")
    except ValueError as error:
        print(f"alerts.render: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
