"""scikit-learn's handwritten digits: 1,797 grey images of 8x8 pixels, with labels 0 to 9."""

from __future__ import annotations

from functools import partial
from importlib.resources import as_file, files

import numpy as np

from afterimage.artifacts import sha256
from afterimage.config.data import SklearnDigits
from afterimage.data.records import Contents, Reading, Record


def contents(source: SklearnDigits, reading: Reading) -> Contents:
    """Read the digits; their values of 0 to 16 are scaled to 0 to 255."""
    del source, reading
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)[..., None]
    with as_file(files("sklearn.datasets.data") / "digits.csv.gz") as path:
        raw = {path.name: sha256(path)}
    records = [
        Record(partial(np.asarray, image), int(label), f"row {row}")
        for row, (image, label) in enumerate(zip(pixels, digits.target, strict=True))
    ]
    return Contents(records, raw, class_names=[str(name) for name in digits.target_names])
