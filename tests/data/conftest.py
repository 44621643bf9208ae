"""Resolved configs of steps, written on the spot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def resolved(tmp_path: Path) -> Callable[[str, dict[str, Any]], str]:
    """Write the resolved config of a step and return its path."""

    def write(step: str, settings: dict[str, Any], seed: int = 3, **address: str) -> str:
        path = tmp_path / f"{step.replace('/', '-')}.json"
        config = {"step": step, "arm": None, "replicate": None, "seed": seed, "settings": settings}
        path.write_text(json.dumps(config | address))
        return str(path)

    return write
