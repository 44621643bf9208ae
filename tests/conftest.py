"""Fixtures that several test folders use."""

import os
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def params() -> dict:
    """The default study as plain values, free to change; without attribution, so that its arms can be replaced."""
    return yaml.safe_load((ROOT / "params.yaml").read_text()) | {"attribution": None}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real CIFAR-10 and MNIST parquet files."""
    folder = Path(os.environ.get("AFTERIMAGE_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "cifar10-jpeg75" / "test.parquet").is_file():
        pytest.skip(f"no real images: {folder} has no cifar10-jpeg75/test.parquet (set AFTERIMAGE_DATA)")
    return folder
