"""Coverage-guided fuzzing: `python -m tests.fuzz TARGET [SECONDS] [libFuzzer options]`.

It grows the corpus in a folder outside the repository; `--keep` then takes over what adds coverage, as small as it can.
A finding is written beside it as `crash-...`: mend the defect, and put the file into `tests/fuzz/corpus/TARGET`, where
every test run reads it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGETS = ("pages", "answers")
MOST_BYTES = {"pages": 6000, "answers": 2500}


def main() -> None:
    """Fuzz until the time is over or something is found; the exit status says which."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Coverage-guided fuzzing of the scraper.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("seconds", nargs="?", type=int, default=60)
    parser.add_argument("--keep", action="store_true", help="take the found inputs that add coverage into the corpus")
    arguments, more = parser.parse_known_args()
    target: str = arguments.target
    found = HERE.parents[1] / ".cache" / "fuzz" / target
    found.mkdir(parents=True, exist_ok=True)
    corpus = HERE / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    words = HERE / f"{target}.dict"
    options = [f"-max_len={MOST_BYTES[target]}", f"-dict={words}", "-print_final_stats=1", *more]
    if arguments.keep:
        options += ["-merge=1", str(corpus), str(found)]
    else:
        options += [
            f"-max_total_time={arguments.seconds}",
            f"-artifact_prefix={found.parent}/",
            str(found),
            str(corpus),
        ]

    import atheris

    with atheris.instrument_imports(include=["agent.scrape", "agent.engines", "agent.signals"]):
        run = importlib.import_module(f"tests.fuzz.{target}").one_input
    os.environ.setdefault("PYTHONHASHSEED", "0")
    atheris.Setup([sys.argv[0], *options], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
