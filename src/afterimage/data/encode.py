"""``afterimage data encode``: embed every caption of a study once, in one of its variants.

Trainings then read rows of embeddings by number and need no text encoder. Tokenizer and encoder, a
``CLIPTextModel``, are stored ones or the study's own, the same for all variants (``config.texts``):
byte pairs (Sennrich et al. 2016) learned from the captions of the pool as they are, and random
weights. The encoder's last hidden states condition the networks, as in Stable Diffusion.
A text of more tokens than ``text.length`` is refused, or loses its end (``text.long``).

The store: ``tokenizer/`` and ``text_encoder/``, which transformers opens; ``captions.json``, the
different captions of the pool and of the held-out, reference and fusion images, and the surrogates
of the study's forget sets (``surrogates`` of the settings, if there are any), sorted; and
``texts.safetensors`` with ``embeddings``, float32 (captions, length, width) in that order, and
``null``, that of the empty caption. For another variant than ``original`` the captions are its
texts (``data.captions``), and the file has, too, ``images``, int64 (images), the ids of all images,
ascending, and ``rows``, int64 (images), the row of the text of each.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from accelerate import PartialState
from safetensors.torch import save_file

from afterimage import artifacts, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.config.stored import validated
from afterimage.config.texts import (
    ColumnCaptions,
    RandomTextEncoder,
    StoredTextEncoder,
    TextEncoder,
)
from afterimage.data.captions import rewritten
from afterimage.diffusion.stored_files import first_line, listed
from afterimage.diffusion.texts import CAPTIONS, EMBEDDINGS, FILE, IMAGES, NULL, ROWS
from afterimage.images import load_images

if TYPE_CHECKING:
    from transformers import CLIPTextModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PARTS = ("pool", "holdout", "reference", "fusion")
BEGIN, END, PADDING = "<|begin|>", "<|end|>", "<|padding|>"
STORED = ("tokenizer", "text_encoder")
"""Folders of a stored tokenizer and encoder."""
BATCH = 256
"""Captions per pass of the encoder."""


def arguments(parser: argparse.ArgumentParser) -> None:
    for part in PARTS:
        parser.add_argument(f"--{part}", type=Path, required=True, help=f"{part}.npz of data split")
    parser.add_argument(
        "--columns",
        type=Path,
        help="captions.parquet of data fetch, for a variant that is another column of the source",
    )
    parser.add_argument(
        "--config", type=Path, required=True, help="resolved config of data/encode (JSON)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")


def run(args: argparse.Namespace) -> None:
    config = artifacts.read_config(args.config, "data/encode")
    own = dict(config["settings"])
    surrogates = own.pop("surrogates", [])
    settings = validated(TextEncoder, own, "text")
    variant = settings.captions.get(config["job"])
    if isinstance(variant, ColumnCaptions) != (args.columns is not None):
        raise ConfigError(
            f"--columns is {args.columns}, but only a variant of kind column needs it, and "
            f"{config['job']} is {'one' if args.columns is None else 'none'}"
        )
    inputs = {part: getattr(args, part) for part in PARTS}
    inputs |= {"columns": args.columns} if args.columns else {}
    stored = isinstance(settings, StoredTextEncoder)
    if stored:
        for part in STORED:
            inputs[part] = settings.folder / part
            if not inputs[part].is_dir():
                raise ArtifactError(f"text.path = {settings.path!r}: there is no {part}/ in it")
    with artifacts.step(config, args.out, inputs, entries=(__name__,)) as step:
        parts = [load_images(getattr(args, part)) for part in PARTS]
        different = sorted({text for part in parts for text in part.captions.tolist()})
        texts: dict[int, str] = {}
        if variant is not None:
            columns = None if args.columns is None else _columns(args.columns)
            texts = rewritten(variant, config["job"], parts, config["seed"], columns)
            different = sorted(set(texts.values()))
        different = sorted({*different, *surrogates})
        if stored:
            tokenizer, encoder = open_encoder(settings)
        else:
            tokenizer = learn_tokenizer(sorted(set(parts[0].captions.tolist())), settings)
            encoder_seed = seeds.derive(config["seed"], "text_encoder")
            encoder = build_encoder(tokenizer, settings, encoder_seed)
        long = too_long(different, tokenizer, settings)
        if long:
            warnings.warn(
                f"{len(long)} of {len(different)} captions have more than text.length = "
                f"{settings.length} tokens and lose their end (text.long = truncate), such as "
                f"{long[0]!r}",
                stacklevel=2,
            )
        torch.nn.Module.to(encoder, PartialState().device)
        tensors = {
            EMBEDDINGS: embed(different, tokenizer, encoder, truncate=bool(long)),
            NULL: embed([""], tokenizer, encoder)[0],
        }
        if texts:
            row = {text: place for place, text in enumerate(different)}
            images = sorted(texts)
            tensors[IMAGES] = torch.tensor(images)
            tensors[ROWS] = torch.tensor([row[texts[image]] for image in images])
        save_file(tensors, step.folder / FILE)
        artifacts.write_json(step.folder / CAPTIONS, different)
        tokenizer.save_pretrained(step.folder / "tokenizer")
        encoder.save_pretrained(step.folder / "text_encoder")
        step.metric("captions", len(different))
        step.metric("truncated_captions", len(long))
        step.metric("vocabulary", len(tokenizer))


def _columns(path: Path) -> pd.DataFrame:
    artifacts.check_file(path)
    return pd.read_parquet(path)


def open_encoder(
    settings: StoredTextEncoder,
) -> tuple[PreTrainedTokenizerBase, CLIPTextModel]:
    """Return the stored tokenizer and encoder, float32.

    Raises:
        ArtifactError: if a file is missing or has another checksum, or weights do not fit the
            encoder exactly.
    """
    from transformers import AutoTokenizer, CLIPTextModel

    folder = settings.folder
    artifacts.check_sums(folder, settings.sha256, "text.sha256")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        loaded: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (OSError, ValueError) as error:
        raise ArtifactError(f"text.path = {settings.path!r}: {first_line(error)}") from error
    encoder, found = loaded
    if wrong := sorted({*found["missing_keys"], *found["mismatched_keys"]}):
        raise ArtifactError(
            f"text.path = {settings.path!r}: weights of the text encoder are missing or of another "
            f"shape: {listed(wrong)}"
        )
    tokenizer.model_max_length = settings.length
    return tokenizer, encoder.eval()


def learn_tokenizer(captions: list[str], settings: RandomTextEncoder) -> PreTrainedTokenizerFast:
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
    tokenizer: PreTrainedTokenizerFast, settings: RandomTextEncoder, seed: int
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


def too_long(
    captions: list[str], tokenizer: PreTrainedTokenizerBase, settings: TextEncoder
) -> list[str]:
    """Return the captions that have more tokens than the encoder takes.

    Raises:
        ConfigError: naming the settings, if there are any that the study does not truncate.
    """
    tokens = tokenizer(captions, verbose=False)["input_ids"]
    length = settings.length
    long = [text for text, ids in zip(captions, tokens, strict=True) if len(ids) > length]
    if long and settings.long == "refuse":
        raise ConfigError(
            f"text.length = {length}: {len(long)} of {len(captions)} captions have more tokens "
            f"(at most {max(map(len, tokens))}), such as {long[0]!r}; text.long = truncate cuts "
            "off their end"
        )
    return long


@torch.inference_mode()
def embed(
    captions: list[str],
    tokenizer: PreTrainedTokenizerBase,
    encoder: CLIPTextModel,
    *,
    truncate: bool = False,
) -> torch.Tensor:
    """Return the encoder's last hidden states, float32, (captions, length, width), on the CPU. With
    ``truncate``, what is longer keeps its first tokens and the mark of its end."""
    rows = tokenizer(captions, padding="max_length", truncation=truncate, return_tensors="pt")
    parts = rows["input_ids"].split(BATCH)
    return torch.cat([encoder(part.to(encoder.device)).last_hidden_state.cpu() for part in parts])
