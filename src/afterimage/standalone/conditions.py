"""What each image is drawn from: nothing, a label or a prompt, as a function of its id alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from afterimage import seeds
from afterimage.config import ConfigError
from afterimage.diffusion.stored_files import listed

DEFAULT = 1000
"""Images that are drawn if no flag says how many."""


@dataclass(frozen=True)
class Conditions:
    """The prompts or labels of a drawing.

    Attributes:
        kind: ``prompt`` or ``class``; ``none`` for an unconditional pipeline.
        values: The different prompts, or the labels, in the order in which they are used.
        each: Images in a row that are drawn from the same one.
        count: Number of images.
    """

    kind: Literal["none", "class", "prompt"]
    values: tuple[str, ...] | tuple[int, ...]
    each: int
    count: int

    def of(self, ids: np.ndarray) -> list[Any] | None:
        """Return the prompt or label of each image; None for an unconditional pipeline."""
        if self.kind == "none":
            return None
        return [self.values[int(row) // self.each % len(self.values)] for row in ids]


def unconditional(count: int | None) -> Conditions:
    """Return the conditions of an unconditional drawing."""
    return Conditions("none", (), 1, DEFAULT if count is None else count)


def by_label(classes: int | None, asked: Sequence[int] | None, count: int | None) -> Conditions:
    """Return labels, evenly: 0, 1, ..., or those that were asked for, in turn.

    Args:
        classes: Number of classes of the network; None if its config does not tell.
        asked: ``--labels``.
        count: ``--generate``.

    Raises:
        ConfigError: naming ``--labels``, if a label does not exist, or the classes are not known.
    """
    if asked is None and classes is None:
        raise ConfigError(
            "--labels is needed: the pipeline draws from labels, but its config does not say how "
            "many there are"
        )
    labels = tuple(range(classes or 0)) if asked is None else tuple(asked)
    if repeated := sorted({label for label in labels if labels.count(label) > 1} if asked else []):
        raise ConfigError(f"--labels: {listed(list(map(str, repeated)))} given more than once")
    wrong = [label for label in labels if label < 0 or (classes is not None and label >= classes)]
    if wrong:
        highest = "" if classes is None else f" to {classes - 1}"
        raise ConfigError(
            f"--labels = {' '.join(map(str, wrong))}: the pipeline's labels are 0{highest}"
        )
    return Conditions("class", labels, 1, DEFAULT if count is None else count)


def by_prompt(
    prompts: Sequence[str], each: int, count: int | None, shuffled: int | None
) -> tuple[Conditions, list[str]]:
    """Return prompts, each for ``each`` images in a row, and notes for the user.

    Args:
        prompts: The prompts, in the order of their file.
        each: ``--per-prompt``.
        count: ``--generate``; without it all prompts are drawn, but at most ``DEFAULT`` images.
        shuffled: A seed that puts the prompts in random order; None keeps theirs.

    Raises:
        ConfigError: naming the flags, if the numbers do not fit.
    """
    possible = len(prompts) * each
    total = count if count is not None else min(possible, max(each, DEFAULT // each * each))
    if total > possible:
        raise ConfigError(
            f"--generate = {total}: {len(prompts)} different prompts, {each} images each "
            f"(--per-prompt), are {possible}; allowed are at most as many"
        )
    if total % each:
        raise ConfigError(
            f"--generate = {total}: a multiple of --per-prompt = {each} is needed, so that every "
            "prompt has the same number of images"
        )
    order = list(range(len(prompts)))
    if shuffled is not None:
        order = seeds.numpy_rng(shuffled, "prompts").permutation(len(prompts)).tolist()
    notes = []
    if total < possible:
        which = "the first" if shuffled is None else "chosen at random by --seed"
        notes.append(
            f"{total // each} of {len(prompts)} different prompts are drawn from, {which}"
            + (f"; --generate {possible} draws from all" if count is None else "")
        )
    return Conditions("prompt", tuple(prompts[i] for i in order), each, total), notes


def read_prompts(path: Path, flag: str = "--prompts") -> list[str]:
    """Return the different prompts of a file, one per line, in its order.

    Raises:
        ConfigError: naming ``flag`` and the line, if the file cannot be read, or a line is
            empty or repeated.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{flag} {path}: it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{flag} {path}: it is not UTF-8 text: byte {error.start} is "
            f"{error.object[error.start]:#x}; one prompt per line is needed"
        ) from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        raise ConfigError(f"{flag} {path}: it is empty; one prompt per line is needed")
    if empty := [str(number) for number, line in enumerate(lines, 1) if not line]:
        raise ConfigError(
            f"{flag} {path}: {len(empty)} lines are empty (line {listed(empty)}); one prompt "
            "per line is needed"
        )
    first: dict[str, int] = {}
    repeated = [
        f"{number} as {first[line]}"
        for number, line in enumerate(lines, 1)
        if first.setdefault(line, number) != number
    ]
    if repeated:
        raise ConfigError(
            f"{flag} {path}: {len(repeated)} prompts are there twice (line "
            f"{listed(repeated)}); --per-prompt draws several images from each"
        )
    return lines
