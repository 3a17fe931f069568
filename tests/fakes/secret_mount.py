"""A folder like the mount of a Kubernetes Secret: its files are symlinks, and all of them change at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class SecretMount:
    """`write` replaces all files: `tls.crt` -> `..data/tls.crt`, and `..data` -> a folder of this version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._version = 0
        folder.mkdir()

    def path(self, name: str) -> str:
        return str(self.folder / name)

    def write(self, files: Mapping[str, bytes]) -> None:
        self._version += 1
        version = self.folder / f"..version_{self._version}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(Path("..data") / name)
        new = self.folder / "..data_tmp"
        new.symlink_to(version.name)
        new.replace(self.folder / "..data")

    def write_pair(self, pair: tuple[Path, Path], **others: bytes) -> None:
        """`tls.crt` and `tls.key` from these files, and others by name."""
        certificate, key = pair
        files = {"tls.crt": certificate.read_bytes(), "tls.key": key.read_bytes()}
        self.write(files | {name.replace("_", "."): content for name, content in others.items()})
