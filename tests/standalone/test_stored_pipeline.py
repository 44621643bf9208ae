"""A pipeline that cannot be drawn from is refused in one message that names the part or the flag,
before anything is drawn."""

from __future__ import annotations

import importlib.util
import json
import shutil

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from afterimage import cli
from afterimage.standalone import stored_pipeline

from . import tiny_pipelines as tiny

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A stored Stable Diffusion pipeline; read only."""
    return tiny.save(tiny.sd, tmp_path_factory.mktemp("made") / "sd")


@pytest.fixture
def stored(made, tmp_path):
    """A copy of it, to damage."""
    return shutil.copytree(made, tmp_path / "sd")


@pytest.fixture
def audit(tmp_path, capsys, monkeypatch):
    """Run an audit that must be refused; return its message. Nothing may have been drawn."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "train.npz", images=rng.integers(0, 256, (20, 16, 16, 3), dtype=np.uint8))
    (tmp_path / "prompts.txt").write_text("a cat\n")

    def refused(pipeline, *flags, prompts="prompts.txt", status=2):
        given = ["--pipeline", pipeline, "--train", tmp_path / "train.npz", "--steps", 2, *flags]
        given += ["--prompts", tmp_path / prompts] if prompts else []
        given += ["--features", "pixels", "--out", tmp_path / "out"]
        assert cli.main(["audit", *map(str, given)]) == status
        if status:
            assert not list((tmp_path / "out").glob("drawn/*.png"))
        output = capsys.readouterr()
        return output.err if status else output.out

    return refused


def change(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


# ---- parts and files -----------------------------------------------------------------------------


def test_a_missing_tokenizer_is_named(stored, audit):
    shutil.rmtree(stored / "tokenizer")
    assert "its tokenizer (CLIPTokenizer) is missing: there is no tokenizer/" in audit(stored)


def test_an_empty_tokenizer_folder_is_a_missing_one(stored, audit):
    for path in (stored / "tokenizer").iterdir():
        path.unlink()
    assert "its tokenizer (CLIPTokenizer) is missing" in audit(stored)


def test_a_tokenizer_without_vocabulary_is_not_taken_for_an_empty_one(stored, audit):
    (stored / "tokenizer" / "tokenizer.json").unlink()
    message = audit(stored)
    assert "its tokenizer has no vocabulary: there is no tokenizer.json or vocab.json" in message


def test_a_tokenizer_that_knows_no_word_is_named(stored, audit):
    path = stored / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    path.write_text(json.dumps(tokenizer))
    message = audit(stored)
    assert "its tokenizer knows nothing of 1 of 1 prompts ('a cat')" in message
    assert "its vocabulary is of 2 tokens, 2 of them special" in message


def test_a_tokenizer_that_is_null_is_named(stored, audit):
    change(stored / "model_index.json", tokenizer=[None, None])
    assert "a StableDiffusionPipeline needs its tokenizer, which is null" in audit(stored)


def test_a_tokenizer_that_the_index_does_not_name_is_named(stored, audit):
    index = json.loads((stored / "model_index.json").read_text())
    del index["tokenizer"]
    (stored / "model_index.json").write_text(json.dumps(index))
    assert "a StableDiffusionPipeline needs its tokenizer, not named" in audit(stored)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae", "scheduler"])
def test_any_missing_part_is_named(stored, audit, part):
    shutil.rmtree(stored / part)
    assert f"its {part} (" in audit(stored)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("unet", ["my_module", "MyUNet"]),
        ("text_encoder", ["os", "system"]),
        ("scheduler", ["./schedulers", "Own"]),
        ("text_encoder", ["transformers", "AutoModel"]),
        ("unet", ["diffusers", "AutoModel"]),
        ("unet", ["diffusers", "OnnxRuntimeModel"]),
    ],
)
def test_code_of_its_own_is_never_run(stored, audit, part, value):
    change(stored / "model_index.json", **{part: value})
    (stored / part / f"{value[0].strip('./')}.py").write_text("raise SystemExit('it was run')")
    message = audit(stored)
    assert f"its {part} is {'.'.join(value)}" in message
    assert "code of" in message


def test_a_pipeline_is_no_part_of_another(stored, audit):
    change(stored / "model_index.json", unet=["diffusers", "DiffusionPipeline"])
    assert "diffusers.DiffusionPipeline is no part of a pipeline" in audit(stored)


@pytest.mark.parametrize("kind", ["OwnPipeline", ["pipeline", "OwnPipeline"], "FlaxUNet", None])
def test_a_class_that_diffusers_does_not_have_is_named(stored, audit, kind):
    change(stored / "model_index.json", _class_name=kind)
    (stored / "pipeline.py").write_text("raise SystemExit('it was run')")
    assert "code of a pipeline's own is never run" in audit(stored)


def test_pickled_weights_are_never_read(stored, audit):
    weights = stored / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    message = audit(stored)
    assert "there are no weights in unet/: but diffusion_pytorch_model.bin, a pickle" in message


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_a_pointer_in_place_of_weights_is_named(stored, audit, part):
    (path,) = (stored / part).glob("*.safetensors")
    path.write_text(POINTER)
    assert f"{part}/{path.name} is a git-lfs pointer" in audit(stored)


def test_weights_that_are_cut_off_are_named(stored, audit):
    (path,) = (stored / "text_encoder").glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-100])
    assert "text_encoder/model.safetensors is damaged" in audit(stored)


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_missing_are_not_drawn_at_random(stored, audit, part):
    (path,) = (stored / part).glob("*.safetensors")
    weights = load_file(path)
    key = next(key for key in sorted(weights) if key.endswith("bias"))
    del weights[key]
    save_file(weights, path, metadata={"format": "pt"})
    message = audit(stored)
    assert f"the weights in {part}/ are not those of the" in message
    assert f"missing are {key}" in message


def test_weights_of_another_shape_are_named(stored, audit):
    (path,) = (stored / "unet").glob("*.safetensors")
    weights = load_file(path)
    weights["conv_in.weight"] = weights["conv_in.weight"][:, :3].contiguous()
    save_file(weights, path, metadata={"format": "pt"})
    message = audit(stored)
    assert "its unet cannot be opened as a UNet2DConditionModel" in message
    assert "conv_in.weight" in message


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_weights_that_are_not_finite_are_named(stored, audit, part):
    (path,) = (stored / part).glob("*.safetensors")
    weights = load_file(path)
    key = sorted(weights)[0]
    weights[key][...] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    assert f"the weights in {part}/ are not finite as float32: {key}" in audit(stored)


def test_weights_that_overflow_in_half_precision_are_named(stored, audit):
    (path,) = (stored / "unet").glob("*.safetensors")
    weights = load_file(path)
    weights["conv_out.bias"][...] = 1e6
    save_file(weights, path, metadata={"format": "pt"})
    message = audit(stored, "--dtype", "float16")
    assert "the weights in unet/ are not finite as float16: conv_out.bias" in message


def test_half_precision_that_overflows_stops_at_its_step(stored, audit):
    (path,) = (stored / "unet").glob("*.safetensors")
    weights = load_file(path)
    for key in ("conv_norm_out.weight", "conv_out.weight"):
        weights[key] *= 30000 / weights[key].abs().max()
    save_file(weights, path, metadata={"format": "pt"})
    message = audit(stored, "--dtype", "float16")
    assert "the prediction of the network at step 1 (timestep 501) is not finite" in message
    assert "--dtype float32 and bfloat16" in message
    assert audit(stored, status=0)


def test_half_precision_draws(stored, audit):
    assert audit(stored, "--dtype", "bfloat16", status=0)


# ---- variants ------------------------------------------------------------------------------------


def test_a_variant_is_opened_by_its_name(made, tmp_path, audit):
    folder = tmp_path / "half"
    tiny.sd().to(torch.float16).save_pretrained(folder, variant="fp16")
    assert "there are no weights in text_encoder/: only those of --variant fp16" in audit(folder)
    assert "has no weights of that name; it has fp16" in audit(folder, "--variant", "bf16")
    assert "no weights of that name; it has no variant" in audit(made, "--variant", "fp16")
    assert audit(folder, "--variant", "fp16", status=0)


def test_parts_without_the_variant_are_said(tmp_path, audit):
    folder = tmp_path / "half"
    tiny.sd().save_pretrained(folder)
    tiny.sd().unet.to(torch.float16).save_pretrained(folder / "unet", variant="fp16")
    output = audit(folder, "--variant", "fp16", status=0)
    assert "there are no such weights of text_encoder, vae, whose usual ones are used" in output


def test_weights_in_shards_are_read_and_counted(made, tmp_path, audit):
    pipeline = tiny.sd()
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    found = [
        stored_pipeline.find(stored_pipeline.locate(str(folder)))
        for folder in (made, tmp_path / "shards")
    ]
    assert len(found[1].weights("unet")) > 1
    assert found[0].parameters() == found[1].parameters()
    modules = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert found[0].parameters() == sum(
        p.numel() for module in modules for p in module.parameters()
    )
    assert audit(tmp_path / "shards", status=0)


# ---- memory, device, packages --------------------------------------------------------------------


def test_no_memory_says_what_is_needed(stored, audit, monkeypatch):
    monkeypatch.setattr(stored_pipeline, "free_memory", lambda device: 100_000)
    parameters = stored_pipeline.find(stored_pipeline.locate(str(stored))).parameters()
    needed = f"{4 * parameters / 1e9:.3g} GB as float32 on --device cpu, and 0.0001 GB are free"
    message = audit(stored)
    assert f"its {parameters / 1e6:.4g} million weights need {needed}" in message
    assert "--dtype bfloat16 needs half" in message


@pytest.mark.parametrize("device", ["cuda:7", "gpu", "meta:x"])
def test_a_device_that_cannot_be_used_is_named(stored, audit, device):
    assert f"--device = {device}: it cannot be used" in audit(stored, "--device", device)


@pytest.mark.parametrize("package", ["transformers", "tokenizers"])
def test_the_core_alone_names_the_extra(stored, audit, monkeypatch, package):
    find_spec = importlib.util.find_spec

    def absent(name, *rest):
        return None if name == package else find_spec(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", absent)
    message = audit(stored)
    assert f"needs {package}, which is not installed" in message
    assert "pip install '.[text]'" in message


def test_a_part_whose_package_is_not_installed_names_it(stored, audit):
    if importlib.util.find_spec("torchsde") is not None:
        pytest.skip("torchsde is installed")
    change(stored / "model_index.json", scheduler=["diffusers", "DPMSolverSDEScheduler"])
    assert "a DPMSolverSDEScheduler needs torchsde, not installed here" in audit(stored)


@pytest.mark.parametrize("make", ["dit", "latent", "karras"])
def test_pipelines_without_text_need_no_extra(tmp_path, monkeypatch, make):
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    folder = tiny.save(getattr(tiny, make), tmp_path / make)
    assert stored_pipeline.find(stored_pipeline.locate(str(folder))).parts


# ---- Hub ids -------------------------------------------------------------------------------------

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(made, tmp_path, monkeypatch):
    """The Hub's local cache with one repository, whose branch main is at ``COMMIT``."""
    from huggingface_hub import constants

    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copytree(made, folder / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def test_a_hub_id_without_revision_is_refused(cache, audit):
    message = audit("owner/name")
    assert "a Hub id is opened at a revision only" in message
    assert "--revision COMMIT" in message


@pytest.mark.parametrize("given", [["owner/name", "--revision", COMMIT], [f"owner/name@{COMMIT}"]])
def test_a_pinned_hub_id_is_opened(cache, audit, given):
    assert "is commit" not in audit(*given, status=0)


def test_a_pinned_pixel_pipeline_is_opened(cache, audit):
    shutil.rmtree(cache / "snapshots" / COMMIT)
    tiny.save(tiny.ddim, cache / "snapshots" / COMMIT)
    assert audit("owner/name", "--revision", COMMIT, prompts=None, status=0)


def test_what_a_branch_is_now_is_said(cache, audit):
    output = audit("owner/name", "--revision", "main", status=0)
    assert f"revision main is commit {COMMIT} now; --revision {COMMIT} repeats this" in output


def test_a_commit_that_is_nowhere_is_one_message(cache, audit):
    assert "neither in the local cache at this revision" in audit("owner/name@" + "f" * 40)


def test_two_revisions_and_a_folder_with_one_are_refused(cache, stored, audit):
    message = audit(f"owner/name@{COMMIT}", "--revision", "main")
    assert "--revision = main: --pipeline owner/name" in message
    message = audit(stored, "--revision", "main")
    assert "--revision = main: it is for a Hub id (owner/name)" in message


# ---- LoRA ----------------------------------------------------------------------------------------


def test_a_lora_changes_what_is_drawn(made, tmp_path, audit):
    file = tiny.lora(tmp_path / "lora", tiny.sd, ["to_q", "to_v"])
    assert audit(made, "--lora", file, status=0)
    with_lora = (tmp_path / "out" / "drawn" / "000000.png").read_bytes()
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert record["settings"]["drawing"]["lora"] == str(file)
    assert len(record["settings"]["drawing"]["sha256"]["lora"]) == 64
    shutil.rmtree(tmp_path / "out")
    assert audit(made, status=0)
    assert (tmp_path / "out" / "drawn" / "000000.png").read_bytes() != with_lora


def wide_sd():
    return tiny.diffusers.StableDiffusionPipeline(
        **tiny.sd_parts(unet=tiny.conditional_unet(cross_attention_dim=64)),
        requires_safety_checker=False,
    )


def test_a_lora_for_a_base_of_another_size_is_refused(made, tmp_path, audit):
    file = tiny.lora(tmp_path / "lora", wide_sd, ["to_k"])
    message = audit(made, "--lora", file)
    assert f"--lora = {file} is not for this StableDiffusionPipeline: size mismatch" in message


def test_a_lora_for_another_family_is_refused(made, tmp_path, audit):
    file = tiny.lora(tmp_path / "lora", tiny.sd3, ["to_q"], part="transformer")
    message = audit(made, "--lora", file)
    assert "is not for this StableDiffusionPipeline: it has weights of transformer" in message


def test_a_lora_of_which_a_part_does_not_fit_is_refused(made, tmp_path, audit):
    file = tiny.lora(tmp_path / "lora", tiny.sd, ["to_q"])
    state = load_file(file)
    key = sorted(state)[0]
    save_file(state | {key.replace("down_blocks.1", "down_blocks.7"): state[key].clone()}, file)
    assert "is not for this StableDiffusionPipeline" in audit(made, "--lora", file)
    save_file(state | {f"text_encoder_2.{key}": state[key].clone()}, file)
    assert "it has weights of text_encoder_2" in audit(made, "--lora", file)


def test_a_file_that_is_no_lora_is_named(made, tmp_path, audit):
    assert "there is no such file" in audit(made, "--lora", tmp_path / "nothing.safetensors")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    assert "it has no LoRA weights, but weight" in audit(
        made, "--lora", tmp_path / "other.safetensors"
    )
    (tmp_path / "lora.safetensors").write_bytes(b"\0" * 64)
    assert "is damaged" in audit(made, "--lora", tmp_path / "lora.safetensors")
    torch.save({"lora": 1}, tmp_path / "lora.bin")
    assert "a .safetensors file is needed" in audit(made, "--lora", tmp_path / "lora.bin")
    (tmp_path / "pointer.safetensors").write_text(POINTER)
    assert "a git-lfs pointer" in audit(made, "--lora", tmp_path / "pointer.safetensors")


def test_a_pipeline_without_loras_names_the_flag(tmp_path, audit):
    file = tiny.lora(tmp_path / "lora", tiny.sd, ["to_q"])
    folder = tiny.save(tiny.latent, tmp_path / "latent")
    message = audit(folder, "--lora", file, prompts=None)
    assert f"--lora = {file}: a LDMPipeline takes no LoRA weights" in message


# ---- flags ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "flags", "words"),
    [
        ("ddpm", ["--dtype", "float16"], "--dtype = float16: it is not for --pipeline"),
        ("ddpm", ["--guidance", "2"], "--guidance = 2.0: it is not for --pipeline"),
        ("ddpm", ["--labels", "1"], "--labels: the pipeline is unconditional"),
        ("pndm", ["--labels", "1"], "--labels: this PNDMPipeline takes no labels"),
        ("pndm", ["--per-prompt", "2"], "--per-prompt = 2: a PNDMPipeline takes no prompts"),
        ("pndm", ["--weights", "ema"], "--weights = ema: it is for U-Nets of pixels"),
        ("latent", ["--sampler", "ddim"], "--sampler = ddim: it is for U-Nets of pixels"),
        ("dit", ["--labels", "3", "1000"], "--labels = 1000: the pipeline's labels are 0 to 999"),
        ("dit", ["--labels", "-1"], "--labels = -1: the pipeline's labels are 0 to 999"),
        ("dit", ["--labels", "3", "3"], "--labels: 3 given more than once"),
        ("dit", ["--guidance", "nan"], "--guidance = nan: a finite number is needed"),
        ("dit", ["--generate", "0"], "--generate = 0"),
        ("dit", ["--batch-size", "0"], "--batch-size = 0"),
    ],
)
def test_a_flag_that_does_not_fit_is_named(tmp_path, audit, make, flags, words):
    folder = tiny.save(getattr(tiny, make), tmp_path / make)
    assert words in audit(folder, *flags, prompts=None)


def test_labels_are_drawn_in_turn(tmp_path, audit):
    folder = tiny.save(tiny.dit, tmp_path / "dit")
    assert audit(folder, "--labels", "7", "3", "--generate", "5", prompts=None, status=0)
    lines = (tmp_path / "out" / "drawn" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == [7, 3, 7, 3, 7]


def test_labels_of_a_pixel_pipeline_are_drawn_in_turn(tmp_path, audit):
    pipeline = diffusers.DDIMPipeline(
        unet=tiny.unet(num_class_embeds=4), scheduler=diffusers.DDIMScheduler()
    )
    pipeline.save_pretrained(tmp_path / "classes")
    flags = ["--labels", "2", "0", "--generate", "4"]
    assert audit(tmp_path / "classes", *flags, prompts=None, status=0)
    lines = (tmp_path / "out" / "drawn" / "metadata.jsonl").read_text().splitlines()
    assert [json.loads(line)["label"] for line in lines] == [2, 0, 2, 0]
    shutil.rmtree(tmp_path / "out")
    message = audit(tmp_path / "classes", "--labels", "4", prompts=None)
    assert "--labels = 4: the pipeline's labels are 0 to 3" in message


def test_no_flag_of_drawing_goes_with_samples(tmp_path, capsys):
    np.savez(tmp_path / "some.npz", images=np.zeros((3, 4, 4, 3), np.uint8))
    both = ["--samples", str(tmp_path / "some.npz"), "--train", str(tmp_path / "some.npz")]
    for flag in ("--steps", "--generate", "--per-prompt", "--height", "--guidance"):
        assert cli.main(["audit", *both, flag, "2", "--out", str(tmp_path / "out")]) == 2
        assert f"{flag} is for drawing from --pipeline" in capsys.readouterr().err
