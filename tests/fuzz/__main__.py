"""Coverage-guided fuzzing: `python -m tests.fuzz TARGET [SECONDS] [libFuzzer options]`.

New inputs are written to a folder outside the repository; `--keep` copies the smallest ones that add coverage into the
corpus. A failing input is written next to that folder as `crash-...`: fix the defect, and put the file into
`tests/fuzz/corpus/TARGET`, which every test run reads.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parent
TARGETS = ("pages", "answers")
MAX_BYTES = {"pages": 6000, "answers": 2500}


def main() -> None:
    """Fuzz until the time is over or an input fails, which sets the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzing of the scraper.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", nargs="?", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="copy new inputs that add coverage into the corpus")
    arguments, more = parser.parse_known_args()
    target: str = arguments.target
    found = HERE.parents[1] / ".cache" / "fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    dictionary = HERE / f"{target}.dict"
    if arguments.keep:
        print(f"{keep(target, found, corpus)} inputs are new in {corpus}")
        return
    options = [f"-max_len={MAX_BYTES[target]}", f"-dict={dictionary}", "-print_final_stats=1", *more]
    options += [f"-max_total_time={arguments.seconds}", f"-artifact_prefix={found.parent}/", str(found), str(corpus)]

    import atheris

    with atheris.instrument_imports(include=["agent.scrape", "agent.exposition", "agent.engines", "agent.signals"]):
        run = importlib.import_module(f"tests.fuzz.{target}").one_input
    os.environ.setdefault("PYTHONHASHSEED", "0")
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


def keep(target: str, found: Path, corpus: Path) -> int:
    """Copy the smallest inputs that take a path through the code which the corpus does not take; their number."""
    run = importlib.import_module(f"tests.fuzz.{target}").one_input
    steps: set[tuple[str, int, int]] = set()
    before: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        name = frame.f_code.co_filename
        if not any(
            part in name for part in ("/agent/scrape/", "/agent/exposition/", "/agent/engines/", "/agent/signals")
        ):
            return None
        steps.add((name, before.get(frame, 0), frame.f_lineno))
        before[frame] = frame.f_lineno
        return trace

    known: set[tuple[str, int, int]] = set()
    added = 0
    for folder in (corpus, found):
        for path in sorted(folder.iterdir(), key=lambda path: (path.stat().st_size, path.name)):
            steps.clear()
            before.clear()
            sys.settrace(trace)
            try:
                run(path.read_bytes())
            finally:
                sys.settrace(None)
            if folder is found and not steps <= known:
                (corpus / path.name).write_bytes(path.read_bytes())
                added += 1
            known |= steps
    return added


if __name__ == "__main__":
    main()
