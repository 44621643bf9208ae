"""What made a result: code fingerprint, git commit, environment lock, versions and device.

The fingerprint of a step is the hash of the source files that its entry module imports, directly or through others, inside this
package. ``config`` and ``cli.py`` are left out: all that they decide for a step is in its resolved config and command line,
which are recorded and compared by themselves. Methods are found by name (``config.METHODS``), so that a new method changes the
fingerprint of no other.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent.parent
_DECIDED_ELSEWHERE = ("afterimage.config", "afterimage.cli")
_VERSIONS_OF = ("afterimage-diffusion", "torch", "diffusers", "accelerate", "numpy", "scikit-learn", "faiss-cpu", "faiss-gpu")


def _file_of(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the package's own modules that ``module`` imports anywhere in its text."""
    path = _file_of(module)
    assert path is not None, module
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in found if name.split(".")[0] == "afterimage" and _file_of(name))


def modules_of(*entries: str) -> list[str]:
    """Return the sorted names of ``entries`` and of every module of the package that they import."""
    seen: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in seen and not module.startswith(_DECIDED_ELSEWHERE):
            seen.add(module)
            waiting += _imports(module)
    return sorted(seen)


def fingerprint(*entries: str) -> str:
    """Return the sha256 over the sources of ``entries`` and of all that they import inside the package.

    Args:
        entries: Module names, e.g. ``"afterimage.attacks.extraction"``.
    """
    total = hashlib.sha256()
    for module in modules_of(*entries):
        path = _file_of(module)
        assert path is not None
        total.update(f"{module} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def lock_file() -> Path | None:
    """Return the lock that the running environment was made from (``AFTERIMAGE_LOCK``, by default ``envs/cpu.lock``)."""
    path = Path(os.environ.get("AFTERIMAGE_LOCK", ROOT / "envs" / "cpu.lock"))
    return path if path.is_file() else None


def environment() -> dict[str, Any]:
    """Return commit, dirty flag, lock hash, versions and machine, as plain JSON values."""
    versions: dict[str, str | None] = {}
    for package in _VERSIONS_OF:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    lock = lock_file()
    status = _git("status", "--porcelain", "--untracked-files=no")
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }
