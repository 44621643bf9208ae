"""Studies with arms that are conditioned on captions: what is planned, and what is refused."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from afterimage import config, meta_device, scratch
from afterimage.data import encode
from afterimage.plan.cost import estimate, memory, work
from afterimage.plan.inputs import inputs_of
from afterimage.plan.jobs import STEPS, jobs
from afterimage.plan.resolved import resolve

SOURCE = {"kind": "parquet", "path": "a.parquet", "caption_column": "text"}
ATTENTION = {"channels": [8, 16], "attention": [False, True], "norm_groups": 8}


def study(digits, **changed):
    texts = {
        "data__source": SOURCE,
        "text": {},
        "arms": {"plain": {"method": "baseline", "condition": "text"}},
        "model": ATTENTION,
        "attribution": None,
    }
    return digits(**texts | changed)


def test_text_arms_read_the_embeddings_and_others_do_not(digits):
    arms = {"plain": {"method": "baseline", "condition": "text"}, "none": {"method": "baseline"}}
    mixed = study(digits, arms=arms, paths={"frontier": ["plain", "none"], "states": 2})
    assert sum(job.step == "data/encode" for job in jobs(mixed)) == 1
    readers = {(job.step, job.arm) for job in jobs(mixed) if "texts" in inputs_of(mixed, job)}
    steps = ("train", "sample", "attack/membership", "attack/path")
    assert readers == {(step, "plain") for step in steps}
    prompts = inputs_of(mixed, STEPS["sample"].job("plain", 0))["train"]
    assert prompts == f"results/{mixed.study}/data/planting/0/train.npz"
    texts = f"results/{mixed.study}/data/encode/original/run.json"
    assert inputs_of(mixed, STEPS["train"].job("plain", 0))["texts"] == texts
    without = study(digits, text=None, arms={"none": {"method": "baseline"}})
    assert not any(job.step == "data/encode" for job in jobs(without))


OF_1_4 = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
}
OF_2_1 = OF_1_4 | {
    "hidden_size": 1024,
    "num_hidden_layers": 23,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
}


@pytest.mark.parametrize(
    ("described", "weights"), [(OF_1_4, 123_060_480), (OF_2_1, 340_387_840), (None, 0)]
)
def test_text_encoders_are_counted_as_on_the_meta_device(digits, tmp_path, described, weights):
    """Those of Stable Diffusion 1.4 and 2.1, in their folder and taken for it where there is none;
    and one that a study makes."""
    if described is None:
        made = study(digits, text={"width": 32, "layers": 3, "length": 20, "vocabulary": 500})
        described = dict(zip(OF_1_4, (32, 3, 128, 4, 20, 500), strict=True))
        studies = [made]
    else:
        (tmp_path / "text_encoder").mkdir()
        (tmp_path / "text_encoder" / "config.json").write_text(json.dumps(described))
        width = described["hidden_size"]
        studies = [
            study(digits, text={"kind": "stored", "path": path, "length": 77, "width": width})
            for path in (str(tmp_path), "$NO_SUCH_VARIABLE")
        ]
    meta_device.import_kernels()
    with torch.device("meta"):
        encoder = CLIPTextModel(CLIPTextConfig(**described))
        tokens = torch.zeros(1, described["max_position_embeddings"], dtype=torch.int64)
    with FlopCounterMode(display=False) as counted:
        encoder(tokens)
    parameters = sum(weight.numel() for weight in encoder.parameters())
    assert weights in (0, parameters)
    for made in studies:
        assert work.text_encoder(made) == (counted.get_total_flops(), parameters)


def test_embedding_captions_costs_what_the_encoder_does_whatever_the_images(digits):
    """On the device of the other networks."""
    stored = {"kind": "stored", "path": "no", "length": 77, "width": 768}
    small, large = (study(digits, text=stored, data__resize=side) for side in (8, 512))
    job = STEPS["data/encode"].job(job="original")
    assert estimate.job_cost(small, job).minutes == estimate.job_cost(large, job).minutes
    assert memory.MAPPED == scratch.LARGEST_IN_MEMORY
    grown = estimate.job_cost(large, job).mem_mb - estimate.job_cost(small, job).mem_mb
    assert grown < 3 * memory.MAPPED / 2**20
    flop, weights = work.text_encoder(small)
    images = 400 + 800 + 700
    assert work.encoding(small).fp32 == flop * images
    held = STEPS["data/encode"].memory(small, "original")
    assert held.networks > 4 * weights
    assert held.arrays == 3 * images * (4 * 77 * 768 + 8 * 8 * 3)
    on_gpu = study(digits, text=stored, cluster={"device": "a100"})
    assert estimate.job_cost(on_gpu, job).gpu == 1
    assert estimate.job_cost(on_gpu, job).minutes < estimate.job_cost(small, job).minutes
    assert work.CAPTIONS == encode.BATCH


VARIANTS = {
    "general": {"kind": "column", "column": "kind"},
    "short": {"kind": "general", "words": 3},
    "one": {"kind": "fixed", "caption": "an image"},
}


def with_variants(digits, **changed):
    text = {"condition": "text"}
    arms = {
        "plain": {"method": "baseline", **text},
        "named": {"method": "baseline", "captions": "original", **text},
        "general": {"method": "baseline", "captions": "general", **text},
        "after": {"method": "baseline", "base": "general"},
        "again": {"method": "baseline", "base": "after", "captions": "one"},
        "none": {"method": "baseline"},
    }
    return study(digits, arms=arms, text={"captions": VARIANTS}, **changed)


def test_every_variant_is_embedded_once_and_arms_read_their_own(digits):
    made = with_variants(digits)
    encoded = {job.job: job for job in jobs(made) if job.step == "data/encode"}
    assert list(encoded) == ["original", "general", "short", "one"]
    columns = {name for name, job in encoded.items() if "columns" in inputs_of(made, job)}
    assert columns == {"general"}
    folder = f"results/{made.study}/data"
    assert inputs_of(made, encoded["general"])["columns"] == f"{folder}/fetch/captions.parquet"
    reads = {"plain": "original", "named": "original", "general": "general", "after": "general"}
    for arm, variant in (reads | {"again": "one"}).items():
        for step in ("train", "sample", "attack/membership"):
            texts = inputs_of(made, STEPS[step].job(arm, 0))["texts"]
            assert texts == f"{folder}/encode/{variant}/run.json"
        assert made.captions_of(arm) == variant


def test_original_captions_leave_settings_as_they_were(digits):
    """Of trainings, of the source, and of the embeddings of captions as they are."""
    plain, made = study(digits), with_variants(digits)
    for step, address in (
        ("train", {"arm": "plain", "replicate": 0}),
        ("data/encode", {"job": "original"}),
        ("sample", {"arm": "plain", "replicate": 0}),
    ):
        assert resolve(made, step, **address) == resolve(plain, step, **address)
    assert "captions" not in resolve(plain, "train", "plain", 0)["settings"]["arm"]
    assert "captions" not in resolve(plain, "data/fetch")["settings"]
    assert "captions" not in resolve(plain, "data/encode", job="original")["settings"]
    assert resolve(made, "data/fetch")["settings"]["captions"] == {"general": "kind"}
    settings = resolve(made, "data/encode", job="one")["settings"]
    assert settings["captions"] == {"one": VARIANTS["one"]}
    named, after = (resolve(made, "train", arm, 0) for arm in ("named", "after"))
    assert "captions" not in named["settings"]["arm"]
    assert after["settings"]["arm"]["captions"] == "general"


def test_an_arm_on_original_captions_is_plain(digits):
    made = with_variants(digits)
    plain = {name: arm.is_plain for name, arm in made.arms.items()}
    assert [name for name in plain if plain[name]] == ["plain", "named", "none"]


TEXT = {"method": "baseline", "condition": "text"}
APART = {"images": 2, "copies": 3}


FORGETTING = {
    "plain": {"method": "baseline", "condition": "text"},
    "retrained": {"method": "baseline", "condition": "text", "without": "cats"},
    "finetune": {"method": "baseline", "base": "plain", "without": "cats"},
    "erased": {"method": "erasediff", "base": "plain", "forget": "cats"},
    "salun": {"method": "salun", "base": "plain", "forget": "zeros"},
    "amnesia": {"method": "selective_amnesia", "base": "plain", "forget": "cats"},
    "ascent": {"method": "gradient_ascent", "base": "plain", "forget": "found"},
}
CATS = {"caption": "cat", "surrogate": "an animal"}
SETS = {"cats": CATS, "zeros": {"label": 0}, "found": {"extracted_from": "plain"}}


def test_unlearning_arms_and_how_they_are_judged_read_the_embeddings(digits):
    forgetting = study(digits, arms=FORGETTING, forget=SETS)
    for step in ("train", "attack/forgetting"):
        planned = [job for job in jobs(forgetting) if job.step == step]
        assert {job.arm for job in planned} == FORGETTING.keys()
        folder = f"results/{forgetting.study}/data/encode/original/run.json"
        assert all(inputs_of(forgetting, job)["texts"] == folder for job in planned)
    settings = resolve(forgetting, "train", "erased", 0)["settings"]
    assert settings["arm"]["condition"] == "text"
    assert settings["forget"]["cats"]["surrogate"] == "an animal"


def test_surrogates_are_encoded_and_a_study_without_any_encodes_as_before(digits):
    plain = study(digits)
    assert "surrogates" not in resolve(plain, "data/encode")["settings"]
    sets = SETS | {"zeros": {"label": 0, "surrogate": "a digit"}}
    forgetting = study(digits, arms=FORGETTING, forget=sets)
    settings = resolve(forgetting, "data/encode")["settings"]
    assert settings.pop("surrogates") == ["a digit", "an animal"]
    assert settings == resolve(plain, "data/encode")["settings"]


def test_what_selective_amnesia_draws_for_texts_is_counted(digits):
    """The surrogate beside the replay, also where the condition is the base's."""
    told = FORGETTING["amnesia"] | {"condition": "text"}
    made = study(digits, arms=FORGETTING | {"told": told}, forget=SETS)
    passes = {
        (condition, replay): made.arms["told"]
        .model_copy(update={"condition": condition, "replay": replay})
        .passes(10, 64, 1000)
        .forward
        for condition in ("label", "text")
        for replay in ("generated", "training")
    }
    once = passes["label", "generated"]
    assert list(passes.values()) == [once, 0, 2 * once, once]
    assert work.training(made, "amnesia") == work.training(made, "told")


def test_guided_generations_for_prompts_are_two_passes(digits):
    plain, guided = (study(digits, sample__guidance=scale) for scale in (1.0, 2.0))
    assert work.drawing(guided, "plain", 64).fp32 == 2 * work.drawing(plain, "plain", 64).fp32


def forgets(arm: dict, dropout: float = 0.1, **block) -> dict:
    """Return the changes that make a study with one unlearning arm and its set."""
    plain = {"method": "baseline", "condition": "text", "train": {"label_dropout": dropout}}
    arms = {"plain": plain, "new": {"base": "plain", "forget": "some"} | arm}
    return {"arms": arms, "forget": {"some": block}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"arms": {"a": TEXT | {"captions": "generl"}}, "text": {"captions": VARIANTS}},
            "arms.a.captions = 'generl' is not a variant under text.captions; variants are: "
            "original, general, short, one; did you mean 'general'",
        ),
        (
            {"arms": {"a": TEXT, "b": {"method": "baseline", "captions": "original"}}},
            "arms.b: captions = 'original' is for arms with condition = 'text', but the condition "
            "is 'none'",
        ),
        (
            {"text": {"captions": {"original": VARIANTS["one"]}}},
            "captions.original: the captions as they are have this name; choose another",
        ),
        (
            {"text": {"captions": {"same": {"kind": "column", "column": "text"}}}},
            "text.captions.same.column = 'text' is data.source.caption_column: that variant is "
            "original",
        ),
        ({"text": {"captions": {"one": {"kind": "fixed", "caption": "  "}}}}, "caption"),
        ({"text": {"captions": {"no": {"kind": "random", "words": 0}}}}, "words"),
        (
            {
                "data__plant": [APART | {"repeat": "caption"}],
                "arms": {"a": TEXT | {"fraction": 0.5}},
            },
            "arms.a: fraction = 0.5 would draw some of the images that carry a planted caption",
        ),
        (
            {
                "data__source": {"kind": "sklearn-digits"},
                "data__plant": [APART, APART | {"repeat": "image"}],
                "text": None,
                "arms": {"a": {"method": "baseline"}},
            },
            r"data.plant.1.repeat = 'image' needs captions, but data.source.caption_column is not",
        ),
    ],
)
def test_variants_and_styles_that_do_not_fit_are_refused(digits, changed, message):
    with pytest.raises(config.ConfigError, match=message):
        study(digits, **changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            forgets({"method": "selective_amnesia"}, label=0),
            "arms.new: method selective_amnesia forgets captions here: forget.some must be given",
        ),
        (
            forgets({"method": "salun", "relabel": "next"}, caption="cat"),
            "arms.new: relabel = 'next' needs labels, but condition = 'text'",
        ),
        (
            forgets({"method": "erasediff"}, dropout=0.0, caption="cat"),
            r"arms.new: target = 'relabel' puts the empty caption .* base = 'plain' never saw "
            r"\(train.label_dropout = 0\): give forget.some.surrogate",
        ),
        (
            forgets({"method": "erasediff", "target": "uniform"}, **CATS),
            "forget.some.surrogate = 'an animal': no arm with condition = 'text' replaces",
        ),
        (forgets({"method": "salun"}, caption=" "), "forget.some.caption = ' '"),
        (forgets({"method": "salun"}, caption="cat", label=0), "not label and caption"),
        (
            {
                "arms": {"plain": {"method": "baseline", "without": "some"}},
                "data__source": {"kind": "sklearn-digits"},
                "text": None,
                "forget": {"some": {"caption": "cat"}},
            },
            "forget.some.caption = 'cat' needs captions, but data.source.caption_column is not",
        ),
        (
            {
                "arms": FORGETTING | {"other": FORGETTING["erased"] | {"captions": "one"}},
                "text": {"captions": {"one": {"kind": "fixed", "caption": "a digit"}}},
                "forget": SETS,
                "attribution": {
                    "arm": "plain",
                    "remedied": {"before": "plain", "after": ["other"]},
                },
            },
            "attribution.remedied.after = 'other' reads the captions 'one', 'plain' 'original'",
        ),
    ],
)
def test_what_cannot_be_forgotten_with_texts_is_refused(digits, changed, message):
    with pytest.raises(config.ConfigError, match=message):
        study(digits, **changed)


def test_a_surrogate_or_a_known_empty_caption_is_enough(digits):
    for arm in ({"method": "erasediff"}, {"method": "salun"}):
        assert study(digits, **forgets(arm, dropout=0.0, **CATS)).arms
        assert study(digits, **forgets(arm, caption="cat")).arms
    ascent = forgets({"method": "gradient_ascent"}, dropout=0.0, ids=[1])
    assert study(digits, **ascent).arms


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"text": None}, "arms.plain: condition = 'text' needs the block text"),
        ({"data__source": {"kind": "sklearn-digits"}}, "text: a text encoder needs captions, but"),
        ({"arms": {"a": {"method": "baseline"}}}, "text: no arm has condition = 'text'"),
        (
            {"model": ATTENTION | {"attention": [False, False]}},
            r"arms.plain: condition = 'text' needs a level with attention, but model.attention",
        ),
        (
            {"arms": {"a": {"method": "dp_sgd", "condition": "text", "noise_multiplier": 1.0}}},
            "arms.a: condition = 'text' is not supported by method dp_sgd",
        ),
        (
            {"attribution": {"arm": "plain"}, "autoencoder": {"kind": "trained"}},
            "attribution.attributors: journey_trak follows the sampling .* list the others",
        ),
        (
            {"loyal_selection": {"base": "plain", "updates": 5, "switch_timesteps": [5]}},
            "loyal_selection.base = 'plain': arms with condition = 'text' are not supported",
        ),
    ],
)
def test_what_does_not_go_with_texts_is_refused(digits, changed, message):
    with pytest.raises(config.ConfigError, match=message):
        study(digits, **changed)


def test_dual_fusion_reads_other_pictures(digits):
    arms = {"plain": TEXT, "fused": TEXT | {"dual_fusion": {}}}
    attribution = {"arm": "fused", "attributors": ["das", "pixel_l2"]}
    attribution |= {"counterfactual": {"attributors": ["das"]}}
    changed = {"arms": arms, "attribution": attribution, "autoencoder": LATENT}
    sizes = {"train": 400, "holdout": 80, "reference": 70}
    with pytest.raises(
        config.ConfigError, match=r"arms.fused: dual_fusion needs data.split.fusion"
    ):
        study(digits, **changed, data__resize=16, data__split=sizes)
    made = study(digits, **changed, data__resize=16, data__split=sizes | {"fusion": 30})
    others = f"results/{made.study}/data/split/fusion.npz"
    assert inputs_of(made, STEPS["train"].job("fused", 0))["others"] == others
    assert "others" not in inputs_of(made, STEPS["train"].job("plain", 0))
    for name, job in (("retrain", "0"), ("counterfactual", "again")):
        retrained = STEPS[f"attribution/{name}"].job(job=job, replicate=0)
        assert inputs_of(made, retrained)["others"] == others
    for job in jobs(made):
        if job.step.startswith(("attack/", "data/classifier", "data/dedup", "data/autoencoder")):
            assert others not in str(inputs_of(made, job))  # nothing is measured against them
    assert others in inputs_of(made, STEPS["data/latents"].job())["images"]
    assert not made.arms["fused"].is_plain
    for arm, message in (
        ({"method": "baseline", "dual_fusion": {}}, "dual_fusion is for arms with condition"),
        (FORGETTING["erased"] | {"dual_fusion": {}}, "makes its base forget: dual_fusion cannot"),
    ):
        changed = {"arms": {"plain": TEXT, "new": arm}, "forget": {"cats": {"caption": "cat"}}}
        with pytest.raises(config.ConfigError, match=message):
            study(digits, **changed, data__split=sizes | {"fusion": 30})


LATENT = {"kind": "trained", "channels": [8, 16]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"arms": {"a": {"method": "baseline"}}, "text": None},
            "arms.a: condition = 'none', but with an autoencoder all arms must have",
        ),
        (
            {"data__source": SOURCE, "data__resize": 18},
            "images of 18 x 18: autoencoder.channels divides their sides by 2 and model.channels "
            "by 2; both sides must be multiples of 4",
        ),
        (
            {"autoencoder": LATENT | {"channels": [12]}},
            "autoencoder.*channels: 12 is not a multiple of norm_groups = 8",
        ),
        (
            {"arms": {"a": {"method": "iet_agc", "condition": "text", "augment_below": 1.5}}},
            "arms.a: augment_below = 1.5 changes images, but networks see latents",
        ),
    ],
)
def test_what_does_not_go_with_latents_is_refused(digits, changed, message):
    with pytest.raises(config.ConfigError, match=message):
        study(digits, **{"autoencoder": LATENT} | changed)


def test_latents_are_made_once_and_read_by_trainings_and_losses(digits):
    latents = study(digits, autoencoder=LATENT, data__resize=16, paths={"frontier": ["plain"]})
    made = {job.step for job in jobs(latents)}
    assert {"data/autoencoder", "data/latents"} <= made
    readers = {job.step for job in jobs(latents) if "latents" in inputs_of(latents, job)}
    assert readers == {"train", "attack/membership"}
    arms = {name: FORGETTING[name] for name in ("plain", "erased")}
    judged = study(digits, autoencoder=LATENT, data__resize=16, arms=arms, forget={"cats": CATS})
    assert "latents" in inputs_of(judged, STEPS["attack/forgetting"].job("erased", 0))
    encoded = inputs_of(latents, STEPS["data/latents"].job())
    assert len(encoded["images"]) == 2 + 2 * latents.data.plantings
    without = {job.step for job in jobs(study(digits))}
    assert not {"data/autoencoder", "data/latents"} & without


def test_attribution_of_latents_reads_them(digits):
    chosen = {"arm": "plain", "attributors": ["das"], "counterfactual": None}
    made = study(digits, autoencoder=LATENT, data__resize=16, attribution=chosen)
    latents = f"results/{made.study}/data/latents/run.json"
    jobs_of = {
        step: STEPS[step].jobs(made) for step in ("attribution/features", "attribution/retrain")
    }
    for step, made_jobs in jobs_of.items():
        for job in made_jobs:
            assert inputs_of(made, job)["latents"] == latents, step
    features = resolve(made, "attribution/features", None, 0, "main/final/0")["settings"]
    assert "model" not in features


def test_networks_of_latents_are_counted_at_the_latents_size(digits):
    pixels = study(digits, data__resize=32)
    latents = study(digits, data__resize=32, autoencoder=LATENT)
    assert work.denoised(latents) == (16, 16, 4)
    assert work.forward(latents, "plain") < work.forward(pixels, "plain") / 2
    for name in ("data/autoencoder", "data/latents"):
        found = estimate.job_cost(latents, STEPS[name].job())
        assert found.minutes > 0
    drawn = work.drawing(latents, "plain", 64).fp32
    assert drawn > work.forward(latents, "plain") * 64 * latents.sample.steps


def test_a_network_of_texts_is_counted_as_one(digits):
    [(texts, _)] = work.networks(study(digits), "plain")
    arms = {"plain": {"method": "baseline"}}
    [(none, _)] = work.networks(study(digits, text=None, arms=arms), "plain")
    assert texts.parameters > none.parameters
    assert texts.flop > none.flop


def test_a_wrong_key_of_an_arms_deduplication_is_refused_with_captions_too(digits):
    own = {"method": "baseline", "condition": "text", "data": "deduplicated"}
    with pytest.raises(config.ConfigError, match=r"arms\.own\.dedup\.metods: unknown key"):
        study(digits, arms={"own": own | {"dedup": {"metods": ["caption"]}}})
    assert study(digits, arms={"own": own | {"dedup": {"methods": ["caption"]}}}).deduplications
