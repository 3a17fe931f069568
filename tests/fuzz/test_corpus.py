"""Every input of the fuzz corpus is read in every test run.

`tests/fuzz/corpus` has inputs that cover the code, and one for each defect found (`found_...`, named after the defect).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fuzz import answers, pages

CORPUS = Path(__file__).resolve().parent / "corpus"
TARGETS: dict[str, Callable[[bytes], None]] = {"pages": pages.one_input, "answers": answers.one_input}
MAX_BYTES = 2 << 20


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_of_the_corpus_is_misread(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert any(path.name.startswith("seed_") for path in inputs)
    for path in inputs:
        try:
            TARGETS[target](path.read_bytes())
        except Exception as error:  # any exception is a failure; its file has to be named
            error.add_note(f"reading {path.name} of the corpus of {target}")
            raise


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < MAX_BYTES
