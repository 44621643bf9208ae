"""What a call of snakemake refuses before any job: inputs that do not fit the study, as far as they
are on this machine."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afterimage import artifacts, config
from afterimage.artifacts import ArtifactError
from afterimage.cli import main
from afterimage.config import ConfigError, Study
from afterimage.data import sources
from afterimage.engines import check_inputs, checksums
from afterimage.images import Images, load_images
from afterimage.plan.jobs import STEPS
from afterimage.plan.resolved import write_configs

CAPTIONS = ["a black cat", "a dog", "two cats and a Cat", "a dog, sleeping"] * 6
PLAIN = {"method": "baseline", "condition": "text"}


@pytest.fixture
def files(tmp_path, monkeypatch) -> Callable[..., None]:
    """Work in a folder of its own, and return a function that writes the source there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def write(
        captions: list[str | None] = CAPTIONS, size: tuple[int, int] = (16, 16), **columns: Any
    ) -> None:
        rng = np.random.default_rng(0)
        cells = []
        for _ in captions:
            stream = io.BytesIO()
            pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(pixels).save(stream, "PNG")
            cells.append({"bytes": stream.getvalue(), "path": None})
        labels = [row % 2 for row in range(len(captions))]
        columns = {"image": cells, "label": labels, "text": captions} | columns
        pq.write_table(pa.table(columns), "train.parquet")

    write()
    return write


@pytest.fixture
def study(params) -> Callable[..., Study]:
    """Return a function that makes a study of the source; keys are joined by ``__``."""

    def make(**changes: Any) -> Study:
        whole = params | {
            "study": "inputs",
            "data": {
                "source": {"kind": "parquet", "path": "train.parquet", "caption_column": "text"},
                "split": {"train": 8, "holdout": 4, "reference": 4},
            },
            "text": {},
            "model": {"channels": [8, 16], "attention": [False, True], "norm_groups": 8},
            "arms": {"plain": PLAIN},
            "forget": {},
            "loyal_selection": None,
            "paths": None,
        }
        for path, value in changes.items():
            *parents, key = path.split("__")
            block = whole
            for parent in parents:
                block = block[parent]
            block[key] = value
        return config.parse(whole)

    return make


def refused(study: Study) -> str:
    """Return the message of the check; nothing is written by it."""
    with pytest.raises((ConfigError, ArtifactError)) as error:
        check_inputs.check(study, Path("results"))
    assert not Path("results").exists()
    return str(error.value)


def test_what_fits_is_not_refused(files, study):
    check_inputs.check(study(forget={"cats": {"caption": "cat"}, "odd": {"label": 1}}), Path("r"))
    assert not Path("r").exists()


def test_images_without_a_caption_are_named(files, study):
    files([None, "  ", "", *CAPTIONS])
    message = refused(study())
    assert message.startswith("data.source: 3 of 27 images have no caption: train.parquet:0, train")
    files([""] * 13 + CAPTIONS)
    assert refused(study()).endswith("train.parquet:9 and 3 more")


def test_of_a_parquet_file_columns_are_read_and_one_image_where_its_sides_count(
    files, study, monkeypatch
):
    asked, plainly = [], pq.ParquetFile.iter_batches

    def iter_batches(file: pq.ParquetFile, size: int, columns: list[str]) -> Any:
        asked.append((size, columns))
        return plainly(file, size, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    check_inputs.check(study(data__resize=16), Path("results"))
    [(_, columns)] = asked
    assert columns == ["label", "text"]
    asked.clear()
    check_inputs.check(study(), Path("results"))
    assert [columns for _, columns in asked] == [["label", "text"], ["image"]]
    assert asked[1][0] == 1


def test_images_that_are_not_kept_need_no_caption(files, study):
    files(["a", None] * 8)
    check_inputs.check(study(data__classes=[0]), Path("results"))
    message = refused(study())
    assert "8 of 16 images have no caption: train.parquet:1, train.parquet:3" in message


def test_columns_of_captions_and_their_variants_must_be_there(files, study):
    source = {"kind": "parquet", "path": "train.parquet", "caption_column": "words"}
    message = refused(study(data__source=source))
    assert "data.source.caption_column = words" in message
    assert "no such column; columns are" in message
    variants = {"captions": {"short": {"kind": "column", "column": "general"}}}
    message = refused(study(text=variants))
    assert "text.captions.short.column = general" in message
    files(general=["an animal"] * 23 + [" "])
    message = refused(study(text=variants))
    assert "1 of 24 images have no caption in column general: train.parquet:23" in message


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"caption": "bird"}, "is empty: 'bird' is in the captions of none of the 24 images"),
        ({"caption": "A"}, "is the whole training set: 'A' is in the captions of all 24 images"),
        ({"label": 7}, "is empty: label 7 is that of none of the 24 images"),
    ],
)
def test_a_forget_set_of_no_image_or_of_all_is_refused(files, study, block, words):
    files([text.replace("two", "a") for text in CAPTIONS])
    message = refused(study(forget={"x": block}))
    assert message == (
        f"forget.x {words} that training sets can be drawn from; allowed are sets of some of them, "
        "not all"
    )


def test_a_forget_set_must_be_among_the_images_that_training_sets_are_drawn_from(files, study):
    """Images of other classes, and those of the official test split, are not trained on."""
    cats = {"cats": {"caption": "cat"}}
    assert "'cat' is in the captions of none of the 12" in refused(
        study(forget=cats, data__classes=[1])
    )
    files(["a dog", "a wolf"] * 12)
    Path("train.parquet").rename("dogs.parquet")
    files()
    source = {"kind": "parquet", "path": "dogs.parquet", "caption_column": "text"}
    both = source | {"test_path": "train.parquet"}
    check_inputs.check(study(forget=cats, data__source=both), Path("results"))
    split = {"train": 8, "holdout": 4, "reference": 4, "official": True}
    message = refused(study(forget=cats, data__source=both, data__split=split))
    assert "'cat' is in the captions of none of the 24" in message


@pytest.mark.parametrize(
    ("source", "classes", "label", "words"),
    [
        (
            {"kind": "sklearn-digits"},
            None,
            10,
            "no image has this label; labels of the images are ",
        ),
        (
            {"kind": "sklearn-digits"},
            [3, 4],
            5,
            "no image has this label; labels of the images are 3, ",
        ),
        (
            {"kind": "sklearn-digits"},
            [3],
            3,
            "all images have this label; labels of the images are 3",
        ),
        ({"kind": "shapes", "each": 4}, None, 16, "no image has this label; labels of the images"),
    ],
)
def test_labels_that_are_known_without_a_file_are_compared_at_once(
    study, source, classes, label, words
):
    with pytest.raises(ConfigError, match=f"forget.x.label = {label}: {words}"):
        study(
            data__source=source,
            data__classes=classes,
            text=None,
            arms={"plain": {"method": "baseline"}},
            forget={"x": {"label": label}},
        )


AUTOENCODER = {"kind": "trained", "channels": [8, 8, 8], "norm_groups": 4}


def test_latents_that_do_not_fit_the_network_are_refused_by_the_first_images_sides(files, study):
    latent = study(autoencoder=AUTOENCODER)
    check_inputs.check(latent, Path("results"))
    files(size=(20, 16))
    assert refused(latent) == (
        "images of 16 x 20: autoencoder.channels divides their sides by 4 and model.channels by 2; "
        "both sides must be multiples of 8"
    )
    check_inputs.check(study(autoencoder=AUTOENCODER, data__resize=16), Path("results"))


def test_images_that_do_not_fit_the_network_are_refused_without_an_autoencoder(files, study):
    files(size=(16, 17))
    assert refused(study()) == (
        "images of 17 x 16: model.channels divides their sides by 2; both sides must be multiples "
        "of 2"
    )


UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "cross_attention_dim": 64,
}
VAE = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "block_out_channels": [8, 8],
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def stored(name: str, described: dict[str, Any]) -> Path:
    Path(name).mkdir()
    (Path(name) / "config.json").write_text(json.dumps(described))
    (Path(name) / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    return Path(name)


def test_a_stored_autoencoder_and_network_are_compared_with_the_images(files, study):
    stored("unet", UNET)
    stored("vae", VAE)
    keys = {"channels": [8, 8], "norm_groups": 4, "layers_per_block": 1}
    latent = {
        "model": {"kind": "stored", "path": "unet"},
        "autoencoder": {"kind": "stored", "path": "vae"} | keys,
    }
    check_inputs.check(study(**latent), Path("results"))
    files(size=(17, 16))
    message = refused(study(**latent))
    assert "autoencoder.channels has 2 levels, which need image sides that are multiples of 2" in (
        message
    )
    files(size=(18, 16))
    message = refused(study(**latent))
    assert (
        "2 levels, which need sides that are multiples of 2, but the study's latents are 8 x 9"
        in (message)
    )
    with pytest.raises(ConfigError, match="takes images of 3 channels, but the study's have 1"):
        study(**latent, data__colour="grey")


def base(key: str) -> tuple[dict[str, Any], str]:
    """Store a network in the folder base; return the block ``key`` that names it, and its weights,
    relative to the folder."""
    weights = "diffusion_pytorch_model.safetensors"
    block: dict[str, Any] = {"kind": "stored", "path": "base"}
    if key == "text":
        Path("base").mkdir()
        stored("base/text_encoder", {"hidden_size": 64, "max_position_embeddings": 77})
        return block | {"width": 64}, f"text_encoder/{weights}"
    if key == "model":
        stored("base", UNET | {"in_channels": 3, "out_channels": 3})
        return block, weights
    stored("base", VAE)
    return block | {"channels": [8, 8], "norm_groups": 4, "layers_per_block": 1}, weights


@pytest.mark.parametrize("key", ["model", "text", "autoencoder"])
def test_a_stored_network_with_another_checksum_is_refused(files, study, key):
    block, weights = base(key)
    right = artifacts.sha256(Path("base") / weights)
    check_inputs.check(study(**{key: block | {"sha256": {weights: right}}}), Path("results"))
    message = refused(study(**{key: block | {"sha256": {weights: "0" * 64}}}))
    assert message == f"{key}.sha256: base/{weights} has {right}, not the expected {'0' * 64}"
    message = refused(study(**{key: block | {"sha256": {"no.safetensors": right}}}))
    assert message == f"{key}.sha256 names no.safetensors, which base does not have"


@pytest.mark.parametrize("space", ["sscd", "inception"])
def test_weights_that_quality_is_measured_with_are_compared_with_their_checksum(
    files, study, space, monkeypatch
):
    Path("weights.pt").write_bytes(b"as published")
    right = artifacts.sha256(Path("weights.pt"))
    key = "similarity" if space == "sscd" else "inception"
    monkeypatch.setenv("WEIGHTS", ".")

    def measured(checksum: str, path: str = "$WEIGHTS/weights.pt") -> Study:
        own = {f"{key}_weights": path, f"{key}_sha256": checksum}
        return study(quality={"similarity": space} | own)

    check_inputs.check(measured(right), Path("results"))
    message = refused(measured("0" * 64))
    assert message == (f"quality.{key}_sha256: weights.pt has {right}, not the expected {'0' * 64}")
    for elsewhere in ("no/weights.pt", "$NO_SUCH_VARIABLE/weights.pt"):
        check_inputs.check(measured("0" * 64, elsewhere), Path("results"))


def test_a_checksum_is_compared_where_nothing_is_measured_with_the_file(files, study):
    Path("weights.pt").write_bytes(b"another file")
    message = refused(
        study(quality={"inception_weights": "weights.pt", "inception_sha256": "0" * 64})
    )
    assert message.startswith("quality.inception_sha256: weights.pt has ")


def test_what_is_not_on_this_machine_is_left_to_the_step_that_reads_it(files, study):
    sets = {"birds": {"caption": "bird"}}
    for path in ("elsewhere.parquet", "$NO_SUCH_VARIABLE/*.parquet", "no/*.parquet"):
        source = {"kind": "parquet", "path": path, "caption_column": "text"}
        check_inputs.check(study(data__source=source, forget=sets), Path("results"))
    hub = {"kind": "huggingface", "dataset": "a/b", "revision": "0" * 40, "caption_column": "text"}
    for sums in ({}, {"data/train-00000-of-00001.parquet": "0" * 64}):
        there = hub | {"sha256": sums}
        check_inputs.check(study(data__source=there, forget=sets), Path("results"))


def absent(study: Study, *rules: str) -> str:
    """Return what a run with jobs of some rules is refused for; any other rule is let pass."""
    others = set().union(*check_inputs.READERS.values(), {"split", "page"}) - set(rules)
    check_inputs.refuse_absent(study, others)
    with pytest.raises(ConfigError) as error:
        check_inputs.refuse_absent(study, [*others, rules[0]])
    return str(error.value)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("no/*.parquet", "data.source.path = no/*.parquet: no such file, and it matches no file"),
        ("$NONE/a.parquet", "data.source: $NONE/a.parquet: the environment variable NONE is not s"),
    ],
)
def test_a_run_that_reads_a_source_that_is_not_here_is_refused(files, study, path, said):
    source = {"kind": "parquet", "path": path, "caption_column": "text"}
    assert absent(study(data__source=source), "fetch").startswith(said)


@pytest.mark.parametrize(
    ("key", "rules"),
    [
        ("model", ["fit", "slice", "features", "retrain", "counterfactual"]),
        ("text", ["encode"]),
        ("autoencoder", ["autoencoder"]),
    ],
)
def test_a_run_that_reads_a_network_that_is_not_here_is_refused(files, study, key, rules):
    config_file = "text_encoder/config.json" if key == "text" else "config.json"
    without = f"there is no {config_file} with weights in safetensors in"
    made = study(**{key: {"kind": "stored", "path": "base"}})
    for rule in rules:
        assert absent(made, rule, *rules) == f"{key}.path = 'base': {without} base"
    made = study(**{key: {"kind": "stored", "path": "${NONE}/base"}})
    said = f"{key}.path = ${{NONE}}/base: the environment variable NONE is not set"
    assert absent(made, *rules) == said
    block, weights = base(key)
    check_inputs.refuse_absent(study(**{key: block}), rules)
    (Path("base") / weights).unlink()
    assert absent(study(**{key: block}), *rules) == f"{key}.path = 'base': {without} base"


@pytest.mark.parametrize("key", ["similarity", "inception"])
def test_a_run_that_measures_with_weights_that_are_not_here_is_refused(files, study, key):
    space = "sscd" if key == "similarity" else "inception"
    rules = "draw_and_attack", "path", "forgetting"
    given = {f"{key}_weights": "${NONE}/w.pt", f"{key}_sha256": "0" * 64}
    said = f"quality.{key}_weights = ${{NONE}}/w.pt: the environment variable NONE is not set"
    for rule in rules:
        assert absent(study(quality={"similarity": space} | given), rule, *rules) == said
    given[f"{key}_weights"] = "w.pt"
    made = study(quality={"similarity": space} | given)
    assert (
        absent(made, *rules) == f"quality.{key}_weights = 'w.pt': there is no such file or folder"
    )
    Path("w.pt").touch()
    check_inputs.refuse_absent(made, rules)
    if key == "inception":  # weights that nothing is measured with
        unused = study(quality=given | {"inception_weights": "no.pt"})
        check_inputs.refuse_absent(unused, rules)


def test_a_run_leaves_what_is_on_the_hub_to_its_client(files, study):
    hub = {"kind": "huggingface", "dataset": "a/b", "revision": "0" * 40, "caption_column": "text"}
    pinned = {"kind": "stored", "id": "owner/name", "revision": "0" * 40, "path": "unet"}
    check_inputs.refuse_absent(study(data__source=hub, model=pinned), ["fetch", "fit"])


def test_a_source_that_comes_with_the_package_is_not_read_before_a_run(files, study, monkeypatch):
    monkeypatch.setattr(sources, "contents_of", lambda *_: pytest.fail("was read"))
    shapes = {"kind": "shapes", "each": 4}
    check_inputs.refuse_absent(study(data__source=shapes), ["fetch"])


def test_every_rule_that_reads_such_a_file_is_one_of_the_workflow():
    rules = Path(__file__).parents[2].glob("workflow/rules/*.smk")
    named = set(re.findall(r"^rule (\w+):", "".join(map(Path.read_text, rules)), re.MULTILINE))
    assert set().union(*check_inputs.READERS.values()) <= named


def test_files_in_the_local_cache_of_the_hub_are_looked_at(files, study, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit, name = "0" * 40, "data/train-00000-of-00001.parquet"
    place = tmp_path / "hub" / "datasets--a--b" / "snapshots" / commit / "data"
    place.mkdir(parents=True)
    Path("train.parquet").rename(place / Path(name).name)
    hub = {"kind": "huggingface", "dataset": "a/b", "revision": commit, "caption_column": "text"}
    source = hub | {"sha256": {name: "0" * 64}}
    check_inputs.check(
        study(data__source=source, forget={"x": {"caption": "cat"}}), Path("results")
    )
    message = refused(study(data__source=source, forget={"x": {"caption": "bird"}}))
    assert "forget.x is empty: 'bird'" in message


# ---- training sets that are made already ---------------------------------------------------------


def made(study: Study, captions: list[str]) -> None:
    """Write the stores up to a training set with some captions, up to date."""
    write_configs(study, Path("results"))
    root, inputs = Path("results") / study.study, {}
    for name, file in (("fetch", "images"), ("split", "pool"), ("planting", "train")):
        step = STEPS[f"data/{name}"]
        job = step.job(job="0" if name == "planting" else None)
        resolved = json.loads((root / f"config/{job.folder}.json").read_text())
        entries = step.modules(study, job)
        with artifacts.step(resolved, root / job.folder, inputs, entries) as store:
            pixels = np.zeros((len(captions), 2, 2, 3), np.uint8)
            Images.of(pixels, captions=captions).save(store.folder / f"{file}.npz")
        inputs = {"images": root / job.folder / f"{file}.npz"}


def test_a_set_is_compared_with_the_training_set_that_is_there_and_up_to_date(files, study):
    """A phrase that is in the source, but not in what was drawn of it."""
    made(study(), ["a dog", "a wolf"])
    with pytest.raises(ArtifactError, match="'cat' is in the captions of none of the 2 training"):
        check_inputs.check(study(forget={"x": {"caption": "cat"}}), Path("results"))
    check_inputs.check(study(forget={"x": {"caption": "dog"}}), Path("results"))
    with pytest.raises(ConfigError, match=r"forget.x.ids: 2 is not a row of the training split"):
        check_inputs.check(study(forget={"x": {"ids": [2]}}), Path("results"))
    other = study(forget={"x": {"caption": "cat"}}, seed=1)
    check_inputs.check(other, Path("results"))  # will be drawn again


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"caption": "wolf"}, "forget.x is empty: 'wolf' is in the captions of none of the 8"),
        ({"ids": [8]}, "forget.x.ids: 8 is not a row of the training split"),
        ({"extracted_from": "plain"}, None),
        ({"caption": "cat"}, None),
    ],
)
def test_the_planting_refuses_sets_of_none_of_its_images(
    files, study, tmp_path, block, words, capsys
):
    """The step that first knows what is trained on, with the study that the workflow writes."""
    whole = study(forget={"x": block})
    write_configs(whole, tmp_path)
    root = tmp_path / whole.study
    folders = {name: root / "data" / name for name in ("fetch", "split", "planting")}
    flags = {
        "fetch": [],
        "split": ["--images", folders["fetch"] / "images.npz"],
        "planting": ["--pool", folders["split"] / "pool.npz"],
    }
    flags["planting"] += ["--pool-table", folders["split"] / "pool.parquet"]
    flags["planting"] += ["--study", root / "config/study.json"]
    folders["planting"] /= "0"
    for verb, folder in folders.items():
        name = folder.relative_to(root)
        command = ["data", verb, *flags[verb], "--config", root / f"config/{name}.json"]
        code = main([*map(str, command), "--out", str(folder)])
        assert code == (2 if verb == "planting" and words else 0)
    assert (folders["planting"] / "run.json").is_file() == (words is None)
    if words:
        assert words in capsys.readouterr().err
    else:
        assert len(load_images(folders["planting"] / "train.npz")) == 8


# ---- checksums -----------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """A file that has not changed for a while."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(checksums, "SETTLED", 0.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    time.sleep(0.02)
    return path


@pytest.fixture
def hashed(monkeypatch) -> list[Path]:
    """The files that are hashed, in order."""
    files, plainly = [], artifacts.sha256

    def sha256(path: Path) -> str:
        files.append(path)
        return plainly(path)

    monkeypatch.setattr(artifacts, "sha256", sha256)
    return files


def test_a_file_is_hashed_once(weights, hashed):
    assert checksums.sha256(weights) == checksums.sha256(weights) == artifacts.sha256(weights)
    assert hashed == [weights, weights]  # once each by checksums and by this test


@pytest.mark.parametrize("how", ["size", "time", "replaced", "same time"])
def test_a_file_that_changed_is_hashed_again(weights, hashed, how):
    first, status = checksums.sha256(weights), weights.stat()
    if how == "replaced":
        weights.with_name("other").write_bytes(b"two")
        weights.with_name("other").replace(weights)
    else:
        weights.write_bytes(b"two" if how != "size" else b"four")
    if how in ("replaced", "same time"):
        os.utime(weights, ns=(status.st_atime_ns, status.st_mtime_ns))
    time.sleep(0.02)
    second = checksums.sha256(weights)
    assert second != first
    assert second == checksums.sha256(weights)
    assert hashed == [weights, weights]


def test_a_file_that_may_still_change_is_not_remembered(weights, hashed, monkeypatch):
    monkeypatch.setattr(checksums, "SETTLED", 60.0)
    checksums.sha256(weights)
    checksums.sha256(weights)
    assert len(hashed) == 2


def test_a_damaged_memory_is_no_answer(weights, tmp_path):
    right = checksums.sha256(weights)
    [kept] = (tmp_path / "cache/afterimage/checksums").iterdir()
    for text in ("", "[]", "{}", '{"stamp": 3, "sha256": "0"}'):
        kept.write_text(text)
        assert checksums.sha256(weights) == right


def test_without_a_cache_every_call_hashes(weights, hashed, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    checksums.sha256(weights)
    checksums.sha256(weights)
    assert len(hashed) == 2
