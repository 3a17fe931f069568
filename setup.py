"""The modules that are compiled when a wheel is built with IGW_COMPILED=1: `make wheel`.

These modules run for each scrape and each request. mypyc (of mypy) compiles the unchanged source to C, and no other
code depends on whether it is compiled. Without the variable the wheel has no compiled module.
"""

from __future__ import annotations

import os
from pathlib import Path

from setuptools import Extension, setup

COMPILED = (
    "agent/app/pool.py",
    "agent/engines/cache_resets.py",
    "agent/engines/reading_plan.py",
    "agent/engines/mapping.py",
    "agent/exposition/*.py",
    "agent/flow/*.py",
    "agent/pick/*.py",
    "agent/pick/scorers/*.py",
    "agent/prefix/*.py",
    "agent/requests/*.py",
    "agent/requests/stages/*.py",
    "agent/scrape/*.py",
    "agent/serve/ext_proc/*.py",
    "agent/serve/grpc/call.py",
    "agent/serve/grpc/listener.py",
    "agent/serve/grpc/router.py",
    "agent/serve/grpc/status.py",
    "agent/serve/http2/*.py",
    "agent/state/*.py",
)


def compiled() -> list[str]:
    """The compiled files, relative to this one."""
    here = Path(__file__).parent
    files = (file for pattern in COMPILED for file in here.glob(pattern))
    return sorted(str(file.relative_to(here)) for file in files if file.name != "__init__.py")


def extensions() -> list[Extension]:
    """The extension modules; empty without the variable."""
    if not os.environ.get("IGW_COMPILED"):
        return []
    from mypyc.build import mypycify

    options = {"opt_level": "3", "debug_level": "0", "group_name": "igw"}
    made: list[Extension] = mypycify(["--explicit-package-bases", *compiled()], **options)
    return made


if __name__ == "__main__":
    setup(ext_modules=extensions())
