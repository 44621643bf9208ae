"""Fixtures that several test folders use."""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def script() -> Callable[[str], dict[str, Any]]:
    """Run a file of ``benchmarks``, by its name, and return what it defines."""

    def run(name: str) -> dict[str, Any]:
        folder = str(ROOT / "benchmarks")
        sys.path.insert(0, folder)  # they import each other
        try:
            return runpy.run_path(f"{folder}/{name}.py")
        finally:
            sys.path.remove(folder)

    return run


@pytest.fixture(scope="session")
def shown() -> Callable[[str, str], str]:
    """Return what a page of ``docs`` shows between the marks of a table."""

    def between(page: str, mark: str) -> str:
        text = (ROOT / "docs" / page).read_text()
        return text.split(f"<!-- {mark} -->\n")[1].split(f"\n<!-- /{mark} -->")[0]

    return between


@pytest.fixture
def params() -> dict:
    """A study with every method as plain values, free to change; without attribution."""
    return yaml.safe_load((ROOT / "tests" / "study.yaml").read_text()) | {"attribution": None}


def _shared(file: str) -> Path:
    folder = Path(os.environ.get("AFTERIMAGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / file).exists():
        pytest.skip(f"no real images: {folder} has no {file} (set AFTERIMAGE_DATA)")
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR-10 and MNIST parquet files."""
    return _shared("cifar10-jpeg75/test.parquet")


@pytest.fixture(scope="session")
def real_client() -> Path:
    """The model that diffusers' own trainer made, with its images."""
    return _shared("real_client/train.zip") / "real_client"
