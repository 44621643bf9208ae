"""The origin of a result: code fingerprint, git commit, environment lock, versions and device.

The fingerprint of a step is the hash of the code that its entry module imports, directly or
indirectly, from this package. Code means the syntax tree: comments, docstrings and formatting do
not change a fingerprint, and neither does the version of Python. ``config``, ``plan`` and
``cli.py`` are excluded: everything they determine for a step is in its resolved config and command
line, which are recorded and compared separately. Methods are looked up by name
(``config.METHODS``), so that a new method leaves the fingerprints of the others unchanged.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent.parent
_DECIDED_ELSEWHERE = ("afterimage.config", "afterimage.plan", "afterimage.cli")
_VERSIONS_OF = (
    "afterimage-diffusion",
    "torch",
    "diffusers",
    "accelerate",
    "numpy",
    "scikit-learn",
    "faiss-cpu",
    "faiss-gpu",
)


def _file_of(module: str) -> Path | None:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@cache
def _tree(module: str) -> ast.Module:
    path = _file_of(module)
    assert path is not None, module
    return ast.parse(path.read_text())


@cache
def _imports(module: str) -> frozenset[str]:
    """Return the package's modules that ``module`` imports anywhere in its text."""
    names: set[str] = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(
        name for name in names if name.split(".")[0] == "afterimage" and _file_of(name)
    )


EMPTY = "str:''"


def digest(config: dict[str, Any]) -> str:
    """Return the sha256 of a resolved config, independent of the order of its keys."""
    return hashlib.sha256(
        json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    ).hexdigest()


def canonical(tree: ast.Module) -> str:
    """Return the code of a module as text that does not depend on formatting or the version of
    Python.

    It is the syntax tree without positions, string statements (docstrings) and empty fields: later
    versions of Python add fields to nodes, which are empty in earlier syntax.
    """

    def text(node: object) -> str:
        # As ASCII, since the version of Python determines which characters are printable.
        if isinstance(node, ast.Constant):
            return f"{type(node.value).__name__}:{node.value!a}"
        # Python 3.12 has empty pieces where other versions have none.
        if isinstance(node, ast.JoinedStr):
            pieces = [piece for piece in map(text, node.values) if piece != EMPTY]
            return f"JoinedStr({','.join(pieces)})"
        if isinstance(node, ast.AST):
            fields = [(name, text(value)) for name, value in ast.iter_fields(node)]
            arguments = ",".join(f"{name}={value}" for name, value in fields if value)
            return f"{type(node).__name__}({arguments})"
        if isinstance(node, list):
            items = [text(item) for item in node if not _is_docstring(item)]
            return f"[{','.join(items)}]" if items else ""
        return "" if node is None else ascii(node)

    return text(tree)


def _is_docstring(node: object) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


@cache
def _sha256(module: str) -> str:
    return hashlib.sha256(canonical(_tree(module)).encode()).hexdigest()


def modules_of(*entries: str) -> list[str]:
    """Return the sorted names of ``entries`` and of every module of the package that they
    import."""
    seen: set[str] = set()
    waiting = list(entries)
    while waiting:
        module = waiting.pop()
        if module not in seen and not module.startswith(_DECIDED_ELSEWHERE):
            seen.add(module)
            waiting += _imports(module)
    return sorted(seen)


def fingerprint(*entries: str) -> str:
    """Return the sha256 of the code of ``entries`` and of everything they import from the package.

    Args:
        entries: Module names, e.g. ``"afterimage.attacks.extraction"``.
    """
    total = hashlib.sha256()
    for module in modules_of(*entries):
        total.update(f"{module} {_sha256(module)}\n".encode())
    return total.hexdigest()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def lock_file() -> Path | None:
    """Return the lock file of the running environment (``AFTERIMAGE_LOCK``, by default
    ``envs/cpu.lock``)."""
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
    # Tables of published results are in git, and a study rewrites them.
    changes = ("--untracked-files=no", "--", ".", ":(exclude)results")
    status = _git("status", "--porcelain", *changes)
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": None if status is None else bool(status),
        "lock_sha256": hashlib.sha256(lock.read_bytes()).hexdigest() if lock else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }
