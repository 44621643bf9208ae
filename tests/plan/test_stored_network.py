"""Studies that start from a stored U-Net: what is planned, what it costs, and what is refused."""

import inspect
import json

import diffusers
import pytest

from afterimage import config
from afterimage.config.unet import DEFAULTS
from afterimage.plan.cost import estimate, memory, network, work
from afterimage.plan.jobs import STEPS, jobs
from afterimage.plan.resolved import resolve, resolved

PIXELS = {
    "_class_name": "UNet2DModel",
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TEXTS = PIXELS | {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
SOURCE = {"kind": "parquet", "path": "a.parquet", "caption_column": "text"}
PLAIN = {"method": "baseline", "condition": "text"}


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes a network's config, and its scheduler's, and gives the block
    ``model`` of it."""

    def make(described: dict = PIXELS, scheduler: dict | None = None, **block) -> dict:
        unet = tmp_path / "unet"
        unet.mkdir(exist_ok=True)
        (unet / "config.json").write_text(json.dumps(described))
        if scheduler is not None:
            (tmp_path / "scheduler").mkdir(exist_ok=True)
            (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        return {"kind": "stored", "path": str(unet)} | block

    return make


def of_pixels(digits, model: dict, **changed):
    changes = {"model": model, "attribution": None, "arms": {"plain": {"method": "baseline"}}}
    return digits(**changes | changed)


def of_texts(digits, model: dict, **changed):
    changes = {
        "data__source": SOURCE,
        "data__resize": 8,
        "data__colour": "grey",
        "text": {"width": 16},
        "arms": {"plain": PLAIN},
        "model": model,
        "attribution": None,
    }
    return digits(**changes | changed)


def test_settings_of_a_training_name_the_folder_and_those_of_random_weights_are_as_before(
    digits, folder
):
    block = folder(sha256={"config.json": "0" * 64})
    settings = resolve(of_pixels(digits, block), "train", "plain", 0)["settings"]["model"]
    assert settings == block | {
        "id": None,
        "revision": None,
        "trainable": "full",
        "lora": None,
    }
    drawn = {"channels": [8, 16], "attention": [False, True], "norm_groups": 4}
    plain = of_pixels(digits, drawn)
    assert plain == of_pixels(digits, drawn | {"kind": "scratch"})
    resolved = resolve(plain, "train", "plain", 0)["settings"]["model"]
    assert resolved.keys() == config.Model.model_fields.keys() - {"kind"}


def test_defaults_are_those_of_diffusers():
    for name, keys in DEFAULTS.items():
        defaults = inspect.signature(getattr(diffusers, name)).parameters
        for key, value in keys.items():
            default = defaults[key].default
            assert value == (list(default) if isinstance(default, tuple) else default)


def test_a_folder_of_another_machine_costs_what_stable_diffusion_does(digits, tmp_path):
    """Whether its variable is set there or not; nothing can be checked."""
    for path in (str(tmp_path / "no"), "$NO_SUCH_VARIABLE/unet"):
        study = of_texts(digits, {"kind": "stored", "path": path}, text={"width": 768})
        assert study.model.levels is None
        assert work.weights(study, "plain") == pytest.approx(859.5e6, rel=1e-3)
    assert "$NO_SUCH_VARIABLE" in json.dumps(resolve(study, "train", "plain", 0))
    deep = {"rau_net": {"groups": [4]}}
    of_texts(digits, {"kind": "stored", "path": "no"}, arms={"plain": PLAIN | deep})


@pytest.mark.usefixtures("cache")
def test_costs_count_what_is_trained(digits, folder):
    """Of a backward pass, the gradients of weights; of memory, gradients and moments."""
    found = {}
    for name, keys in {
        "full": {},
        "noxattn": {"trainable": "noxattn"},
        "cross": {"trainable": "cross_attention"},
        "lora": {"lora": {"rank": 2}},
    }.items():
        study = of_texts(digits, folder(TEXTS, **keys))
        counts = work.networks(study, "plain")[0][0]
        found[name] = counts, work.training(study, "plain"), memory.learning(study, "plain")
        share = counts.trained / counts.parameters
        size, updates = study.train.batch_size, study.train.updates
        assert found[name][1].fp32 == pytest.approx(counts.flop * size * updates * (2 + share))
    full = found["full"][0]
    assert full.trained == full.parameters
    assert {counts.flop for counts, _, _ in found.values()} == {full.flop}
    # One layer down, one in the middle, two up; query and output 8 or 16 wide, key and value of 16.
    crosses = sum(width * (2 * width + 2 * 16) + width for width in (8, 16, 8, 8))
    assert found["cross"][0].trained == crosses
    times = {8: 3, 16: 1}
    adapters = sum(count * 2 * (6 * 2 * width + 2 * (width + 16)) for width, count in times.items())
    assert found["lora"][0].trained == adapters
    assert found["lora"][0].values < found["noxattn"][0].values < full.values
    assert full.parameters - crosses > found["noxattn"][0].trained > crosses
    spared = found["full"][2].arrays - found["lora"][2].arrays
    assert spared == 4 * 2 * (full.parameters - adapters)
    assert found["lora"][2].networks < found["full"][2].networks - 3 * spared / 2
    assert STEPS["train"].work is work.training


@pytest.mark.usefixtures("cache")
def test_counts_are_those_of_the_network_in_the_folder(folder):
    net = diffusers.UNet2DModel.from_config(PIXELS)
    found = network.unet(config.StoredModel(**folder()), 8, 8, 3)
    assert found.parameters == sum(weight.numel() for weight in net.parameters())
    blocks = config.TransferBlocks(groups=[0])
    more = network.unet(config.StoredModel(**folder()), 8, 8, 1, blocks)
    assert more.parameters == more.trained == found.parameters + 8 * 8 * 9 + 8


@pytest.mark.parametrize(
    ("described", "keys", "changed", "words"),
    [
        (PIXELS | {"_class_name": "UNet3D"}, {}, {}, ["is a UNet3D", "UNet2DConditionModel"]),
        (PIXELS | {"out_channels": 2}, {}, {}, ["in_channels = 1 and out_channels = 2"]),
        (PIXELS | {"in_channels": 3, "out_channels": 3}, {}, {}, ["takes 3 channels", "have 1"]),
        (PIXELS | {"class_embed_type": "timestep"}, {}, {}, ["class_embed_type = 'timestep'"]),
        (PIXELS | {"num_class_embeds": 11}, {}, {}, ["condition = 'none'", "= 11"]),
        (
            PIXELS,
            {},
            {"arms": {"plain": {"method": "baseline", "condition": "label"}}},
            ["arms.plain has condition = 'label'", "num_class_embeds = None"],
        ),
        (
            PIXELS | {"block_out_channels": [8] * 5},
            {},
            {},
            ["5 levels", "multiples of 16", "8 x 8"],
        ),
        (PIXELS, {"trainable": "noxattn"}, {}, ["trainable = 'noxattn' is for a UNet2DCondition"]),
        (PIXELS, {"lora": {}}, {}, ["lora = {'rank': 4", "is for a UNet2DConditionModel"]),
        (PIXELS, {"trainable": "half"}, {}, ["model.trainable = 'half'", "'noxattn'"]),
        (PIXELS, {"channels": [8]}, {}, ["model.channels: unknown key"]),
        (TEXTS, {}, {}, ["condition = 'none', which needs a UNet2DModel", "UNet2DConditionModel"]),
        (
            PIXELS,
            {},
            {"arms": {"plain": {"method": "baseline", "rau_net": {"groups": [3]}}}},
            ["rau_net.groups = [3]: the network has groups 0 to 2"],
        ),
        ([PIXELS], {}, {}, ["must hold a JSON object, not list"]),
    ],
)
def test_networks_that_do_not_fit_a_study_of_pixels_are_refused(
    described, keys, changed, words, digits, folder
):
    with pytest.raises(config.ConfigError) as error:
        of_pixels(digits, folder(described, **keys), **changed)
    for word in words:
        assert word in str(error.value)


LORA = {"lora": {"rank": 2}}
ERASE = {"base": "plain", "forget": "cats"}


@pytest.mark.parametrize(
    ("described", "keys", "changed", "words"),
    [
        (TEXTS, {}, {"text": {"width": 64}}, ["text.width = 64", "cross_attention_dim = 16"]),
        (TEXTS | {"cross_attention_dim": [16, 16]}, {}, {}, ["one width for all levels"]),
        (TEXTS | {"addition_embed_type": "text_time"}, {}, {}, ["addition_embed_type"]),
        (PIXELS, {}, {}, ["condition = 'text', which needs a UNet2DConditionModel"]),
        (TEXTS, LORA | {"trainable": "noxattn"}, {}, ["trainable = 'noxattn' and lora"]),
        (
            TEXTS,
            {},
            {"autoencoder": {"kind": "trained", "channels": [8, 8], "norm_groups": 4}},
            ["takes 1 channels, but the study's latents have 4"],
        ),
        (
            TEXTS | {"in_channels": 4, "out_channels": 4, "block_out_channels": [8] * 4},
            {},
            {"autoencoder": {"kind": "trained", "channels": [8, 8], "norm_groups": 4}},
            ["4 levels", "multiples of 8, but the study's latents are 4 x 4"],
        ),
        (
            TEXTS,
            LORA,
            {"arms": {"plain": PLAIN | {"rau_net": {"groups": [1]}}}},
            ["arms.plain has rau_net"],
        ),
        (
            TEXTS,
            LORA,
            {"arms": {"plain": PLAIN, "loyal": PLAIN | {"method": "loyal", "switch_timestep": 5}}},
            ["arms.loyal has method loyal", "one network, and there are two"],
        ),
        (
            TEXTS,
            LORA,
            {"arms": {"plain": PLAIN | {"method": "iet_agc", "shards": 4, "rounds": 5}}},
            ["method iet_agc", "shards = 4"],
        ),
        (
            TEXTS,
            LORA,
            {"arms": {"plain": PLAIN, "salun": {"method": "salun"} | ERASE}},
            ["arms.salun has method salun", "gradient at the start"],
        ),
        (
            TEXTS,
            LORA,
            {"arms": {"plain": PLAIN, "amnesia": {"method": "selective_amnesia"} | ERASE}},
            ["arms.amnesia has method selective_amnesia", "Fisher"],
        ),
        (
            TEXTS,
            {"trainable": "noxattn"},
            {
                "arms": {"plain": PLAIN, "uce": {"method": "uce"} | ERASE},
                "forget": {"cats": {"caption": "cat", "surrogate": "an animal"}},
            },
            ["arms.uce", "model.trainable = 'noxattn'", "'full' and 'cross_attention'"],
        ),
    ],
)
def test_networks_that_do_not_fit_a_study_of_texts_are_refused(
    described, keys, changed, words, digits, folder
):
    forget = {"forget": {"cats": {"caption": "cat"}}}
    with pytest.raises(config.ConfigError) as error:
        of_texts(digits, folder(described, **keys), **forget | changed)
    for word in words:
        assert word in str(error.value)


def test_methods_that_train_adapters_are_planned(digits, folder):
    arms = {
        "plain": PLAIN,
        "agc": PLAIN | {"method": "iet_agc", "shards": 1, "rounds": 1},
        "erased": {"method": "erasediff"} | ERASE,
        "ascent": {"method": "gradient_ascent"} | ERASE,
        "none": PLAIN | {"rau_net": {"groups": [1], "variant": "none"}},
    }
    forget = {"cats": {"caption": "cat"}}
    study = of_texts(digits, folder(TEXTS, **LORA), arms=arms, forget=forget)
    assert study.model.lora.alpha is None


STABLE = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
}


@pytest.mark.parametrize(
    ("scheduler", "diffusion", "words"),
    [
        (STABLE, {}, ["diffusion.schedule = 'linear'", "beta_schedule = scaled_linear"]),
        (STABLE, {"schedule": "scaled_linear"}, None),
        (
            STABLE | {"beta_end": 0.02},
            {"schedule": "scaled_linear"},
            ["schedule = 'scaled_linear'", "with beta_end = 0.02 "],
        ),
        (
            STABLE | {"prediction_type": "v_prediction"},
            {"schedule": "scaled_linear"},
            ["diffusion.prediction = 'epsilon'", "prediction_type = v_prediction"],
        ),
        ({}, {"schedule": "linear", "timesteps": 500}, ["timesteps = 500", "= 1000"]),
        ({}, {"schedule": "linear"}, None),
        ({"beta_schedule": "squaredcos_cap_v2", "beta_start": 0.1}, {"schedule": "cosine"}, None),
    ],
)
def test_the_forward_process_is_that_of_the_scheduler_beside_the_network(
    scheduler, diffusion, words, digits, folder
):
    block = folder(scheduler=scheduler)
    if words is None:
        of_pixels(digits, block, diffusion=diffusion)
        return
    with pytest.raises(config.ConfigError) as error:
        of_pixels(digits, block, diffusion=diffusion)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(("part", "key"), [("vae", "autoencoder"), ("text_encoder", "text")])
def test_what_a_pipeline_encodes_by_is_not_replaced(part, key, digits, folder, tmp_path):
    block = folder(TEXTS | {"in_channels": 4, "out_channels": 4})
    latents = {"autoencoder": {"kind": "trained", "channels": [8, 8], "norm_groups": 4}}
    of_texts(digits, block, **latents)
    (tmp_path / part).mkdir()
    (tmp_path / part / "config.json").write_text("{}")
    with pytest.raises(config.ConfigError, match=rf"{key}\.kind = .* {part}/ beside it"):
        of_texts(digits, block, **latents)
    stored = {"kind": "stored", "path": "no"}
    encoders = {"autoencoder": stored, "text": stored | {"width": 16}}
    of_texts(digits, block, **encoders, data__resize=16)


def test_weights_in_a_pickle_are_refused(digits, folder, tmp_path):
    block = folder()
    (tmp_path / "unet" / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(config.ConfigError, match="its weights are a pickle"):
        of_pixels(digits, block)
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").touch()
    of_pixels(digits, block)


def test_a_kind_that_is_none_is_named(digits):
    with pytest.raises(config.ConfigError, match=r"model\.kind = 'store'"):
        of_pixels(digits, {"kind": "store", "path": "a"})
    with pytest.raises(config.ConfigError, match=r"model\.path: missing"):
        of_pixels(digits, {"kind": "stored"})
    with pytest.raises(config.ConfigError, match="model = 3"):
        of_pixels(digits, 3)


def test_levels_that_are_not_known_cannot_be_selected_from(params):
    for arm in params["arms"].values():
        arm.pop("rau_net", None)
    params["model"] = {"kind": "stored", "path": "no"}
    assert params["loyal_selection"] is not None
    with pytest.raises(config.ConfigError, match="loyal_selection needs the levels"):
        config.parse(params)


STABLE_DIFFUSION = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *3 * ["CrossAttnUpBlock2D"]],
    "layers_per_block": 2,
}
OF_1_4 = STABLE_DIFFUSION | {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
OF_2_1 = STABLE_DIFFUSION | {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
    "sample_size": 96,
}


TEXTS_OF = {
    OF_1_4["cross_attention_dim"]: {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "intermediate_size": 3072,
    },
    OF_2_1["cross_attention_dim"]: {
        "hidden_size": 1024,
        "num_hidden_layers": 23,
        "intermediate_size": 4096,
    },
}
AUTOENCODER = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
AT_PAPER_SCALE = {
    "loyal-laion10k": (OF_2_1, "v_prediction", 340_387_840),
    "iet-laion10k": (OF_2_1, "v_prediction", 340_387_840),
    "erasediff-imagenette": (OF_1_4, "epsilon", 123_060_480),
    "das-artbench2-lora": (OF_1_4, "epsilon", 123_060_480),
}
"""Study -> the U-Net of its pipeline, what it predicts, and the weights of its text encoder."""


@pytest.fixture
def at_paper_scale(root, tmp_path, monkeypatch):
    """Return a study at paper scale, planned with the configs of the pipeline that it names."""

    def make(name: str) -> config.Study:
        unet, prediction, _ = AT_PAPER_SCALE[name]
        texts = TEXTS_OF[unet["cross_attention_dim"]]
        for file, described in {
            "unet/config.json": unet,
            "vae/config.json": AUTOENCODER,
            "text_encoder/config.json": texts
            | {"vocab_size": 49_408, "max_position_embeddings": 77},
            "scheduler/scheduler_config.json": STABLE | {"prediction_type": prediction},
        }.items():
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(json.dumps(described))
        monkeypatch.setenv("STABLE_DIFFUSION", str(tmp_path))
        return config.load(root / "studies" / f"{name}.yaml")

    return make


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("loyal-laion10k", {"plain": 865_910_724, "rau_net": 865_910_724 + 73_734_400}),
        ("iet-laion10k", {"default": 865_910_724}),
        ("erasediff-imagenette", {"plain": 859_520_964}),
        ("das-artbench2-lora", {"lora": 859_520_964}),
    ],
)
def test_studies_at_paper_scale_are_of_the_published_networks(at_paper_scale, name, weights):
    """LoyalDiffusion's five blocks have 5 x (1280 x 1280 x 9 + 1280) weights. Every training fits
    on one GPU of the study's kind."""
    study = at_paper_scale(name)
    assert study.text.described is not None
    assert study.autoencoder.described is not None
    for arm, count in weights.items():
        assert work.weights(study, arm) == count
    assert work.text_encoder(study)[1] == AT_PAPER_SCALE[name][2]
    assert work.autoencoder(study).parameters == 83_653_863
    for arm in study.arms:
        needed = memory.learning(study, arm).networks
        assert needed < {"a100": 80e9, "h200": 141e9}[study.cluster.device], arm


NODE_MB = 64_000
"""Memory that a common node has for each of its GPUs, and the smallest nodes without one have in
all."""


@pytest.mark.parametrize("name", AT_PAPER_SCALE)
def test_all_but_the_trainings_of_studies_at_paper_scale_ask_for_what_a_node_has(
    at_paper_scale, name
):
    """Images of 256 x 256 and 512 x 512 do not fit into it as numbers, and need not. A training's
    memory is that of its states, which are written while it goes on."""
    study = at_paper_scale(name)
    made = jobs(study)
    assert {"data/encode", "attack/quality", "attack/extraction"} <= {job.step for job in made}
    for job in made:
        if job.step != "train":
            asked = estimate.asks(study, job, 1.0, 1)
            assert asked["mem_mb"] < NODE_MB, job.folder


def test_features_of_a_study_of_adapters_are_of_their_weights(at_paper_scale):
    """Rank 128 on the 16 transformers of Stable Diffusion 1: 32 times the 797,184 of rank 4."""
    study = at_paper_scale("das-artbench2-lora")
    assert work.attributed_weights(study, "lora") == 32 * 797_184
    held = memory.projected(study, "lora", "main", 500)
    assert held.networks < 80e9
    job = STEPS["attribution/features"].jobs(study)[0]
    assert resolved(study, job)["settings"]["model"]["lora"] == {"rank": 128, "alpha": None}
