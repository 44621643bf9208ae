"""Detectors of memorised prompts in a study: which captions are asked for, and closed forms."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from afterimage import config
from afterimage.attacks import prompt_detection, twins
from afterimage.attacks.membership import Known
from afterimage.attacks.prompt_detection import Detectors, asked
from afterimage.config import Diffusion
from afterimage.diffusion.model import build_scheduler
from afterimage.diffusion.sample import scheduler_of
from afterimage.diffusion.texts import Texts
from afterimage.images import Images

STATISTICS = config.Statistics(bootstrap=50)


def images(captions: list[str], ids: list[int], sources: list[int] | None = None) -> Images:
    pixels = np.zeros((len(ids), 4, 4, 1), np.uint8)
    own = ids if sources is None else sources
    return Images.of(pixels, np.array(ids), sources=np.array(own), captions=np.array(captions))


def texts_of(*sets: Images, values: dict[str, float] | None = None) -> Texts:
    """Return embeddings of all captions: their value in every place, by default 0."""
    captions = sorted({caption for one in sets for caption in one.captions.tolist()})
    numbers = torch.tensor([(values or {}).get(caption, 0.0) for caption in captions])
    embeddings = numbers.view(-1, 1, 1).expand(-1, 3, 5)
    return Texts({text: row for row, text in enumerate(captions)}, embeddings, torch.zeros(3, 5))


@pytest.fixture
def sets():
    """Two planted images, one of them for its caption, which 3 carries; two others; held-out images
    and twins, of which one has a caption that is known."""
    train = images(
        ["planted", "planted", "carried", "carried", "one", "two"],
        ids=[0, 100, 1, 3, 4, 5],
        sources=[0, 0, 1, 3, 4, 5],
    )
    holdout = images(["h0", "h1", "one", "h1", "h2"], ids=[10, 11, 12, 13, 14])
    twin = images(["t0", "two"], ids=[20, 21])
    index = pd.DataFrame(
        {
            "part": ["twin", "twin", "train"],
            "id": [20, 21, 3],
            "source": [20, 21, 3],
            "twin_of": [0, 1, -1],
            "copies": [2, 1, 1],
            "caption_copies": [2, 2, 2],
            "repeat": ["both", "caption", "carrier"],
        }
    )
    return train, holdout, twins.read(index, twin)


def test_every_caption_is_asked_for_once_and_held_out_ones_are_unknown(sets):
    train, holdout, planted = sets
    texts = texts_of(train, holdout, planted.twins)
    table = asked(Known(train, np.ones(6, bool), holdout, planted), texts, 64, 0)
    by_set = table.groupby("set")["prompt"].apply(sorted).to_dict()
    assert by_set == {
        "train": ["carried", "one", "planted", "two"],
        "holdout": ["h0", "h1", "h2"],
        "twin": ["t0"],
    }
    of = table[table["set"] == "train"].set_index("prompt")
    assert of.loc["planted", ["copies", "repeat", "times"]].tolist() == [2, "both", 2]
    assert of.loc["carried", ["source", "repeat", "times"]].tolist() == [1, "caption", 2]


def test_captions_of_images_that_were_not_trained_on_are_neither(sets):
    train, holdout, planted = sets
    texts = texts_of(train, holdout, planted.twins)
    trained = train.captions != "one"
    table = asked(Known(train, trained, holdout, planted), texts, 64, 0)
    assert "one" not in set(table["prompt"])


def test_planted_captions_are_all_asked_for_others_are_drawn(sets):
    train, holdout, planted = sets
    texts = texts_of(train, holdout, planted.twins)
    known = Known(train, np.ones(6, bool), holdout, planted)
    tables = [asked(known, texts, 2, seed) for seed in range(9)]
    for table in tables:
        assert {"planted", "carried"} <= set(table["prompt"])
        assert (table["set"] == "holdout").sum() == 2
        assert len(table) == 7
    assert len({tuple(table["prompt"]) for table in tables}) > 1


class Net(torch.nn.Module):
    """Predicts the noise as it is, plus the mean of the text's embedding."""

    config = MappingProxyType({"sample_size": 4, "in_channels": 1})
    device = torch.device("cpu")

    def forward(self, x, t, encoder_hidden_states, return_dict):
        moved = encoder_hidden_states.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return (x + moved * (1 if t > 500 else -1),)


def detectors(**settings) -> Detectors:
    scheduler = dict(build_scheduler(Diffusion(schedule="cosine")).config)
    chosen = config.PromptDetection(arms=["plain"], **settings)
    return Detectors(Net(), scheduler, config.Sample(images=1, steps=10, guidance=3.0), chosen, 5)


def test_numbers_are_those_of_their_formulas():
    values = {"a": 0.0, "b": 0.5, "c": -2.0}
    some = images(list(values), ids=[0, 1, 2])
    found = detectors(alignment_weight=0.0)
    numbers = found.numbers(texts_of(some, values=values), some.captions)
    moved = np.array(list(values.values()))
    np.testing.assert_allclose(numbers["noise_difference"], 4 * np.abs(moved), rtol=1e-6)
    np.testing.assert_allclose(numbers["anisotropy"], numbers["noise_difference"])
    scheduler = scheduler_of(found.scheduler_config, found.sample)
    signal = float(scheduler.alphas_cumprod[scheduler.timesteps[0]].sqrt())
    sigma = (1 - signal**2) ** 0.5
    # Noise x / signal against (x - sigma (x + 3 m)) / signal: sigma (x + 3 m) / signal.
    squares = [
        np.mean(
            [
                (sigma / signal * (noise_of(draw) + 3 * move)).square().mean().item()
                for draw in range(4)
            ]
        )
        for move in moved
    ]
    np.testing.assert_allclose(numbers["one_step"], squares, rtol=1e-5)


def noise_of(draw: int) -> torch.Tensor:
    generator = prompt_detection.seeds.torch_rng(5, "prompts", "noise", draw)
    return torch.randn((1, 1, 4, 4), generator=generator)


def test_alignment_is_taken_where_there_is_little_noise():
    """There the network turns away: the cosine with the unconditional prediction changes sign."""
    some = images(["b"], ids=[1])
    texts = texts_of(some, values={"b": 2.0})
    norm = detectors(alignment_weight=0.0).numbers(texts, some.captions)["anisotropy"]
    weighted = detectors(alignment_weight=1.0).numbers(texts, some.captions)["anisotropy"]
    signs = np.mean([float(-torch.sign(noise_of(draw)).mean()) for draw in range(4)])
    np.testing.assert_allclose(weighted - norm, signs, rtol=1e-5)


def test_medoids_are_compared_with_images_that_were_seen_and_no_near_duplicates(sets):
    """Two prompts give an image that was trained on and one that was not; held-out images that are
    training images are no control."""
    train, holdout, planted = sets
    rng = np.random.default_rng(0)
    shape = (4, 4, 1)
    train = replace(train, pixels=rng.integers(0, 256, (6, *shape), np.uint8))
    pixels = rng.integers(0, 256, (5, *shape), np.uint8)
    pixels[1] = train.pixels[4]
    holdout = replace(holdout, pixels=pixels)
    trained = train.captions != "two"
    known = Known(train, trained, holdout, planted)
    drawn = np.stack([np.stack([train.pixels[row]] * 4) for row in (4, 5)])
    drawn[:, 3] = rng.integers(0, 256, (2, *shape), np.uint8)
    chosen = config.PromptDetection(arms=["plain"], images=4, clique=3)
    given = (np.array(["one", "two"]), known, texts_of(train, holdout, planted.twins), chosen)
    found, facts = prompt_detection._extracted(drawn, *given, seed=0, delta=0.01, flips=False)
    assert found[["clique", "flagged", "clique_mean"]].to_numpy().tolist() == [[3, True, 0]] * 2
    assert found["within"].tolist() == found["own"].tolist() == [True, False]
    assert found["nearest"][0] == 4
    assert not found["within_holdout"].any()
    assert (found["holdout_l2"] > 0).all()
    across = prompt_detection.cliques.across(
        drawn, prompt_detection.seeds.numpy_rng(0, "prompts", "across")
    )
    assert facts["edge"] == np.quantile(across, 0.01) > 0
    assert (facts["training_images"], facts["holdout_images"]) == (5, 4)
    assert facts["searches_given_up"] == 0


def extracted_prompts() -> pd.DataFrame:
    """Eight captions of training, of which those planted four times are extracted; four of
    held-out images, one flagged; two twins."""
    sets = ["train"] * 8 + ["holdout"] * 4 + ["twin"] * 2
    planted = np.array([True] * 3 + [False] * 11)
    table = pd.DataFrame({"set": sets, "cliques": np.arange(14.0), "flagged": planted})
    table["copies"] = np.where(planted, 4, [1] * 8 + [0] * 4 + [4] * 2)
    table = table.assign(repeat=np.where(table["copies"] > 1, "both", "neither"))
    table = table.assign(times=table["copies"], within=planted, own=planted & (np.arange(14) > 0))
    table.loc[[8, 13], "flagged"] = True
    table.loc[13, "within"] = True
    return table.assign(within_holdout=[True] + [False] * 13, holdout_l2=0.5)


def test_shares_of_prompts_are_those_of_their_groups():
    results = prompt_detection.attack(extracted_prompts(), ["cliques"], [0.5], STATISTICS, 0)
    rows = results[results["metric"].str.startswith("prompts_")].set_index(["metric", "subset"])
    counts = {key: (row["count"], row["of"]) for key, row in rows.iterrows()}
    assert counts == {
        ("prompts_flagged", "all"): (3, 8),
        ("prompts_extracted", "all"): (3, 8),
        ("prompts_own", "all"): (2, 8),
        ("prompts_false", "all"): (1, 8),
        ("prompts_flagged", "copies=1"): (0, 5),
        ("prompts_extracted", "copies=1"): (0, 5),
        ("prompts_own", "copies=1"): (0, 5),
        ("prompts_false", "copies=1"): (0, 5),
        ("prompts_flagged", "copies=4"): (3, 3),
        ("prompts_extracted", "copies=4"): (3, 3),
        ("prompts_own", "copies=4"): (2, 3),
        ("prompts_false", "copies=4"): (1, 3),
        ("prompts_flagged", "twins"): (1, 2),
        ("prompts_extracted", "twins"): (1, 2),
        ("prompts_false", "twins"): (0, 2),
        ("prompts_flagged", "holdout"): (1, 4),
        ("prompts_extracted", "holdout"): (0, 4),
        ("prompts_false", "holdout"): (0, 4),
    }
    exact = stats.binomtest(3, 8).proportion_ci(0.95, method="exact")
    ends = rows.loc[("prompts_extracted", "all"), ["exact_low", "exact_high"]].astype(float)
    np.testing.assert_allclose(ends, [exact.low, exact.high])


def test_what_is_not_measured_has_no_share():
    without = extracted_prompts().assign(holdout_l2=np.nan)
    for prompts, detectors in ((without, ["cliques"]), (without, [])):
        results = prompt_detection.attack(prompts, detectors, [0.5], STATISTICS, 0)
        assert "prompts_false" not in set(results["metric"])
        assert ("prompts_extracted" in set(results["metric"])) == bool(detectors)


def test_large_numbers_are_those_of_training():
    rng = np.random.default_rng(0)
    rows = [("train", 8, "both", 8, 5.0)] * 6 + [("train", 1, "neither", 1, 0.0)] * 20
    rows += [("holdout", 0, "neither", 0, 0.0)] * 30 + [("twin", 8, "both", 8, 0.0)] * 6
    table = pd.DataFrame(rows, columns=["set", "copies", "repeat", "times", "found"])
    table["found"] += rng.uniform(size=len(table))
    results = prompt_detection.attack(table, ["found"], [0.1], STATISTICS, 0)
    value = results.set_index(["metric", "subset"])["value"]
    assert value["found_auc_by_copies", "copies=8"] == 1
    assert value["found_tpr_by_copies@0.1", "copies=8"] == 1
    assert value["found_auc_by_copies", "copies=1"] == pytest.approx(0.5, abs=0.2)
    assert value["found_auc_twins", "all"] == pytest.approx(0.5, abs=0.3)
    overall = (6 * 1 + 20 * value["found_auc_by_copies", "copies=1"]) / 26
    assert value["found_auc", "all"] == pytest.approx(overall)
