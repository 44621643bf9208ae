"""The tests of this folder need a GPU; `make test-gpu` runs them where there is one."""

import pytest
import torch

from ..training.conftest import *  # noqa: F403
from ..workflow.conftest import clone, commands, empty  # noqa: F401


def pytest_collection_modifyitems(items):
    for item in items:
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU"))


@pytest.fixture(autouse=True)
def full_precision():
    """Products in TF32, which cuDNN uses by default, differ from a processor's in the third
    digit."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before
