"""Published numbers shown on pages next to a study's own, each with its source.

The studies that reproduce them refer to this module, so that each number is stated once.
"""

from __future__ import annotations

from typing import NamedTuple


class Unlearning(NamedTuple):
    """A row of EraseDiff's table."""

    probability: float
    fid: float
    precision: float
    recall: float


ERASEDIFF = {
    "unscrubbed": Unlearning(0.97, 9.63, 0.40, 0.79),
    "fine-tune": Unlearning(0.96, 8.21, 0.43, 0.77),
    "NegGrad": Unlearning(0.61, 76.73, 0.08, 0.61),
    "SA": Unlearning(0.06, 8.19, 0.43, 0.75),
    "SalUn": Unlearning(0.07, 9.16, 0.41, 0.76),
    "EraseDiff noise": Unlearning(0.22, 7.61, 0.43, 0.72),
    "EraseDiff rl": Unlearning(0.24, 8.66, 0.43, 0.77),
}
"""EraseDiff (Wu et al., CVPR 2025) on CIFAR-10, conditional DDPM, airplane forgotten: probability
of the forgotten class, and FID, precision and recall of the other classes. Roles are those of
``arms.role_of``. SECOND-HAND: copied from a public note on the paper, not checked against it."""
GUIDANCE = 3
"""Guidance scale in that table, in this package's notation (2 in the authors')."""
ERASEDIFF_SECONDS = {"EraseDiff noise": 1, "EraseDiff rl": 1, "SalUn": 2, "SA": 11}
"""Run times relative to EraseDiff's, by role; SECOND-HAND, from the same note."""

DTRAK = {
    "dtrak": ("27.2 / 34.2", "19.1 / 26.0"),
    "trak": ("11.5 / 24.0", "5.9 / 16.1"),
    "relative_influence": ("11.3 / 23.8", "6.0 / 16.2"),
    "renormalised_influence": ("11.0 / 21.8", "5.8 / 14.9"),
    "pixel_cosine": ("7.9 / 8.0", "4.9 / 5.4"),
}
"""LDS in percent on CIFAR-2, from the executed notebooks of D-TRAK (Zheng et al., ICLR 2024), at
T = 10 / T = 100, regulariser by oracle, 64 subsets: held-out images, generations."""


class Loyal(NamedTuple):
    """A row of LoyalDiffusion's table.

    Its description, the corresponding networks here, what is known, and whether it is about other
    captions than the images' own, and about dual fusion.
    """

    row: str
    networks: str
    published: str
    other_captions: bool = False
    fusion: bool = False


HELD_OUT = "held-out images"
LOYAL = (
    Loyal("one network, no blocks", "plain", "the reference"),
    Loyal(
        "the same, other captions (published: generalised to 5 words)",
        "plain",
        "R −32.18 % (a third party's summary, not verified)",
        other_captions=True,
    ),
    Loyal(
        "the same, with dual fusion",
        "plain",
        "R −43.5 % (abstract of the earlier paper, arXiv 2309.07254)",
        other_captions=True,
        fusion=True,
    ),
    Loyal("RAU-Net at all timesteps", "blocks", "value not verified"),
    Loyal(
        "two networks, no blocks",
        "split",
        "not in the paper as far as known: the control of the next row",
    ),
    Loyal("two networks, blocks in the tail (LoyalDiffusion)", "tail", "value not verified"),
    Loyal(
        "LoyalDiffusion with other captions, without dual fusion",
        "tail",
        "not in the paper as far as known",
        other_captions=True,
    ),
    Loyal(
        "two networks, blocks in the front (mirrored)", "front", "not in the paper as far as known"
    ),
    Loyal(
        "LoyalDiffusion with other captions and dual fusion",
        "tail",
        "R −48.63 % (abstract; relative to which row is not said)",
        other_captions=True,
        fusion=True,
    ),
    Loyal("real images that no model saw", HELD_OUT, "value not verified (RepliBing)"),
)
"""LoyalDiffusion (Li et al. 2024; CVPR 2026), as far as its table is public. Networks are those of
``arms.networks_of``, ``HELD_OUT`` for no network at all."""


class Claim(NamedTuple):
    """A statement of a paper, and its source."""

    statement: str
    evidence: str


_ABSTRACT = "the paper's abstract"
IET_AGC = {
    "MQ": Claim(
        "MQ down by up to about 87 % over the data sets",
        "as reported in a secondary source (a summary of the paper); the paper's tables were not "
        "read",
    ),
    "quality": Claim("FID equal or slightly better", _ABSTRACT),
    "losses": Claim("losses of easily memorised images are lower", _ABSTRACT),
    "texts": Claim(
        "−46.7 % in the memorization score of fine-tuned Stable Diffusion (which score that is was "
        "not verified)",
        "the abstract of IET-AGC+, arXiv 2502.09434",
    ),
}
"""IET-AGC (Liu et al., ECCV 2024), and on captioned images IET-AGC+."""
IET_AGC_TAUS = (0.4, 0.5, 0.6)
"""Thresholds of MQ in its main table."""

_SECTION = "section 4.2, as quoted in public records; the paper itself was not read"
_FIGURE = "figure 4, as told in a summary; the paper itself was not read"
_RESULT = "section 4.2.2, as quoted in public records; the paper itself was not read"
STABLE_DIFFUSION = {
    "captions asked for": Claim("350,000 (those of the most duplicated images)", _SECTION),
    "images of each": Claim("500", _SECTION),
    "images that have to agree": Claim("10", _SECTION),
    "captions flagged": Claim("not known; the first 1,000 were looked at", _SECTION),
    "training images extracted": Claim(
        "94 within 0.15; 109 as printed with those that the eye finds, 13 more", _RESULT
    ),
    "extracted before the first that is not": Claim("50", _FIGURE),
    "precision when all are found": Claim("above 50 %", _FIGURE),
}
"""Extraction from Stable Diffusion 1.4 by prompts (Carlini et al., USENIX Security 2023): quantity
-> what is published."""
