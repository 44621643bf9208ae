"""Loss-threshold membership inference: known answers, a denoiser in closed form, and the verb on a
really trained arm."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from afterimage import cli, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import losses, membership
from afterimage.config import ConfigError, Diffusion
from afterimage.diffusion.denoising import task_of
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.noising import levels
from afterimage.diffusion.sample import load_denoiser
from afterimage.images import Images, load_images
from afterimage.metrics.ranking import roc_auc

STATISTICS = config.Statistics(bootstrap=50)
few = st.lists(st.integers(0, 6), min_size=1, max_size=12)
"""Losses with many ties."""


class Fixed(torch.nn.Module):
    """A network that answers ``function(x, t)`` and remembers what labels it was told."""

    def __init__(self, function, classes=None):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.function, self.config, self.told = function, {"num_class_embeds": classes}, []

    def forward(self, x, t, class_labels=None, return_dict=True):
        self.told.append(class_labels)
        return (self.function(x, t),)


def scheduler_config(**keys):
    return dict(build_scheduler(Diffusion(**keys)).config)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return Images.of(
        rng.integers(0, 256, (9, 8, 8, 1), dtype=np.uint8),
        ids=np.arange(20, 29),
        labels=np.arange(9) % 3,
    )


# ---- the numbers ---------------------------------------------------------------------------------


def test_a_tie_at_the_threshold_is_not_found():
    others = np.array([1.0, 1.0, 2.0, 3.0])
    members = np.array([0.5, 1.0, 1.5, 2.0])
    assert membership.found(members, others, 0.5).tolist() == [True, True, True, False]
    assert membership.found(members, others, 0.49).tolist() == [
        True,
        False,
        False,
        False,
    ]  # one of the two ones is too many
    assert membership.found(members, others, 0.01).tolist() == [True, False, False, False]


def test_a_rate_that_is_a_whole_number_of_images_is_used_up():
    others = np.arange(100.0)
    assert [int(membership.found(others, others, rate).sum()) for rate in (0.07, 0.29, 0.57)] == [
        7,
        29,
        57,
    ]


@given(few, st.floats(0.01, 0.99))
def test_no_more_false_alarms_than_the_rate_and_no_fewer_than_ties_force(others, rate):
    others = np.array(others)
    alarms = int(membership.found(others, others, rate).sum())
    assert alarms <= rate * len(others) + 1e-9
    following = np.unique(others[others >= np.sort(others)[alarms]])[
        0
    ]  # the next threshold would let these in too
    assert (others <= following).sum() > rate * len(others) - 1e-9


def table(members, others, mates=(), copies=None):
    columns = ["set", "trained", "copies", "loss"]
    rows = [
        ("train", True, number, loss)
        for number, loss in zip(copies or [1] * len(members), members, strict=True)
    ]
    rows += [("holdout", False, 0, loss) for loss in others] + [
        ("twin", False, 2, loss) for loss in mates
    ]
    return pd.DataFrame(rows, columns=columns).assign(loss_5=lambda scores: -scores["loss"])


def test_the_table_of_a_known_case():
    scores = table(
        [0.0, 1.0, 2.0, 9.0], list(range(1, 11)), mates=list(range(1, 11)), copies=[1, 1, 4, 4]
    )
    scores.loc[len(scores)] = {
        "set": "train",
        "trained": False,
        "copies": 1,
        "loss": -5.0,
        "loss_5": 0.0,
    }  # left out: no member
    numbers = membership.attack(scores, [0.1], STATISTICS, 0).set_index(["metric", "subset"])
    assert numbers.loc[("roc_auc", "all"), "value"] == pytest.approx((10 + 9.5 + 8.5 + 1.5) / 40)
    assert numbers.loc[("roc_auc_by_copies", "copies=1"), "value"] == pytest.approx(19.5 / 20)
    assert numbers.loc[("roc_auc_by_level", "t=5"), "value"] == pytest.approx(
        1 - (10 + 9.5 + 8.5 + 1.5) / 40
    )
    assert numbers.loc[("roc_auc_twins", "all"), "value"] == 0.5
    found = numbers.loc[("tpr@0.1", "all")]
    assert (found["count"], found["of"], found["value"]) == (2, 4, 0.5)
    assert found["exact_low"] < 0.5 < found["exact_high"]
    assert (
        numbers.loc[("tpr_by_copies@0.1", "copies=4"), "count"],
        numbers.loc[("roc_auc", "all"), "of"],
    ) == (0, 4)
    overall = numbers.loc[("roc_auc", "all")]
    assert overall["low"] < overall["value"] < overall["high"]


def test_members_that_were_planted_apart_from_their_captions_are_counted_apart():
    scores = table([0.0, 1.0, 2.0, 9.0, 3.0], [1.5, 1.5], copies=[1, 4, 1, 4, 1])
    planted = ["neither", "both", "caption", "image", "neither", "neither", "neither"]
    scores = scores.assign(repeat=planted, times=[1, 4, 6, 4, 1, 0, 0])
    numbers = membership.attack(scores, [0.1], STATISTICS, 0).set_index(["metric", "subset"])
    counts = numbers[["count", "of"]].astype("Int64")
    by_copies, by_repeat = (counts.loc[f"tpr_by_{what}@0.1"] for what in ("copies", "repeat"))
    assert by_copies.T.to_dict("list") == {"copies=1": [1, 2], "copies=4": [1, 1]}
    assert by_repeat.T.to_dict("list") == {
        "repeat=both times=4": [1, 1],
        "repeat=caption times=6": [0, 1],
        "repeat=image times=4": [0, 1],
        "repeat=neither times=1": [1, 2],
    }


def test_no_twins_no_control():
    numbers = membership.attack(table([0.0, 1.0], [1.0, 2.0]), [0.5], STATISTICS, 0)
    assert not numbers["metric"].str.contains("twins").any()


def test_one_row_per_source_and_a_trained_one_where_there_is_one():
    images = Images.of(np.zeros((6, 8, 8, 1), np.uint8), sources=np.array([7, 7, 8, 7, 9, 8]))
    assert membership.one_per_source(images, np.array([0, 1, 0, 1, 0, 1], bool)).tolist() == [
        1,
        4,
        5,
    ]
    assert membership.one_per_source(images, np.zeros(6, bool)).tolist() == [0, 2, 4]


# ---- the losses ----------------------------------------------------------------------------------


def measured(net, scheduler, images, *args, **settings):
    return losses.measure(net, task_of(net, scheduler, images), images.ids, *args, **settings)


def test_levels_lie_in_the_middle_of_equal_parts():
    assert levels(2, 10) == [2, 7]
    assert levels(10, 1000) == list(range(50, 1000, 100))
    assert levels(4, 4) == [0, 1, 2, 3]
    with pytest.raises(
        ConfigError, match=r"membership\.timesteps = 11 is more than the model's 10"
    ):
        levels(11, 10)


def test_loss_of_a_network_that_predicts_nothing(images):
    """Told to predict the image, its loss is the image's mean square whatever the noise; told the
    noise, about 1."""
    clean = (images.pixels / 127.5 - 1).reshape(len(images), -1)
    net = Fixed(lambda x, t: torch.zeros_like(x))
    found = measured(
        net, scheduler_config(prediction="sample"), images, "train", [0, 500, 999], 2, 1
    )
    np.testing.assert_allclose(found, np.repeat((clean**2).mean(1)[:, None], 3, 1), rtol=1e-5)
    noise = measured(net, scheduler_config(), images, "train", [0, 500, 999], 20, 1)
    np.testing.assert_allclose(noise, 1, atol=0.15)
    assert len(np.unique(noise)) == noise.size


def test_true_labels_are_told_and_must_be_there(images):
    net = Fixed(lambda x, t: x, classes=4)
    measured(net, scheduler_config(), images, "train", [5, 7], 1, 1, batch_size=6)
    assert torch.cat(net.told).tolist() == [0, 1, 2, 0, 1, 2] * 2 + [0, 1, 2] * 2
    plain = Fixed(lambda x, t: x)
    measured(plain, scheduler_config(), images, "train", [5], 1, 1)
    assert plain.told == [None]
    with pytest.raises(ArtifactError, match=r"labels must lie in \[0, 2\)"):
        measured(Fixed(lambda x, t: x, classes=2), scheduler_config(), images, "train", [5], 1, 1)


def test_a_loss_that_is_no_number_is_an_error(images):
    with pytest.raises(ArtifactError, match="holdout set is not finite"):
        measured(Fixed(lambda x, t: x / 0), scheduler_config(), images, "holdout", [5], 1, 1)


def test_a_loss_depends_on_its_image_only(trained):
    """Not on the batch size, the other images or their order; but on the part that the image
    belongs to."""
    net, scheduler = load_denoiser(trained.store("train", "conditional") / "pipeline")
    some = load_images(trained.store("data/planting") / "train.npz").take(np.arange(20))
    whole = measured(net, scheduler, some, "train", [10, 30], 2, 1, batch_size=64)
    for size in (1, 7):
        np.testing.assert_allclose(
            measured(net, scheduler, some, "train", [10, 30], 2, 1, batch_size=size),
            whole,
            rtol=1e-5,
        )
    order = np.random.default_rng(0).permutation(20)[:13]
    np.testing.assert_allclose(
        measured(net, scheduler, some.take(order), "train", [30], 2, 1)[:, 0],
        whole[order, 1],
        rtol=1e-5,
    )
    other = measured(net, scheduler, some, "holdout", [10, 30], 2, 1)
    assert (np.abs(other - whole).max(axis=1) > 1e-4).all()


def test_flips_average_both_mirrorings(trained):
    net, scheduler = load_denoiser(trained.store("train", "plain") / "pipeline")
    some = load_images(trained.store("data/planting") / "train.npz").take(np.arange(8))
    mirrored = Images.of(some.pixels[:, :, ::-1], ids=some.ids)
    one, two = (
        measured(net, scheduler, images, "train", [20], 2, 1) for images in (some, mirrored)
    )
    both = measured(net, scheduler, some, "train", [20], 2, 1, flips=True)
    np.testing.assert_allclose(both, (one + two) / 2, rtol=1e-5)
    assert not np.allclose(one, two, rtol=1e-3)


@pytest.fixture(scope="module")
def aucs(oracles):
    """Return a function: closed-form denoiser of half of the images, draws -> AUC at t = 5, 50 and
    150 of 200."""
    pixels = oracles.to_uint8(oracles.smooth_images(600, 1).reshape(600, -1) * 2 - 1, (8, 8, 1))
    flat = pixels.reshape(600, -1) / 127.5 - 1
    config = scheduler_config(timesteps=200, prediction="sample", schedule="cosine")
    abar = build_scheduler(Diffusion(timesteps=200, schedule="cosine")).alphas_cumprod.numpy()

    def of(fit, draws):
        denoise = fit(flat[:300])

        def predict(x, t):
            clean = denoise(x.reshape(len(x), -1).double().numpy(), abar[int(t[0])])
            return torch.from_numpy(clean).reshape(x.shape).float()

        members, others = (
            measured(Fixed(predict), config, Images.of(some), part, [5, 50, 150], draws, 0)
            for part, some in (("train", pixels[:300]), ("holdout", pixels[300:]))
        )
        return [roc_auc(*columns) for columns in zip(members.T, others.T, strict=True)]

    return of


def test_a_smoothed_memoriser_is_found_at_middle_noise(aucs, oracles):
    """Carlini et al., section 5: on a closed-form denoiser there is a hump over t, and averaging
    noises helps."""

    def fit(data):
        return oracles.empirical_bayes(data, 0.3)

    averaged, single = aucs(fit, 8), aucs(fit, 1)
    assert averaged[1] > max(0.9, averaged[0] + 0.1, averaged[2] + 0.1)
    assert averaged[1] > single[1]


def test_a_model_that_knows_no_single_image_gives_none_away(aucs, oracles):
    """The negative control of the same section: mean and covariance alone."""
    np.testing.assert_allclose(aucs(oracles.gaussian_fit, 8), 0.5, atol=0.08)


# ---- the verb ------------------------------------------------------------------------------------


def test_the_verb_on_a_trained_arm(trained, tmp_path):
    out = trained.run("attack/membership", "retrained", out=str(tmp_path / "one"))
    scores, numbers = pd.read_parquet(out / "losses.parquet"), pd.read_csv(out / "results.csv")
    planting = trained.store("data/planting")
    train = load_images(planting / "train.npz")
    index = pd.read_parquet(planting / "index.parquet")
    of_train = scores[scores["set"] == "train"].set_index("source")
    assert sorted(of_train.index) == sorted(np.unique(train.sources))
    copies = index[index["part"] == "train"].drop_duplicates("source").set_index("source")["copies"]
    assert (of_train["copies"] == copies.loc[of_train.index]).all()
    labels = pd.Series(train.labels, train.sources).groupby(level=0).first()
    assert (of_train["trained"] == (labels.loc[of_train.index] != 0)).all()
    assert 0 < (~of_train["trained"]).sum() < len(of_train)
    assert scores.columns[-3:].tolist() == ["loss_8", "loss_25", "loss_41"]
    np.testing.assert_allclose(
        scores["loss"], scores[["loss_8", "loss_25", "loss_41"]].mean(axis=1)
    )
    assert (scores["set"] == "twin").sum() == 4

    members, others = (
        of_train.loc[of_train["trained"], "loss"],
        scores.loc[scores["set"] == "holdout", "loss"],
    )
    truth = np.repeat([1, 0], [len(members), len(others)])
    overall = numbers[numbers["subset"] == "all"].set_index("metric")
    assert overall.loc["roc_auc", "value"] == pytest.approx(
        roc_auc_score(truth, -np.concatenate([members, others]))
    )
    assert overall.index.tolist() == [
        "roc_auc",
        "tpr@0.05",
        "tpr@0.1",
        "roc_auc_twins",
        "tpr_twins@0.05",
        "tpr_twins@0.1",
    ]
    recorded = {
        row["name"]: row["value"]
        for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    }
    assert recorded["roc_auc"] == pytest.approx(overall.loc["roc_auc", "value"])

    again = trained.run("attack/membership", "retrained", out=str(tmp_path / "two"))
    for name in ("losses.parquet", "results.csv"):
        assert (again / name).read_bytes() == (out / name).read_bytes()


def test_a_changed_network_is_refused(trained, tmp_path, capsys):
    arm = trained.store("train", "plain")
    config = arm / "pipeline" / "unet" / "config.json"
    before = config.read_text()
    config.write_text(before + " ")
    try:
        assert (
            cli.main(trained.command("attack/membership", "plain", out=str(tmp_path / "out"))) == 2
        )
    finally:
        config.write_text(before)
    assert "config.json is not the file that" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
