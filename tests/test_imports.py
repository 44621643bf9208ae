"""What the verbs of the command line import: looked at after each, in a process for verbs alike."""

from __future__ import annotations

import subprocess
import sys

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

for argv in {argvs}:
    try:
        main(argv)
    except SystemExit:
        pass
    print("IMPORTED", *filter(is_imported, {names}))
{work}
print("IMPORTED", *filter(is_imported, {names}))
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


def imported(verbs: list[str], names: list[str], work: str = "") -> list[list[str]]:
    """Return which of the modules ``names`` are imported after each of ``verbs`` was called with
    --help, in the same process, and, last, after ``work`` was done."""
    argvs = [[*verb.split(), "--help"] for verb in verbs]
    code = LOOK.format(argvs=argvs, names=names, work=work)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("IMPORTED")]
    assert len(lines) == len(verbs) + 1
    return [modules for _, *modules in lines]


def test_the_verbs_named_here_are_there():
    verbs = {f"{phase} {verb}" for phase, named in COMMANDS.items() for verb in named} | {*SINGLE}
    assert verbs >= {*LIGHT, *NETWORKS}


def test_light_verbs_import_nothing_heavy():
    heavy = ["torch", "diffusers", "pandas", "scipy", "sklearn", "faiss", "matplotlib", "mlflow"]
    *after, _ = imported(LIGHT, heavy)
    assert dict(zip(LIGHT, after, strict=True)) == {verb: [] for verb in LIGHT}


def test_verbs_that_open_networks_do_not_import_compilers():
    names = ["torch", "torch._dynamo", "torch._inductor", "sympy", "matplotlib", "mlflow", "opacus"]
    names += ["transformers", "peft"]
    *after, _ = imported(NETWORKS, names)
    assert dict(zip(NETWORKS, after, strict=True)) == {verb: ["torch"] for verb in NETWORKS}


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
    assert imported(["train run"], names, TRAINING)[-1] == ["torch"]
