"""What the verbs of the command line import: each in a process of its own, looked at when it
ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from afterimage.cli import COMMANDS, SINGLE

LIGHT = [
    "config check",
    "config schema",
    "data fetch",
    "report page",
    "track import",
    "cluster simulate",
    "status",
    "verify",
    "adopt",
    "recover",
]
NETWORKS = ["train run", "sample draw", "attack membership", "attack forgetting"]
LOOK = """
import sys
from types import ModuleType
from afterimage.cli import main

def is_imported(name):
    return type(sys.modules.get(name)) is ModuleType

try:
    main({argv})
except SystemExit:
    pass
{work}
print(*filter(is_imported, {names}))
"""
TRAINING = """
import importlib, tempfile, torch
from afterimage.config import METHODS, Diffusion, Model
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.training.determinism import same_bits
importlib.import_module(METHODS["baseline"])
same_bits()
net = build_unet(
    Model(channels=[8], attention=[False], norm_groups=4), (8, 8, 1), None, seed=0
)
optimizer = torch.optim.AdamW(net.parameters(), fused=True)
net(torch.zeros(1, 1, 8, 8), 0).sample.sum().backward()
optimizer.step()
optimizer.state_dict()
with tempfile.TemporaryDirectory() as folder:
    save_pipeline(net, build_scheduler(Diffusion(timesteps=10)), folder)
"""


def imported(verb: str, names: list[str], work: str = "") -> list[str]:
    """Return which of the modules ``names`` are imported after ``verb`` was called with --help and
    ``work`` done."""
    code = LOOK.format(argv=[*verb.split(), "--help"], names=names, work=work)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    return done.stdout.splitlines()[-1].split()


def test_the_verbs_named_here_are_there():
    verbs = {f"{phase} {verb}" for phase, named in COMMANDS.items() for verb in named} | {*SINGLE}
    assert verbs >= {*LIGHT, *NETWORKS}


@pytest.mark.parametrize("verb", LIGHT)
def test_light_verbs_import_nothing_heavy(verb):
    heavy = ["torch", "diffusers", "pandas", "scipy", "sklearn", "faiss", "matplotlib", "mlflow"]
    assert imported(verb, heavy) == []


@pytest.mark.parametrize("verb", NETWORKS)
def test_verbs_that_open_networks_do_not_import_compilers(verb):
    names = ["torch", "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "mlflow", "opacus"]
    assert imported(verb, names) == ["torch"]


def test_a_training_imports_nothing_that_it_does_not_need():
    names = [
        "torch",
        "torch._dynamo",
        "torch._inductor",
        "scipy.stats",
        "scipy.integrate",
        "scipy.optimize",
        "sklearn",
        "faiss",
        "opacus",
        "matplotlib",
        "mlflow",
    ]
    assert imported("train run", names, TRAINING) == ["torch"]
