"""The distribution: every imported package is declared, and `audit` and `attribute` need none of
the engines."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from afterimage import provenance
from afterimage.config import ATTRIBUTORS

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
FOLDERS = {"src": (), "workflow": (), "notebooks": (), "benchmarks": ("dev",), "tests": ("dev",)}
"""Folder -> dependency groups that its code may use besides the package's dependencies and
extras."""


def names(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts}


def imported(path: Path) -> set[str]:
    """Return the top-level names that a Python file or a rule file imports anywhere."""
    text = path.read_text()
    if path.suffix != ".py":  # rules are not Python to the parser
        return set(re.findall(r"^\s*(?:import|from)\s+(\w+)", text, re.MULTILINE))
    modules = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            modules.add(node.module)
    return {module.split(".")[0] for module in modules}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_imported_package_is_declared(folder: str) -> None:
    declared = names(PROJECT["dependencies"])
    for extra in PROJECT["optional-dependencies"].values():
        declared |= names(extra)
    for group in FOLDERS[folder]:
        declared |= names(PYPROJECT["dependency-groups"][group])
    files = [
        path
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".smk") or path.name == "Snakefile"
    ]
    assert files
    owners = packages_distributions()
    undeclared = {}
    for path in files:
        siblings = {file.stem for file in path.parent.glob("*.py")}
        for module in imported(path) - set(sys.stdlib_module_names) - siblings - {"afterimage"}:
            if not {canonicalize_name(name) for name in owners.get(module, [module])} & declared:
                undeclared[str(path.relative_to(ROOT))] = module
    assert undeclared == {}


def test_results_record_the_version_of_the_distribution() -> None:
    """The name `afterimage` on the package index is another project's."""
    assert PROJECT["name"] == "afterimage-diffusion"
    assert PROJECT["name"] in provenance.environment()["versions"]
    assert "afterimage" not in provenance.environment()["versions"]


def test_the_engines_are_no_dependency_of_the_core() -> None:
    core, workflow = (
        names(PROJECT["dependencies"]),
        names(PROJECT["optional-dependencies"]["workflow"]),
    )
    assert core & workflow == set()
    assert {
        "snakemake",
        "dvc",
        "mlflow",
        "papermill",
        "nbconvert",
        "jupytext",
        "ipython",
    } <= workflow


def closure(texts: list[str]) -> set[str]:
    """Return the names of all installed distributions that requirements bring along, themselves
    included."""
    waiting, seen = [Requirement(text) for text in texts], set()
    while waiting:
        requirement = waiting.pop()
        for extra in ("", *requirement.extras):
            key = (canonicalize_name(requirement.name), extra)
            if key not in seen:
                seen.add(key)
                wanted = map(Requirement, distribution(requirement.name).requires or [])
                waiting += [
                    r for r in wanted if r.marker is None or r.marker.evaluate({"extra": extra})
                ]
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Surroundings in which Python sees the core dependencies and what they need, and nothing else
    that is installed."""
    site = tmp_path_factory.mktemp("core")
    for name in closure(PROJECT["dependencies"]):
        found = distribution(name)
        for top in {
            file.parts[0]
            for file in found.files or []
            if file.parts[0] not in ("..", "__pycache__")
        }:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(found.locate_file(top))).resolve())
    return {**os.environ, "PYTHONPATH": f"{provenance.PACKAGE.parent}{os.pathsep}{site}"}


def in_core(core: dict[str, str], *arguments: str, folder: Path) -> str:
    """Run the interpreter without its own site-packages; return what it printed."""
    command = [sys.executable, "-S", *arguments]
    done = subprocess.run(command, env=core, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_core_is_without_the_engines(core: dict[str, str], tmp_path: Path) -> None:
    """The other tests of this file mean nothing where this one fails."""
    program = "import importlib.util as u, sys; print([name for name in sys.argv[1:] if u.find_spec(name)])"
    engines = [
        "snakemake",
        "dvc",
        "mlflow",
        "papermill",
        "nbconvert",
        "jupytext",
        "IPython",
        "opacus",
        "pytest",
    ]
    assert in_core(core, "-c", program, *engines, "torch", folder=tmp_path) == "['torch']\n"


def test_every_module_of_audit_and_attribute_imports_in_the_core(
    core: dict[str, str], tmp_path: Path
) -> None:
    entries = (
        "afterimage.standalone.audit",
        "afterimage.standalone.attribute",
        "afterimage.standalone.watch",
        *ATTRIBUTORS.values(),
    )
    config = [
        f"afterimage.config.{path.stem}"
        for path in (provenance.PACKAGE / "config").glob("[a-z]*.py")
    ]
    modules = ["afterimage.cli", *config, *provenance.modules_of(*entries)]
    assert len(modules) > 60
    in_core(
        core,
        "-c",
        "import importlib, sys; [importlib.import_module(m) for m in sys.argv[1:]]",
        *modules,
        folder=tmp_path,
    )


PREPARE = """
from pathlib import Path
import numpy as np
from diffusers import UNet2DModel
from sklearn.datasets import load_digits
from afterimage.config import Diffusion
from afterimage.diffusion.model import build_scheduler, save_pipeline

digits = np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]
for name, rows in {"train": slice(0, 40), "samples": slice(30, 50), "unseen": slice(60, 100)}.items():
    np.savez(f"{name}.npz", images=digits[rows])
blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "block_out_channels": (4, 8)}
net = UNet2DModel(sample_size=8, in_channels=1, out_channels=1, norm_num_groups=4, layers_per_block=1, **blocks)
save_pipeline(net, build_scheduler(Diffusion()), Path("pipeline"))
"""


@pytest.mark.slow
def test_audit_and_attribute_run_in_the_core(core: dict[str, str], tmp_path: Path) -> None:
    in_core(core, "-c", PREPARE, folder=tmp_path)
    sets = [
        "--train",
        "train.npz",
        "--holdout",
        "unseen.npz",
        "--features",
        "pixels",
        "--show-images",
    ]
    in_core(
        core,
        "-m",
        "afterimage.cli",
        "audit",
        "--samples",
        "samples.npz",
        *sets,
        "--out",
        "audit",
        folder=tmp_path,
    )
    assert (tmp_path / "audit" / "audit.html").stat().st_size > 1000
    flags = ["--timesteps", "2", "--dimension", "16", "--show-images", "--out", "attributed"]
    sets = ["--pipeline", "pipeline", "--train", "train.npz", "--queries", "samples.npz"]
    in_core(core, "-m", "afterimage.cli", "attribute", *sets, *flags, folder=tmp_path)
    assert (tmp_path / "attributed" / "scores.safetensors").stat().st_size > 0


def test_a_missing_package_is_reported_with_its_extra(core: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "needs_the_extra.py").write_text("import snakemake\n")
    program = (
        "import sys; from afterimage import cli;"
        "cli.COMMANDS['data']['toy'] = ('needs_the_extra', 'a toy');"
        "sys.exit(cli.main(['data', 'toy']))"
    )
    command = [sys.executable, "-S", "-c", program]
    done = subprocess.run(command, env=core, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "afterimage: error: snakemake is not installed; studies need the extra `workflow`: pip "
        "install '.[workflow]'"
    ]
