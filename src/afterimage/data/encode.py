"""``afterimage data encode``: embed every caption of a study once.

Trainings then read rows of embeddings by number and need no text encoder. Byte pairs (Sennrich et
al. 2016) are learned from the captions of the pool; the encoder is a ``CLIPTextModel`` with random
weights (``config.texts``). Its last hidden states condition the networks, as in Stable Diffusion.

The store: ``tokenizer/`` and ``text_encoder/``, which transformers opens; ``captions.json``, the
different captions of the pool, the held-out and the reference images, and the surrogates of the
study's forget sets (``surrogates`` of the settings, if there are any), sorted; and
``texts.safetensors`` with ``embeddings``, float32 (captions, length, width) in that order, and
``null``, that of the empty caption.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from afterimage import artifacts, seeds
from afterimage.config import ConfigError
from afterimage.config.texts import TextEncoder
from afterimage.diffusion.texts import CAPTIONS, EMBEDDINGS, FILE, NULL
from afterimage.images import load_images

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerFast

PARTS = ("pool", "holdout", "reference")
BEGIN, END, PADDING = "<|begin|>", "<|end|>", "<|padding|>"
BATCH = 256
"""Captions per pass of the encoder."""


def arguments(parser: argparse.ArgumentParser) -> None:
    for part in PARTS:
        parser.add_argument(f"--{part}", type=Path, required=True, help=f"{part}.npz of data split")
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of data/encode (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, "data/encode")
    own = dict(config["settings"])
    surrogates = own.pop("surrogates", [])
    settings = TextEncoder.model_validate(own)
    inputs = {part: getattr(args, part) for part in PARTS}
    with artifacts.step(config, args.out, inputs, entries=(__name__,)) as step:
        captions = {part: load_images(path).captions.tolist() for part, path in inputs.items()}
        different = sorted({text for texts in captions.values() for text in texts} | {*surrogates})
        tokenizer = learn_tokenizer(sorted(set(captions["pool"])), settings)
        encoder = build_encoder(tokenizer, settings, seeds.derive(config["seed"], "text_encoder"))
        tensors = {
            EMBEDDINGS: embed(different, tokenizer, encoder),
            NULL: embed([""], tokenizer, encoder)[0],
        }
        save_file(tensors, step.folder / FILE)
        artifacts.write_json(step.folder / CAPTIONS, different)
        tokenizer.save_pretrained(step.folder / "tokenizer")
        encoder.save_pretrained(step.folder / "text_encoder")
        step.metric("captions", len(different))
        step.metric("vocabulary", len(tokenizer))


def learn_tokenizer(captions: list[str], settings: TextEncoder) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer whose pairs are learned from ``captions``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    pairs = Tokenizer(models.BPE())
    pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[BEGIN, END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs.train_from_iterator(captions, trainer)
    pairs.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A {END}",
        special_tokens=[(mark, pairs.token_to_id(mark)) for mark in (BEGIN, END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=pairs,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PADDING,
        model_max_length=settings.length,
    )


def build_encoder(
    tokenizer: PreTrainedTokenizerFast, settings: TextEncoder, seed: int
) -> CLIPTextModel:
    """Return a text encoder with random weights; the global random state is restored."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=4 * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return CLIPTextModel(config).eval()


@torch.inference_mode()
def embed(
    captions: list[str], tokenizer: PreTrainedTokenizerFast, encoder: CLIPTextModel
) -> torch.Tensor:
    """Return the encoder's last hidden states, float32, (captions, length, width).

    Raises:
        ConfigError: naming the setting, if captions have more tokens than the encoder takes.
    """
    tokens = tokenizer(captions, verbose=False)["input_ids"]
    length = tokenizer.model_max_length
    if long := [text for text, ids in zip(captions, tokens, strict=True) if len(ids) > length]:
        most = max(map(len, tokens))
        raise ConfigError(
            f"text.length = {length}: {len(long)} of {len(captions)} captions have more tokens "
            f"(at most {most}), such as {long[0]!r}"
        )
    rows = tokenizer(captions, padding="max_length", return_tensors="pt")["input_ids"]
    return torch.cat([encoder(part).last_hidden_state for part in rows.split(BATCH)])
