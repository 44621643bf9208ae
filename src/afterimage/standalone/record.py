"""``audit.json``: its keys, types and version, declared once.

The blocks below are checked before an audit is written; the schema (``audit.schema.json``, which
``python -m afterimage.standalone.record`` prints) and the list in ``afterimage audit --help`` are
generated from them. A key is added here first: the audit refuses to write one that is not declared,
or to leave one out.
"""

from __future__ import annotations

import json
import textwrap
from typing import Any, Literal, get_args

from pydantic import ConfigDict, JsonValue

from afterimage.config.base import Block

SCHEMA_VERSION: Literal["1.0"] = "1.0"
"""The second number grows with a new key, the first with a key that changes or goes."""


class Answer(Block):
    """An answer and its evidence, by ``attacks.verdict``."""

    outcome: Literal["copies shown", "not shown", "cannot tell"]
    sentence: str
    """The answer as a paragraph."""
    reason: str
    """What is missing, for `cannot tell`; empty otherwise."""
    generations: int
    held_out: int
    """Held-out images that were compared, less those left out."""
    copies: int
    """Lower bound on the copies among the generations."""
    flagged: int
    """Generations below the threshold of that bound."""
    false_alarms: int
    """Upper bound on the flagged generations that are not copies."""
    held_out_flagged: int
    """Held-out images below the same threshold."""
    images: int
    """Different training images that are nearest to a flagged generation."""
    images_at_least: int
    """Lower bound on those that are copied."""
    visible_rate: float | None
    """Copying rate that would have been seen with probability 0.95; null if none would."""
    confidence: float
    """Probability with which no copies are reported where there are none, and with which the bounds
    hold: 0.95, or 0.975 where an answer by similarity shares the error rate."""


class Verdict(Answer):
    """The answer by distance in pixels."""

    threshold: float | None
    """Relative distance below which generations are flagged."""


class SimilarityVerdict(Answer):
    """The answer by similarity."""

    level: float | None
    """Similarity above which generations are flagged."""


class Counts(Block):
    """Numbers of images."""

    generations: int
    generations_identical: int
    """Generations that are identical to a training image, as compared."""
    training: int
    training_distinct: int
    """Different training images, byte for byte."""
    training_never_nearest: int
    """Different training images that are the nearest of no generation."""
    extracted: int
    """Different training images that the verdict extracts, the rows of `extracted.csv`."""
    extracted_repeated: int
    """Those of them that occur more than once among the training images."""
    holdout: int
    holdout_left_out: int


class Proportion(Block):
    """A count out of a number, with 95 % intervals of the share."""

    count: int
    of: int
    share: float
    low: float
    """By resampling, like `high`."""
    high: float
    exact_low: float
    """By Clopper and Pearson, like `exact_high`."""
    exact_high: float


Anchor = Literal["training", "candidate"]
Alpha = Literal["fixed", "calibrated"]


class BelowThreshold(Block):
    """Images below one threshold of MQ."""

    generations: Proportion
    holdout: Proportion | None


class Quality(Block):
    """One metric of quality."""

    value: float
    low: float | None
    high: float | None
    """Ends of the 95 % interval, like `low`; null without one."""
    holdout: float
    """The same metric between two halves of the held-out images: the floor."""


class Estimate(Block):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float


class ExactShare(Block):
    """A count out of a number, with the exact 95 % interval of the share."""

    count: int
    of: int
    share: float
    exact_low: float
    exact_high: float


class Similarities(Block):
    """Similarity of images to the most similar training image."""

    images: int
    mean: Estimate
    percentile_95: Estimate
    """R of Somepalli et al. 2023."""
    above_fixed: ExactShare
    above_level: ExactShare | None
    """Above the calibrated level; cross-fitted for held-out images; null without a level."""


class Similarity(Block):
    """The answer by similarity in a space of features."""

    space: str
    weights: str | None
    weights_sha256: str | None
    format: str | None
    normalisation: str | None
    input: str
    """What the network is given."""
    dimension: int
    verdict: SimilarityVerdict
    fixed: float
    """The published cosine, which has no false-alarm rate of its own."""
    level: float | None
    """The cosine that is calibrated on held-out images; null without one."""
    generations: Similarities
    holdout: Similarities | None
    train_train: Similarities | None
    """Each different training image with the most similar other one."""


class LeftOut(Block):
    """A held-out image that was left out."""

    sample: str | int
    """The held-out image, by file name or row."""
    nearest: str | int | None
    """The training image that it repeats; null for a repetition of another held-out image."""
    l2: float | None
    kind: Literal["exact", "near", "repeated"]


class ByCondition(Block):
    """What the generations were drawn from."""

    kind: Literal["prompt", "label"]
    different: int
    """Different prompts or labels."""
    with_copies: int
    """Those that have a flagged generation."""


class Input(Block):
    """One set of images."""

    sha256: str
    """Over its pixels and labels as read."""
    manifest: dict[str, JsonValue]
    """How it was read; empty for drawn generations."""


class Settings(Block):
    """Everything that the numbers depend on; flags of the command that are not listed, too."""

    model_config = ConfigDict(extra="allow", json_schema_serialization_defaults_required=True)

    version: str
    """Of afterimage."""
    seed: int
    train: str
    holdout: str | None = None
    samples: str | None = None
    pipeline: str | None = None
    flips: bool
    """Whether mirrored images were compared too."""
    resize: int | None
    distance: str
    tiles: int
    gallery: str
    anchor: Anchor
    """Of the ratio on which the verdict rests."""
    neighbours_used: int
    """Neighbours over which the mean of the relative distance was taken."""
    sampler: str | None = None
    """With `pipeline`, for a U-Net of pixels."""
    steps: int | None = None
    """Likewise."""
    network: dict[str, JsonValue] | None = None
    """Likewise: what was opened."""
    drawing: dict[str, JsonValue] | None = None
    """With `pipeline`, for any other one: what was opened, and the arguments of its call."""


class Facts(Block):
    """Counts recorded by the attack; those that are not listed, too."""

    model_config = ConfigDict(extra="allow", json_schema_serialization_defaults_required=True)

    low_detail_generations: int
    """Generations that are blank or blurred next to their nearest training image."""
    zero_means_generations: dict[Anchor, int]
    """Generations whose nearest training image has only copies of itself as neighbours."""
    holdout_smallest_rate: float | None = None
    """The smallest false-alarm rate that the calibrated alpha can show; null without --holdout."""


class Findings(Block):
    """What an audit measured."""

    command: str
    """The command, with the flags that were given."""
    verdict: Verdict
    """The answer: its outcome (copies shown, not shown, cannot tell), sentence and evidence."""
    limits: list[str]
    """Limitations of the answer, in sentences."""
    notices: list[str]
    """Images that were left out and choices made in reading and drawing, in sentences."""
    left_out: list[LeftOut]
    """Held-out images that were left out, and why."""
    counts: Counts
    """How many images there are of each kind."""
    unique_images: dict[Anchor, dict[Alpha, Proportion]]
    """By anchor of the ratio (training, candidate) and alpha (fixed; calibrated with --holdout):
    different training images extracted."""
    flagged_generations: dict[Anchor, dict[Alpha, Proportion]]
    """The same for generations."""
    flagged_holdout: dict[Anchor, dict[Alpha, Proportion]] | None
    """The same for held-out images: the false alarms; calibrated is cross-fitted. Null without
    --holdout."""
    conditions: ByCondition | None
    """If generations have prompts or labels: how many, and how many with copies."""
    mq: dict[str, BelowThreshold]
    """IET-AGC's MQ, by threshold."""
    alpha: dict[Anchor, dict[Alpha, float]]
    """The thresholds used, by anchor."""
    similarity: Similarity | None
    """The answer by similarity, with --space; otherwise null."""
    quality: dict[str, Quality] | None
    """By metric; null if none could be measured."""
    quality_missing: dict[str, str]
    """By metric: why it could not be measured."""
    facts: Facts
    """Counts recorded by the attack."""
    inputs: dict[Literal["train", "samples", "holdout"], Input]
    """Sha256 of the images, and how each set was read."""
    settings: Settings
    """Everything that the numbers depend on, with the hashes of the weights."""
    seconds: float
    """Wall time."""


class RiskStatement(Block):
    """What was measured, against whom, with what result, and what was not: sentences for a
    data-protection file."""

    measured: list[str]
    attacker: list[str]
    found: list[str]
    not_measured: list[str]


class NextStep(Block):
    """Something to do after the audit."""

    text: str
    command: str | None
    """A command for it; null if there is none. Names in capitals are to be replaced."""


class AuditRecord(Findings):
    """What ``afterimage audit`` writes: what it measured, and what follows from that."""

    schema_version: Literal["1.0"]
    """Of this record: its second number grows with a new key, its first with a key that changes or
    goes."""
    given: list[str]
    """Can the question be answered with what was given, and what each set allows, in sentences."""
    risk_statement: RiskStatement
    """Measured, attacker, found and not measured, in sentences; `statement.txt` as data."""
    next_steps: list[NextStep]
    """What to do next, each with a command if there is one."""


def schema() -> dict[str, Any]:
    """Return the JSON schema of ``audit.json``, draft 2020-12."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | (
        AuditRecord.model_json_schema(mode="serialization")
    )


def _block(annotation: Any) -> type[Block] | None:
    """Return the block in a type such as ``dict[str, Quality] | None``; None if it has none."""
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return annotation
    return next((block for part in get_args(annotation) if (block := _block(part))), None)


def keys() -> str:
    """Return the list of keys for a command's help."""
    described = AuditRecord.model_json_schema()["properties"]
    lines = []
    for name, field in AuditRecord.model_fields.items():
        text = " ".join(described[name].get("description", "").split())
        if block := _block(field.annotation):
            text += f" Keys: {', '.join(block.model_fields)}."
        column = "\n" + " " * 16
        start = f"  {name:<13} " if len(name) < 14 else f"  {name}{column}"
        lines.append(start + column.join(textwrap.wrap(text, 84)))
    return "\n".join(lines)


if __name__ == "__main__":
    print(json.dumps(schema(), indent=2))
