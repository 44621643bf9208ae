"""Random changes of prompts at inference (Somepalli et al., NeurIPS 2023, section 7; repository
DCR): random words or numbers, words of the prompt once more, or Gaussian noise on its embedding.

Each word or number goes to a random place between the prompt's words, one after the other, as in the
released code, which decodes a random token as a word. Noise is added to the embedding of the prompt
alone; the released code adds it to that of the empty prompt too. What is drawn depends on the seed,
the replicate and the image's id.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afterimage import seeds
from afterimage.config import ConfigError, Dcr
from afterimage.diffusion.remedy import Drawing, Ids, Remedy
from afterimage.methods.at_inference import train as train

LARGEST = 100_000
"""Random numbers are below this."""


class ChangedPrompts(Remedy):
    """The remedy, for the generations of one replicate.

    Args:
        arm: Its settings.
        drawing: With prompts and their store.

    Raises:
        ConfigError: without them.
    """

    def __init__(self, arm: Dcr, drawing: Drawing) -> None:
        super().__init__()
        if drawing.prompts is None:
            raise ConfigError("method dcr changes prompts: --texts and --train are needed")
        self._arm, self._drawing = arm, drawing
        self._captions = drawing.prompts.captions
        if arm.change != "noise":
            assert drawing.files.texts is not None
            self._tokenizer, self._encoder = _opened(drawing.files.texts)

    def embeddings(self, ids: Ids, embeddings: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of the changed prompts of images, or changed embeddings."""
        path = (self._drawing.seed, "sample", self._drawing.replicate, "dcr")
        if self._arm.change == "noise":
            generators = [seeds.torch_rng(*path, int(i)) for i in ids]
            noise = [torch.randn(embeddings.shape[1:], generator=each) for each in generators]
            self.count(prompts_changed=len(ids))
            return embeddings + self._arm.noise * torch.stack(noise)
        prompts = [
            self.changed(str(self._captions[i]), seeds.numpy_rng(*path, int(i))) for i in ids
        ]
        return self._embed(prompts)

    def changed(self, prompt: str, rng: np.random.Generator) -> str:
        """Return a prompt with the words that it is given."""
        words = prompt.split()
        for _ in range(self._arm.added):
            words.insert(int(rng.integers(len(words) + 1)), self._word(prompt.split(), rng))
        return " ".join(words)

    def _word(self, own: list[str], rng: np.random.Generator) -> str:
        if self._arm.change == "numbers":
            return str(rng.integers(LARGEST))
        if self._arm.change == "repeated_words":
            return own[rng.integers(len(own))] if own else ""
        return self._tokenizer.decode([self._tokens[rng.integers(len(self._tokens))]]).strip()

    @cached_property
    def _tokens(self) -> list[int]:
        """The tokens of the vocabulary that stand for text."""
        special = set(self._tokenizer.all_special_ids)
        return [token for token in range(len(self._tokenizer)) if token not in special]

    @torch.no_grad()
    def _embed(self, prompts: list[str]) -> torch.Tensor:
        tokens = self._tokenizer(prompts, verbose=False)["input_ids"]
        cut = sum(len(each) > self._tokenizer.model_max_length for each in tokens)
        self.count(prompts_changed=len(prompts), prompts_cut=cut)
        rows = self._tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")[
            "input_ids"
        ]
        return self._encoder(rows).last_hidden_state


def _opened(texts: Path) -> tuple[Any, Any]:
    """Return the tokenizer and the text encoder that the captions of a store were embedded
    with."""
    from transformers import AutoTokenizer, CLIPTextModel

    tokenizer = AutoTokenizer.from_pretrained(texts / "tokenizer", local_files_only=True)
    encoder: Any = CLIPTextModel.from_pretrained(
        texts / "text_encoder", local_files_only=True, use_safetensors=True
    )
    return tokenizer, encoder.eval()


def remedy(arm: Dcr, drawing: Drawing) -> ChangedPrompts:
    """Return the remedy of an arm."""
    return ChangedPrompts(arm, drawing)
