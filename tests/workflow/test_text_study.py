"""Studies whose arms are conditioned on captions, from raw data to the pages: plain training,
general captions, IET-AGC, RAU-Net, LoyalDiffusion, and EraseDiff, ESD and UCE with their retrained
control on pixels, with images, captions and both planted; and on latents."""

import json
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from afterimage import artifacts
from afterimage.attribution.judges.retrain import Recipe
from afterimage.diffusion.texts import Texts
from afterimage.images import load_images
from afterimage.methods import baseline
from afterimage.training.checkpoint import Store
from afterimage.training.job import stream_path

pytestmark = pytest.mark.slow

ARMS = ["plain", "none", "general", "dedup", "agc", "rau_net", "loyal"]
ARMS += ["erased", "retrained", "esd", "uce", "dcr", "wen"]


def test_the_study_runs_to_the_end_and_is_right(captioned):
    assert captioned.run("afterimage", "verify").returncode == 0
    assert captioned.planned() == {}
    wide = pd.read_csv(captioned.results / "report/tables/comparison_wide.csv").set_index("arm")
    assert list(wide.index) == ARMS


def test_arms_are_drawn_from_the_same_prompts(captioned):
    samples = {
        arm: load_images(captioned.results / "sample" / arm / "rep0" / "images.npz") for arm in ARMS
    }
    prompts = samples["plain"].captions.tolist()
    known = set(load_images(captioned.results / "data/planting/0/train.npz").captions.tolist())
    assert set(prompts) <= known
    for arm in ("agc", "rau_net", "loyal", "erased", "retrained", "esd", "uce", "dcr", "wen"):
        assert samples[arm].captions.tolist() == prompts
    assert set(samples["none"].captions.tolist()) == {""}


@pytest.mark.parametrize("arm", ["dcr", "wen"])
def test_a_remedy_at_inference_draws_other_images_from_its_bases_networks(arm, captioned):
    results = captioned.results
    for weights in ("pipeline", "raw", "states/path1/pipeline"):
        one, other = (
            results / "train" / name / "rep0" / weights / "unet/diffusion_pytorch_model.safetensors"
            for name in (arm, "plain")
        )
        assert one.read_bytes() == other.read_bytes()
    record = artifacts.read_run(results / "train" / arm / "rep0")["facts"]
    assert (record["updates"], record["images_seen"]) == (0, 0)
    drawn, plain = (
        load_images(results / "sample" / name / "rep0" / "images.npz") for name in (arm, "plain")
    )
    assert (drawn.pixels != plain.pixels).any(axis=(1, 2, 3)).mean() > 0.5
    facts = artifacts.read_run(results / "sample" / arm / "rep0")["facts"]["remedy"]
    assert facts["prompts_changed"] == len(drawn)
    path = pd.read_csv(results / "attack" / arm / "rep0" / "path" / "results.csv")
    assert set(path["state"]) == {"path1", "last"}


def test_embeddings_are_sought_that_bring_forgotten_images_back(captioned):
    for arm in ("erased", "retrained", "plain"):
        table = pd.read_csv(
            captioned.results / "attack" / arm / "rep0" / "forgetting" / "results.csv"
        )
        for metric in ("brought_back", "brought_back_holdout"):
            rows = table[(table["metric"] == metric) & (table["set"] == "zeros")]
            assert sorted(rows["alpha"]) == ["calibrated", "fixed"]
            assert (rows["of"] > 0).all()


def test_an_arm_is_trained_on_what_its_own_deduplication_leaves(captioned):
    """By caption: copies of an image with its caption, and carriers of a planted one, go; an image
    repeated under other captions stays. The study's own is by image."""
    data = captioned.results / "data"
    planted, left, others = (
        load_images(data / folder / "train.npz")
        for folder in ("planting/0", "dedup/dedup/0", "dedup/0")
    )
    assert len(set(left.captions)) == len(left) == len(set(planted.captions)) < len(planted)
    assert len(set(others.captions)) < len(others)
    members = pd.read_parquet(captioned.results / "train/dedup/rep0/members.parquet")
    assert set(members["id"]) == set(left.ids)
    scores = pd.read_csv(captioned.results / "report/tables/dedup.csv").set_index("method")
    own, every = scores.loc["combined, dedup"], scores.loc["caption"]
    assert own["removed"] == every["removed"] == len(planted) - len(left)
    assert scores.loc["combined", "removed"] == len(planted) - len(others)


DETECTORS = ["noise_difference", "one_step", "anisotropy"]


def test_prompts_of_training_are_told_from_held_out_ones(captioned, latent):
    """Captions differ from image to image; general ones are those of all images, so that none is
    unknown."""
    for study, arm, detectors in (
        (captioned, "plain", [*DETECTORS, "cliques"]),
        (latent, "erased", DETECTORS),
    ):
        folder = study.results / "attack" / arm / "rep0" / "prompts"
        prompts = pd.read_parquet(folder / "prompts.parquet")
        counts = prompts["set"].value_counts()
        assert counts["holdout"] == 12
        planted = prompts[(prompts["set"] == "train") & (prompts["times"] > 1)]
        assert len(planted) > 0
        assert counts["train"] == 12 + len(planted)
        assert np.isfinite(prompts[detectors]).all(axis=None)
        assert (prompts[detectors].std() > 0).all()
        results = pd.read_csv(folder / "results.csv")
        areas = results[(results["subset"] == "all") & results["metric"].str.endswith("_auc")]
        assert areas["metric"].tolist() == [f"{name}_auc" for name in detectors]
        arms = pd.read_csv(study.results / "report/tables/arms.csv").set_index(["arm", "metric"])
        for name, value in zip(detectors, areas["value"], strict=True):
            assert arms.loc[(arm, f"prompt_auc[{name}]"), "value"] == pytest.approx(value)
        ranked = pd.read_csv(folder / "ranked.csv")
        drawn = "cliques" in detectors
        assert ("flagged" in prompts) == ("prompts_extracted" in set(results["metric"])) == drawn
        if drawn:
            flagged = prompts[prompts["flagged"] & (prompts["set"] == "train")]
            counted = ranked[["flagged", "extracted"]].max().fillna(0).tolist()
            assert counted == [len(flagged), flagged["within"].sum()]
            assert not prompts.loc[prompts["set"] != "train", "own"].any()
        else:
            assert ranked.empty
    facts = artifacts.read_run(captioned.results / "attack/general/rep0/prompts")["facts"]
    assert facts["prompts"]["holdout"] == 0
    assert not facts["measured"]
    page = (captioned.results / "report/pages/extraction/extraction.html").read_text()
    assert "noise_difference" in page
    assert "caption, 4 times" in page
    assert "copies=4" not in page[page.index("known by their prompts") :][:20_000]


@pytest.mark.parametrize("kind", ["captioned", "latent"])
def test_the_influence_of_forgotten_captions_is_compared(kind, request):
    folder = request.getfixturevalue(kind).results / "attribution/rep0/remedied/erased"
    inputs = artifacts.read_run(folder)["inputs"]
    assert "texts" in inputs
    assert ("latents" in inputs) == (kind == "latent")
    influence = pd.read_csv(folder / "influence.csv")
    assert set(influence["network"]) == {"before", "after"}
    counts = influence.groupby("network")["count"].sum()
    assert counts.tolist() == [4, 4]
    assert influence["auc"].between(0, 1).all()


def test_generations_are_compared_with_the_captions_of_their_images(captioned):
    for arm in ("plain", "general", "dcr"):
        table = pd.read_csv(captioned.results / "attack" / arm / "rep0" / "quality" / "results.csv")
        aligned = table[table["metric"] == "text_alignment[classifier]"].set_index("of")["value"]
        assert set(aligned.index) == {"generations", "holdout"}
        assert aligned.between(0, 1).all()
    none = pd.read_csv(captioned.results / "attack/none/rep0/quality/results.csv")
    assert not none["metric"].str.startswith("text_alignment").any()
    compared = pd.read_csv(captioned.results / "report/tables/comparison.csv")
    decided = compared[compared["metric"] == "text_alignment[classifier]"]
    assert set(decided["arm"]) >= {"general", "agc", "dcr", "wen"}


def test_guidance_away_from_training_images_is_done_in_latents(latent):
    facts = artifacts.read_run(latent.results / "sample" / "amg" / "rep0")["facts"]["remedy"]
    assert facts["steps_guided"] > 0
    inputs = artifacts.read_run(latent.results / "sample" / "amg" / "rep0")["inputs"]
    assert set(inputs) == {"model", "texts", "train", "members", "members/1", "latents"}
    drawn, plain = (
        load_images(latent.results / "sample" / name / "rep0" / "images.npz").pixels
        for name in ("amg", "plain")
    )
    assert (drawn != plain).any()


def test_prompts_of_a_variant_are_those_of_the_same_images(captioned):
    table = pq.read_table(captioned.folder / "digits.parquet", columns=["text", "general"])
    general_of = dict(zip(*table.to_pydict().values(), strict=True))
    prompts, general = (
        load_images(captioned.results / "sample" / arm / "rep0" / "images.npz").captions.tolist()
        for arm in ("plain", "general")
    )
    assert general == [general_of[text] for text in prompts]
    assert set(general) == {"a digit, even", "a digit, odd"}
    run = artifacts.read_run(captioned.results / "train" / "general" / "rep0")
    assert "/encode/general/" in run["inputs"]["texts"]["path"]
    assert run["config"]["settings"]["arm"]["captions"] == "general"


def test_networks_are_retrained_with_the_captions_of_the_arm(captioned, tmp_path):
    """On all images, in the arm's own stream, a network is the arm's, bit for bit, with what is
    mixed into its batches."""
    results = captioned.results
    config = json.loads((results / "config/attribution/rep0/retrain/0.json").read_text())
    train, members = (
        results / path
        for path in ("data/planting/0/train.npz", "train/general/rep0/members.parquet")
    )
    texts = Texts.load(results / "data/encode/general")
    others = results / "data/split/fusion.npz"
    recipe = Recipe.from_config(config, train, members, texts, others=others)
    assert recipe.fusion is not None
    everything, stream = np.ones(len(recipe.images), bool), stream_path(recipe.arm, 0)
    store = Store(tmp_path, {})
    retrained = baseline.train(recipe.training_run(everything, config["seed"], stream, store))
    weights = load_file(
        results / "train/general/rep0/pipeline/unet/diffusion_pytorch_model.safetensors"
    )
    assert all(
        torch.equal(weights[name], value) for name, value in retrained.average.state_dict().items()
    )


def test_attribution_reads_the_captions_of_the_arm(captioned):
    folder = captioned.results / "attribution/rep0"
    jobs = ["features/main/final/0", "retrain/0"]
    for job in [*jobs, "counterfactual/again", "counterfactual/das/0"]:
        read = artifacts.read_run(folder / job)["inputs"]["texts"]["path"]
        assert "/encode/general/" in read, job
    generated = load_images(folder / "queries/generated.npz")
    assert set(generated.captions.tolist()) <= {"a digit, even", "a digit, odd"}
    again = load_images(folder / "counterfactual/again/regenerated.npz")
    assert again.captions.tolist() == generated.captions.tolist()[: len(again)]


def test_extraction_is_told_by_what_was_planted(captioned):
    repeats = pd.read_csv(captioned.results / "report/tables/repeats.csv")
    plain = repeats[(repeats["arm"] == "plain") & (repeats["alpha"] == "calibrated")]
    assert plain[["repeat", "times", "images"]].to_numpy().tolist() == [
        ["both", 4, 2],
        ["caption", 4, 2],
        ["carrier", 4, 6],
        ["image", 4, 2],
        ["neither", 1, 60 - 3 * 8],
    ]
    assert plain["twins_of"].fillna(0).tolist() == [2, 2, 0, 2, 0]
    copies = pd.read_csv(captioned.results / "report/tables/copies.csv")
    assert set(copies.loc[copies["copies"] == 4, "images"]) == {2}
    index = pd.read_parquet(captioned.results / "data/planting/0/index.parquet")
    carried = index[index["repeat"] == "carrier"]
    assert (carried["caption_copies"] == 4).all()
    assert (carried["copies"] == 1).all()


def test_a_caption_reruns_what_reads_it_and_no_other_arm(captioned):
    inputs = artifacts.read_run(captioned.results / "train" / "plain" / "rep0")["inputs"]
    assert set(inputs) == {"train", "texts"}
    assert set(artifacts.read_run(captioned.results / "train" / "none" / "rep0")["inputs"]) == {
        "train"
    }


def test_a_study_of_latents_runs_to_the_end_and_is_right(latent):
    assert latent.run("afterimage", "verify").returncode == 0
    assert latent.planned() == {}
    wide = pd.read_csv(latent.results / "report/tables/comparison_wide.csv").set_index("arm")
    assert list(wide.index) == ["plain", "loyal", "erased", "amg"]
    images = load_images(latent.results / "data/planting/0/train.npz").pixels
    for arm in wide.index:
        drawn = load_images(latent.results / "sample" / arm / "rep0" / "images.npz").pixels
        assert drawn.shape[1:] == images.shape[1:]
        network = latent.results / "train" / arm / "rep0" / "pipeline" / "unet"
        text = "".join(path.read_text() for path in network.rglob("config.json"))
        assert '"in_channels": 4' in text


def test_concepts_are_words_of_captions(latent):
    """Half of the digits are thick by their captions, and half thin."""
    table = pd.read_csv(latent.results / "report/tables/attribution_concepts.csv")
    assert set(zip(table["attributor"], table["concept"], strict=True)) == {("das", "line")}
    images = table.set_index("queries")["images"]
    assert images[["holdout", "generated"]].tolist() == [4, 4]
    assert (table["combination"] == "trained").all()
    assert table["area"].between(0, 1).all()
    queries = load_images(latent.results / "attribution/rep0/queries/generated.npz")
    own = pd.read_csv(latent.results / "attribution/rep0/scores/main/concepts.csv")
    own = own[own["queries"] == "generated"]
    assert own["word"].tolist() == [text.split(", ")[1] for text in queries.captions]


def test_what_no_training_changes_is_stored_once(latent):
    vae = latent.results / "data" / "autoencoder" / "vae"
    networks = [path.parent for path in latent.results.glob("train/**/vae/config.json")]
    # Averaged and last weights of each arm, at the end and on the way, and a state to attribute.
    assert len(networks) == 18
    for folder in networks:
        for file in artifacts.files_in(vae):
            assert file.samefile(folder / file.name)


def test_trainings_and_losses_read_latents(latent):
    readers = {
        step: set(artifacts.read_run(latent.results / step / "plain" / "rep0" / attack)["inputs"])
        for step, attack in (("train", ""), ("attack", "membership"), ("sample", ""))
    }
    assert readers["train"] == {"train", "texts", "latents"}
    assert "latents" in readers["attack"]
    forgetting = latent.results / "attack" / "erased" / "rep0" / "forgetting"
    assert "latents" in artifacts.read_run(forgetting)["inputs"]
    assert "latents" not in readers["sample"]


def test_a_set_by_caption_is_forgotten_and_judged(captioned):
    """Of the base, the erased and the retrained arm; the surrogate is embedded, too."""
    assert "a digit" in json.loads(
        (captioned.results / "data/encode/original/captions.json").read_text()
    )
    train = load_images(captioned.results / "data/planting/0/train.npz")
    zeros = len(np.unique(train.sources[train.labels == 0]))
    seen_by = dict.fromkeys(("plain", "erased", "esd", "uce"), zeros) | {"retrained": 0}
    for arm, seen in seen_by.items():
        store = captioned.results / "attack" / arm / "rep0" / "forgetting"
        record = artifacts.read_run(store)
        assert "texts" in record["inputs"]
        facts = record["facts"]["sets"]["zeros"]
        assert (facts["sources"], facts["trained"]) == (zeros, seen)
        numbers = pd.read_csv(store / "results.csv")
        assert {"copied", "copied_images", "probability", "roc_auc"} <= set(numbers["metric"])
    page = (captioned.results / "report/pages/erasediff/erasediff.html").read_text()
    assert "in their captions" in page


def test_a_study_of_adapters_runs_to_the_end_and_stores_ordinary_pipelines(adapted):
    """Attacks and forgetting go by them; diffusers draws from them without this package."""
    assert adapted.run("afterimage", "verify").returncode == 0
    assert adapted.planned() == {}
    before = load_file(adapted.folder / "unet" / "diffusion_pytorch_model.safetensors")
    for arm in ("plain", "erased"):
        folder = adapted.results / "train" / arm / "rep0" / "pipeline"
        assert (folder / "pytorch_lora_weights.safetensors").is_file()
        after = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved
        assert all(".to_" in name for name in moved)
        code = (
            "import sys, torch; from diffusers import StableDiffusionPipeline as P; "
            f"p = P.from_pretrained({str(folder)!r}); p.set_progress_bar_config(disable=True); "
            "print(p('a digit', num_inference_steps=2, output_type='np').images.shape, "
            "'afterimage' in sys.modules)"
        )
        assert adapted.run(sys.executable, "-c", code).stdout.split("\n")[0] == "(1, 8, 8, 1) False"


def test_adapters_on_latents_are_attributed(adapted):
    """Their weights' gradients, and networks whose adapters alone are trained again."""
    folder = adapted.results / "attribution/rep0"
    features = artifacts.read_run(folder / "features/main/final/0")
    assert {"latents", "texts", "unet"} <= set(features["inputs"])
    assert features["config"]["settings"]["model"]["lora"]["rank"] == 2
    assert {"latents", "unet"} <= set(artifacts.read_run(folder / "retrain/0")["inputs"])
    scores = load_file(folder / "scores/main/scores.safetensors")
    for name in ("das", "dtrak", "tracin", "pixel_l2"):
        assert scores[f"{name}/generated"].isfinite().all()
    changes = pd.read_csv(folder / "counterfactual/das/0/changes.csv")
    assert changes[["l2", "loss", "shift"]].notna().all(axis=None)
    again = load_images(folder / "counterfactual/again/regenerated.npz")
    assert again.pixels.shape[1:] == (8, 8, 1)
