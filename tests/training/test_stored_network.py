"""Trainings that start from a stored U-Net: whole, in part, and with adapters."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from pydantic import TypeAdapter
from safetensors.torch import load_file

from afterimage import artifacts, cli, seeds
from afterimage.config import AnyArm, Model, StoredModel, TransferBlocks
from afterimage.diffusion.model import build_unet
from afterimage.diffusion.rau_net import Transfers
from afterimage.diffusion.start import start
from afterimage.methods import baseline, selective_amnesia
from afterimage.training.job import stream_path
from afterimage.training.order import Order

MODEL = {"channels": [8, 16], "attention": [False, True], "layers_per_block": 1, "norm_groups": 4}
WEIGHTS = "diffusion_pytorch_model.safetensors"
ADAPTER = "pytorch_lora_weights.safetensors"
SHAPE = (8, 8, 1)


@pytest.fixture
def stored(tmp_path):
    """Return a function that stores a U-Net with random weights, and gives the block ``model`` of
    it."""

    def make(
        text_width: int | None = None, classes: int | None = None, seed: int = 3, **block
    ) -> dict:
        net = build_unet(Model(**MODEL), SHAPE, classes, seed=seed, text_width=text_width)
        net.save_pretrained(tmp_path / "unet")
        return {"kind": "stored", "path": str(tmp_path / "unet")} | block

    return make


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (10, *SHAPE), np.uint8)


def text_net(block: dict, seed: int = 0, width: int = 12) -> torch.nn.Module:
    return start(StoredModel(**block), SHAPE, seed=seed, text_width=width)


def states(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- all weights ---------------------------------------------------------------------------------

ARMS = [
    {"method": "baseline"},
    {"method": "baseline", "condition": "label"},
    {"method": "baseline", "rau_net": {"groups": [1, 2]}},
    {"method": "loyal", "switch_timestep": 400, "rau_net": {"groups": [2]}},
    {"method": "iet_agc", "shards": 2, "rounds": 1, "train": {"updates": 8}},
]


@pytest.mark.parametrize("arm", ARMS, ids=["plain", "label", "rau_net", "loyal", "iet_agc"])
def test_from_the_weights_that_a_study_draws_it_trains_as_with_these(
    arm, study, stored, curves, tmp_path
):
    """Bit for bit, with the same blocks in the network."""
    assert cli.main(study(arm, out="drawn", log_every=1)) == 0
    root = artifacts.read_run(tmp_path / "drawn")["config"]["seed"]
    path = stream_path(TypeAdapter(AnyArm).validate_python(arm), 0)
    classes = 7 if arm.get("condition") == "label" else None
    block = stored(classes=classes, seed=seeds.derive(root, *path, "init"))
    assert cli.main(study(arm, out="stored", model=block, log_every=1)) == 0
    one, other = (tmp_path / out for out in ("drawn", "stored"))
    assert curves(one / "metrics.jsonl") == curves(other / "metrics.jsonl")
    files = [path.relative_to(one) for path in one.rglob("*.safetensors")]
    assert len(files) == 2
    assert all(same(load_file(one / file), load_file(other / file)) for file in files)
    settings = [json.loads(file.read_text()) for file in sorted(one.rglob("unet/config.json"))]
    found = [json.loads(file.read_text()) for file in sorted(other.rglob("unet/config.json"))]
    assert found == settings
    facts = artifacts.read_run(other)["facts"]
    assert facts["levels"] == 2
    assert facts["trained_parameters"] == facts["parameters"]
    assert artifacts.read_run(other)["inputs"]["unet"]["sha256"] == artifacts.sha256(
        tmp_path / "unet"
    )


def test_at_a_learning_rate_of_zero_the_stored_weights_stay(study, stored, tmp_path):
    """That of the first update of a warm-up."""
    assert cli.main(study(model=stored(), updates=1, warmup=5)) == 0
    before = load_file(tmp_path / "unet" / WEIGHTS)
    for folder in ("raw", "pipeline"):
        assert same(before, load_file(tmp_path / "out" / folder / "unet" / WEIGHTS))


def test_of_a_network_for_other_images_the_weights_are_taken_and_the_size_is_the_studys(
    study, stored, tmp_path
):
    block = stored()
    file = tmp_path / "unet" / "config.json"
    for size in (32, None):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"sample_size": size}))
        assert cli.main(study(model=block, out=f"{size}", updates=1)) == 0
        pipeline = DDPMPipeline.from_pretrained(tmp_path / f"{size}" / "pipeline")
        assert pipeline.unet.config["sample_size"] == 8


def test_the_last_label_is_the_null_label_also_where_the_config_does_not_name_it(
    study, stored, tmp_path
):
    block = stored(classes=7)
    file = tmp_path / "unet" / "config.json"
    described = json.loads(file.read_text())
    assert described.pop("_null_label") == 7
    file.write_text(json.dumps(described))
    assert cli.main(study({"condition": "label"}, model=block, updates=1)) == 0
    written = json.loads((tmp_path / "out" / "pipeline" / "unet" / "config.json").read_text())
    assert written["_null_label"] == 7


def test_an_arm_with_a_base_starts_from_the_base(study, stored, tmp_path):
    block = stored()
    assert cli.main(study(model=block, out="base")) == 0
    command = study({"base": "first"}, model=block, updates=1, warmup=5)
    assert cli.main([*command, "--base", str(tmp_path / "base")]) == 0
    base = load_file(tmp_path / "base" / "pipeline" / "unet" / WEIGHTS)
    assert same(base, load_file(tmp_path / "out" / "raw" / "unet" / WEIGHTS))
    assert not same(base, load_file(tmp_path / "unet" / WEIGHTS))


def test_a_file_with_another_checksum_is_refused_before_anything_is_read(
    study, stored, tmp_path, capsys
):
    block = stored(sha256={WEIGHTS: "0" * 64})
    assert cli.main(study(model=block)) == 2
    assert "model.sha256" in capsys.readouterr().err
    right = {WEIGHTS: artifacts.sha256(tmp_path / "unet" / WEIGHTS)}
    assert cli.main(study(model=block | {"sha256": right}, updates=1)) == 0


def test_a_folder_that_is_not_there_is_named(study, tmp_path, capsys):
    assert cli.main(study(model={"kind": "stored", "path": str(tmp_path / "no")})) == 2
    assert "there is no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "arm", "words"),
    [
        ({"classes": 3}, {"condition": "label"}, ["num_class_embeds = 4", "needed are 8 and 7"]),
        ({"classes": 7}, {"condition": "label"}, []),
    ],
)
def test_labels_must_be_those_of_the_images(made, arm, words, study, stored, capsys):
    command = study(arm, model=stored(**made), updates=1)
    assert cli.main(command) == (2 if words else 0)
    told = capsys.readouterr().err
    assert all(word in told for word in words)


def test_another_folder_than_planned_with_is_refused(study, stored, tmp_path, capsys):
    """A network of other images is in the folder when the training starts."""
    command = study(model=stored())
    net = build_unet(Model(**MODEL), (8, 8, 3))
    net.save_pretrained(tmp_path / "unet")
    assert cli.main(command) == 2
    assert "takes 3 channels" in capsys.readouterr().err
    (tmp_path / "unet" / "config.json").write_text("{")
    assert cli.main(command) == 2
    assert "is not JSON" in capsys.readouterr().err


# ---- some weights --------------------------------------------------------------------------------


def crosses(name: str) -> bool:
    return ".attn2." in name


def trained_by(trainable: str, name: str) -> bool:
    if trainable == "cross_attention":
        return crosses(name)
    return not crosses(name) and name.split(".")[0] not in (
        "time_embedding",
        "conv_norm_out",
        "conv_out",
    )


@pytest.mark.parametrize("trainable", ["noxattn", "cross_attention"])
def test_weights_that_are_not_trained_keep_their_bits(
    trainable, make_job, stored, tmp_path, monkeypatch
):
    """And have no moments; all others change, and the average of these alone is updated."""
    net = text_net(stored(text_width=12, trainable=trainable))
    before = states(net)
    job = replace(make_job(tmp_path / "state", condition="text", weight_decay=0.1), net=net)
    learners = []
    original = baseline.Learner

    def noted(*arguments, **more):
        learners.append(original(*arguments, **more))
        return learners[-1]

    monkeypatch.setattr(baseline, "Learner", noted)
    result = baseline.train(job)
    chosen = {name for name in before if trained_by(trainable, name)}
    assert 0 < len(chosen) < len(before)
    for trained in (result.raw, result.average):
        after = trained.state_dict()
        assert {name for name in before if not torch.equal(before[name], after[name])} == chosen
    assert len(learners[0].optimizer.state) == len(learners[0]._averages) == len(chosen)


def test_blocks_of_a_rau_net_are_trained_whatever_else_is(captioned, stored, pixels, tmp_path):
    block = stored(text_width=16, trainable="cross_attention")
    arm = {"rau_net": {"groups": [2]}}
    assert cli.main(captioned(arm, {}, pixels, "start", model=block, updates=1, warmup=5)) == 0
    assert cli.main(captioned(arm, {}, pixels, "out", model=block)) == 0
    one, other = (load_file(tmp_path / out / "raw/unet" / WEIGHTS) for out in ("start", "out"))
    moved = {name for name in one if not torch.equal(one[name], other[name])}
    assert moved == {name for name in one if crosses(name) or name.startswith("transfers.")}


def test_blocks_go_into_a_stored_network_of_either_kind(stored):
    blocks = TransferBlocks(groups=[1, 2], variant="trained_identity")
    for width in (None, 12):
        block = StoredModel(**stored(text_width=width))
        plain, net = (start(block, SHAPE, blocks=own, text_width=width) for own in (None, blocks))
        assert isinstance(net, Transfers)
        own = net.state_dict()
        assert same(plain.state_dict(), {name: own[name] for name in plain.state_dict()})


OTHERS = [
    {"method": "iet_agc", "shards": 2, "rounds": 1},
    {"method": "loyal", "switch_timestep": 400},
    {"method": "erasediff", "barrier": "gap"},
    {"method": "salun", "saliency_samples": 4},
    {"method": "selective_amnesia", "fisher_samples": 2, "fisher_timesteps": 2, "ewc": 0.001}
    | {"replay_images": 4},
]


@pytest.mark.parametrize("arm", OTHERS, ids=lambda arm: arm["method"])
def test_every_method_leaves_weights_alone_that_are_not_trained(
    arm, captioned, stored, pixels, tmp_path, monkeypatch
):
    monkeypatch.setattr(selective_amnesia, "STEPS", 2)
    block = stored(text_width=16, trainable="noxattn")
    own, forget, base = arm, {}, []
    if arm["method"] not in ("iet_agc", "loyal"):
        assert cli.main(captioned({}, {}, pixels, "base", model=block)) == 0
        own = arm | {"base": "first", "forget": "red"}
        forget, base = {"red": {"caption": "red"}}, ["--base", str(tmp_path / "base")]
    assert cli.main(captioned(own, forget, pixels, "out", model=block, updates=4) + base) == 0
    before = load_file(tmp_path / "unet" / WEIGHTS)
    after = load_file(tmp_path / "out" / "raw" / "unet" / WEIGHTS)
    for part in ("front.", "tail.") if arm["method"] == "loyal" else ("",):
        held = {name for name in before if torch.equal(before[name], after[part + name])}
        kept = {name for name in before if not trained_by("noxattn", name)}
        assert kept <= held
        assert len(held) < len(before)


# ---- adapters ------------------------------------------------------------------------------------

LORA = {"lora": {"rank": 2, "alpha": 6}}


def test_an_update_of_adapters_is_that_of_peft_by_hand(make_job, stored, tmp_path):
    """And nothing else changes."""
    block = stored(text_width=12, **LORA)
    job = make_job(tmp_path / "state", condition="text", updates=1, weight_decay=0.1, clip=None)
    result = baseline.train(replace(job, net=text_net(block, seed=4)))

    net = UNet2DConditionModel.from_pretrained(tmp_path / "unet")
    net.requires_grad_(False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        net.add_adapter(
            LoraConfig(
                r=2,
                lora_alpha=6,
                init_lora_weights="gaussian",
                target_modules=["to_k", "to_q", "to_v", "to_out.0"],
            )
        )
    order = Order(job.seed, job.path, len(job.task), job.train.batch_size)
    torch.manual_seed(order.dropout_seed(0))
    batch = job.task.batch(order.rows(0), order.generator(0))
    adapters = [weight for weight in net.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(adapters, lr=1e-3, weight_decay=0.1)
    job.task.losses(net.train(), batch).mean().backward()
    optimizer.step()
    own, hand = states(result.raw), states(net)
    assert own.keys() == hand.keys()
    for name in own:
        torch.testing.assert_close(own[name], hand[name], rtol=1e-5, atol=1e-7)
    start_of = text_net(block, seed=4).state_dict()
    moved = {name for name in own if not torch.equal(own[name], start_of[name])}
    assert moved
    assert all(".lora_" in name for name in moved)
    assert len(get_peft_model_state_dict(net)) == len(adapters) == 2 * 4 * 2 * 4


@pytest.fixture
def adapted(captioned, stored, pixels, tmp_path):
    """The store of a training of adapters, from the command line."""
    block = stored(text_width=16, **LORA)
    assert cli.main(captioned({}, {}, pixels, "adapted", model=block, updates=3)) == 0
    return tmp_path / "adapted"


def inputs():
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn((2, 1, 8, 8), generator=generator)
    return noisy, torch.tensor([3, 700]), torch.randn((2, 4, 16), generator=generator)


@torch.no_grad()
def test_the_stored_adapter_on_the_stored_network_is_the_network_that_is_stored(adapted, tmp_path):
    """As diffusers loads it: with its scale, which is not 1. Only adapted matrices differ."""
    for folder in ("raw", "pipeline"):
        fused = UNet2DConditionModel.from_pretrained(adapted / folder / "unet")
        pipe = StableDiffusionPipeline(
            vae=None,
            text_encoder=None,
            tokenizer=None,
            unet=UNet2DConditionModel.from_pretrained(tmp_path / "unet"),
            scheduler=DDPMPipeline.from_pretrained(adapted / folder).scheduler,
            safety_checker=None,
            feature_extractor=None,
        )
        base = pipe.unet(*inputs()).sample
        pipe.load_lora_weights(adapted / folder, weight_name=ADAPTER)
        found = pipe.unet(*inputs()).sample
        torch.testing.assert_close(found, fused(*inputs()).sample, rtol=1e-4, atol=1e-5)
        assert (found - base).abs().max() > 1e-4
    before = load_file(tmp_path / "unet" / WEIGHTS)
    after = load_file(adapted / "raw" / "unet" / WEIGHTS)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    ends = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    assert moved == {name for name in before if name.endswith(ends)}


def test_adapters_are_trained_in_a_process_of_their_own(captioned, stored, pixels, tmp_path):
    """Most steps hide peft from diffusers."""
    block = stored(text_width=16, **LORA)
    own = captioned({}, {}, pixels, "own", model=block)
    again = own.copy()
    assert cli.main(own) == 0
    again[again.index("--out") + 1] = str(tmp_path / "again")
    subprocess.run([sys.executable, "-m", "afterimage.cli", *again], check=True)
    one, other = (load_file(tmp_path / out / "raw" / ADAPTER) for out in ("own", "again"))
    assert same(one, other)


def test_what_is_trained_is_on_record(adapted):
    facts = artifacts.read_run(adapted)["facts"]
    stored = load_file(adapted / "raw" / ADAPTER)
    assert facts["trained_parameters"] == sum(value.numel() for value in stored.values())


def test_at_a_learning_rate_of_zero_adapters_change_no_weight(captioned, stored, pixels, tmp_path):
    block = stored(text_width=16, **LORA)
    command = captioned({}, {}, pixels, "out", model=block, updates=1, warmup=5)
    assert cli.main(command) == 0
    before = load_file(tmp_path / "unet" / WEIGHTS)
    assert same(before, load_file(tmp_path / "out" / "raw" / "unet" / WEIGHTS))


METHODS = [
    {"method": "baseline"},
    {"method": "iet_agc", "shards": 1, "rounds": 1},
    {"method": "erasediff", "barrier": "gap"},
    {"method": "gradient_ascent"},
]


@pytest.mark.parametrize("arm", METHODS, ids=lambda arm: arm["method"])
def test_from_a_base_new_adapters_are_trained_on_its_weights(
    arm, adapted, captioned, pixels, tmp_path
):
    block = {"kind": "stored", "path": str(tmp_path / "unet"), **LORA}
    own, forget = arm | {"base": "first"}, {}
    if arm["method"] in ("erasediff", "gradient_ascent"):
        forget = {"red": {"caption": "red"}}
        own["forget"] = "red"
    base = ["--base", str(adapted)]
    for name, settings in {"still": {"updates": 1, "warmup": 5}, "moved": {"updates": 3}}.items():
        assert cli.main(captioned(own, forget, pixels, name, model=block, **settings) + base) == 0
    before = load_file(adapted / "pipeline" / "unet" / WEIGHTS)
    still, moved = (
        load_file(tmp_path / name / "raw/unet" / WEIGHTS) for name in ("still", "moved")
    )
    assert same(before, still)
    changed = {name for name in before if not torch.equal(before[name], moved[name])}
    assert changed
    assert all(".to_" in name for name in changed)


def test_a_training_of_adapters_is_resumed_bit_for_bit(
    same_bits_after_stops, make_job, stored, tmp_path
):
    block = stored(text_width=12, **LORA)

    def job(name):
        made = make_job(tmp_path / name, condition="text")
        return replace(made, net=text_net(block))

    same_bits_after_stops(baseline.train, job, range(2, 5, 2))


def test_a_state_kept_on_the_way_has_its_adapter_and_the_training_goes_on(
    make_job, stored, tmp_path
):
    block = stored(text_width=12, **LORA)
    jobs = [
        replace(make_job(tmp_path / name, condition="text"), net=text_net(block), states=states_of)
        for name, states_of in (("one", {}), ("other", {"half": 0.5}))
    ]
    one, other = (baseline.train(job) for job in jobs)
    assert same(states(one.raw), states(other.raw))
    kept = [load_file(jobs[1].kept / "half" / folder / ADAPTER) for folder in ("raw", "pipeline")]
    assert not same(*kept)
