"""The rule file with the runbooks where they are served.

`python -m alerts.render --runbooks https://wiki.example/igw` prints `igw.rules.yaml` with addresses that a person can
click on in place of the paths within this repository, which mean nothing to Prometheus, Alertmanager or a pager.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).parent / "igw.rules.yaml"
_HERE: Final = "runbook_url: alerts/runbooks/"
_ADDRESS: Final = re.compile(r"https?://[^\s\"'{}\\]+")  # plain in YAML, and nothing that a template would take up


def text(runbooks: str) -> str:
    """The rules with each runbook below the address `runbooks`. ValueError where that is no address."""
    if not _ADDRESS.fullmatch(runbooks):
        raise ValueError(f"--runbooks {runbooks}: write the address of the folder, such as https://wiki.example/igw")
    return FILE.read_text("utf-8").replace(_HERE, f"runbook_url: {runbooks.rstrip('/')}/")


def main() -> int:
    """Print them."""
    parser = argparse.ArgumentParser(prog="python -m alerts.render", description="Print the alert rules.")
    parser.add_argument(
        "--runbooks", required=True, metavar="URL", help="where the pages of alerts/runbooks are served"
    )
    try:
        print(text(parser.parse_args().runbooks), end="")
    except ValueError as error:
        print(f"alerts.render: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
