"""Finds the operator and the metrics adapter of KEDA, or builds them: `python -m tests.keda.programs`.

About 20 minutes of two cores, once, and 2 GB of memory. Prints the path of each program, one per line. Uses the
standard library only.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from tests.cluster.programs import NoPrograms
from tests.go_modules import GoModule

_MODULE: Final = "github.com/kedacore/keda/v2"
# Its sources have the CustomResourceDefinitions and the protocol file.
KEDA: Final = GoModule(
    "keda",
    Path(__file__).resolve().parent,
    _MODULE,
    {"keda-operator": f"{_MODULE}/cmd/operator", "keda-adapter": f"{_MODULE}/cmd/adapter"},
    10,
)


def main() -> int:
    try:
        for path in KEDA.build().values():
            print(path)
    except NoPrograms as error:
        print(f"KEDA for the tests: {error}.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
