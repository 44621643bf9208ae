"""Arrays of any size."""

import numpy as np
import pytest

from afterimage.attribution import scratch


@pytest.mark.parametrize("limit", [0, 10**6])
def test_arrays_hold_what_is_written_wherever_they_are(limit, monkeypatch):
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", limit)
    array = scratch.empty((30, 4, 2), np.float32)
    array[:] = np.arange(240).reshape(30, 4, 2)
    assert isinstance(array, np.memmap) == (limit == 0)
    assert array.dtype == np.float32
    assert array.reshape(-1, 2)[-1].tolist() == [238, 239]
    assert scratch.empty((0, 4), np.float64).shape == (0, 4)


@pytest.mark.parametrize(("rows", "width"), [(7, 3), (7, 100), (0, 3), (6, 0)])
def test_blocks_are_all_rows_in_order_and_small(rows, width, monkeypatch):
    monkeypatch.setattr(scratch, "BLOCK", 8 * 9)
    parts = [np.arange(rows)[some] for some in scratch.blocks(rows, width)]
    assert np.concatenate([np.zeros(0, int), *parts]).tolist() == list(range(rows))
    assert all(len(part) == 1 or len(part) * width <= 9 for part in parts)
