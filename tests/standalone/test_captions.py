"""Captions are read from every usual place, belong to exactly one image each, and become the
prompts of a drawing."""

from __future__ import annotations

import argparse
import json
import zipfile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from afterimage import cli
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.standalone import captions, conditions
from afterimage.standalone import images as image_sets

TEXTS = {"a.png": "a red cat", "b.png": "a dog", "c.jpg": "a red cat"}


def pixels(row):
    return np.full((8, 8, 3), 20 * row + 10, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """A folder with three images, without captions."""
    (tmp_path / "set").mkdir()
    for row, name in enumerate(TEXTS):
        Image.fromarray(pixels(row)).save(tmp_path / "set" / name)
    return tmp_path / "set"


def read(source, *flags, name="train"):
    parser = argparse.ArgumentParser()
    parser.add_argument("--train")
    parser.add_argument("--samples")
    image_sets.arguments(parser, ("train", "samples"))
    captions.arguments(parser)
    args = parser.parse_args([f"--{name}", str(source), *flags])
    return captions.of(image_sets.read_set(name, args), args)


def write_lines(path, entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def entries(texts=TEXTS, key="text"):
    return [{"file_name": name, key: text} for name, text in texts.items()]


def beside(folder):
    write_lines(folder / "metadata.jsonl", entries())


def with_other_keys(folder):
    write_lines(folder / "metadata.jsonl", [{**entry, "id": 3} for entry in entries(key="caption")])


def as_object(folder):
    (folder / "captions.json").write_text(json.dumps(TEXTS))


def as_list(folder):
    (folder / "captions.json").write_text(json.dumps(entries(key="prompt")), "utf-8-sig")


def as_text_files(folder):
    for name, text in TEXTS.items():
        (folder / name).with_suffix(".txt").write_text(text + "\n")
    (folder / "LICENSE.txt").write_text("of none of them")


@pytest.mark.parametrize("write", [beside, with_other_keys, as_object, as_list, as_text_files])
@pytest.mark.parametrize("zipped", [False, True])
def test_captions_are_read_from_every_usual_place(folder, tmp_path, write, zipped):
    write(folder)
    if zipped:
        with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
            for path in folder.iterdir():
                archive.write(path, f"set/{path.name}")
    assert read(tmp_path / "set.zip" if zipped else folder) == list(TEXTS.values())


def test_captions_lie_beside_their_images_in_subfolders(folder):
    for part in ("one", "two"):
        (folder / part).mkdir()
    (folder / "a.png").rename(folder / "one" / "x.png")
    (folder / "b.png").rename(folder / "two" / "x.png")
    (folder / "c.jpg").unlink()
    write_lines(folder / "one" / "metadata.jsonl", entries({"x.png": "first"}))
    write_lines(folder / "metadata.jsonl", entries({"two/x.png": "second"}))
    assert read(folder) == ["first", "second"]


def test_a_set_without_captions_has_none(folder, tmp_path):
    assert read(folder) is None
    np.savez(tmp_path / "set.npz", images=np.stack([pixels(0)]))
    assert read(tmp_path / "set.npz") is None
    assert read(folder / "a.png") is None
    write_lines(folder / "metadata.jsonl", [{"file_name": name, "label": 3} for name in TEXTS])
    assert read(folder) is None


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"a.png": "x", "b.png": "y"}, "1 images have none (c.jpg)"),
        ({"a.png": "x"}, "2 images have none (b.png, c.jpg)"),
        ({**TEXTS, "d.png": "z"}, "1 captions have no image (d.png)"),
        (
            {"a.png": "x", "b.png": "y", "C.jpg": "z"},
            "1 images have none (c.jpg); 1 captions have no image (C.jpg)",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["metadata.jsonl", "captions.json"])
def test_captions_that_do_not_match_name_the_images(folder, texts, words, kind):
    if kind == "metadata.jsonl":
        write_lines(folder / kind, entries(texts))
    else:
        (folder / kind).write_text(json.dumps(texts))
    with pytest.raises(ArtifactError) as error:
        read(folder)
    assert str(error.value) == f"--train: captions do not match the images: {words}"


def test_an_image_without_its_text_file_is_named(folder):
    as_text_files(folder)
    (folder / "b.txt").unlink()
    with pytest.raises(ArtifactError, match=r"--samples: .*: 1 images have none \(b\.png\)"):
        read(folder, name="samples")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"file_name": "a.png", "text": "x"', "metadata.jsonl, line 1 is not JSON"),
        ('\n{"text": "x"}', "metadata.jsonl, line 2: an object with file_name is needed"),
        ("[1]", "metadata.jsonl, line 1: an object with file_name is needed"),
        ('{"file_name": "a.png", "text": null}', "line 1: text is None, no text"),
        ('{"file_name": "a.png", "text": ["x"]}', "line 1: text is ['x'], no text"),
        (
            '{"file_name": "a.png", "text": "x"}\n{"file_name": "./a.png", "text": "y"}',
            "metadata.jsonl names a.png more than once",
        ),
        ("\xff", "metadata.jsonl cannot be read"),
    ],
)
def test_a_damaged_file_of_captions_is_named(folder, text, words):
    (folder / "metadata.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError) as error:
        read(folder)
    assert words in str(error.value)
    assert str(error.value).startswith("--train: metadata.jsonl")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a.png": 3}', "allowed are an object (file name -> caption) or a list of objects"),
        ('"a.png"', "allowed are an object"),
        ('{"a.png": "x", "a.png": "y"}', "captions.json names a.png more than once"),
        ('[{"file_name": "a.png", "text": 3}]', "captions.json, entry 0: text is 3, no text"),
        ("{", "captions.json is not JSON"),
    ],
)
def test_a_damaged_object_of_captions_is_named(folder, text, words):
    (folder / "captions.json").write_text(text)
    with pytest.raises(ArtifactError) as error:
        read(folder)
    assert words in str(error.value)


def test_several_candidates_are_not_chosen_from_in_silence(folder):
    both = [{**entry, "caption": "other"} for entry in entries()]
    write_lines(folder / "metadata.jsonl", both)
    with pytest.raises(ConfigError, match="has text, caption; --caption-column chooses one"):
        read(folder)
    assert read(folder, "--caption-column", "caption") == ["other"] * 3
    assert read(folder, "--caption-column", "train=text") == list(TEXTS.values())
    beside(folder)
    as_object(folder)
    with pytest.raises(ConfigError, match=r"in metadata\.jsonl and in captions\.json; keep one"):
        read(folder)


def parquet(path, **columns):
    images = []
    for row in range(3):
        Image.fromarray(pixels(row)).save(path.with_suffix(".png"))
        images.append({"bytes": path.with_suffix(".png").read_bytes(), "path": None})
    path.with_suffix(".png").unlink()
    pq.write_table(pa.table({"image": images} | columns), path)
    return path


def test_a_parquet_column_has_captions(tmp_path):
    texts = list(TEXTS.values())
    file = parquet(tmp_path / "set.parquet", caption=texts, other=["x"] * 3)
    assert read(file) == texts
    assert read(file, "--caption-column", "other") == ["x"] * 3
    with pytest.raises(
        ConfigError, match=r"--caption-column = n: .* has no column of text of that"
    ):
        read(file, "--caption-column", "n")
    file = parquet(tmp_path / "set.parquet", caption=texts, text=texts)
    with pytest.raises(ConfigError, match="has caption, text; --caption-column chooses one"):
        read(file)
    assert read(parquet(tmp_path / "set.parquet", label=[1, 2, 3])) is None


def test_parquet_files_of_a_folder_are_read_in_the_order_of_their_images(tmp_path):
    (tmp_path / "set").mkdir()
    for shard in (1, 0):
        name = f"train-0000{shard}-of-00002.parquet"
        parquet(tmp_path / "set" / name, text=[f"{shard}{row}" for row in range(3)])
    assert read(tmp_path / "set") == ["00", "01", "02", "10", "11", "12"]
    assert read(tmp_path / "set" / "*.parquet") == ["00", "01", "02", "10", "11", "12"]


def test_parquet_rows_without_a_caption_are_named(tmp_path):
    file = parquet(tmp_path / "set.parquet", text=["a", None, "c"])
    with pytest.raises(ArtifactError, match=r"1 rows have none \(row 1, counted from 0\)"):
        read(file)


def test_an_array_has_captions_as_those_of_studies_do(tmp_path):
    source, texts = tmp_path / "set.npz", ["a", "b"]
    arrays = {"images": np.stack([pixels(0), pixels(1)]), "captions": np.array(texts)}
    np.savez(source, **arrays, short=np.array(["x", "y"]), few=np.array(["x"]))
    assert read(source) == texts
    assert read(source, "--caption-column", "train=short") == ["x", "y"]
    with pytest.raises(ArtifactError, match=r"its array few is <U1 \(1,\); needed is one text"):
        read(source, "--caption-column", "train=few")
    with pytest.raises(ConfigError, match="--train has no such array, but images, captions"):
        read(source, "--caption-column", "other")
    np.savez(source, images=arrays["images"], captions=np.array(["", ""]))
    assert read(source) is None


def test_real_captions_belong_to_their_images(real_client):
    """Row i of the emoji data is image i, whatever was skipped."""
    file = real_client.parent / "emoji" / "test.parquet"
    assert read(file) == pd.read_parquet(file, columns=["text"])["text"].tolist()


def test_samples_are_audited_without_captions_that_are_ambiguous(tmp_path, capsys):
    file = parquet(tmp_path / "set.parquet", text=["a"] * 3, prompt=["b"] * 3)
    given = ["audit", "--samples", str(file), "--train", str(file), "--features", "pixels"]
    assert cli.main([*given, "--out", str(tmp_path / "out")]) == 0
    notice = "has text, prompt; --caption-column chooses one; none were read"
    assert notice in capsys.readouterr().out
    assert not (tmp_path / "out" / "conditions.csv").exists()
    flag = ["--caption-column", "samples=prompt"]
    assert cli.main([*given, *flag, "--out", str(tmp_path / "out")]) == 0
    assert pd.read_csv(tmp_path / "out" / "conditions.csv")["prompt"].tolist() == ["b"]


# ---- prompts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (b"a\n\nb\n", "1 lines are empty (line 2)"),
        (b"a\nb\na\nb", "2 prompts are there twice (line 3 as 1, 4 as 2)"),
        (b"a\n\xff\n", "it is not UTF-8 text: byte 2 is 0xff"),
    ],
)
def test_a_file_of_prompts_that_is_no_list_names_the_line(tmp_path, raw, words):
    (tmp_path / "prompts.txt").write_bytes(raw)
    with pytest.raises(ConfigError, match=r"^--prompts .*prompts\.txt: ") as error:
        conditions.read_prompts(tmp_path / "prompts.txt")
    assert words in str(error.value)


def test_a_file_of_prompts_is_read_line_by_line(tmp_path):
    raw = "\ufeffa cat, \u2028 sitting\r\n  a dog\r\n".encode()
    (tmp_path / "prompts.txt").write_bytes(raw)
    expected = ["a cat, \u2028 sitting", "a dog"]
    assert conditions.read_prompts(tmp_path / "prompts.txt") == expected
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ConfigError, match="it cannot be read"):
            conditions.read_prompts(missing)


def test_prompts_are_drawn_in_order_each_as_often():
    made, notes = conditions.by_prompt(["a", "b", "c"], 2, None, None)
    assert made.of(np.arange(6)) == ["a", "a", "b", "b", "c", "c"]
    assert (made.count, notes) == (6, [])
    made, notes = conditions.by_prompt(["a", "b", "c"], 2, 4, None)
    assert made.of(np.arange(4)) == ["a", "a", "b", "b"]
    assert notes == ["2 of 3 different prompts are drawn from, the first"]


def test_a_sample_of_captions_is_random_and_said():
    texts = [str(number) for number in range(3000)]
    made, notes = conditions.by_prompt(texts, 3, None, 1)
    assert made.count == 999
    assert notes == [
        "333 of 3000 different prompts are drawn from, chosen at random by --seed; "
        "--generate 9000 draws from all"
    ]
    drawn = made.of(np.arange(999))
    assert len(set(drawn)) == 333
    assert abs(np.mean([int(text) for text in drawn]) - 1500) < 200
    again, _ = conditions.by_prompt(texts, 3, 30, 1)
    assert again.of(np.arange(30)) == drawn[:30]  # fewer are the same ones
    other, _ = conditions.by_prompt(texts, 3, 30, 2)
    assert other.of(np.arange(30)) != drawn[:30]


@pytest.mark.parametrize(
    ("each", "count", "words"),
    [
        (1, 4, "--generate = 4: 3 different prompts, 1 images each (--per-prompt), are 3"),
        (2, 3, "--generate = 3: a multiple of --per-prompt = 2 is needed"),
    ],
)
def test_numbers_that_do_not_fit_the_prompts_are_named(each, count, words):
    with pytest.raises(ConfigError) as error:
        conditions.by_prompt(["a", "b", "c"], each, count, None)
    assert words in str(error.value)


# ---- in an audit ---------------------------------------------------------------------------------


@pytest.fixture
def audit(tmp_path, folder, capsys):
    from . import tiny_pipelines as tiny

    def run(*flags, make=tiny.sd, status):
        pipeline = tmp_path / make.__name__
        if not pipeline.exists():
            tiny.save(make, pipeline)
        given = ["--pipeline", pipeline, "--train", folder, "--steps", 1, "--features", "pixels"]
        given += ["--resize", 8, "--out", tmp_path / "out", *flags]
        assert cli.main(["audit", *map(str, given)]) == status
        output = capsys.readouterr()
        return output.err if status else output.out

    return run


def test_captions_of_the_training_images_are_the_prompts(audit, folder, tmp_path):
    beside(folder)
    audit("--per-prompt", 2, status=0)
    lines = (tmp_path / "out" / "drawn" / "metadata.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    assert sorted(texts) == ["a dog", "a dog", "a red cat", "a red cat"]  # each caption once
    table = pd.read_csv(tmp_path / "out" / "conditions.csv")
    assert sorted(table["prompt"]) == ["a dog", "a red cat"]


def test_captions_that_do_not_match_stop_before_drawing(audit, folder, tmp_path):
    write_lines(folder / "metadata.jsonl", entries({"a.png": "x", "z.png": "y"}))
    message = audit(status=2)
    assert "2 images have none (b.png, c.jpg); 1 captions have no image (z.png)" in message
    assert not (tmp_path / "out").exists()


def test_without_any_prompt_the_flag_is_named(audit, tmp_path):
    message = audit(status=2)
    assert (
        "--prompts is needed: a StableDiffusionPipeline draws from prompts, and --train" in message
    )
    assert "metadata.jsonl, captions.json, a .txt per image, a parquet column" in message
    assert not (tmp_path / "out").exists()


def test_prompts_that_are_too_long_are_counted(audit, folder, tmp_path):
    """CLIP's tokenizer takes 77 tokens, two of which begin and end a prompt; a letter is one."""
    write_lines(folder / "metadata.jsonl", entries({"a.png": "a" * 75, "b.png": "b", "c.jpg": "c"}))
    audit(status=0)
    long = {"a.png": "a" * 76, "b.png": "b", "c.jpg": "c" * 90}
    write_lines(folder / "metadata.jsonl", entries(long))
    message = audit("--out", tmp_path / "long", status=2)
    assert "2 of 3 prompts are longer than the 77 tokens that the pipeline's tokenizer" in message
    assert "has 78" in message
    assert "has 92" in message
    assert not (tmp_path / "long").exists()
    output = audit("--out", tmp_path / "long", "--truncate-prompts", status=0)
    assert "2 of 3 prompts are longer than the 77 tokens that its tokenizer takes, and" in output


def test_prompts_that_one_of_several_tokenizers_takes_are_a_note(audit, folder, tmp_path):
    """SD 3 has CLIP's tokenizers, and T5's, for 256 tokens."""
    from . import tiny_pipelines as tiny

    write_lines(folder / "metadata.jsonl", entries({"a.png": "a" * 90, "b.png": "b", "c.jpg": "c"}))
    output = audit(make=tiny.sd3, status=0)
    assert "1 of 3 prompts are longer than the 77 tokens that its tokenizer takes" in output
    write_lines(folder / "metadata.jsonl", entries({**TEXTS, "a.png": "a" * 300}))
    message = audit("--out", tmp_path / "long", make=tiny.sd3, status=2)
    assert (
        "1 of 3 prompts are longer than the 256 tokens that the pipeline's tokenizer_3" in message
    )
