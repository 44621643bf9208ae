"""When a training starts to copy: the error rate of all looks together, the checkpoints of trainers,
and the command on a folder in which they appear."""

import argparse
import json
import re
import shutil
import threading
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save
from scipy.stats import binom
from sklearn.datasets import load_digits

from afterimage import cli
from afterimage.config import ConfigError
from afterimage.images import Images
from afterimage.metrics.exceedance import exceedance
from afterimage.standalone import checkpoints, looks
from afterimage.standalone import watch as watch_command
from afterimage.standalone.looks import ERROR, Watch


@pytest.fixture(scope="module")
def digits():
    return np.round(load_digits().images * (255 / 16)).astype(np.uint8)[..., None]


@pytest.fixture(scope="module")
def watched(digits):
    """A watch on digits; nothing is drawn. Its list of looks is emptied before each test."""
    return Watch(Images.of(digits[:300]), Images.of(digits[400:700]), generations=100, looks=3)


@pytest.fixture
def watch(watched):
    watched.looks.clear()
    return watched


def test_the_page_names_flags_that_are_there(root):
    page = (root / "docs" / "watching.md").read_text()
    parser = argparse.ArgumentParser()
    watch_command.arguments(parser)
    flags = {option for action in parser._actions for option in action.option_strings}
    assert set(re.findall(r"--[a-z][a-z-]*", page)) <= flags
    assert f"The exit status is {watch_command.COPIES_SHOWN} if copies are shown" in page


def test_the_lines_for_a_training_loop_run(root, tmp_path, monkeypatch, digits):
    page = (root / "docs" / "watching.md").read_text()
    [lines] = re.findall(r"```python\n(.*?)```", page, re.S)
    large = digits.repeat(2, axis=1).repeat(2, axis=2)
    for name, images in {"photos": large[:300], "unseen": large[400:700]}.items():
        (tmp_path / name).mkdir()
        for row, image in enumerate(images):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{row}.png")
    monkeypatch.chdir(tmp_path)
    copies = large[np.arange(256) % 60]
    loop = lines.replace("resize=64", "resize=16").replace(
        "if watch", "for generations, update in steps:\n  if watch"
    )
    loop = loop.replace("    break", "    break\n  steps_without += 1")
    names = {"steps": [(copies * 0, 1), (copies, 2), (copies, 3)], "steps_without": 0}
    exec(loop, names)
    assert names["steps_without"] == 1
    assert "from update 2 on" in names["watch"].sentence


# ---- the rule ------------------------------------------------------------------------------------


def test_all_looks_together_have_one_error_rate():
    """Trainings that copy nothing, whose looks share their held-out images."""
    rng, trainings, planned = np.random.default_rng(0), 300, 20
    alarms = 0
    for _ in range(trainings):
        held_out = rng.random(200)
        alarms += any(
            exceedance(rng.random(64), held_out, 1 - ERROR / planned).copies for _ in range(planned)
        )
    assert alarms <= binom.ppf(0.999, trainings, ERROR)


def test_a_look_counts_at_the_level_of_all_looks(watch, monkeypatch, digits):
    levels = []
    monkeypatch.setattr(
        looks, "exceedance", lambda *given: levels.append(given[2]) or exceedance(*given)
    )
    watch.look(digits[800:900], 10)
    assert levels == [pytest.approx(1 - 0.05 / 3)]


def test_copies_are_shown_from_the_look_that_has_them(watch, digits):
    unseen, copying = digits[800:900], digits[800:900].copy()
    copying[:20] = digits[:20]
    copying[:20, 0, 0, 0] ^= 8
    first, second = watch.look(unseen, 100), watch.look(copying, 200)
    assert first.copies == 0
    assert watch.onset is second
    assert 10 <= second.copies <= 20
    assert second.flagged - second.false_alarms == second.copies
    assert "from update 200 on" in watch.sentence
    assert "after update 100" in watch.sentence


def test_a_forecast_grows_with_the_number_of_different_images(watch, digits):
    """From the gap before the first look with copies; the digits have no duplicates."""
    assert watch.different == 300
    watch.look(digits[800:900], 100)
    assert watch.forecast(2400) is None
    watch.look(digits[:100], 200)
    assert watch.forecast(300) == (100, 200)
    assert watch.forecast(2400) == (800, 1600)
    doubled = Watch(
        Images.of(digits[:150].repeat(2, axis=0)), Images.of(digits[400:700]), 100, looks=3
    )
    assert doubled.different == 150
    doubled.look(digits[:100], 200)
    assert doubled.forecast(300) == (0, 400)


def test_no_copies_is_never_said_without_what_would_have_been_seen(watch, digits):
    watch.look(digits[800:900], 100)
    assert watch.onset is None
    assert f"a copying rate of {watch.visible:.2g} would have been seen" in watch.sentence


def test_blank_generations_are_no_copies(watch):
    look = watch.look(np.zeros((100, 8, 8, 1), np.uint8), 1)
    assert (look.copies, look.low_detail, look.flagged_share) == (0, 100, 0)


def test_quality_is_worse_for_noise_than_for_unseen_digits(watch, digits):
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1)).astype(np.uint8)
    assert watch.look(noise, 1).distance > 3 * watch.look(digits[800:900], 2).distance


def test_looks_that_were_not_planned_are_refused(watch, digits):
    for update in (1, 2, 3):
        watch.look(digits[800:900], update)
    with pytest.raises(ConfigError, match="--looks = 3"):
        watch.look(digits[800:900], 4)


def test_looks_come_in_order_and_as_planned(watch, digits):
    watch.look(digits[800:900], 5)
    with pytest.raises(ConfigError, match="update 5 does not come after 5"):
        watch.look(digits[800:900], 5)
    with pytest.raises(ConfigError, match="100 generations, as planned, not 99"):
        watch.look(digits[800:899], 6)


@pytest.mark.parametrize(
    ("generations", "held_out", "planned", "words"),
    [
        (100, 300, 0, "--looks = 0"),
        (100, 300, 1001, "--looks = 1001"),
        (4, 300, 20, "--generate = 4 and 300 held-out images"),
        (100, 19, 3, "--generate = 100 and 19 held-out images"),
    ],
)
def test_a_watch_that_could_see_nothing_is_refused(digits, generations, held_out, planned, words):
    with pytest.raises(ConfigError, match=words):
        Watch(
            Images.of(digits[:300]), Images.of(digits[400 : 400 + held_out]), generations, planned
        )


def test_a_watch_of_files_reads_them_as_the_command_does(tmp_path, digits):
    for name, images in {"train": digits[:300], "holdout": digits[400:700]}.items():
        np.savez(tmp_path / f"{name}.npz", images=images)
    paths = [str(tmp_path / f"{name}.npz") for name in ("train", "holdout")]
    watch = Watch.of(*paths, generations=50, looks=2, resize=16)
    assert watch.look(np.zeros((50, 16, 16, 1), np.uint8), 1).low_detail == 50
    with pytest.raises(ConfigError, match="sise: there is no such flag"):
        Watch.of(*paths, sise=16)


# ---- checkpoints ---------------------------------------------------------------------------------


def stored(folder, name="unet"):
    """Store a network of one tensor."""
    network = folder / name
    network.mkdir(parents=True)
    (network / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    (network / "diffusion_pytorch_model.safetensors").write_bytes(
        save({"weight": np.zeros(100, np.float32)})
    )
    return folder


def test_checkpoints_come_in_the_order_of_updates(tmp_path):
    for name in ("checkpoint-1000", "checkpoint-500", "checkpoints/step_2000", "best"):
        stored(tmp_path / name)
    (tmp_path / "logs-3").mkdir()
    lora = tmp_path / "checkpoint-700"
    lora.mkdir()
    (lora / checkpoints.LORA).write_bytes(save({"weight": np.zeros(1, np.float32)}))
    (tmp_path / checkpoints.INDEX).write_text("{}")
    found, unnumbered = checkpoints.find(tmp_path)
    assert [(one.update, one.final) for one in found] == [
        *((update, False) for update in (500, 700, 1000, 2000)),
        (-1, True),
    ]
    assert unnumbered == [tmp_path / "best"]


def test_a_network_in_the_folder_itself_is_no_checkpoint(tmp_path):
    stored(tmp_path)
    assert checkpoints.find(tmp_path) == ([], [])


@pytest.mark.parametrize(
    ("file", "keep", "reason"),
    [
        ("unet/diffusion_pytorch_model.safetensors", 4, "header"),
        ("unet/diffusion_pytorch_model.safetensors", 20, "header"),
        ("unet/diffusion_pytorch_model.safetensors", 200, "of its"),
        ("unet/diffusion_pytorch_model.safetensors", None, "has no weights yet"),
        ("unet/config.json", 5, "not whole"),
        ("unet/config.json", None, "has no config yet"),
    ],
)
def test_half_a_checkpoint_is_not_read(tmp_path, file, keep, reason):
    checkpoint = checkpoints.Checkpoint(False, 5, stored(tmp_path / "checkpoint-5"))
    assert checkpoints.unfinished(checkpoint) is None
    path = checkpoint.path / file
    content = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(content[:keep])
    assert reason in checkpoints.unfinished(checkpoint)


def test_later_checkpoints_do_not_change_the_final_pipeline(tmp_path):
    stored(tmp_path)
    (tmp_path / checkpoints.INDEX).write_text("{}")
    final = checkpoints.find(tmp_path)[0][-1]
    before = checkpoints.contents(final)
    stored(tmp_path / "checkpoint-5")
    assert checkpoints.contents(final) == before
    (tmp_path / "unet" / "config.json").write_text("{}")
    assert checkpoints.contents(final) != before


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def flags(real_client, tmp_path):
    """Flags of a small watch on the training in ``tmp_path / "run"``, which is still empty but for
    its scheduler."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copytree(real_client / "ddpm-emoji-16" / "scheduler", run / "scheduler")
    pairs = {
        "--folder": run,
        "--train": real_client / "train.zip",
        "--holdout": real_client / "holdout.zip",
        "--resize": 16,
        "--generate": 64,
        "--steps": 10,
        "--sampler": "ddpm",
        "--poll": 0.2,
        "--out": tmp_path / "out",
    }
    return [str(word) for pair in pairs.items() for word in pair]


FEW = ("--generate", "20", "--steps", "2")
"""Flags of a look whose numbers do not matter."""


def saved(real_client, tmp_path, update):
    name = f"checkpoint-{update}"
    shutil.copytree(real_client / "ddpm-emoji-16" / name, tmp_path / "run" / name)


def test_checkpoints_are_looked_at_as_they_appear(real_client, tmp_path, flags, capsys):
    """The trainer saves one checkpoint piece by piece, then another, and ends."""
    saved(real_client, tmp_path, 500)
    stop = tmp_path / "stop"

    def train():
        time.sleep(1)
        part = tmp_path / "run" / "checkpoint-3000"
        whole = real_client / "ddpm-emoji-16" / "checkpoint-3000"
        for file in sorted(path for path in whole.rglob("*") if path.is_file()):
            target = part / file.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                content = file.read_bytes()
                stream.write(content[: len(content) // 2])
                stream.flush()
                time.sleep(0.5)
                stream.write(content[len(content) // 2 :])

    trainer = threading.Thread(target=train)
    trainer.start()
    status = cli.main(
        [
            *("watch", *flags, "--looks", "2", "--stop-file", str(stop), "--end-at-copies"),
            *("--forecast", "2000"),
        ]
    )
    trainer.join()
    assert status == 3
    assert stop.exists()
    record = json.loads((tmp_path / "out" / "watch.json").read_text())
    assert [look["update"] for look in record["looks"]] == [500, 3000]
    assert record["onset"] == 3000
    printed = capsys.readouterr().out
    assert "Copies from update 3000 on" in printed
    forecast = record["forecast"]
    assert forecast["until"] / forecast["after"] == pytest.approx(6, rel=1e-3)
    assert f"between updates {forecast['after']} and {forecast['until']}" in printed
    assert record["answer"] in (tmp_path / "out" / "watch.html").read_text()
    table = pd.read_csv(tmp_path / "out" / "looks.csv")
    assert table["copies"].tolist() == [look["copies"] for look in record["looks"]]


def test_a_watch_goes_on_and_keeps_looks_at_checkpoints_that_are_gone(
    real_client, tmp_path, flags, capsys
):
    saved(real_client, tmp_path, 500)
    once = ["watch", *flags, "--looks", "3", "--once"]
    assert cli.main(once) == 0
    first = json.loads((tmp_path / "out" / "watch.json").read_text())
    shutil.rmtree(tmp_path / "run" / "checkpoint-500")
    saved(real_client, tmp_path, 3000)
    assert cli.main(once) == 3
    record = json.loads((tmp_path / "out" / "watch.json").read_text())
    assert record["looks"][0] == first["looks"][0]
    assert [look["update"] for look in record["looks"]] == [500, 3000]
    capsys.readouterr()
    assert cli.main([*once, "--seed", "1"]) == 2
    assert "seed" in capsys.readouterr().err


def test_broken_checkpoints_are_named_and_left_out(real_client, tmp_path, flags, capsys):
    saved(real_client, tmp_path, 500)
    weights = tmp_path / "run/checkpoint-400/unet"
    weights.mkdir(parents=True)
    (weights / "config.json").write_text("{}")
    assert cli.main(["watch", *flags, *FEW, "--once"]) == 0
    assert "checkpoint-400 is left out: unet/ has no weights yet" in capsys.readouterr().out


def test_a_checkpoint_without_its_scheduler_takes_that_of_the_base(
    real_client, tmp_path, flags, capsys
):
    saved(real_client, tmp_path, 500)
    shutil.rmtree(tmp_path / "run" / "scheduler")
    assert cli.main(["watch", *flags, *FEW, "--once"]) == 2
    assert "scheduler" in capsys.readouterr().err
    base = str(real_client / "ddpm-emoji-16")
    assert cli.main(["watch", *flags, *FEW, "--once", "--base", base, "--weights", "ema"]) == 0


def test_checkpoints_of_text_to_image_trainers_take_the_rest_from_the_base(tmp_path, capsys):
    """A LoRA training, or a whole U-Net, of which the trainer saves nothing else."""
    pytest.importorskip("peft", reason="needs the extra `text`")
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    from . import tiny_pipelines as tiny

    base = tiny.sd()
    base.save_pretrained(tmp_path / "base")
    unet = tiny.sd().unet
    unet.save_pretrained(tmp_path / "run" / "checkpoint-20" / "unet")
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
    layers = {"unet_lora_layers": get_peft_model_state_dict(unet)}
    type(base).save_lora_weights(tmp_path / "run" / "checkpoint-10", **layers)
    rng = np.random.default_rng(0)
    for name in ("train", "holdout"):
        images = rng.integers(0, 256, (60, 16, 16, 3)).astype(np.uint8)
        np.savez(tmp_path / f"{name}.npz", images=images)
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    given = {
        "--folder": tmp_path / "run",
        "--base": tmp_path / "base",
        "--train": tmp_path / "train.npz",
        "--holdout": tmp_path / "holdout.npz",
        "--prompts": tmp_path / "prompts.txt",
        "--per-prompt": 32,
        "--generate": 64,
        "--steps": 1,
        "--resize": 16,
        "--poll": 0.1,
        "--out": tmp_path / "out",
    }
    flags = [str(word) for pair in given.items() for word in pair]
    assert cli.main(["watch", "--once", *flags]) == 0
    assert "checkpoint-20: unet/, with the other parts of --base" in capsys.readouterr().out
    drawn = [
        [path.read_bytes() for path in sorted((tmp_path / "out" / name / "drawn").glob("*.png"))]
        for name in ("checkpoint-10", "checkpoint-20")
    ]
    assert len(drawn[0]) == len(drawn[1]) == 64
    assert drawn[0] != drawn[1]
    (tmp_path / "prompts.txt").write_text("a cat\na cow\n")
    assert cli.main(["watch", "--once", *flags]) == 2
    assert "prompts" in capsys.readouterr().err


def test_a_first_look_that_is_interrupted_goes_on(real_client, tmp_path, flags, monkeypatch):
    saved(real_client, tmp_path, 500)
    monkeypatch.setattr(Watch, "look", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["watch", *flags, *FEW, "--once"]) == 2  # nothing was looked at
    first = (tmp_path / "out/checkpoint-500/drawn/000000.png").stat()
    monkeypatch.undo()
    assert cli.main(["watch", *flags, *FEW, "--once"]) == 0
    assert (tmp_path / "out/checkpoint-500/drawn/000000.png").stat().st_mtime == first.st_mtime


def test_weights_that_a_checkpoint_lacks_are_refused(real_client, tmp_path, flags, capsys):
    saved(real_client, tmp_path, 500)
    shutil.rmtree(tmp_path / "run/checkpoint-500/unet_ema")
    base = str(real_client / "ddpm-emoji-16")
    assert cli.main(["watch", *flags, "--once", "--base", base, "--weights", "ema"]) == 2
    assert "--weights = ema" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"--folder": "nowhere"}, "--folder nowhere"),
        ({"--base": "nowhere"}, "--base nowhere"),
        ({"--poll": "0"}, "--poll = 0"),
        ({"--patience": "-1"}, "--patience = -1"),
        ({"--looks": "0"}, "--looks = 0"),
        ({"--forecast": "0"}, "--forecast = 0"),
        ({"--generate": "0"}, "--generate = 0"),
        ({"--holdout": "nowhere.zip"}, "--holdout"),
        ({"--lora": "mine.safetensors"}, "--lora"),
    ],
)
def test_bad_flags_are_named_before_anything_is_drawn(tmp_path, flags, capsys, changed, words):
    given = dict(zip(flags[::2], flags[1::2], strict=True)) | changed
    assert cli.main(["watch", *(word for pair in given.items() for word in pair)]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_checkpoints_is_said_to_have_none(flags, capsys):
    assert cli.main(["watch", *flags, "--once"]) == 2
    assert "no whole checkpoint" in capsys.readouterr().err
