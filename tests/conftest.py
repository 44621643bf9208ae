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
