"""A certificate authority for tests, with the system's openssl."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path


class Authority:
    """Signs certificates; `file` is its own one, `sign` makes another and its key."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._key = folder / f"{name}.key"
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.file,
            "-addext", "basicConstraints=critical,CA:TRUE",
        )  # fmt: skip

    def sign(self, name: str, hosts: str = "IP:127.0.0.1", *, days: int = 1, not_after: str = "") -> tuple[Path, Path]:
        """A certificate for these hosts, and its key; `not_after` (such as 20200102000000Z) is when it expired."""
        key, request, made = (self._folder / f"{name}{ending}" for ending in (".key", ".csr", ".pem"))
        self._openssl(
            "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-subj", f"/CN={name}", "-keyout", key, "-out", request,
        )  # fmt: skip
        extensions = self._folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={hosts}\n")
        span = ["-days", str(days)]
        if not_after:
            return self._expired(name, hosts, not_after, request, made), key
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.file, "-CAkey", self._key, "-CAcreateserial",
            "-extfile", extensions, "-out", made, *span,
        )  # fmt: skip
        return made, key

    def server(self, pair: tuple[Path, Path], *, requires_clients: bool = False) -> ssl.SSLContext:
        """The TLS context of a server; `requires_clients`: it requires client certificates of this authority."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*pair)
        if requires_clients:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.file)
        return context

    def _expired(self, name: str, hosts: str, not_after: str, request: Path, made: Path) -> Path:
        # `openssl x509` has no option for a start in the past; `openssl ca` has.
        (self._folder / "index.txt").write_text("")
        (self._folder / "serial").write_text("7777\n")
        settings = self._folder / "ca.cnf"
        settings.write_text(
            f"[ca]\ndefault_ca=a\n[a]\ndatabase={self._folder}/index.txt\nserial={self._folder}/serial\n"
            f"new_certs_dir={self._folder}\ndefault_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n"
            f"[e]\nsubjectAltName={hosts}\n"
        )
        self._openssl(
            "ca", "-batch", "-config", settings, "-in", request, "-cert", self.file, "-keyfile", self._key,
            "-startdate", "20200101000000Z", "-enddate", not_after, "-out", made, "-notext",
        )  # fmt: skip
        return made

    def _openssl(self, *arguments: str | Path) -> None:
        done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
