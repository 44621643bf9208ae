"""A toy method and a toy attack, added through the files that CONTRIBUTING lists and no other."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
import yaml

from .conftest import INSTALLED
from .preloaded import preloaded

pytestmark = pytest.mark.slow

COPIED = ("Snakefile", "workflow", "profiles", "src", "notebooks", "params.yaml", "dvc.yaml")

METHOD = '''"""A toy: plain training at half the learning rate."""

from dataclasses import replace

from afterimage.methods import baseline
from afterimage.training.job import Trained, TrainingRun


def train(run: TrainingRun) -> Trained:
    """Train ``run.net``."""
    slow = run.train.model_copy(update={"learning_rate": run.train.learning_rate / 2})
    return baseline.train(replace(run, train=slow))
'''

BLOCK = '''class Slow(Arm):
    """A toy method."""

    method: Literal["slow"]

    module: ClassVar[str] = "afterimage.methods.slow"
    follows_budget: ClassVar[bool] = True

    def passes(self, updates: int, batch_size: int, timesteps: int) -> Passes:
        return Passes(updates)


AnyArm = Annotated[
    Slow | Baseline'''

ATTACK = '''"""A toy: how many generations there are."""

import argparse
from pathlib import Path

import pandas as pd

from afterimage import artifacts
from afterimage.attacks.table import COLUMNS
from afterimage.images import load_images


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's flags."""
    for flag in ("samples", "config", "out"):
        parser.add_argument(f"--{flag}", type=Path, required=True)


def run(args: argparse.Namespace) -> None:
    """Count."""
    resolved = artifacts.read_config(args.config, "attack/census")
    with artifacts.step(resolved, args.out, {"samples": args.samples}, (__name__,)) as step:
        count = len(load_images(args.samples)) * resolved["settings"]["weight"]
        row = dict.fromkeys(COLUMNS, "none") | {"metric": "census", "count": count, "value": count}
        table = pd.DataFrame([row], columns=COLUMNS)
        table.to_csv(step.folder / "results.csv", index=False)
'''

STEP = """STEPS = (
    Step(
        name="attack/census",
        verb="census",
        module="afterimage.attacks.census",
        help="count the generations",
        folder=FOLDER + "census",
        keys=("census",),
        settings=lambda study, job: study.census.model_dump(mode="json"),
        inputs=lambda study, job: {
            "samples": f"sample/{job.arm}/rep{job.replicate}/images.npz"
        },
        addresses=per_replicate,
    ),
"""

RULE = '''rule census:
    """A toy attack."""
    input:
        unpack(inputs("attack/census")),
    output:
        run="results/{study}/attack/{arm}/rep{rep}/census/run.json",
        results="results/{study}/attack/{arm}/rep{rep}/census/results.csv",
    log:
        "results/{study}/logs/attack/{arm}/rep{rep}/census.log",
    resources:
        **needs("attack/census"),
    params:
        inputs=flags("attack/census"),
        out=subpath(output.run, parent=True),
    shell:
        "afterimage attack census {params.inputs} --config {input.config:q} --out {params.out:q} > {log:q} 2>&1"


rule attack:
'''

FIELD = '''class Census(Block):
    """A toy attack."""

    weight: int = 1
    """What a generation counts."""


class Attacks(Block):
    """The blocks of the attacks on every arm; a new attack adds its block here."""

    census: Census = Census()
    """The toy."""
'''

OLD_ATTACKS = FIELD.split("\n\n\n")[1].split("\n\n    census")[0] + "\n"

# What is added -> file -> (text that is there, text in its place); no text: a new file.
ADDITIONS = {
    "a method": {
        "src/afterimage/config/arms.py": ("AnyArm = Annotated[\n    Baseline", BLOCK),
        "src/afterimage/methods/slow.py": (None, METHOD),
    },
    "an attack": {
        "src/afterimage/config/measures.py": (OLD_ATTACKS, FIELD),
        "src/afterimage/attacks/census.py": (None, ATTACK),
        "src/afterimage/plan/attack.py": ("STEPS = (\n", STEP),
        "workflow/rules/attack.smk": ("rule attack:\n", RULE),
    },
}
MOST = {"a method": 3, "an attack": 4}


def listed(root: Path) -> dict[str, set[str]]:
    """Return what CONTRIBUTING says of each addition: its files, with ``<name>`` for the toy's."""
    rows = re.findall(r"^\| (an? [\w ]+) \| (.+?) \|", (root / "CONTRIBUTING.md").read_text(), re.M)
    return {what: set(re.findall(r"`((?:src|workflow)/[^`]+)`", files)) for what, files in rows}


@pytest.mark.parametrize(("what", "name"), [("a method", "slow"), ("an attack", "census")])
def test_contributing_lists_these_files(root, what, name):
    files = {path.replace(f"/{name}.", "/<name>.") for path in ADDITIONS[what]}
    assert files == listed(root)[what]
    assert len(files) <= MOST[what]


@pytest.fixture
def extended(root, tmp_path):
    """A copy of the project with both additions."""
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path)
    for files in ADDITIONS.values():
        for name, (old, new) in files.items():
            path = tmp_path / name
            if old is None:
                path.write_text(new)
            else:
                text = path.read_text()
                assert text.count(old) == 1, (name, old)
                path.write_text(text.replace(old, new))
    return tmp_path


@pytest.fixture
def environment(extended, tmp_path_factory):
    """Commands that run that copy."""
    variables = os.environ | {"PYTHONPATH": str(extended / "src"), "OMP_NUM_THREADS": "1"}
    with preloaded(tmp_path_factory.mktemp("commands"), variables) as commands:
        path = os.pathsep.join([str(commands), str(INSTALLED), os.environ["PATH"]])
        yield variables | {"PATH": path}


def test_what_is_added_takes_part_in_everything(root, extended, environment):
    study = yaml.safe_load((root / "tests" / "workflow" / "tiny.yaml").read_text())
    study |= {"arms": {"baseline": {"method": "baseline"}, "slow": {"method": "slow"}}}
    (extended / "params.yaml").write_text(yaml.safe_dump(study | {"census": {"weight": 2}}))

    def run(*command: str) -> str:
        done = subprocess.run(
            command, cwd=extended, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run("snakemake", "--cores", "2", "--", "attack", "results/tiny/report/tables/run.json")
    tables = extended / "results" / "tiny" / "report" / "tables"
    census = pd.read_csv(tables / "census.csv").set_index("arm")
    assert census["count"].to_dict() == {"baseline": 80, "slow": 80}
    assert set(pd.read_csv(tables / "arms.csv").arm) == {"baseline", "slow"}
    assert "0 problem(s)" in run("afterimage", "verify", "attack")
    assert "count the generations" in run("afterimage", "attack", "census", "--help")
    run("afterimage", "config", "dvc")
    stages = yaml.safe_load((extended / "dvc.yaml").read_text())["stages"]
    assert "census" in stages["attack"]["params"]
