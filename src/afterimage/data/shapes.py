"""Coloured shapes with captions: pictures of 16 x 16 pixels whose concepts are known.

Every combination of a colour and a shape occurs equally often, at a random place, in a random size
and shade (after the synthetic task of Okawa et al. 2023, "Compositional abilities emerge
multiplicatively"). The caption is "a red circle", the label that of the combination. An arm with
``without: {caption: red circle}`` is trained without one of them.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from itertools import product

import numpy as np

from afterimage import seeds
from afterimage.config.data import Shapes
from afterimage.data.records import Contents, Reading, Record

COLOURS = {
    "red": (215, 45, 45),
    "green": (45, 160, 60),
    "blue": (45, 80, 215),
    "yellow": (230, 200, 45),
}
"""Colour -> red, green and blue before the shade."""
SHAPES = ("circle", "square", "triangle", "cross")
BACKGROUND = 128
FINER = 4
"""Points along a pixel's side at which a shape is drawn, for smooth edges."""


def contents(source: Shapes, reading: Reading) -> Contents:
    """List the pictures, all combinations in turn; each is drawn when it is loaded."""
    assert Shapes.known_shape is not None
    side = Shapes.known_shape[0]
    kinds = list(product(COLOURS, SHAPES))
    records = [
        Record(
            partial(drawn, colour, shape, side, round_),
            label if reading.labels else -1,
            f"{colour} {shape} {round_}",
            caption=f"a {colour} {shape}",
        )
        for round_ in range(source.each)
        for label, (colour, shape) in enumerate(kinds)
    ]
    rule = json.dumps([COLOURS, SHAPES, BACKGROUND, FINER, side, source.each])
    return Contents(
        records,
        {"shapes": hashlib.sha256(rule.encode()).hexdigest()},
        class_names=[f"{colour} {shape}" for colour, shape in kinds],
    )


def drawn(colour: str, shape: str, side: int, number: int) -> np.ndarray:
    """Return a picture, uint8 (side, side, 3), the same for the same arguments."""
    rng = seeds.numpy_rng(0, "shapes", colour, shape, number)
    radius = rng.uniform(0.2, 0.32) * side
    centre = rng.uniform(radius + 1, side - radius - 1, 2)
    shade = rng.uniform(0.75, 1.1)
    points = (np.arange(side * FINER) + 0.5) / FINER
    y, x = np.meshgrid(points - centre[0], points - centre[1], indexing="ij")
    fine = _inside(shape, x / radius, y / radius)
    cover = fine.reshape(side, FINER, side, FINER).mean(axis=(1, 3))[..., None]
    paint = np.clip(shade * np.array(COLOURS[colour]), 0, 255)
    return np.rint(BACKGROUND + cover * (paint - BACKGROUND)).astype(np.uint8)


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the mask of the points that a shape covers; its circle has the radius 1."""
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= 0.85
    if shape == "triangle":
        return (y <= 0.8) & (abs(x) <= 0.55 * (y + 1))
    return (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1)
