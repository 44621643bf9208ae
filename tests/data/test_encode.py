"""Embeddings of captions: one for each, by a tokenizer and an encoder that transformers opens."""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from afterimage import artifacts
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.config.texts import RandomTextEncoder
from afterimage.data import encode
from afterimage.diffusion.texts import Texts
from afterimage.images import Images

CAPTIONS = {
    "pool": ["a red circle", "a blue square", "a red circle", "two squares, one red"],
    "holdout": ["a blue circle", "a blue square"],
    "reference": ["a red square"],
    "fusion": ["a blue triangle"],
}
SETTINGS = {"vocabulary": 300, "length": 20, "width": 16, "layers": 1, "heads": 2}


@pytest.fixture
def parts(tmp_path):
    """The four sets of images, stored."""
    settings = {"step": "data/split", "arm": None, "replicate": None, "seed": 3, "settings": {}}
    with artifacts.step(settings, tmp_path / "split", {}, ("afterimage.seeds",)) as step:
        for name, captions in CAPTIONS.items():
            pixels = np.zeros((len(captions), 4, 4, 1), np.uint8)
            Images.of(pixels, captions=np.array(captions)).save(step.folder / f"{name}.npz")
    return {name: tmp_path / "split" / f"{name}.npz" for name in CAPTIONS}


@pytest.fixture
def encoded(parts, tmp_path, resolved):
    """Return the store for some settings and a seed."""

    def run(seed=3, job="original", columns=None, **changed):
        out = tmp_path / f"encode{seed}{len(changed)}{job}"
        settings = resolved("data/encode", SETTINGS | changed, seed=seed, job=job)
        config = Path(settings)
        encode.run(argparse.Namespace(**parts, columns=columns, config=config, out=out))
        return out

    return run


def test_every_caption_of_every_set_has_one_row(encoded):
    out = encoded()
    texts = Texts.load(out)
    different = sorted({text for some in CAPTIONS.values() for text in some})
    assert json.loads((out / "captions.json").read_text()) == different
    assert texts.embeddings.shape == (len(different), 20, 16)
    assert texts.width == 16
    captions = np.array(CAPTIONS["pool"])
    assert texts.rows(captions).tolist() == [different.index(text) for text in captions]
    embeddings = texts.embeddings[texts.rows(captions)]
    assert torch.equal(embeddings[0], embeddings[2])
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-3)


def test_embeddings_are_those_of_the_stored_parts(encoded):
    """By transformers alone, one caption at a time; the null text is the empty caption."""
    out = encoded()
    texts = Texts.load(out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    for caption, found in (("a blue circle", None), ("", texts.null)):
        tokens = tokenizer([caption], padding="max_length", return_tensors="pt")["input_ids"]
        assert tokens.shape == (1, 20)
        with torch.no_grad():
            expected = encoder(tokens).last_hidden_state[0]
        found = texts.embeddings[texts.row[caption]] if found is None else found
        torch.testing.assert_close(found, expected)
    words = tokenizer("two squares, one red")["input_ids"]
    assert (words[0], words[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(words, skip_special_tokens=True) == "two squares, one red"


def test_surrogates_are_embedded_like_captions_and_change_none_of_them(encoded):
    """``a red square`` is a caption, too."""
    plain, more = encoded(), encoded(surrogates=["a shape", "a red square"])
    before, after = Texts.load(plain), Texts.load(more)
    assert set(after.row) - set(before.row) == {"a shape"}
    for caption, row in before.row.items():
        torch.testing.assert_close(after.embeddings[after.row[caption]], before.embeddings[row])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(more / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(more / "text_encoder").eval()
    tokens = tokenizer(["a shape"], padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = encoder(tokens).last_hidden_state[0]
    torch.testing.assert_close(after.embedding("a shape"), expected)
    assert torch.equal(after.embedding(None), after.null)
    for name in ("tokenizer/tokenizer.json", "text_encoder/model.safetensors"):
        assert (plain / name).read_bytes() == (more / name).read_bytes()


def test_weights_follow_from_the_seed_alone(encoded):
    torch.manual_seed(1)
    first = load_file(encoded(seed=3) / "texts.safetensors")["embeddings"]
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    second = load_file(encoded(seed=3, layers=1) / "texts.safetensors")["embeddings"]
    assert torch.equal(torch.random.get_rng_state(), before)
    other = load_file(encoded(seed=4) / "texts.safetensors")["embeddings"]
    assert torch.equal(first, second)
    assert not torch.allclose(first, other, atol=1e-2)


def test_a_caption_that_is_too_long_is_named(encoded):
    message = r"text.length = 4: \d of 6 captions have more tokens \(at most \d+\), such as 'a"
    with pytest.raises(ConfigError, match=message):
        encoded(length=4)


def test_long_captions_lose_their_end_if_the_study_says_so(encoded):
    """They keep their first tokens and the mark of their end; their number is recorded, and told."""
    whole = encoded()
    with pytest.warns(UserWarning, match=r"\d of 6 captions have more than text.length = 6 tokens"):
        out = encoded(length=6, long="truncate")
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    recorded = {row["name"]: row["value"] for row in metrics}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(whole / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(out / "text_encoder").eval()
    own = Texts.load(out)
    truncated = 0
    for caption, row in own.row.items():
        tokens = tokenizer(caption)["input_ids"]
        truncated += len(tokens) > 6
        kept = tokens if len(tokens) <= 6 else [*tokens[:5], tokenizer.eos_token_id]
        kept += [tokenizer.pad_token_id] * (6 - len(kept))
        with torch.no_grad():
            expected = encoder(torch.tensor([kept])).last_hidden_state[0]
        torch.testing.assert_close(own.embeddings[row], expected)
    assert recorded["truncated_captions"] == truncated
    assert 0 < truncated < len(own.row)


def test_captions_that_fit_are_embedded_alike_whatever_becomes_of_long_ones(encoded):
    refused, cut = encoded(), encoded(long="truncate")
    assert torch.equal(Texts.load(refused).embeddings, Texts.load(cut).embeddings)
    for name in ("tokenizer/tokenizer.json", "text_encoder/model.safetensors"):
        assert (refused / name).read_bytes() == (cut / name).read_bytes()
    metrics = (cut / "metrics.jsonl").read_text()
    assert '"name": "truncated_captions", "value": 0.0' in metrics


def test_a_caption_that_was_not_encoded_is_named(encoded):
    with pytest.raises(ArtifactError, match="the caption 'a dog' was not encoded"):
        Texts.load(encoded()).rows(np.array(["a red circle", "a dog"]))


def test_a_damaged_file_is_refused(encoded):
    out = encoded()
    (out / "captions.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"captions.json"):
        Texts.load(out)


def test_the_command_imports_text_packages(parts, tmp_path, resolved):
    """Which are hidden from every other step."""
    arguments = [f"--{name}={file}" for name, file in parts.items()]
    arguments += [f"--config={resolved('data/encode', SETTINGS, job='original')}"]
    arguments += [f"--out={tmp_path / 'encode'}"]
    command = [sys.executable, "-m", "afterimage.cli", "data", "encode", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(Texts.load(tmp_path / "encode").row) == 6


def test_heads_divide_the_width():
    with pytest.raises(ValueError, match="heads = 3 does not divide width = 64"):
        RandomTextEncoder(heads=3)


# ---- a stored encoder ----------------------------------------------------------------------------


@pytest.fixture
def stored(encoded, parts, tmp_path, resolved):
    """Return the store for an encoder that lies in a folder, by default the one that was made."""
    source = encoded()

    def run(folder=source, **changed):
        own = {"kind": "stored", "path": str(folder), "length": 20, "width": 16} | changed
        config = Path(resolved("data/encode", own, seed=8, job="original"))
        out = tmp_path / "stored"
        encode.run(argparse.Namespace(**parts, columns=None, config=config, out=out))
        return out

    run.source = source
    return run


def test_a_stored_encoder_embeds_as_it_did(stored):
    weights = "text_encoder/model.safetensors"
    sums = {weights: artifacts.sha256(stored.source / weights)}
    own, other = Texts.load(stored.source), Texts.load(stored(sha256=sums))
    assert own.row == other.row
    torch.testing.assert_close(other.embeddings, own.embeddings)
    torch.testing.assert_close(other.null, own.null)


def test_a_shorter_length_pads_less_and_changes_no_token(stored):
    """The encoder is causal: what stands before the padding does not see it."""
    own, short = Texts.load(stored.source), Texts.load(stored(length=18))
    assert short.embeddings.shape[1] == 18
    torch.testing.assert_close(short.embeddings, own.embeddings[:, :18], atol=1e-5, rtol=1e-5)


def test_a_stored_encoder_that_differs_is_refused(stored, tmp_path):
    weights = "text_encoder/model.safetensors"
    with pytest.raises(ArtifactError, match=r"text.sha256: .* not the expected 0000"):
        stored(sha256={weights: "0" * 64})
    with pytest.raises(ValueError, match=r"width = 32, but the text encoder .* hidden_size = 16"):
        stored(width=32)
    with pytest.raises(ValueError, match=r"length = 21, but the text encoder .* takes 20 tokens"):
        stored(length=21)
    broken = tmp_path / "broken"
    shutil.copytree(stored.source, broken)
    tensors = load_file(broken / weights)
    lost = next(name for name in tensors if "final_layer_norm" in name)
    del tensors[lost]
    save_file(tensors, broken / weights, metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"missing or of another shape: .*final_layer_norm"):
        stored(broken)
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(
        ArtifactError, match=r"text.path = '.*broken': there is no tokenizer/ in it"
    ):
        stored(broken)
