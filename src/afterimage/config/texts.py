"""What arms that are conditioned on captions read, and what they read it with."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, Tag, model_validator

from afterimage.config.base import Block, Name, kind_or
from afterimage.config.stored import Stored

ORIGINAL = "original"
"""The variant of the captions as they are."""


class ColumnCaptions(Block):
    """The captions of another text column of the source: those that a language model has made
    general (LoyalDiffusion), or that an image captioner has written."""

    kind: Literal["column"]
    column: Annotated[str, Field(min_length=1)]
    """The column. Every image needs a text in it."""


class FixedCaption(Block):
    """The same caption for every image (Somepalli et al. 2023)."""

    kind: Literal["fixed"]
    caption: Annotated[str, Field(pattern=r"\S")]
    """The caption."""


class RandomCaptions(Block):
    """Random words (Somepalli et al. 2023, who draw random tokens): each uniformly from the
    different words of the pool's captions, once for each image."""

    kind: Literal["random"]
    words: Annotated[int, Field(ge=1)]
    """Words of a caption."""


class GeneralCaptions(Block):
    """Short captions by rule, without a language model: those words of a caption that are in most
    captions of the pool, in their order."""

    kind: Literal["general"]
    words: Annotated[int, Field(ge=1)] = 4
    """Words of a caption at most. (LoyalDiffusion asks a language model for fewer than five.)"""


CaptionVariant = Annotated[
    ColumnCaptions | FixedCaption | RandomCaptions | GeneralCaptions, Field(discriminator="kind")
]


class Transformer(NamedTuple):
    """The size of a text encoder.

    Attributes:
        layers: Of attention and two linear layers each.
        hidden: Width between the two.
        vocabulary: Tokens, at most.
    """

    layers: int
    hidden: int
    vocabulary: int


ASSUMED = {
    768: Transformer(layers=12, hidden=3072, vocabulary=49_408),
    1024: Transformer(layers=23, hidden=4096, vocabulary=49_408),
}
"""Width -> the text encoder of Stable Diffusion 1 and 2: what an encoder costs whose folder is not
on the machine that plans. Of another width it is taken for Stable Diffusion 1's, so much wider."""


class _TextEncoder(Block):
    """The tokenizer and the text encoder, a ``CLIPTextModel``, of arms with ``condition: text``."""

    length: Annotated[int, Field(ge=4)]
    """Tokens of a caption, with the marks."""
    long: Literal["refuse", "truncate"] = "refuse"
    """What happens to captions of more tokens: the step that embeds them stops and names one, or
    they lose their end, as in diffusers' training scripts, and their number is recorded."""
    width: Annotated[int, Field(ge=4)]
    """Size of a token's embedding."""
    captions: dict[Name, CaptionVariant] = {}
    """Name -> a variant of the captions, which arms choose by ``captions``; ``original`` are the
    captions as they are."""

    @model_validator(mode="after")
    def _original_is_the_captions_own(self) -> _TextEncoder:
        if ORIGINAL in self.captions:
            raise ValueError(
                f"captions.{ORIGINAL}: the captions as they are have this name; choose another"
            )
        return self


class RandomTextEncoder(_TextEncoder):
    """A tokenizer and an encoder that the study makes.

    The tokenizer's byte pairs are learned from the captions. The encoder's weights are drawn from
    the study's seed and never trained: captions that differ in a token get different embeddings,
    but similar meanings no similar ones.
    """

    kind: Literal["random"] = "random"
    vocabulary: Annotated[int, Field(ge=300)] = 1000
    """Tokens at most: 256 bytes, the marks of begin, end and padding, and learned pairs."""
    length: Annotated[int, Field(ge=4)] = 24
    """Tokens of a caption, with the marks."""
    width: Annotated[int, Field(ge=4)] = 64
    """Size of a token's embedding."""
    layers: Annotated[int, Field(ge=1)] = 2
    """Transformer layers."""
    heads: Annotated[int, Field(ge=1)] = 4
    """Attention heads; must divide ``width``."""

    @model_validator(mode="after")
    def _heads_divide(self) -> RandomTextEncoder:
        if self.width % self.heads:
            raise ValueError(f"heads = {self.heads} does not divide width = {self.width}")
        return self

    @property
    def transformer(self) -> Transformer:
        """The encoder's size; the vocabulary may turn out smaller."""
        return Transformer(self.layers, 4 * self.width, self.vocabulary)


class StoredTextEncoder(_TextEncoder, Stored):
    """A trained tokenizer and encoder in the folders ``tokenizer`` and ``text_encoder`` of ``path``,
    as in a Stable Diffusion pipeline; the defaults are those of Stable Diffusion 1."""

    config_file: ClassVar[str] = "text_encoder/config.json"

    kind: Literal["stored"]
    length: Annotated[int, Field(ge=4)] = 77
    """Tokens of a caption, with the marks, at most as many as the encoder takes."""
    width: Annotated[int, Field(ge=4)] = 768
    """Size of a token's embedding; must be the encoder's."""

    @property
    def transformer(self) -> Transformer:
        """The encoder's size; on a machine without it, that of ``ASSUMED``."""
        if self.described is None:
            return ASSUMED.get(self.width, ASSUMED[768]._replace(hidden=4 * self.width))
        keys = ("num_hidden_layers", "intermediate_size", "vocab_size")
        defaults = Transformer(layers=12, hidden=2048, vocabulary=49_408)  # those of transformers
        return Transformer(*map(self.described.get, keys, defaults))

    def check(self, described: dict[str, Any]) -> None:
        width, most = described.get("hidden_size"), described.get("max_position_embeddings")
        if self.width != width:
            raise ValueError(
                f"width = {self.width}, but the text encoder in path = {self.path!r} has "
                f"hidden_size = {width}"
            )
        if most is None or self.length > most:
            raise ValueError(
                f"length = {self.length}, but the text encoder in path = {self.path!r} takes "
                f"{most} tokens"
            )


TextEncoder = Annotated[
    Annotated[RandomTextEncoder, Tag("random")] | Annotated[StoredTextEncoder, Tag("stored")],
    kind_or("random"),
]
