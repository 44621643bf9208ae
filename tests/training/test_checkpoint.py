"""Saved states: whole or not at all, the last two kept, of this config only."""

import json
import shutil
import threading

import pytest
import torch

from afterimage.artifacts import ArtifactError
from afterimage.training import checkpoint
from afterimage.training.checkpoint import Store

TENSORS = {"a/net.weight": torch.arange(6.0).reshape(2, 3), "a/steps": torch.tensor(3)}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "state", {"config": {"seed": 1}})


def test_what_is_saved_comes_back(store):
    store.save(250, TENSORS, {"seconds": 1.5})
    found = store.load()
    assert found.update == 250
    assert found.facts == {"seconds": 1.5}
    assert found.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


def test_a_state_that_is_written_meanwhile_is_that_of_its_moment(store, monkeypatch):
    """Whatever becomes of its tensors and numbers; the next one waits for it."""
    go_on, original = threading.Event(), checkpoint.save_file

    def slow(tensors, path):
        assert go_on.wait(10)
        original(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    tensors, facts = {"weight": torch.arange(3.0)}, {"pending": {"loss": [1.0]}}
    folder = store.save(1, tensors, facts, meanwhile=True)
    tensors["weight"] += 1
    facts["pending"]["loss"].append(2.0)
    assert store.saved() == []
    go_on.set()
    store.save(2, tensors, facts)
    assert folder in store.saved()
    shutil.rmtree(store.saved()[0])
    found = store.load()
    assert found.tensors["weight"].tolist() == [0, 1, 2]
    assert found.facts == {"pending": {"loss": [1.0]}}


def test_a_state_that_could_not_be_written_is_told(store, monkeypatch):
    def full(tensors, path):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "save_file", full)
    store.save(1, TENSORS, {}, meanwhile=True)
    with pytest.raises(OSError, match="no space left"):
        store.save(2, TENSORS, {})


def test_nothing_saved_is_none(store):
    assert store.load() is None


def test_the_last_two_are_kept_and_nothing_else(store):
    for update in (90, 100, 1000, 99_999):
        store.save(update, TENSORS, {})
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "update-00001000",
        "update-00099999",
    ]
    assert store.load().update == 99_999


@pytest.mark.parametrize(
    "damage", ["truncated", "changed", "no record", "half a record", "no tensors"]
)
def test_a_damaged_state_falls_back_to_the_one_before(store, damage, caplog):
    store.save(1, TENSORS, {})
    newest = store.save(2, TENSORS, {})
    weights, record = newest / "state.safetensors", newest / "state.json"
    data = weights.read_bytes()
    {
        "truncated": lambda: weights.write_bytes(data[:-5]),
        "changed": lambda: weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1])),
        "no record": record.unlink,
        "half a record": lambda: record.write_text(record.read_text()[:20]),
        "no tensors": weights.unlink,
    }[damage]()
    assert store.load().update == 1
    assert "update-00000002" in caplog.text
    assert "damaged" in caplog.text
    store.save(3, TENSORS, {})
    assert [path.name for path in store.saved()] == ["update-00000003", "update-00000001"]


def test_a_half_written_state_is_not_seen(store):
    store.save(1, TENSORS, {})
    shutil.copytree(store.folder / "update-00000001", store.folder / ".update-00000002.partial")
    assert store.load().update == 1
    store.save(2, TENSORS, {})
    assert store.load().update == 2


def test_other_settings_have_another_folder_and_cannot_take_this_one(store, tmp_path):
    store.save(1, TENSORS, {})
    other = Store(tmp_path / "state", {"config": {"seed": 2}})
    assert other.load() is None
    shutil.copytree(store.folder / "update-00000001", other.folder / "update-00000001")
    with pytest.raises(
        ArtifactError,
        match=r"update-00000001 was made under another config: config\.seed was 1, is now 2",
    ):
        other.load()


def test_a_state_is_json_and_safetensors_only(store):
    saved = store.save(1, TENSORS, {})
    assert sorted(path.name for path in saved.iterdir()) == ["state.json", "state.safetensors"]
    assert json.loads((saved / "state.json").read_text())["identity"] == {"config": {"seed": 1}}
