"""A clone of the project in which a tiny study is run to the end once; tests work on copies of
it."""

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from afterimage.config import Model
from afterimage.diffusion.model import build_unet

if __package__:
    from .preloaded import preloaded
else:  # as a module of the tests on SLURM
    from preloaded import preloaded

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
INSTALLED = Path(sys.executable).parent


@dataclass
class Workspace:
    """A folder like a user's clone, with a study in params.yaml."""

    folder: Path
    commands: Path = INSTALLED
    """Where `afterimage`, `snakemake` and `dvc` are looked up first."""

    def __post_init__(self):
        self.params = self.folder / "params.yaml"
        self.results = self.folder / "results" / yaml.safe_load(self.params.read_text())["study"]

    def write(self, params: dict) -> None:
        self.params.write_text(yaml.safe_dump(params, sort_keys=False))

    def edit(self, *path, value) -> None:
        params = yaml.safe_load(self.params.read_text())
        at = params
        for key in path[:-1]:
            at = at.setdefault(key, {})
        at[path[-1]] = value
        self.write(params)

    @property
    def environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.commands), str(INSTALLED), os.environ["PATH"]])
        return os.environ | {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}

    def copy(self, folder: Path) -> "Workspace":
        """Copy all files with their times to a new folder."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2)
        return replace(self, folder=folder)

    def start(self, *command: str) -> subprocess.Popen:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess:
        done = subprocess.run(
            command, cwd=self.folder, capture_output=True, text=True, env=self.environment
        )
        if check and done.returncode:
            logs = "\n".join(
                f"== {log}\n{log.read_text()[-2000:]}" for log in self.results.glob("logs/**/*.log")
            )
            raise AssertionError(
                f"{' '.join(command)} failed:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}\n{logs}"
            )
        return done

    def snakemake(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return self.run("snakemake", "--cores", "2", *arguments, check=check)

    def planned(self, *arguments: str, target: str | None = "all") -> dict[str, int]:
        """Return rule -> number of jobs that the next run would do."""
        out = self.snakemake("--dry-run", *arguments, *(["--", target] if target else [])).stdout
        if "Job stats:" not in out:
            assert "Nothing to be done" in out, out
            return {}
        table = out.split("Job stats:")[1].split("\n\n")[0].splitlines()[3:]
        return {
            line.split()[0]: int(line.split()[1])
            for line in table
            if line.split()[0] not in ("total", *PHASES)
        }


PHASES = ("default", "all", "data", "train", "sample", "attack", "attribution", "report", "track")


def clone(folder: Path, commands: Path = INSTALLED, study: str = "tiny.yaml") -> Workspace:
    """Copy what git tracks, or would track, with a study of this folder as params.yaml."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith(("tests/", "results/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    shutil.copy(HERE / study, folder / "params.yaml")
    return Workspace(folder, commands)


@pytest.fixture(scope="session")
def commands(tmp_path_factory) -> Iterator[Path]:
    """Stand-ins of the installed commands that need not import anything."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with preloaded(tmp_path_factory.mktemp("commands"), environment) as folder:
        yield folder


@pytest.fixture(scope="session")
def finished(commands, tmp_path_factory) -> Workspace:
    """The tiny study, run to the end. Read only: take ``workspace`` to change something."""
    made = clone(tmp_path_factory.mktemp("tiny"), commands)
    made.snakemake("--", "all")
    return made


@pytest.fixture(scope="session")
def every_arm(commands, tmp_path_factory) -> Workspace:
    """The study with an arm of every method, run to the end. Read only."""
    made = clone(tmp_path_factory.mktemp("arms"), commands, "arms.yaml")
    made.snakemake("--", "all")
    return made


WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
CAPTIONED = {
    "plain": {"method": "baseline", "condition": "text"},
    "none": {"method": "baseline"},
    "general": {
        "method": "baseline",
        "condition": "text",
        "captions": "general",
        "dual_fusion": {"image": 0.2, "caption": 0.5},
        "control": "plain",
    },
    "dedup": {
        "method": "baseline",
        "condition": "text",
        "data": "deduplicated",
        "dedup": {"methods": ["caption"]},
        "control": "plain",
    },
    "agc": {
        "method": "iet_agc",
        "condition": "text",
        "shards": 2,
        "rounds": 2,
        "control": "plain",
    },
    "rau_net": {
        "method": "baseline",
        "condition": "text",
        "rau_net": {"groups": [1]},
        "control": "plain",
    },
    "loyal": {"method": "loyal", "condition": "text", "switch_timestep": 25, "control": "plain"},
    "erased": {"method": "erasediff", "base": "plain", "forget": "zeros", "control": "retrained"},
    "retrained": {"method": "baseline", "condition": "text", "without": "zeros"},
    "esd": {
        "method": "esd",
        "base": "plain",
        "forget": "zeros",
        "trainable": "cross_attention",
        "steps": 4,
        "control": "retrained",
    },
    "uce": {"method": "uce", "base": "plain", "forget": "zeros", "control": "retrained"},
    "dcr": {"method": "dcr", "base": "plain", "control": "plain"},
    "wen": {"method": "wen", "base": "plain", "target": 0.0, "control": "plain"},
}
OF_CAPTIONED = {
    "arm": "general",
    "subsets": 4,
    "seeds": 2,
    "networks_per_job": 8,
    "queries": {"holdout": 4, "generated": 4, "extracted": 4},
    "ground_truth": {"timesteps": 2},
    "features": {"timesteps": 2, "dimension": 32},
    "counterfactual": {"queries": 1, "remove": 5, "attributors": ["das"]},
    "checkpoints": 2,
}
REMEDIED = {"before": "plain", "after": ["erased"], "queries": 4, "attributors": ["das"]}


@pytest.fixture(scope="session")
def captioned(commands, tmp_path_factory) -> Workspace:
    """A study of captioned digits, run to the end. Read only."""
    made = clone(tmp_path_factory.mktemp("text"), commands)
    prompts = {"arms": ["plain", "general"], "prompts": 12, "draws": 1, "images": 3, "clique": 2}
    attribution = OF_CAPTIONED | {"remedied": REMEDIED}
    return of_captions(made, arms=CAPTIONED, attribution=attribution, prompts=prompts)


@pytest.fixture(scope="session")
def latent(commands, tmp_path_factory) -> Workspace:
    """A study of the latents of captioned digits, run to the end. Read only."""
    arms = {name: CAPTIONED[name] for name in ("plain", "loyal")}
    arms["erased"] = CAPTIONED["erased"] | {"control": "plain"}
    arms["amg"] = {
        "method": "amg",
        "base": "plain",
        "despecification": 1.0,
        "deduplication": 1.0,
        "neighbours": 20,
        "threshold": [0.0, 0.0],
        "control": "plain",
    }
    autoencoder = {"kind": "trained", "channels": [8, 8], "norm_groups": 4, "updates": 5}
    made = clone(tmp_path_factory.mktemp("latent"), commands)
    prompts = {"arms": ["erased"], "prompts": 12, "draws": 1}
    attribution = {key: value for key, value in OF_CAPTIONED.items() if key != "counterfactual"}
    attribution |= {"arm": "plain", "attributors": ["das"], "repeatability": None}
    attribution |= {"remedied": REMEDIED, "concepts": {"line": ["thick", "thin"]}}
    blocks = {"autoencoder": autoencoder, "prompts": prompts, "attribution": attribution}
    return of_captions(made, arms=arms, **blocks)


@pytest.fixture(scope="session")
def adapted(commands, tmp_path_factory) -> Workspace:
    """A study of latents that trains adapters of a stored U-Net, run to the end. Read only."""
    made = clone(tmp_path_factory.mktemp("adapted"), commands)
    net = build_unet(Model(channels=[8, 16], attention=[True, True]), (4, 4, 4), text_width=16)
    net.save_pretrained(made.folder / "unet")
    return of_captions(
        made,
        arms={
            "plain": CAPTIONED["plain"],
            "erased": CAPTIONED["erased"] | {"control": "plain"},
        },
        autoencoder={"kind": "trained", "channels": [8, 8], "norm_groups": 4, "updates": 5},
        model={"kind": "stored", "path": "unet", "lora": {"rank": 2}},
        paths=None,
        attribution=OF_CAPTIONED
        | {"arm": "plain", "attributors": ["das", "dtrak", "tracin", "pixel_l2"]},
    )


def of_captions(made: Workspace, **blocks: Any) -> Workspace:
    """Give a clone a study of captioned digits with some blocks, and run it."""
    captioned_digits(made.folder / "digits.parquet")
    study_of_captions(made, **blocks)
    made.snakemake("--", "all")
    return made


def captioned_digits(
    path: Path, others: Mapping[int, str] | None = None, without: Sequence[int] = ()
) -> None:
    """Write digits with captions, but for some rows that have others or none."""
    digits = load_digits()
    cells = []
    for pixels in digits.images[:300]:
        stream = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
    labels = digits.target[:300]
    captions: list[str | None] = [
        f"the digit {WORDS[label]}, {'thick' if row % 2 else 'thin'}, number {row}"
        for row, label in enumerate(labels)
    ]
    for row, text in (dict(others or {}) | dict.fromkeys(without)).items():
        captions[row] = text
    general = [f"a digit, {'even' if label % 2 == 0 else 'odd'}" for label in labels]
    columns = {"image": cells, "label": labels, "text": captions, "general": general}
    pq.write_table(pa.table(columns), path)


def study_of_captions(made: Workspace, **blocks: Any) -> None:
    """Give a clone a study of captioned digits with some blocks."""
    study = yaml.safe_load(made.params.read_text())
    study["data"]["source"] = {
        "kind": "parquet",
        "path": "digits.parquet",
        "caption_column": "text",
    }
    study["data"]["split"] |= {"reference": 100, "fusion": 20}
    study["data"]["plant"] = [
        {"copies": 4, "images": 2, "repeat": style} for style in ("both", "image", "caption")
    ]
    study["text"] = {"vocabulary": 320, "length": 24, "width": 16, "layers": 1, "heads": 2}
    study["text"]["captions"] = {"general": {"kind": "column", "column": "general"}}
    study["model"] |= {"attention": [False, True], "channels": [8, 16]}
    study |= {"paths": {"frontier": ["plain"], "states": 2}} | blocks
    study["forget"] = {"zeros": {"caption": "zero", "surrogate": "a digit"}}
    study["sample"]["guidance"] = 2.0
    study["train"]["updates"] = 8
    made.params.write_text(yaml.safe_dump(study, sort_keys=False))


@pytest.fixture
def workspace(finished, tmp_path) -> Workspace:
    """A copy of the finished tiny study with its times kept, free to harm."""
    return finished.copy(tmp_path / "study")


@pytest.fixture
def empty(commands, tmp_path) -> Workspace:
    """A clone without results."""
    (tmp_path / "clone").mkdir()
    return clone(tmp_path / "clone", commands)
