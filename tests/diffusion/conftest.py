"""A network that was never trained, as a finished training, and the command that draws from it."""

import json

import pytest

from afterimage import artifacts, config
from afterimage.config import Diffusion, Model
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.plan.resolved import resolve

TINY = Model(channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4)


@pytest.fixture
def model_store(tmp_path):
    """Return a function that stores a finished training of a conditional or plain net."""

    def make(classes: int | None = None, seed: int = 1):
        resolved = {"step": "train", "arm": "plain", "replicate": 0, "seed": 1, "settings": {}}
        scheduler = build_scheduler(Diffusion())
        with artifacts.step(resolved, tmp_path / "model", {}, ("afterimage.seeds",)) as step:
            save_pipeline(
                build_unet(TINY, (8, 8, 1), classes, seed=seed), scheduler, step.folder / "pipeline"
            )
            save_pipeline(
                build_unet(TINY, (8, 8, 1), classes, seed=seed + 1), scheduler, step.folder / "raw"
            )
        return tmp_path / "model"

    return make


@pytest.fixture
def command(tmp_path, params):
    """Return a function that writes a resolved config and gives the command line; keywords are keys
    of ``sample``."""

    def make(model, out: str = "out", arm: str = "baseline", **sample) -> list[str]:
        params["sample"] = {"images": 12, "steps": 2, "batch_size": 5} | sample
        file = tmp_path / f"{out}.json"
        file.write_text(json.dumps(resolve(config.parse(params), "sample", arm, 0)))
        return [
            "sample",
            "draw",
            "--model",
            str(model),
            "--config",
            str(file),
            "--out",
            str(tmp_path / out),
        ]

    return make
