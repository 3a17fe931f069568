"""The documents are correct: examples run, tables match the program, links exist.

In a block marked `runs` after its language (```console runs) the lines that begin with `$ ` are executed in order,
against live processes. The text below a command must be its output, where `...` matches any text. `igw run`,
`igw emulate` and `envoy -c` are started and run until the end of the document; with `& echo $! > FILE` after them, FILE
gets the process id. A block marked `yaml file=NAME` is that file. The addresses of the documents, and the default
addresses of `igw run` and `igw render`, are replaced by free ones in commands, and restored in their output, so a port
in use on this machine breaks nothing.
"""

from __future__ import annotations

import argparse
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from agent.__main__ import COMMANDS
from tests.contract.test_layers import place
from tests.processes import ROOT, Processes

DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EVERY_DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
# Commands that run until they are stopped, and what they print when they are ready.
SERVERS = {
    ("igw", "run"): r"admin: http",
    ("igw", "emulate"): r"\bon http",
    ("envoy", "-c"): r"starting main dispatch loop",
}
# The default addresses of commands; those of the agent come from its configuration file if there is one.
DEFAULTS = {
    "run": {"--ext-proc-address": "127.0.0.1:9002", "--admin-address": "127.0.0.1:9090"},
    "render": {"--ext-proc-address": "127.0.0.1:9002", "--listen": "127.0.0.1:8080", "--admin": "127.0.0.1:9901"},
}
IN_THE_FILE = {"--ext-proc-address", "--admin-address"}
SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block: the words after the fence, its text, and its first line."""

    words: tuple[str, ...]
    text: str
    line: int


class DocumentStep(NamedTuple):
    """A command of a document, its documented output, and its line."""

    command: str
    shown: str
    line: int


def blocks(document: Path) -> Iterator[Block]:
    """All fenced blocks of a document."""
    fence = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    text = document.read_text(encoding="utf-8")
    for found in fence.finditer(text):
        yield Block(tuple(found[1].split()), found[2], text.count("\n", 0, found.start()) + 2)


def steps(block: Block) -> list[DocumentStep]:
    """The commands of a block; a line that ends with a backslash continues on the next one."""
    found: list[DocumentStep] = []
    lines = iter(enumerate(block.text.splitlines(), block.line))
    for number, line in lines:
        if line.startswith("$ "):
            command = line[2:]
            while command.endswith("\\"):
                command = command[:-1] + next(lines)[1].strip()
            found.append(DocumentStep(command, "", number))
        elif found:
            found[-1] = found[-1]._replace(shown=found[-1].shown + line + "\n")
    return found


class Reader:
    """Executes the commands of a document in a folder of its own with the same `.venv`."""

    def __init__(self, home: Path, processes: Processes, free_ports: Callable[[int], list[int]], text: str) -> None:
        self._home = home
        self._processes = processes
        defaults = {address for options in DEFAULTS.values() for address in options.values()}
        documented = sorted({*re.findall(r"\b127\.0\.0\.1:\d+\b", text), *defaults})
        # In the same order, so that output sorted by address has the order of the document.
        live = sorted(f"127.0.0.1:{port}" for port in free_ports(len(documented)))
        self._live = dict(zip(documented, live, strict=True))
        (home / ".venv").symlink_to(sys.prefix)
        for name in ("deploy", "docs"):
            (home / name).symlink_to(ROOT / name)

    def write(self, block: Block) -> None:
        """Write the file of a block into the folder of the commands."""
        (name,) = (word.removeprefix("file=") for word in block.words if word.startswith("file="))
        (self._home / name).write_text(self._in(block.text), encoding="utf-8")

    def type(self, step: DocumentStep, where: str) -> None:
        """Run one command and compare its output; start a server and wait until it is ready."""
        command = self._with_addresses(self._in(step.command))
        program, _, pid_file = command.partition(" & echo $! > ")
        words = shlex.split(program.rstrip("& "))
        ready = SERVERS.get((Path(words[0]).name, words[1])) if len(words) > 1 and "--help" not in words else None
        if ready is not None:
            process = self._processes.start(words, cwd=self._home)
            process.wait_for(ready)
            if pid_file:
                (self._home / pid_file).write_text(f"{process.pid}\n")
            return
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=self._home,
            env={**os.environ, "COLUMNS": "120"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"{where}: {step.command}\n{done.stdout}{done.stderr}"
        printed = self._out(done.stdout)
        shown = step.shown.replace("…", "...")
        if shown.strip() and not doctest.OutputChecker().check_output(shown, printed, SAME):
            pytest.fail(
                f"{where}: {step.command}\n--- the document shows\n{step.shown}--- it prints\n{printed}{done.stderr}"
            )

    def _with_addresses(self, command: str) -> str:
        """The command with the options that replace its default addresses."""
        found = re.search(r"\bigw (run|render)\b(?!.*--help)", command)
        if found is None:
            return command
        left_out = {option for option in DEFAULTS[found[1]] if option in command}
        if "--config" in command:
            left_out |= IN_THE_FILE
        options = [
            f"{option} {self._live[address]}"
            for option, address in DEFAULTS[found[1]].items()
            if option not in left_out
        ]
        return " ".join([command[: found.end()], *options]) + command[found.end() :]

    def _in(self, text: str) -> str:
        return re.sub(r"\b127\.0\.0\.1:\d+\b", lambda found: self._live[found[0]], text)

    def _out(self, text: str) -> str:
        for documented, live in self._live.items():
            text = text.replace(live, documented)
        return text


@EVERY_DOCUMENT
def test_the_commands_of_a_document_have_the_documented_output(
    document: Path, tmp_path: Path, processes: Processes, free_ports: Callable[[int], list[int]]
) -> None:
    home = tmp_path / "a reader's folder"
    home.mkdir()
    reader = Reader(home, processes, free_ports, document.read_text(encoding="utf-8"))
    for block in blocks(document):
        if any(word.startswith("file=") for word in block.words):
            reader.write(block)
        elif "runs" in block.words:
            assert block.words[0] == "console", "blocks that run are ```console runs"
            for step in steps(block):
                reader.type(step, f"{document.relative_to(ROOT)}:{step.line}")


def test_the_first_commands_of_the_readme_run() -> None:
    """The test above skips examples that are not marked `runs`."""
    typed = [step.command for block in blocks(ROOT / "README.md") if "runs" in block.words for step in steps(block)]
    assert any("igw run" in command for command in typed)
    assert {path for path in ("/v1/state", "/metrics", "/v1/gauges") if any(path in one for one in typed)} == {
        "/v1/state",
        "/metrics",
        "/v1/gauges",
    }


def option_rows(name: str) -> list[str]:
    """The rows of docs/reference/commands.md for the options of a command, from its parser."""
    parser = argparse.ArgumentParser(prog=f"igw {name}")
    importlib.import_module(f"agent.commands.{name}").add_arguments(parser)
    formatter = parser._get_formatter()
    rows = []
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction) or action.help is argparse.SUPPRESS:
            continue
        value = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
        names = ", ".join(f"`{option} {value}`".replace(" `", "`") for option in action.option_strings) or f"`{value}`"
        words = " ".join(formatter._expand_help(action).split()) if action.help else ""
        rows.append(f"| {names} | {words.replace('|', chr(92) + '|')} |")
    return rows


@pytest.mark.parametrize("name", COMMANDS)
def test_the_options_of_a_command_are_documented(name: str) -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    section = re.search(rf"^## igw {name}$\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/reference/commands.md has no section '## igw {name}'"
    documented = re.findall(r"^\| `.*\|$", section[1], re.MULTILINE)
    wanted = option_rows(name)
    assert documented == wanted, "the rows of docs/reference/commands.md should be:\n" + "\n".join(wanted)


def test_exactly_the_commands_are_documented() -> None:
    text = (ROOT / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
    assert re.findall(r"^## igw (\S+)$", text, re.MULTILINE) == list(COMMANDS)


@EVERY_DOCUMENT
def test_links_and_paths_in_a_document_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) if "://" not in target]
    assert [link for link in links if not (document.parent / link).exists()] == []
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    named = re.findall(r"`((?:agent|exporters|tests|docs|deploy|dashboards|alerts)/[\w./-]+)`", prose)
    missing = {name for name in named if not (ROOT / name).exists()}
    assert {name for name in missing if "NAME" not in name} == set()


def test_the_layers_of_the_architecture_document_are_the_tested_ones() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]*) \| ([PS])[^|]*\|", text, re.MULTILINE)
    assert len(rows) > 15
    shown: dict[str, tuple[int, str]] = {}
    for layer, cell, purity in rows:
        folder = ""
        for path in re.findall(r"`([^`]+)`", cell):
            if "/" in path:
                folder = path.rpartition("/")[0]
            full = path if "/" in path else f"{folder}/{path}"
            shown[full] = (int(layer), purity)
    for path, (layer, purity) in shown.items():
        if "(the rest)" in text.partition(f"`{path}`")[2][:12]:
            continue
        found = place(path.removesuffix(".py").rstrip("/").replace("/", "."))
        assert (layer, purity) == (found.layer, "P" if found.pure else "S"), path


def test_a_false_example_is_found(tmp_path: Path, processes: Processes, free_ports: Callable[[int], list[int]]) -> None:
    document = tmp_path / "false.md"
    document.write_text("```console runs\n$ echo 127.0.0.1:9090 is a\nlie\n```\n")
    (tmp_path / "home").mkdir()
    reader = Reader(tmp_path / "home", processes, free_ports, document.read_text())
    (step,) = (step for block in blocks(document) for step in steps(block))
    with pytest.raises(pytest.fail.Exception, match=r"it prints\n127\.0\.0\.1:9090 is a"):
        reader.type(step, "here")
    reader.type(step._replace(shown="127.0.0.1:9090 is …\n"), "here")
