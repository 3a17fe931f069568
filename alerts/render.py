"""Prints the rule file with another address of the runbooks.

In `igw.rules.yaml` the links of alerts lead to the agent's default admin address, where the agent serves its runbooks.
`python -m alerts.render --runbooks http://igw.example:9090/runbooks` prints the rules with the address of a reachable
agent, or of a wiki with the pages of `alerts/runbooks`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).parent / "igw.rules.yaml"
_HERE: Final = "runbook_url: http://127.0.0.1:9090/runbooks/"
_ADDRESS: Final = re.compile(r"https?://[^\s\"'{}\\]+")  # needs no quoting in YAML, and has no template in it


def text(runbooks: str) -> str:
    """The rules with every runbook below the URL `runbooks`. ValueError if that is not a URL."""
    if not _ADDRESS.fullmatch(runbooks):
        raise ValueError(f"--runbooks {runbooks}: write the URL of the folder, such as https://wiki.example/igw")
    return FILE.read_text("utf-8").replace(_HERE, f"runbook_url: {runbooks.rstrip('/')}/")


def main() -> int:
    """Print the rules to standard output."""
    parser = argparse.ArgumentParser(prog="python -m alerts.render", description="Print the alert rules.")
    parser.add_argument("--runbooks", required=True, metavar="URL", help="URL of the folder of runbooks")
    try:
        print(text(parser.parse_args().runbooks), end="")
    except ValueError as error:
        print(f"alerts.render: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
