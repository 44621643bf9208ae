"""Arms of a replicate share their random numbers, replicates do not, and stores hold what they say."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from afterimage import cli, config, seeds
from afterimage.config import Baseline, Model
from afterimage.diffusion.model import build_unet
from afterimage.training.job import stream_path


def weights(folder: Path) -> dict[str, torch.Tensor]:
    [file] = (folder / "unet").glob("*.safetensors")
    return load_file(file)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    squares = sum((one[name] - other[name]).double().square().sum() for name in one)
    return float(squares) ** 0.5


@pytest.fixture
def trained(study, tmp_path):
    """Return a function that trains one replicate of an arm by the command line."""

    def run(out: str, arm: dict | None = None, replicate: int = 0, **train) -> Path:
        command = study(arm, tmp_path, out, **({"updates": 3} | train))
        file = tmp_path / f"{out}.json"
        resolved = json.loads(file.read_text()) | {"replicate": replicate, "arm": out}
        file.write_text(json.dumps(resolved))
        command[command.index("--state") + 1] = str(tmp_path / f"state of {out}")
        assert cli.main(command) == 0
        return tmp_path / out

    return run


def test_one_shard_without_skipping_is_the_baseline_inside_a_study(trained):
    """IET-AGC with K = 1 and lambda = 0, as another arm, has the same bits."""
    alone = {"method": "iet_agc", "shards": 1, "rounds": 1, "agc_threshold": 0}
    plain, ensemble = trained("plain"), trained("ensemble", alone)
    for folder in ("raw", "pipeline"):
        assert equal(weights(plain / folder), weights(ensemble / folder))


def test_replicates_differ_and_a_replicate_repeats(trained):
    first, again, second = trained("a"), trained("b"), trained("c", replicate=1)
    assert equal(weights(first / "raw"), weights(again / "raw"))
    assert not equal(weights(first / "raw"), weights(second / "raw"))


def test_networks_with_blocks_start_from_the_same_weights(trained):
    """One update at a rate of 1e-30 moves no weight visibly; the blocks are further weights."""
    plain = trained("plain", updates=1, learning_rate=1e-30)
    blocks = trained("blocks", {"rau_net": {"groups": [1]}}, updates=1, learning_rate=1e-30)
    shared, more = weights(plain / "raw"), weights(blocks / "raw")
    assert shared.keys() < more.keys()
    assert distance(shared, more) < 1e-25


@pytest.mark.parametrize(
    "other", [{"data": "deduplicated"}, {"without": "zeros"}, {"fraction": 0.5}, {"base": "plain"}]
)
def test_other_images_or_another_start_have_other_streams(other):
    arm = Baseline(method="baseline")
    assert stream_path(arm, 0) != stream_path(Baseline(method="baseline", **other), 0)


def test_raw_holds_the_last_weights_and_the_pipeline_their_average(trained, params):
    """After one update the average has moved half as far from the start as the network."""
    out = trained("plain", updates=1, ema=0.5)
    settings = json.loads((out / "run.json").read_text())["config"]
    study = config.parse(params)
    seed = seeds.derive(settings["seed"], *stream_path(study.arms["plain"], 0), "init")
    start = build_unet(Model.model_validate(settings["settings"]["model"]), (8, 8, 1), seed=seed)
    initial = dict(start.state_dict())
    moved = distance(weights(out / "raw"), initial)
    assert moved > 0
    assert distance(weights(out / "pipeline"), initial) == pytest.approx(moved / 2, rel=1e-3)
