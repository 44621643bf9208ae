"""What arms that are conditioned on captions read them with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from afterimage.config.base import Block


class TextEncoder(Block):
    """The tokenizer and the text encoder of arms with ``condition: text``, made by the study.

    The tokenizer's byte pairs are learned from the captions. The encoder is a ``CLIPTextModel``
    whose weights are drawn from the study's seed and never trained: captions that differ in a token
    get different embeddings, but similar meanings no similar ones.
    """

    vocabulary: Annotated[int, Field(ge=300)] = 1000
    """Tokens at most: 256 bytes, the marks of begin, end and padding, and learned pairs."""
    length: Annotated[int, Field(ge=4)] = 24
    """Tokens of a caption, with the marks; a longer one is refused."""
    width: Annotated[int, Field(ge=4)] = 64
    """Size of a token's embedding."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Transformer layers."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; must divide ``width``."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TextEncoder:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self
