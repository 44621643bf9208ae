"""Attribution for an outside pipeline: the attributors' scores, in files that name the images, and
clear errors."""

import json

import diffusers
import numpy as np
import pandas as pd
import pytest
from diffusers import UNet2DModel
from PIL import Image
from safetensors import safe_open
from sklearn.datasets import load_digits

from afterimage import artifacts, cli
from afterimage.artifacts import ArtifactError
from afterimage.attribution import attributors
from afterimage.attribution.attributors.inputs import AttributionInputs, ImageFeatures
from afterimage.attribution.gradients import compute
from afterimage.config import ATTRIBUTORS, Diffusion, Features
from afterimage.config.attribution import readouts_of
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import build_scheduler, save_pipeline
from afterimage.images import Images
from afterimage.standalone import attribute

TRAIN, QUERIES, COPIED = 17, 3, 5
SMALL = Features(timesteps=2, dimension=32, rows=False)
FLAGS = ("--timesteps", SMALL.timesteps, "--dimension", SMALL.dimension, "--seed", 3)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, tiny_net):
    """Two pipelines, 17 training images, and 3 queries, the first of which is training image 5;
    read only."""
    folder = tmp_path_factory.mktemp("outside")
    digits = load_digits()
    pixels = np.round(digits.images[:40] * 255 / 16).astype(np.uint8)[..., None]
    rows = [COPIED, 30, 31]
    np.savez(folder / "train.npz", images=pixels[:TRAIN], labels=digits.target[:TRAIN])
    np.savez(folder / "queries.npz", images=pixels[rows], labels=digits.target[rows])
    np.savez(folder / "unlabelled.npz", images=pixels[rows])
    np.savez(folder / "wide.npz", images=np.zeros((2, 9, 9, 1), np.uint8))
    for kind in ("plain", "conditional"):
        save_pipeline(tiny_net(kind), build_scheduler(Diffusion()), folder / kind)
    return folder


def run(sets, out, *flags, pipeline="plain", train="train.npz", queries="queries.npz"):
    where = [
        "--pipeline",
        sets / pipeline,
        "--train",
        sets / train,
        "--queries",
        sets / queries,
        "--out",
        out,
    ]
    return cli.main(["attribute", *map(str, [*where, *FLAGS, *flags])])


def scores_in(folder):
    with safe_open(folder / "scores.safetensors", "np") as stored:
        names = {side: json.loads(text) for side, text in stored.metadata().items()}
        keys = stored.keys()  # not a dict
        return {name: stored.get_tensor(name) for name in keys}, names


def images_in(path):
    with np.load(path) as arrays:
        return Images.of(arrays["images"], labels=arrays["labels"])


@pytest.mark.parametrize("kind", ["plain", "conditional"])
def test_scores_are_those_of_the_features(kind, sets, tmp_path, tiny_net, scheduler_config):
    """phi_z (Phi^T Phi + lambda I)^-1 Phi^T written out, lambda 0.5 times the mean of the
    eigenvalues that are not 0."""
    assert run(sets, tmp_path / "out", "--regulariser", 0.5, pipeline=kind) == 0
    found, names = scores_in(tmp_path / "out")
    assert set(found) == {"das_revised", "dtrak"}
    assert names == {"queries": list(range(QUERIES)), "train": list(range(TRAIN))}
    net = tiny_net(kind)
    read = {part: images_in(sets / f"{part}.npz") for part in ("train", "queries")}
    of = {
        part: compute.project_gradients(
            net,
            task_of(net, scheduler_config, images),
            images.ids,
            part,
            SMALL,
            ["mean", "square"],
            seed=3,
        ).features
        for part, images in read.items()
    }
    for name, feature, power in (("dtrak", "square", 1), ("das_revised", "mean/normalised", 2)):
        phi, asked = of["train"][feature].astype(np.float64), of["queries"][feature]
        gram = phi.T @ phi
        inverse = np.linalg.inv(gram + 0.5 * np.trace(gram) / min(phi.shape) * np.eye(len(gram)))
        wanted = (asked @ inverse @ phi.T) ** power
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


def test_first_choices_are_the_highest_scores_under_the_files_names(sets, tmp_path):
    for part in ("train", "queries"):
        (tmp_path / part).mkdir()
        for row, pixels in enumerate(images_in(sets / f"{part}.npz").pixels):
            Image.fromarray(pixels[..., 0]).save(tmp_path / part / f"{part}{row:02d}.png")
    out = tmp_path / "out"
    flags = ["--first", 4, "--show-images", "--attributor", "trak", "pixel_l2", "das", "trak"]
    assert run(sets, out, *flags, train=tmp_path / "train", queries=tmp_path / "queries") == 0
    table, (scores, names) = pd.read_csv(out / "first.csv"), scores_in(out)
    assert list(table) == ["query", "attributor", "rank", "id", "score"]
    assert list(table["attributor"][::4]) == ["trak", "pixel_l2", "das"] * QUERIES
    assert names["train"] == [f"train{row:02d}.png" for row in range(TRAIN)]
    for (query, attributor), rows in table.groupby(["query", "attributor"]):
        of = scores[attributor][names["queries"].index(query)]
        assert list(rows["rank"]) == [0, 1, 2, 3]
        np.testing.assert_allclose(rows["score"], np.sort(of)[::-1][:4], rtol=1e-6)
        np.testing.assert_allclose(
            of[[names["train"].index(name) for name in rows["id"]]], rows["score"], rtol=1e-6
        )
    assert {path.stem for path in out.glob("*.png")} == {"trak", "pixel_l2", "das"}
    with Image.open(out / "das.png") as picture:
        assert picture.width > picture.height  # 3 rows of 5 images


def test_a_copy_is_first_by_pixels_without_any_gradient(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "project_gradients", None)
    assert run(sets, tmp_path / "out", "--attributor", "pixel_l2") == 0
    first = pd.read_csv(tmp_path / "out" / "first.csv").iloc[0]
    assert (first["query"], first["id"], first["score"]) == (0, COPIED, 0)
    assert not list((tmp_path / "out").glob("*.png"))


@pytest.mark.parametrize(
    ("name", "readouts"), [("dtrak", {"square"}), ("das_scalar", {"loss", "probe"})]
)
def test_gradients_are_taken_of_what_the_attributor_needs(
    name, readouts, sets, tmp_path, monkeypatch
):
    asked, real = [], compute.project_gradients

    def spy(*args):
        asked.append((args[3], args[4].rows, set(args[5])))
        return real(*args)

    monkeypatch.setattr(compute, "project_gradients", spy)
    assert run(sets, tmp_path / "out", "--attributor", name) == 0
    assert asked == [(part, "probe" in readouts, readouts) for part in ("train", "queries")]


@pytest.fixture(scope="module")
def made_up():
    """All features, of random numbers, by set."""
    rng = np.random.default_rng(0)
    counts = {"train": 9, "queries": 2}
    values = {
        part: {
            name + end: rng.standard_normal((n, 6))
            for name in ("mean", "l1", "square", "loss")
            for end in ("", "/normalised")
        }
        for part, n in counts.items()
    }
    pixels = {part: rng.integers(0, 256, (n, 4, 4, 1), np.uint8) for part, n in counts.items()}
    rows = {part: rng.standard_normal((n, 3, 6)) for part, n in counts.items()}

    def inputs(readouts) -> AttributionInputs:
        sides = [
            ImageFeatures(
                Images.of(pixels[part]),
                {
                    name: array
                    for name, array in values[part].items()
                    if name.split("/")[0] in readouts
                },
                rows[part] if "probe" in readouts else rows[part][:, :0],
                np.ones(n, np.float32),
                None,
            )
            for part, n in counts.items()
        ]
        return AttributionInputs(*sides, (), np.zeros((0, 9), bool), np.zeros((0, 2)), seed=0)

    return inputs


@pytest.mark.parametrize("name", ATTRIBUTORS)
def test_allowed_is_what_the_readouts_suffice_for(name, made_up):
    """Those that are refused have no scores even with all readouts; the others have them with their
    own, and with no fewer."""
    if name not in attribute.ALLOWED:
        with pytest.raises(ArtifactError):
            attributors.scorer(name, made_up(("mean", "l1", "square", "loss", "probe")))
        return
    readouts = readouts_of([name])
    assert np.isfinite(attributors.scorer(name, made_up(readouts))(1.0)).all()
    for left_out in set(readouts) - {"probe"}:
        with pytest.raises(ArtifactError, match="there are no features"):
            attributors.scorer(name, made_up(set(readouts) - {left_out}))


def test_the_record_says_what_was_read_however_it_is_stored(sets, tmp_path):
    (tmp_path / "queries").mkdir()
    for row, pixels in enumerate(images_in(sets / "queries.npz").pixels):
        Image.fromarray(pixels[..., 0]).save(tmp_path / "queries" / f"{row}.png")
    records = []
    for queries in (sets / "unlabelled.npz", tmp_path / "queries"):
        assert run(sets, tmp_path / "out", "--attributor", "pixel_cosine", queries=queries) == 0
        records.append(artifacts.check_store(tmp_path / "out"))
        assert records[-1]["inputs"]["queries"]["sha256"] == artifacts.sha256(queries)
    one, other = records
    assert one["inputs"]["pipeline"]["sha256"] == artifacts.sha256(sets / "plain")
    assert one["config"]["settings"]["regulariser"] == 1.0
    assert one["config"]["settings"]["features"]["timesteps"] == 2
    assert one["facts"]["contents_sha256"] == other["facts"]["contents_sha256"]
    assert one["facts"]["images"] == {"train": TRAIN, "queries": QUERIES}


def test_only_an_earlier_result_is_replaced(sets, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(sets, out, "--attributor", "pixel_l2", "--show-images") == 0
    assert run(sets, out, "--attributor", "pixel_cosine") == 0
    assert {path.name for path in out.iterdir()} == {"first.csv", "scores.safetensors", "run.json"}
    (out / "mine.txt").write_text("kept")
    assert run(sets, out, "--attributor", "pixel_l2") == 2
    assert (
        "mine.txt is not of an earlier result; allowed are a new or empty folder"
        in capsys.readouterr().err
    )
    assert (out / "mine.txt").read_text() == "kept"
    assert set(pd.read_csv(out / "first.csv")["attributor"]) == {"pixel_cosine"}


@pytest.mark.parametrize(
    ("flags", "sources", "words"),
    [
        (
            ["--attributor", "tracin"],
            {},
            "--attributor = 'tracin' needs a study, for its checkpoints; allowed are das, ",
        ),
        (
            ["--attributor", "dtrak", "luck"],
            {},
            "--attributor = 'luck' is not an attributor; allowed",
        ),
        (["--regulariser", 0], {}, "--regulariser = 0.0: Input should be greater than 0"),
        (["--batch-size", 0], {}, "--batch-size = 0: Input should be greater"),
        (
            ["--timesteps", 1001],
            {},
            "error: --timesteps = 1001 is more than the model's 1000 timesteps",
        ),
        (
            ["--parameters", "nothing.*"],
            {},
            "error: --parameters: 'nothing.*' matches no trained parameter",
        ),
        (
            [],
            {"queries": "wide.npz"},
            "--queries: images are 9x9x1, but 8x8x1 is needed; --resize and --colour",
        ),
        (["--colour", "rgb"], {}, "--train: images are 8x8x3, but 8x8x1 is needed"),
        ([], {"queries": "nowhere"}, "not a folder or zip of images"),
        (
            [],
            {"queries": "unlabelled.npz", "pipeline": "conditional"},
            "--queries: labels go from -1 to -1 (-1: none)",
        ),
        ([], {"pipeline": "train.npz"}, "cannot be opened as a diffusers pipeline"),
    ],
)
def test_bad_input_is_explained_and_nothing_is_written(
    flags, sources, words, sets, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(sets, tmp_path / "out", *flags, **sources) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_of_a_network_that_also_predicts_a_variance_the_mean_counts(sets, tmp_path, tiny_net):
    """Without a projection, the scores are those of the same network without the other half of its
    outputs."""
    whole = UNet2DModel.from_config({**tiny_net().config, "out_channels": 2})
    half = UNet2DModel.from_config({**tiny_net().config, "out_channels": 1})
    weights = whole.state_dict()
    half.load_state_dict(
        {key: value[:1] if key.startswith("conv_out.") else value for key, value in weights.items()}
    )
    found = {}
    for name, net in (("whole", whole), ("half", half)):
        save_pipeline(net, build_scheduler(Diffusion()), tmp_path / name)
        flags = ["--projection", "none", "--attributor", "dtrak"]
        assert run(sets, tmp_path / f"of-{name}", *flags, pipeline=tmp_path / name) == 0
        found[name] = scores_in(tmp_path / f"of-{name}")[0]["dtrak"]
    np.testing.assert_allclose(
        found["whole"], found["half"], rtol=1e-4, atol=1e-6 * np.abs(found["half"]).max()
    )


def test_every_embedding_of_a_foreign_network_is_a_label(sets, tmp_path, tiny_net, capsys):
    """Ten digits and ten embeddings; a network of this package with ten digits has eleven."""
    foreign = UNet2DModel.from_config({**tiny_net().config, "num_class_embeds": 10})
    save_pipeline(foreign, build_scheduler(Diffusion()), tmp_path / "foreign")
    labels = images_in(sets / "train.npz").labels
    assert labels.max() == 9
    assert run(sets, tmp_path / "out", "--attributor", "dtrak", pipeline=tmp_path / "foreign") == 0
    facts = artifacts.check_store(tmp_path / "out")["facts"]["pipeline"]
    assert (facts["classes"], facts["null_label"]) == (10, None)
    assert run(sets, tmp_path / "o", pipeline=tmp_path / "foreign", queries="unlabelled.npz") == 2
    assert (
        "--queries: labels go from -1 to -1 (-1: none), but the network knows 0 to 9"
        in capsys.readouterr().err
    )


def test_a_network_without_a_size_takes_that_of_the_training_images(sets, tmp_path, tiny_net):
    sizeless = UNet2DModel.from_config({**tiny_net().config, "sample_size": None})
    sizeless.load_state_dict(tiny_net().state_dict())
    save_pipeline(sizeless, build_scheduler(Diffusion()), tmp_path / "sizeless")
    scores = []
    for pipeline in ("plain", tmp_path / "sizeless"):
        assert run(sets, tmp_path / "out", "--attributor", "dtrak", pipeline=pipeline) == 0
        scores.append(scores_in(tmp_path / "out")[0]["dtrak"])
    np.testing.assert_array_equal(*scores)


def test_the_weights_of_a_checkpoint_are_chosen_said_and_recorded(sets, tmp_path, tiny_net, capsys):
    checkpoint = tmp_path / "run" / "checkpoint-9"
    other = UNet2DModel.from_config(tiny_net().config)
    for folder, net in (("unet", tiny_net()), ("unet_ema", other)):
        net.save_pretrained(checkpoint / folder)
    build_scheduler(Diffusion()).save_pretrained(tmp_path / "run" / "scheduler")
    scores, facts = {}, {}
    for asked in ("ema", "raw", None):
        flags = ["--attributor", "dtrak", *(["--weights", asked] if asked else [])]
        assert run(sets, tmp_path / "out", *flags, pipeline=checkpoint) == 0
        assert (
            "ema weights (unet_ema/) were opened; --weights raw" in capsys.readouterr().out
        ) == (asked is None)
        scores[asked] = scores_in(tmp_path / "out")[0]["dtrak"]
        facts[asked] = artifacts.check_store(tmp_path / "out")["facts"]
    assert [facts[asked]["pipeline"]["weights"] for asked in scores] == ["ema", "raw", "ema"]
    np.testing.assert_array_equal(scores[None], scores["ema"])
    assert (scores["raw"] != scores["ema"]).any()
    assert (
        facts["raw"]["contents_sha256"]["pipeline"] != facts["ema"]["contents_sha256"]["pipeline"]
    )
    assert (
        run(sets, tmp_path / "plain", "--attributor", "dtrak") == 0
    )  # whose weights are those of the raw ones
    np.testing.assert_array_equal(scores["raw"], scores_in(tmp_path / "plain")[0]["dtrak"])
    assert run(sets, tmp_path / "o", "--weights", "ema") == 2
    assert "error: --pipeline: " in (said := capsys.readouterr().err)
    assert "one set of weights" in said


@pytest.mark.parametrize("kind", ["DPMSolverMultistepScheduler", "CMStochasticIterativeScheduler"])
def test_only_a_scheduler_of_another_family_is_refused(kind, sets, tmp_path, tiny_net, capsys):
    """A solver for networks trained as DDPMs has the same forward process and thus the scores."""
    save_pipeline(tiny_net(), getattr(diffusers, kind)(), tmp_path / "p")
    status = run(sets, tmp_path / "out", "--attributor", "dtrak", pipeline=tmp_path / "p")
    if kind.startswith("CM"):
        assert status == 2
        assert (
            "its scheduler is CMStochasticIterativeScheduler, which is not known"
            in capsys.readouterr().err
        )
        return
    assert status == 0
    assert run(sets, tmp_path / "ddpm", "--attributor", "dtrak") == 0
    found, wanted = (scores_in(tmp_path / out)[0]["dtrak"] for out in ("out", "ddpm"))
    np.testing.assert_array_equal(found, wanted)
