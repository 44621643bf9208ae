"""Somebody's pipelines: what is opened is what lies there, and all else is refused by name."""

import hashlib
import json
import shutil
from pathlib import Path

import diffusers
import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError, Diffusion, Sample
from afterimage.diffusion.model import (
    build_scheduler,
    build_unet,
    classes_of,
    null_of,
    save_pipeline,
)
from afterimage.diffusion.pipelines import open_pipeline
from afterimage.diffusion.pixels import to_uint8
from afterimage.diffusion.router import TimestepRouter
from afterimage.diffusion.sample import default_steps, denoise, generate, load_trained
from afterimage.diffusion.stored_network import WEIGHTS
from afterimage.diffusion.stored_scheduler import OWN_SAMPLER, SOLVERS
from afterimage.seeds import torch_rng

from .conftest import TINY

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"


def network(**settings) -> UNet2DModel:
    torch.manual_seed(0)
    plain = {
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "down_block_types": ("DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D"),
        "add_attention": False,
    }
    return UNet2DModel(**(plain | settings)).eval()


def constant(value: float, **settings) -> UNet2DModel:
    """A network that predicts one value everywhere."""
    net = network(**settings)
    with torch.no_grad():
        net.conv_out.weight.zero_()
        net.conv_out.bias.fill_(value)
    return net


def stored(folder: Path, net: UNet2DModel | None = None, scheduler=None) -> Path:
    scheduler = scheduler or DDPMScheduler(num_train_timesteps=100)
    DDPMPipeline(net or network(), scheduler).save_pretrained(folder)
    return folder


def change(path: Path, **keys) -> None:
    """Change a JSON file; a key that is None goes."""
    value = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({key: each for key, each in value.items() if each is not None}))


# ---- what is opened ------------------------------------------------------------------------------


def test_an_opened_network_is_the_stored_one_and_its_weights_are_named(tmp_path):
    net = network()
    opened = open_pipeline(stored(tmp_path / "p", net))
    for key, tensor in net.state_dict().items():
        assert torch.equal(opened.net.state_dict()[key], tensor)
    total = hashlib.sha256()
    for key, tensor in sorted(load_file(tmp_path / "p" / "unet" / WEIGHTS).items()):
        total.update(
            f"{key} torch.float32 {tuple(tensor.shape)}\n".encode() + tensor.numpy().tobytes()
        )
    assert json.loads(json.dumps(opened.facts())) == {
        "pipeline_class": "DDPMPipeline",
        "network_class": "UNet2DModel",
        "scheduler_class": "DDPMScheduler",
        "prediction": "epsilon",
        "timesteps": 100,
        "weights": "pipeline",
        "weights_sha256": total.hexdigest(),
        "shape": [8, 8, 1],
        "learned_variance": False,
        "classes": None,
        "null_label": None,
    }
    assert opened.notes == ()
    assert not opened.net.training


def test_one_changed_weight_changes_the_hash_and_a_copy_elsewhere_does_not(tmp_path):
    net = network()
    one = open_pipeline(stored(tmp_path / "one", net)).weights_sha256
    assert open_pipeline(stored(tmp_path / "two", net)).weights_sha256 == one
    with torch.no_grad():
        net.conv_in.bias[0] += 1e-6
    assert open_pipeline(stored(tmp_path / "three", net)).weights_sha256 != one


def test_half_precision_is_computed_in_single(tmp_path):
    net = network().half()
    opened = open_pipeline(stored(tmp_path / "p", net))
    assert {tensor.dtype for tensor in opened.net.state_dict().values()} == {torch.float32}
    assert torch.equal(opened.net.conv_in.weight, net.conv_in.weight.float())


def test_opening_leaves_the_global_random_state(tmp_path):
    folder = stored(tmp_path / "p")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    open_pipeline(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_weights_in_shards_and_with_the_old_names_of_attention_are_read(tmp_path):
    blocks = {
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    }
    net = network(**blocks)
    folder = stored(tmp_path / "p", net)
    net.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    shutil.rmtree(folder / "unet")
    shutil.move(tmp_path / "shards", folder / "unet")
    in_shards = open_pipeline(folder).net.state_dict()
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for key, tensor in net.state_dict().items():
        renamed[
            next(
                (
                    key.replace(f".{new}.", f".{was}.")
                    for new, was in old.items()
                    if f".{new}." in key
                ),
                key,
            )
        ] = tensor
    assert set(renamed) != set(net.state_dict())
    folder = stored(tmp_path / "old", net)
    save_file(renamed, folder / "unet" / WEIGHTS)
    with_old_names = open_pipeline(folder).net.state_dict()
    for key, tensor in net.state_dict().items():
        assert torch.equal(in_shards[key], tensor)
        assert torch.equal(with_old_names[key], tensor)


def test_another_class_of_pipeline_with_the_same_parts_is_opened_with_a_word(tmp_path):
    folder = stored(tmp_path / "p")
    change(
        folder / "model_index.json",
        _class_name="ButterflyPipeline",
        requires_safety_checker=False,
        feature=[None, None],
    )
    opened = open_pipeline(folder)
    assert "ButterflyPipeline" in " ".join(opened.notes)
    assert opened.facts()["pipeline_class"] == "ButterflyPipeline"


# ---- checkpoints of trainers ---------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint with raw weights that predict 0.1 and averaged weights that predict 0.2; the
    scheduler lies above it."""
    folder = tmp_path / "run" / "checkpoint-500"
    constant(0.1).save_pretrained(folder / "unet")
    constant(0.2).save_pretrained(folder / "unet_ema")
    change(folder / "unet_ema" / "config.json", decay=0.9999, power=0.75, optimization_step=500)
    DDPMScheduler(num_train_timesteps=70).save_pretrained(tmp_path / "run" / "scheduler")
    return folder


def test_a_checkpoint_opens_with_averaged_weights_unless_raw_ones_are_asked_for(checkpoint):
    for asked, label, value in ((None, "ema", 0.2), ("ema", "ema", 0.2), ("raw", "raw", 0.1)):
        opened = open_pipeline(checkpoint, asked)
        assert (opened.weights, opened.facts()["weights"]) == (label, label)
        assert opened.net.conv_out.bias.item() == pytest.approx(value)
        assert opened.timesteps == 70
        assert (asked is None) == any(
            "ema weights (unet_ema/) were opened; --weights raw" in note for note in opened.notes
        )
    shutil.rmtree(checkpoint / "unet_ema")
    assert open_pipeline(checkpoint).weights == "raw"
    with pytest.raises(
        ArtifactError,
        match="has no unet_ema/, which --weights ema asks for; allowed is --weights raw",
    ):
        open_pipeline(checkpoint, "ema")


def test_a_checkpoints_own_scheduler_goes_before_the_one_above(checkpoint):
    DDIMScheduler(num_train_timesteps=30).save_pretrained(checkpoint / "scheduler")
    opened = open_pipeline(checkpoint)
    assert (opened.timesteps, opened.scheduler_class) == (30, "DDIMScheduler")


def test_a_checkpoint_without_a_scheduler_is_refused(checkpoint):
    shutil.rmtree(checkpoint.parent / "scheduler")
    with pytest.raises(ArtifactError, match="no scheduler/ is in it or in the folder above; copy"):
        open_pipeline(checkpoint)


def test_the_folder_of_checkpoints_names_them(checkpoint):
    with pytest.raises(ArtifactError, match="name one of the training's states: checkpoint-500/"):
        open_pipeline(checkpoint.parent)


def test_a_pipelines_only_weights_cannot_be_told_apart(tmp_path):
    folder = stored(tmp_path / "p", constant(0.1))
    for asked in ("ema", "raw"):
        with pytest.raises(
            ArtifactError,
            match=f"one set of weights, unet/.*--weights {asked}.*leave --weights out",
        ):
            open_pipeline(folder, asked)
    constant(0.2).save_pretrained(folder / "unet_ema")
    opened = {asked: open_pipeline(folder, asked) for asked in (None, "ema", "raw")}
    assert [each.weights for each in opened.values()] == ["pipeline", "ema", "raw"]
    assert [each.net.conv_out.bias.item() for each in opened.values()] == pytest.approx(
        [0.1, 0.2, 0.1]
    )
    assert "--weights ema" in opened[None].notes[0]


def test_what_another_trainer_left_is_opened(real_client, capfd):
    """Its finished pipeline has the averaged weights of the last checkpoint."""
    trained = real_client / "ddpm-emoji-16"
    last = {
        asked: open_pipeline(trained / "checkpoint-5000", asked).weights_sha256
        for asked in ("ema", "raw")
    }
    assert open_pipeline(trained).weights_sha256 == last["ema"] != last["raw"]
    assert capfd.readouterr().err == ""


# ---- folders that are not opened -----------------------------------------------------------------


def text_to_image(folder):
    change(
        folder / "model_index.json",
        _class_name="StableDiffusionPipeline",
        unet=["diffusers", "UNet2DConditionModel"],
        vae=["diffusers", "AutoencoderKL"],
        text_encoder=["transformers", "CLIPTextModel"],
        tokenizer=["transformers", "CLIPTokenizer"],
    )


def latents(folder):
    change(folder / "model_index.json", _class_name="LDMPipeline", vqvae=["diffusers", "VQModel"])


def transformer(folder):
    change(
        folder / "model_index.json", unet=None, transformer=["diffusers", "DiTTransformer2DModel"]
    )


def truncated(folder):
    weights = folder / "unet" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])


def other_weights(**changes):
    """Weights in which tensors are replaced, or left out where None is given; dots are written as
    double underlines."""

    def damage(folder):
        state = load_file(folder / "unet" / WEIGHTS)
        for name, value in changes.items():
            key = name.replace("__", ".")
            state.pop(key, None)
            if value is not None:
                state[key] = value
        save_file(state, folder / "unet" / WEIGHTS)

    return damage


def written(file, content):
    return lambda folder: (folder / file).write_bytes(
        content if isinstance(content, bytes) else content.encode()
    )


def renamed(new):
    return lambda folder: (folder / "unet" / WEIGHTS).rename(folder / "unet" / new)


def changed(file, **keys):
    return lambda folder: change(folder / file, **keys)


def removed(file):
    return lambda folder: (folder / file).unlink()


UNET, SCHEDULER = "unet/config.json", "scheduler/scheduler_config.json"


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            text_to_image,
            "StableDiffusionPipeline of scheduler, text_encoder, tokenizer, unet, vae, a "
            "text-to-image pipeline",
        ),
        (
            latents,
            "LDMPipeline of scheduler, unet, vqvae, a pipeline of latents; what can be opened is "
            "a UNet2DModel",
        ),
        (transformer, "a DDPMPipeline of scheduler, transformer; what can be opened"),
        (changed("model_index.json", scheduler=None), "a DDPMPipeline of unet; what can be opened"),
        (
            changed("model_index.json", unet=["pipeline", "MyUNet"]),
            "its unet is pipeline.MyUNet, code of its own, which is never run",
        ),
        (
            changed("model_index.json", unet=["diffusers", "UNet1DModel"]),
            "its unet is a UNet1DModel; what can be opened",
        ),
        (
            changed("model_index.json", scheduler=["mine", "DDPMScheduler"]),
            "its scheduler is mine.DDPMScheduler, code of its own",
        ),
        (written("model_index.json", "{"), "model_index.json is damaged, it is not JSON"),
        (
            written("model_index.json", "[]"),
            "model_index.json is damaged: a JSON object is needed, not list",
        ),
        (
            written("model_index.json", '{"a": "ü"}'.encode("utf-16")),
            "model_index.json is damaged, it is not JSON",
        ),
        (
            written("model_index.json", POINTER),
            "model_index.json is a git-lfs pointer, not the file; run `git lfs pull`",
        ),
        (removed(UNET), "is incomplete: there is no unet/config.json"),
        (written(UNET, "not JSON"), "unet/config.json is damaged, it is not JSON"),
        (written(UNET, ""), "unet/config.json is damaged, it is not JSON"),
        (
            changed(UNET, _class_name="UNet2DConditionModel"),
            "unet/config.json is that of a UNet2DConditionModel",
        ),
        (
            changed(UNET, down_block_types=["DownBlock2D", "NoBlock2D"]),
            "no UNet2DModel can be built from unet/config.json",
        ),
        (
            changed(UNET, block_out_channels="wide"),
            "no UNet2DModel can be built from unet/config.json",
        ),
        (changed(UNET, norm_num_groups=0), "no UNet2DModel can be built from unet/config.json"),
        (changed(UNET, norm_num_groups=3), "no UNet2DModel can be built from unet/config.json"),
        (
            changed(UNET, layers_per_block=2),
            "are not those of the network in its config.json: missing are down_blocks",
        ),
        (
            changed(UNET, block_out_channels=[8, 24]),
            "unet/config.json and the weights disagree: down_blocks",
        ),
        (
            other_weights(conv_in__bias=None),
            "not those of the network in its config.json: missing are conv_in.bias",
        ),
        (
            other_weights(extra=torch.zeros(1)),
            "not those of the network in its config.json: not known are extra",
        ),
        (
            other_weights(conv_in__bias=torch.zeros(9)),
            "disagree: conv_in.bias is (9,) where (8,) is needed",
        ),
        (
            other_weights(conv_in__bias=torch.zeros(8, dtype=torch.int8)),
            "are quantised (conv_in.bias is torch.int8)",
        ),
        (
            other_weights(conv_in__bias=torch.full((8,), torch.nan)),
            "not finite: conv_in.bias has NaN or infinite values",
        ),
        (
            other_weights(conv_in__bias=torch.full((8,), torch.inf).half()),
            "not finite: conv_in.bias has NaN",
        ),
        (
            other_weights(conv_norm_out__weight=torch.full((8,), 3e38)),
            "prediction for noise at timestep 99 is not finite",
        ),
        (truncated, f"unet/{WEIGHTS} is damaged (truncated or changed)"),
        (written(f"unet/{WEIGHTS}", ""), f"unet/{WEIGHTS} is damaged (truncated or changed)"),
        (
            written(f"unet/{WEIGHTS}", "<!DOCTYPE html>" * 9),
            f"unet/{WEIGHTS} is damaged (truncated or changed)",
        ),
        (
            written(f"unet/{WEIGHTS}", POINTER),
            f"unet/{WEIGHTS} is a git-lfs pointer, not the weights; run `git lfs pull`",
        ),
        (removed(f"unet/{WEIGHTS}"), f"there is no unet/{WEIGHTS}, nor any other weights"),
        (
            renamed("diffusion_pytorch_model.bin"),
            "but diffusion_pytorch_model.bin, a pickle, which is never read; open it",
        ),
        (
            renamed("diffusion_pytorch_model.fp16.safetensors"),
            "but diffusion_pytorch_model.fp16.safetensors; open it once by ",
        ),
        (renamed("model.safetensors"), "but model.safetensors; rename"),
        (
            lambda folder: shutil.rmtree(folder / "unet"),
            "is incomplete: there is no unet/config.json",
        ),
        (
            lambda folder: shutil.rmtree(folder / "scheduler"),
            "is incomplete: there is no scheduler/scheduler_config.json",
        ),
        (written(SCHEDULER, "{]"), "scheduler/scheduler_config.json is damaged, it is not JSON"),
        (
            changed(SCHEDULER, beta_schedule="my_own"),
            "DDPMScheduler cannot be made of its scheduler_config.json: my_own is not",
        ),
        (
            changed(SCHEDULER, num_train_timesteps="many"),
            "DDPMScheduler cannot be made of its scheduler_config.json",
        ),
        (
            changed(SCHEDULER, num_train_timesteps=0),
            "num_train_timesteps = 0 numbers from 0 to 1, at least one",
        ),
        (
            changed(SCHEDULER, trained_betas=[0.1, 0.2]),
            "must be num_train_timesteps = 100 numbers from 0 to 1, at least one",
        ),
        (
            changed(SCHEDULER, beta_end=1.5),
            "from 0 to 1, at least one and the first below 1, but are 100 from 0.0001 to 1.5",
        ),
        (changed(SCHEDULER, beta_start=float("nan")), "but are 100 from nan to nan"),
        (
            changed(SCHEDULER, prediction_type="flow_prediction"),
            "prediction_type = 'flow_prediction'; allowed are epsilon, sample",
        ),
        (
            changed(SCHEDULER, timestep_spacing="karras"),
            "timestep_spacing = 'karras'; allowed are leading, linspace, trailing",
        ),
        (
            changed(SCHEDULER, clip_sample_range="wide"),
            "its scheduler_config.json cannot be sampled with",
        ),
        (
            changed(SCHEDULER, use_flow_sigmas=True),
            "DDPMScheduler has use_flow_sigmas = True: that is not the forward process",
        ),
        (
            changed(SCHEDULER, _class_name=["mine", "DDPMScheduler"]),
            "its scheduler is ['mine', 'DDPMScheduler'], which is not known",
        ),
        (
            changed(UNET, _class_name=["mine", "UNet2DModel"]),
            "unet/config.json is that of a ['mine', 'UNet2DModel']",
        ),
        (
            changed(SCHEDULER, trained_betas=0.1),
            "must be num_train_timesteps = 100 numbers from 0 to 1",
        ),
        (
            changed(SCHEDULER, trained_betas=["a"] * 100),
            "DDPMScheduler cannot be made of its scheduler_config.json",
        ),
        (
            changed(SCHEDULER, trained_betas=[1.0] * 100),
            "the first below 1, but are 100 from 1 to 1",
        ),
        (
            changed(SCHEDULER, _class_name="EDMEulerScheduler"),
            "its scheduler is EDMEulerScheduler, which is not known to be",
        ),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, damage, words):
    folder = stored(tmp_path / "p")
    damage(folder)
    with pytest.raises(ArtifactError) as refused:
        open_pipeline(folder)
    assert words in str(refused.value)
    assert str(refused.value).count(str(folder)) == 1
    assert "\n" not in str(refused.value)


def test_shards_that_are_not_all_there_are_named(tmp_path):
    folder = stored(tmp_path / "p")
    network().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    shutil.rmtree(folder / "unet")
    shutil.move(tmp_path / "shards", folder / "unet")
    first = sorted((folder / "unet").glob("*-00001-of-*.safetensors"))[0]
    first.unlink()
    with pytest.raises(ArtifactError, match=f"there is no unet/{first.name}, but"):
        open_pipeline(folder)
    (folder / "unet" / f"{WEIGHTS}.index.json").write_text(
        '{"weight_map": {"a": "../../elsewhere.safetensors"}}'
    )
    with pytest.raises(
        ArtifactError, match=r"index.json is damaged: it has no weight_map of file names"
    ):
        open_pipeline(folder)


def test_a_network_alone_and_a_file_and_nothing_are_refused(tmp_path):
    folder = stored(tmp_path / "p")
    with pytest.raises(
        ArtifactError,
        match=r"unet cannot be opened.*a network alone \(config.json\), without a scheduler",
    ):
        open_pipeline(folder / "unet")
    with pytest.raises(
        ArtifactError, match=r"cannot be opened as a diffusers pipeline: it is a file"
    ):
        open_pipeline(folder / "unet" / WEIGHTS)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"there is no model_index.json, but nothing"):
        open_pipeline(tmp_path / "empty")
    with pytest.raises(ArtifactError, match="there is no such folder, and it is no Hub id"):
        open_pipeline(tmp_path / "nowhere")


# ---- the Hub -------------------------------------------------------------------------------------


def test_the_index_of_a_hub_id_is_read_before_anything_else_is_fetched(tmp_path, monkeypatch):
    folder = stored(tmp_path / "p")
    asked = []

    def file(repository, name, revision):
        asked.append((repository, name, revision))
        return str(folder / name)

    def snapshot(repository, revision, allow_patterns):
        asked.append((repository, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert open_pipeline("owner/name@v1").timesteps == 100
    assert asked[0] == ("owner/name", "model_index.json", "v1")
    assert asked[1][:2] == ("owner/name", "v1")
    assert f"unet/{WEIGHTS}" in asked[1][2]
    assert not any(pattern.endswith((".bin", ".py")) for pattern in asked[1][2])
    text_to_image(folder)
    with pytest.raises(ArtifactError, match="owner/name is a StableDiffusionPipeline"):
        open_pipeline("owner/name")
    assert len(asked) == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            LocalEntryNotFoundError("offline"),
            "neither in the local cache nor can the Hub be reached",
        ),
        (EntryNotFoundError("404"), "the Hub's repository has no model_index.json"),
        (OSError("disk full\nmore"), "cannot be fetched from the Hub: disk full"),
    ],
)
def test_what_the_hub_does_not_give_is_said(monkeypatch, error, words):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    with pytest.raises(ArtifactError) as refused:
        open_pipeline("owner/name")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


# ---- schedulers ----------------------------------------------------------------------------------


def classes_of_schedulers() -> list[str]:
    return sorted(
        name
        for name in dir(diffusers)
        if name.endswith("Scheduler") and name not in (*OWN_SAMPLER, *SOLVERS)
    )


@pytest.mark.parametrize("kind", classes_of_schedulers())
def test_a_scheduler_that_is_not_on_the_list_is_refused_by_name(tmp_path, kind):
    folder = stored(tmp_path / "p")
    change(folder / "model_index.json", scheduler=["diffusers", kind])
    change(folder / SCHEDULER, _class_name=kind)
    with pytest.raises(
        ArtifactError,
        match=rf"its scheduler is {kind}, which is not known .* give the images .* as --samples",
    ):
        open_pipeline(folder)


def test_others_are_many():
    """The list above is not empty by a change of diffusers."""
    assert {
        "CMStochasticIterativeScheduler",
        "ScoreSdeVeScheduler",
        "LCMScheduler",
        "TCDScheduler",
    } <= set(classes_of_schedulers())


SCHEDULERS = [
    DDPMScheduler(beta_schedule="linear"),
    DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
    DDPMScheduler(beta_schedule="sigmoid"),
    DDPMScheduler(beta_schedule="laplace"),
    DDPMScheduler(beta_schedule="sigmoid", rescale_betas_zero_snr=True),
    DDPMScheduler(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    ),
    DDPMScheduler(trained_betas=[0.01 * (1 + t) for t in range(50)], num_train_timesteps=50),
    DDIMScheduler(beta_start=0.001, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    diffusers.DDIMParallelScheduler(beta_end=0.01),
    diffusers.DDPMParallelScheduler(beta_schedule="sigmoid"),
    *(getattr(diffusers, name)() for name in SOLVERS),
    diffusers.HeunDiscreteScheduler(beta_schedule="exp", beta_start=0.001),
    diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear", rescale_betas_zero_snr=True, prediction_type="v_prediction"
    ),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("only_named_keys", [False, True])
def test_both_samplers_get_the_betas_of_the_pipelines_own_scheduler(
    tmp_path, scheduler, only_named_keys
):
    """In a file that leaves out keys, the defaults are those of the class that it names."""
    folder = stored(tmp_path / "p", scheduler=scheduler)
    if only_named_keys:
        plain = type(scheduler)().config
        text = json.loads((folder / SCHEDULER).read_text())
        (folder / SCHEDULER).write_text(
            json.dumps(
                {
                    key: value
                    for key, value in text.items()
                    if key.startswith("_") or plain[key] != value
                }
            )
        )
    opened = open_pipeline(folder)
    json.dumps(opened.scheduler_config, allow_nan=False)
    for kind in (DDIMScheduler, DDPMScheduler):
        made = kind.from_config(opened.scheduler_config)
        torch.testing.assert_close(
            made.alphas_cumprod, torch.cumprod(1 - scheduler.betas, 0), rtol=0, atol=0
        )
        assert made.config["prediction_type"] == scheduler.config["prediction_type"]
        assert made.config["num_train_timesteps"] == scheduler.config["num_train_timesteps"]


def test_a_key_that_the_own_scheduler_does_not_know_does_not_change_its_betas(tmp_path):
    folder = stored(tmp_path / "p", scheduler=diffusers.PNDMScheduler())
    change(folder / SCHEDULER, rescale_betas_zero_snr=True)
    made = DDIMScheduler.from_config(open_pipeline(folder).scheduler_config)
    torch.testing.assert_close(made.betas, diffusers.PNDMScheduler().betas, rtol=0, atol=0)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.DPMSolverMultistepScheduler(
            use_flow_sigmas=True, prediction_type="flow_prediction"
        ),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True),
        diffusers.EulerDiscreteScheduler(
            timestep_type="continuous", prediction_type="v_prediction", sigma_min=0.1, sigma_max=9.0
        ),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_solver_of_another_forward_process_is_refused(tmp_path, scheduler):
    with pytest.raises(
        ArtifactError,
        match=r"its scheduler \w+ has \w+ = \w+: that is not the forward process of a DDPM",
    ):
        open_pipeline(stored(tmp_path / "p", scheduler=scheduler))


def test_two_files_that_name_different_schedulers_are_both_checked(tmp_path):
    folder = stored(tmp_path / "p")
    change(folder / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    with pytest.raises(ArtifactError, match="its scheduler is LCMScheduler"):
        open_pipeline(folder)


def test_a_pipeline_is_drawn_with_its_own_scheduler_unless_another_is_asked_for(tmp_path):
    of = {}
    for kind in ("DDPMScheduler", "DDIMScheduler", "DDIMParallelScheduler", "PNDMScheduler"):
        of[kind] = open_pipeline(stored(tmp_path / kind, scheduler=getattr(diffusers, kind)()))
        assert [of[kind].sampler(asked) for asked in ("ddim", "ddpm")] == ["ddim", "ddpm"]
    assert [of[kind].sampler() for kind in list(of)[:3]] == ["ddpm", "ddim", "ddim"]
    change(
        tmp_path / "DDPMScheduler" / "model_index.json", _class_name="DDIMPipeline"
    )  # which converts its scheduler
    assert open_pipeline(tmp_path / "DDPMScheduler").sampler() == "ddim"
    with pytest.raises(
        ConfigError, match="--sampler is needed: the pipeline's own PNDMScheduler is not supported"
    ):
        of["PNDMScheduler"].sampler()


def test_steps_of_an_audit():
    assert [
        default_steps(*each)
        for each in (("ddim", 1000), ("ddpm", 1000), ("ddim", 20), ("ddpm", 100))
    ] == [
        50,
        250,
        20,
        100,
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"variance_type": "fixed_large", "timestep_spacing": "trailing", "clip_sample": False},
        {"variance_type": "learned_range"},
        {
            "beta_schedule": "sigmoid",
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
        },
    ],
    ids=str,
)
def test_ancestral_generations_are_those_of_diffusers_own_pipeline(tmp_path, settings):
    net = network(out_channels=2) if settings.get("variance_type") == "learned_range" else network()
    folder = stored(tmp_path / "p", net, DDPMScheduler(num_train_timesteps=100, **settings))
    opened = open_pipeline(folder)
    sample = Sample(images=3, steps=10, sampler=opened.sampler(), batch_size=2)
    drawn = generate(opened.net, opened.scheduler_config, range(3), sample, seed=4)
    assert len(np.unique(drawn)) > 20
    theirs = DDPMPipeline.from_pretrained(folder)
    theirs.set_progress_bar_config(disable=True)
    for id_, image in enumerate(drawn):
        alone = theirs(
            generator=torch_rng(4, "sample", 0, id_), num_inference_steps=10, output_type="np"
        ).images[0]
        gap = np.abs(np.round(alone * 255).astype(int) - image)
        assert gap.max() <= 1
        assert (gap > 0).mean() <= 0.02  # rounding, where two are drawn at once


# ---- networks ------------------------------------------------------------------------------------


def mean_half(net: UNet2DModel) -> UNet2DModel:
    """The same network without its outputs for the variance."""
    half = UNet2DModel.from_config({**net.config, "out_channels": 1})
    half.load_state_dict(
        {
            key: value[:1] if key.startswith("conv_out.") else value
            for key, value in net.state_dict().items()
        }
    )
    return half.eval()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_of_a_network_that_predicts_a_variance_only_the_mean_counts_where_the_scheduler_takes_none(
    tmp_path, sampler
):
    net = network(out_channels=2)
    whole, half = open_pipeline(stored(tmp_path / "p", net)), mean_half(net)
    settings = Sample(images=2, steps=5, sampler=sampler)
    config = whole.scheduler_config
    np.testing.assert_array_equal(
        generate(whole.net, config, [0, 1], settings, seed=1),
        generate(half, config, [0, 1], settings, seed=1),
    )


def test_a_learned_variance_that_no_output_predicts_is_refused_for_ancestral_sampling_alone(
    tmp_path,
):
    opened = open_pipeline(
        stored(tmp_path / "p", scheduler=DDPMScheduler(variance_type="learned_range"))
    )
    assert opened.sampler("ddim") == "ddim"
    with pytest.raises(
        ConfigError,
        match="--sampler ddpm: the scheduler's variance_type is learned_range, but the network has",
    ):
        opened.sampler()


LEVELS = {
    "block_out_channels": (8,) * 4,
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"sample_size": 28, **LEVELS},
            "sample_size, 28 x 28, at timestep 99: with 4 levels both sides must usually be "
            "multiples of 8",
        ),
        ({"sample_size": (16, 28), **LEVELS}, "sample_size, 16 x 28"),
        ({"sample_size": 9}, "sample_size, 9 x 9"),
        ({"sample_size": 0}, "sample_size is 0; allowed are a side, or height and width"),
        ({"sample_size": (8, 8, 8)}, "sample_size is [8, 8, 8]; allowed"),
        ({"sample_size": 8.5}, "sample_size is 8.5; allowed"),
        ({"sample_size": None}, "has no sample_size (null), and there are no images"),
        (
            {"out_channels": 3},
            "its network has 1 input and 3 output channels; allowed are as many",
        ),
        (
            {"in_channels": 4, "out_channels": 4},
            "its network has 4 input channels; allowed are 1 (grey) and 3 (RGB)",
        ),
        (
            {"class_embed_type": "timestep"},
            "class_embed_type is 'timestep'; allowed are networks without labels",
        ),
        ({"class_embed_type": "identity"}, "class_embed_type is 'identity'; allowed"),
        ({"num_class_embeds": 0}, "num_class_embeds = 0; at least one label"),
        (
            {"time_embedding_type": "learned", "num_train_timesteps": 50},
            "cannot take images of its own sample_size, 8 x 8, at timestep 99",
        ),
    ],
)
def test_a_network_that_cannot_be_computed_is_refused_before_any_work(tmp_path, settings, words):
    folder = stored(tmp_path / "p", network(**settings))
    with pytest.raises(ArtifactError) as refused:
        open_pipeline(folder)
    assert words in str(refused.value)


def test_sizes_of_images(tmp_path):
    none = stored(
        tmp_path / "none", constant(0.5, sample_size=None), DDPMScheduler(prediction_type="sample")
    )
    wide = stored(
        tmp_path / "wide",
        constant(0.5, sample_size=(8, 16)),
        DDPMScheduler(prediction_type="sample"),
    )
    for opened, shape in (
        (open_pipeline(none, size=(12, 6)), (12, 6, 1)),
        (open_pipeline(wide, size=(4, 4)), (8, 16, 1)),
        (open_pipeline(none, size=lambda: (6, 12)), (6, 12, 1)),
        (open_pipeline(wide, size=lambda: pytest.fail("not needed")), (8, 16, 1)),
    ):
        assert opened.shape == shape
        drawn = generate(
            opened.net, opened.scheduler_config, [0, 1], Sample(images=2, steps=3), seed=0
        )
        assert drawn.shape == (2, *shape)
        assert set(np.unique(drawn)) == {191}
    with pytest.raises(ArtifactError, match="cannot take images of its own sample_size, 9 x 9"):
        open_pipeline(none, size=(9, 9))


def test_every_embedding_of_a_foreign_network_is_a_label_and_ours_name_their_null_label(tmp_path):
    foreign = open_pipeline(stored(tmp_path / "foreign", network(num_class_embeds=10)))
    assert (foreign.classes, foreign.null) == (10, None)
    save_pipeline(
        build_unet(TINY, (8, 8, 1), classes=10), build_scheduler(Diffusion()), tmp_path / "ours"
    )
    ours = open_pipeline(tmp_path / "ours")
    assert (ours.classes, ours.null) == (10, 10)
    router = TimestepRouter(
        build_unet(TINY, (8, 8, 1), classes=4), build_unet(TINY, (8, 8, 1), classes=4, seed=1), 500
    )
    save_pipeline(router, build_scheduler(Diffusion()), tmp_path / "router")
    opened = open_pipeline(tmp_path / "router")
    assert (opened.classes, opened.null) == (4, 4)
    assert null_of(opened.net.front) == 4


def test_the_mark_of_the_null_label_is_no_concern_of_diffusers(tmp_path, caplog):
    save_pipeline(
        build_unet(TINY, (8, 8, 1), classes=10), build_scheduler(Diffusion()), tmp_path / "ours"
    )
    diffusers.utils.logging.enable_propagation()
    try:
        DDPMPipeline.from_pretrained(tmp_path / "ours")
    finally:
        diffusers.utils.logging.disable_propagation()
    assert not caplog.records


def test_a_training_made_before_the_mark_has_its_null_label(tmp_path):
    save_pipeline(
        build_unet(TINY, (8, 8, 1), classes=10), build_scheduler(Diffusion()), tmp_path / "old"
    )
    change(tmp_path / "old" / UNET, _null_label=None)
    assert open_pipeline(tmp_path / "old").classes == 11
    net, _ = load_trained(tmp_path / "old", seed=0, replicate=0)
    assert (classes_of(net), null_of(net)) == (10, 10)


def test_without_a_null_label_there_is_no_guidance(tmp_path):
    opened = open_pipeline(stored(tmp_path / "p", network(num_class_embeds=3)))
    labels = np.array([0, 2])
    drawn = generate(
        opened.net,
        opened.scheduler_config,
        [0, 1],
        Sample(images=2, steps=2),
        seed=0,
        labels=labels,
    )
    other = generate(
        opened.net,
        opened.scheduler_config,
        [0, 1],
        Sample(images=2, steps=2),
        seed=0,
        labels=labels * 0,
    )
    np.testing.assert_array_equal(drawn[0], other[0])
    assert (drawn[1] != other[1]).any()
    for w in (0.0, 2.0):
        with pytest.raises(
            ConfigError, match=f"sample.guidance = {w}: the network has no null label"
        ):
            generate(
                opened.net,
                opened.scheduler_config,
                [0, 1],
                Sample(images=2, steps=2, guidance=w),
                seed=0,
                labels=labels,
            )


# ---- values that are not finite ------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize(
    ("value", "prediction", "what"),
    [
        (float("nan"), "epsilon", "prediction of the network"),
        (float("inf"), "sample", "prediction of the network"),  # which clipping would hide
        (-float("inf"), "v_prediction", "prediction of the network"),
        (3e38, "epsilon", "image"),  # finite, but too large to be taken away
    ],
)
def test_the_first_step_that_is_not_finite_is_named(sampler, value, prediction, what):
    """Steps of 1,000 timesteps by 100; one prediction is bad, of one image of two, at the fourth
    step."""
    scheduler = DDPMScheduler(prediction_type=prediction, clip_sample=prediction == "sample")

    def net(x, t, return_dict):
        made = torch.zeros_like(x)
        if t == 600:
            made[1, 0, 0, 0] = value
        return (made,)

    start = torch.stack([torch.randn((1, 4, 4), generator=torch_rng(i)) for i in range(2)]).clamp(
        -1, 1
    )
    settings = Sample(images=2, steps=10, sampler=sampler)
    with pytest.raises(
        ArtifactError, match=rf"the {what} at step 4 of 10 \(timestep 600\) is not finite"
    ):
        denoise(net, dict(scheduler.config), start, [torch_rng(i) for i in range(2)], settings)


def test_a_first_timestep_beyond_the_training_is_refused():
    scheduler = DDIMScheduler(num_train_timesteps=20, steps_offset=1)
    with pytest.raises(
        ConfigError,
        match=r"sample.steps = 20: with the scheduler's steps_offset of 1 the first step is at "
        r"timestep 20",
    ):
        denoise(
            network(),
            dict(scheduler.config),
            torch.zeros(1, 1, 8, 8),
            [torch_rng(0)],
            Sample(images=1, steps=20),
        )
    made = denoise(
        network(),
        dict(scheduler.config),
        torch.zeros(1, 1, 8, 8),
        [torch_rng(0)],
        Sample(images=1, steps=10),
    )
    assert to_uint8(made).shape == (1, 8, 8, 1)
