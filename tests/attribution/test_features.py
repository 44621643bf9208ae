"""``afterimage attribution features``: blocks of one network's features, and what may be put
together again."""

import argparse
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import UNet2DModel
from safetensors.numpy import load_file, save_file

from afterimage import artifacts, config, scratch
from afterimage.artifacts import ArtifactError
from afterimage.attribution import features
from afterimage.attribution.consistency import read_features
from afterimage.attribution.gradients import compute
from afterimage.attribution.queries import SETS
from afterimage.config import Diffusion, Features
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.sample import load_denoiser
from afterimage.images import Images
from afterimage.plan.resolved import resolve

MODEL = {"channels": [8], "attention": [False], "layers_per_block": 1, "norm_groups": 4}
SMALL = {"timesteps": 2, "dimension": 16, "batch_size": 1}
TRAINED = np.arange(9) % 4 < 3
NETWORKS = {
    "final/ema": "pipeline",
    "final/raw": "raw",
    "state1/ema": "states/state1/pipeline",
    "state1/raw": "states/state1/raw",
}
READOUTS = ("mean", "l1", "square", "loss")


@pytest.fixture
def command(params, images, tmp_path):
    """Return a function that writes inputs and gives the arguments of a job: 7 of 9 digits trained
    on, four different networks."""

    def make(
        job: str,
        out: str = "",
        weights: str = "ema",
        images_per_job: int = 3,
        few=None,
        replicate: int = 0,
        **settings,
    ):
        params["sample"]["weights"] = weights
        own = {"arm": "baseline", "attributors": ["trak", "tracin"], "features": SMALL | settings}
        params.update(attribution=own | {"images_per_job": images_per_job})
        if few:
            params["attribution"]["repeatability"] = few
        out = out or job.replace("/", "-")
        (tmp_path / f"{out}.json").write_text(
            json.dumps(resolve(config.parse(params), "attribution/features", None, replicate, job))
        )
        given = {
            "model": inputs,
            "train": inputs / "train.npz",
            "members": inputs / "members.parquet",
            "queries": inputs,
        }
        given |= {"config": tmp_path / f"{out}.json", "out": tmp_path / out}
        parser = argparse.ArgumentParser()
        features.arguments(parser)
        return parser.parse_args(
            [text for name, path in given.items() for text in (f"--{name}", str(path))]
        )

    inputs = tmp_path / "inputs"
    with artifacts.step({"step": "data/split"}, inputs, {}, ("afterimage.seeds",)) as step:
        train = images.take(np.arange(9))
        train.save(step.folder / "train.npz")
        pd.DataFrame({"id": train.ids, "trained": TRAINED}).to_parquet(
            step.folder / "members.parquet"
        )
        for name, rows in (("holdout", [9, 10, 11]), ("generated", [12, 13]), ("extracted", [])):
            images.take(np.array(rows, int)).save(step.folder / f"{name}.npz")
        for number, folder in enumerate(NETWORKS.values()):
            net = build_unet(config.Model.model_validate(MODEL), (8, 8, 1), seed=number)
            save_pipeline(net, build_scheduler(Diffusion()), step.folder / folder)
    return make


def made(args: argparse.Namespace) -> dict[str, np.ndarray]:
    features.run(args)
    return load_file(args.out / "features.safetensors")


def opened(args: argparse.Namespace, network: str) -> tuple[UNet2DModel, dict]:
    return load_denoiser(args.model / NETWORKS[network])


@pytest.mark.parametrize("network", NETWORKS)
def test_a_block_holds_what_its_network_makes_of_the_images_trained_on(network, command, images):
    """All readouts of the trained network; of an earlier state the loss alone. Nothing depends on
    the other blocks."""
    name, weights = network.split("/")
    args = command(f"main/{name}/1", weights=weights)
    found = made(args)
    net, scheduler = opened(args, network)
    members = images.take(np.arange(9)[TRAINED][3:6])
    seed = json.loads(args.config.read_text())["seed"]
    readouts = [*READOUTS, "probe"] if name == "final" else ["loss"]
    expected = compute.project_gradients(
        net,
        task_of(net, scheduler, members),
        members.ids,
        "train",
        Features(**SMALL),
        readouts,
        seed,
    )
    wanted = expected.features | (
        {"rows": expected.rows, "residual": expected.residual} if name == "final" else {}
    )
    assert found.keys() == {f"train/{key}" for key in wanted}
    for key, values in wanted.items():
        assert found[f"train/{key}"].dtype == np.float32
        np.testing.assert_array_equal(found[f"train/{key}"], values, err_msg=key)
    assert artifacts.check_store(args.out)["facts"] == {"images": {"train": 3}}


def test_replicates_have_their_own_noise_and_projection(command):
    first, again, other = (
        made(command("main/final/0", name, replicate=k))
        for name, k in (("one", 0), ("again", 0), ("other", 1))
    )
    for name, values in first.items():
        np.testing.assert_array_equal(again[name], values)
        assert not np.isclose(other[name], values).any(), name


def test_blocks_together_are_one_large_block(command):
    """Three blocks of 3, 3 and 1 images, bit for bit: with a batch size of 1 no sum changes its
    order."""
    whole = made(command("main/final/0", "whole", images_per_job=100))
    blocks = [command(f"main/final/{at}") for at in range(3)]
    assert [len(made(args)["train/loss"]) for args in blocks] == [3, 3, 1]
    together = read_features([args.out for args in blocks])
    assert together.keys() == whole.keys()
    for name, values in whole.items():
        np.testing.assert_array_equal(together[name], values, err_msg=name)
    assert len(np.unique(whole["train/loss"], axis=0)) == 7


def test_the_first_block_has_all_sets_of_queries(command, images):
    """An empty set has features of no images. Each set has noise of its own. Other blocks do not
    depend on the queries."""
    args = command("main/final/0")
    found = made(args)
    names = [*READOUTS, *(f"{name}/normalised" for name in READOUTS), "rows", "residual"]
    assert found.keys() == {f"{part}/{name}" for part in ("train", *SETS) for name in names}
    sizes = {"train": 3, "holdout": 3, "generated": 2, "extracted": 0}
    for part, size in sizes.items():
        assert found[f"{part}/loss"].shape == (size, 16)
        assert found[f"{part}/rows"].shape == (size, 2, 16)
        assert found[f"{part}/residual"].shape == (size,)
    net, scheduler = opened(args, "final/ema")
    seed = json.loads(args.config.read_text())["seed"]
    few = images.take(np.array([12, 13]))
    expected = compute.project_gradients(
        net, task_of(net, scheduler, few), few.ids, "generated", Features(**SMALL), READOUTS, seed
    )
    np.testing.assert_array_equal(found["generated/loss"], expected.features["loss"])
    run = artifacts.check_store(args.out)
    assert run["facts"] == {"images": sizes}
    assert run["inputs"].keys() == {"model", "train", "members", *SETS}
    later = command("main/final/1")
    later.queries = None
    features.run(later)
    assert artifacts.check_store(later.out)["inputs"].keys() == {"model", "train", "members"}
    args.queries = None
    with pytest.raises(ArtifactError, match=r"--queries is missing: block 0 of .* has the queries"):
        features.run(args)


def test_a_repeat_is_of_the_first_images_with_noise_and_probes_drawn_anew(command, images):
    """Of each set of queries, and of the images trained on; the noise of timesteps shared by all
    images is drawn anew, too."""
    few = {"images": 2, "queries": 1}
    for noise in ("per_image", "shared"):
        again = made(command("main/repeat/0", f"r {noise}", few=few, noise=noise))
        counts = {"train": 2, "holdout": 1, "generated": 1, "extracted": 0}
        assert {name: len(again[f"{name}/loss"]) for name in counts} == counts
        first = made(command("main/final/0", f"f {noise}", noise=noise))
        assert first.keys() == again.keys()
        for name, values in again.items():
            count = counts[name.partition("/")[0]]
            assert len(values) == count
            assert not count or not np.allclose(values, first[name][:count]), name
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(again["train/loss"], again["generated/loss"])


def test_without_rows_only_means_are_stored(command):
    found = made(command("main/final/0", rows=False))
    assert found["train/rows"].shape == (3, 0, 16)
    assert np.abs(found["train/square"]).max() > 0


def test_inputs_that_changed_since_they_were_written_are_refused(command):
    args = command("main/final/0")
    for name in (
        "raw/unet/diffusion_pytorch_model.safetensors",
        "members.parquet",
        "pipeline/unet/config.json",
    ):
        with (args.model / name).open("ab") as stream:
            stream.write(b" ")
        if name.startswith("raw"):
            assert len(made(args)["train/loss"]) == 3  # these weights are not used
        else:
            with pytest.raises(ArtifactError, match=f"{name} is not the file"):
                features.run(args)


# ---- putting stores together ---------------------------------------------------------------------

SETTINGS = {
    "features": SMALL,
    "network": "final",
    "block": 0,
    "images_per_job": 3,
    "weights": "ema",
    "journey": None,
}


@pytest.fixture
def store(tmp_path):
    """Return a function that writes a store with given tensors, as the verb would leave it."""

    def make(
        name: str,
        tensors: dict,
        model: bytes = b"net",
        seed: int = 1,
        code: str = "afterimage.seeds",
        **changes,
    ) -> Path:
        file, images = tmp_path / f"{name}.model", tmp_path / "images"
        file.write_bytes(model)
        images.write_bytes(b"images")
        resolved = {"step": features.STEP, "seed": seed, "settings": SETTINGS | changes}
        inputs = {"model": file, "train": images, "members": images}
        with artifacts.step(resolved, tmp_path / name, inputs, (code,)) as step:
            save_file(tensors, step.folder / "features.safetensors")
        return tmp_path / name

    return make


def block(*values: float) -> dict[str, np.ndarray]:
    return {"train/loss": np.array(values, np.float32)[:, None]}


def test_blocks_are_put_together_in_order(store):
    """Queries, which may have a journey, come with the first block alone."""
    queries = {
        "holdout/loss": np.ones((2, 1), np.float32),
        "extracted/loss": np.zeros((0, 1), np.float32),
        "generated/journey": np.ones((2, 1), np.float32),
    }
    first = store("0", block(1, 2) | queries, journey={"steps": 50})
    stores = [first, store("1", block(3), block=1)]
    found = read_features(stores)
    assert found.keys() == {"train/loss", *queries}
    assert found["train/loss"].ravel().tolist() == [1, 2, 3]
    assert found["holdout/loss"].shape == (2, 1)
    assert found["extracted/loss"].shape == (0, 1)
    for given in (stores[::-1], stores[1:], [*stores, stores[0]]):
        with pytest.raises(ArtifactError, match="blocks must come in order from 0, each once"):
            read_features(given)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"features": SMALL | {"dimension": 32}}, "features.dimension was 16, is now 32"),
        (
            {"features": SMALL | {"grid": "stratified"}},
            "features.grid was '\\(absent\\)', is now 'stratified'",
        ),
        ({"network": "state1"}, "network was 'final', is now 'state1'"),
        ({"weights": "raw"}, "weights was 'ema', is now 'raw'"),
        ({"seed": 2}, "seed was 1, is now 2"),
        ({"model": b"other"}, "model was '[0-9a-f]{64}', is now '[0-9a-f]{64}'"),
        ({"code": "afterimage.plan.jobs"}, "code was '[0-9a-f]{64}', is now '[0-9a-f]{64}'"),
    ],
)
def test_what_does_not_belong_together_is_refused_by_name(changes, named, store):
    stores = [store("0", block(1, 2)), store("1", block(3), block=1, **changes)]
    with pytest.raises(ArtifactError, match=f"/1 does not match .*/0: {named}$"):
        read_features(stores)


def test_a_file_that_changed_since_it_was_written_is_refused(store):
    stores = [store("0", block(1, 2)), store("1", block(3), block=1)]
    save_file(block(4), stores[1] / "features.safetensors")
    with pytest.raises(ArtifactError, match=r"/1/features\.safetensors is not the file"):
        read_features(stores)


def test_a_job_that_has_not_finished_is_refused(store, tmp_path):
    with pytest.raises(ArtifactError, match=r"/1 has no run\.json"):
        read_features([store("0", block(1, 2)), tmp_path / "1"])


def test_blocks_are_the_images_in_order():
    images = Images.of(np.zeros((7, 4, 4, 1), np.uint8), np.arange(7) + 50)
    found = [features.block_of(images, at, 3).ids.tolist() for at in range(3)]
    assert found == [[50, 51, 52], [53, 54, 55], [56]]


def test_features_too_large_for_memory_are_memory_mapped_and_the_same(store, monkeypatch):
    stores = [store("0", block(1, 2)), store("1", block(3), block=1)]
    plain = read_features(stores)
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 0)
    mapped = read_features(stores)
    assert isinstance(mapped["train/loss"], np.memmap)
    assert not isinstance(plain["train/loss"], np.memmap)
    np.testing.assert_array_equal(mapped["train/loss"], plain["train/loss"])


def test_a_block_is_read_in_parts(store, monkeypatch):
    """8 MB in one job's file, of which a quarter is never in memory at once."""
    rows = np.random.default_rng(0).normal(size=(1000, 10, 200)).astype(np.float32)
    stores = [store("0", {"train/rows": rows})]
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 2**20)
    monkeypatch.setattr(scratch, "BLOCK", 2**20)
    tracemalloc.start()
    found = read_features(stores)["train/rows"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(found, rows)
    assert peak < rows.nbytes / 4
