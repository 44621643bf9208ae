"""Arrays of any size."""

import numpy as np
import pytest

from afterimage import scratch
from afterimage.artifacts import ArtifactError


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


@pytest.mark.parametrize("limit", [0, 10**6])
def test_rows_are_copied_wherever_they_are(limit, monkeypatch):
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", limit)
    monkeypatch.setattr(scratch, "BLOCK", 8 * 7)
    array = np.arange(60, dtype=np.uint8).reshape(10, 3, 2)
    mask = np.arange(10) % 3 == 0
    rows = np.array([4, 4, 0, 9])
    assert scratch.taken(array, mask).tolist() == array[mask].tolist()
    assert scratch.taken(array, rows).tolist() == array[rows].tolist()
    assert scratch.taken(array, rows[:0]).shape == (0, 3, 2)
    assert scratch.joined([array, array[:2]]).tolist() == [*array.tolist(), *array[:2].tolist()]
    assert scratch.stacked(list(array[::-1])).tolist() == array[::-1].tolist()
    taken = scratch.taken(array, np.arange(10))
    taken[:] = 0
    assert array.any()


@pytest.mark.parametrize("limit", [1, 20, 10**6])
def test_a_pile_keeps_every_array(limit, monkeypatch):
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", limit)
    rng = np.random.default_rng(0)
    pile, given = scratch.Pile(), []
    arrays = [rng.integers(0, 256, (side, 2, 3), dtype=np.uint8) for side in (1, 4, 2, 7, 1, 1, 3)]
    for array in arrays:
        given.append(pile.keep(array))
    for array, kept in zip(arrays, given, strict=True):
        assert kept.tolist() == array.tolist()


def test_a_full_disk_is_said_before_anything_is_written(monkeypatch):
    monkeypatch.setattr(scratch, "LARGEST_IN_MEMORY", 0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scratch.os, "posix_fallocate", full)
    with pytest.raises(ArtifactError, match=r"no room for an array of 2\.0 GB .*TMPDIR"):
        scratch.empty((2, 2**30), np.uint8)
