"""Trained networks on the Hub are fetched once, at their commit, by the main process: configs before
the study is planned, weights before the first job."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from afterimage import config
from afterimage.artifacts import ArtifactError, sha256
from afterimage.config import ConfigError
from afterimage.config.autoencoder import StoredAutoencoder
from afterimage.config.texts import StoredTextEncoder
from afterimage.diffusion.start import stored_input
from afterimage.engines import bases, check_inputs
from afterimage.plan.resolved import resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [8, 16],
    "cross_attention_dim": 16,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
ENCODER = {"hidden_size": 16, "max_position_embeddings": 77}
FILES = {
    "model_index.json": b"{}",
    "scheduler/scheduler_config.json": json.dumps({"beta_schedule": "linear"}).encode(),
    "tokenizer/merges.txt": b"a b",
    "text_encoder/config.json": json.dumps(ENCODER).encode(),
    "text_encoder/model.safetensors": b"encoder",
    "text_encoder/pytorch_model.bin": b"pickle",
    "unet/config.json": json.dumps(UNET).encode(),
    f"unet/{WEIGHTS}": b"weights",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
}


@pytest.fixture
def hub(server, tmp_path, monkeypatch) -> dict[str, bytes]:
    """Serve a repository ``owner/name`` and return its files, free to change."""
    files = dict(FILES)

    def answer(handler) -> None:
        path = handler.path.split("?")[0]
        if path == f"/api/models/owner/name/tree/{COMMIT}":
            listing = [
                {"type": "file", "oid": "0" * 40, "size": len(body), "path": name}
                for name, body in files.items()
            ]
            return handler.reply(200, json.dumps(listing).encode(), Content_Type="application/json")
        name = path.removeprefix(f"/owner/name/resolve/{COMMIT}/")
        if name not in files:
            return handler.reply(404, X_Error_Code="RepoNotFound")
        return handler.reply(200, files[name], ETag=etag(files[name]), X_Repo_Commit=COMMIT)

    server.answer = answer
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    address = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return files


def etag(body: bytes) -> str:
    return f'"{hashlib.sha256(body).hexdigest()}"'


def got(server) -> set[str]:
    """Return the files whose content was asked for."""
    return {
        path.split(f"/resolve/{COMMIT}/")[1]
        for method, path, _ in server.requests
        if method == "GET" and "/resolve/" in path
    }


@pytest.fixture
def study(params):
    """Return a function that makes a study of the repository's networks."""

    def make(**model: Any) -> config.Study:
        pinned = {"kind": "stored", "id": "owner/name", "revision": COMMIT}
        whole = params | {
            "study": "hub",
            "data": {
                "source": {"kind": "shapes", "each": 4},
                "split": {"train": 8, "holdout": 4, "reference": 4},
            },
            "text": pinned | {"path": ".", "width": 16},
            "model": pinned | {"path": "unet"} | model,
            "diffusion": {"timesteps": 1000, "schedule": "linear"},
            "arms": {"plain": {"method": "baseline", "condition": "text"}},
            "forget": {},
            "loyal_selection": None,
            "paths": None,
        }
        return config.parse(whole)

    return make


def test_configs_are_fetched_before_planning_and_weights_before_the_first_job(hub, server, study):
    unknown = study()
    assert unknown.model.described is None
    assert bases.fetch_configs(unknown)
    assert got(server) == {name for name in FILES if name.endswith((".json", ".txt"))}
    known = study()
    assert known.model.described == UNET
    assert not bases.fetch_configs(known)
    check_inputs.check(known, Path("results"))
    server.requests.clear()
    bases.fetch_weights(known)
    assert got(server) == {f"unet/{WEIGHTS}", "text_encoder/model.safetensors"}
    server.requests.clear()
    bases.fetch_weights(known)
    assert server.requests == []
    assert stored_input(known.model) == {"unet": known.model.folder}
    assert (known.model.folder / WEIGHTS).read_bytes() == b"weights"
    assert (known.text.folder / "tokenizer" / "merges.txt").is_file()


def test_a_job_knows_the_repository_and_its_commit(hub, study):
    settings = resolve(study(), "train", "plain", 0)["settings"]["model"]
    place = {key: settings[key] for key in ("id", "revision", "path")}
    assert place == {"id": "owner/name", "revision": COMMIT, "path": "unet"}


def test_what_the_configs_say_is_compared_with_the_study_once_they_are_there(hub, study):
    hub["unet/config.json"] = json.dumps(UNET | {"cross_attention_dim": 32}).encode()
    bases.fetch_configs(study())
    with pytest.raises(
        ConfigError, match=r"text.width = 16, but the network in model.path = 'unet'"
    ):
        study()


def test_a_scheduler_in_the_repository_is_compared_too(hub, study):
    hub["scheduler/scheduler_config.json"] = b'{"beta_schedule": "scaled_linear"}'
    bases.fetch_configs(study())
    with pytest.raises(ConfigError, match=r"diffusion.schedule = 'linear', but the network in"):
        study()


def test_weights_with_another_checksum_are_refused_before_the_first_job(hub, study):
    sums = {WEIGHTS: "0" * 64}
    bases.fetch_configs(study())
    made = study(sha256=sums)
    check_inputs.check(made, Path("results"))  # they are not there yet
    with pytest.raises(ArtifactError, match=r"model.sha256: .* not the expected 0000"):
        bases.fetch_weights(made)
    with pytest.raises(ArtifactError, match=r"model.sha256: .* not the expected 0000"):
        check_inputs.check(made, Path("results"))
    right = {WEIGHTS: sha256(made.model.folder / WEIGHTS)}
    check_inputs.check(study(sha256=right), Path("results"))


def test_weights_in_shards_are_fetched_whole(hub, server, study):
    shards = [f"diffusion_pytorch_model-0000{k}-of-00002.safetensors" for k in (1, 2)]
    index = {"weight_map": {"a": shards[0], "b": shards[1]}}
    del hub[f"unet/{WEIGHTS}"]
    hub["unet/diffusion_pytorch_model.safetensors.index.json"] = json.dumps(index).encode()
    hub |= {f"unet/{shard}": shard.encode() for shard in shards}
    bases.fetch_configs(study())
    made = study()
    assert not bases.is_whole(made.model)
    bases.fetch_weights(made)
    assert {f"unet/{shard}" for shard in shards} < got(server)
    (made.model.folder / shards[1]).unlink()
    assert not bases.is_whole(made.model)


def test_a_repository_without_such_a_network_is_refused(hub, study):
    del hub[f"unet/{WEIGHTS}"]
    with pytest.raises(
        ArtifactError,
        match=r"model.path = 'net': there are no config.json of owner/name at revision 0123",
    ):
        bases.fetch_configs(study(path="net"))
    bases.fetch_configs(study())
    with pytest.raises(
        ArtifactError, match=r"there are no weights in safetensors of owner/name at rev"
    ):
        bases.fetch_weights(study())


def test_without_a_network_what_is_not_in_the_cache_is_refused(hub, study, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        ArtifactError, match=r"model.id = owner/name: it is neither in the local cache at this"
    ):
        bases.fetch_configs(study())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"revision": None}, ["id = 'owner/name' and revision = None", "give both or neither"]),
        ({"id": None}, ["id = None and revision = '0123", "give both or neither"]),
        ({"revision": "main"}, ["revision", "main"]),
        ({"revision": COMMIT[:10]}, ["revision", COMMIT[:10]]),
        ({"id": "name"}, ["id", "name"]),
        ({"path": "../unet"}, ["path = '../unet' is no folder in the repository owner/name"]),
        ({"path": "/unet"}, ["path = '/unet' is no folder in the repository owner/name"]),
        ({"path": ""}, ["path = '' is no folder in the repository owner/name"]),
    ],
)
def test_a_repository_is_named_with_its_commit(study, keys, words):
    with pytest.raises(ConfigError) as error:
        study(**keys)
    for word in words:
        assert word in str(error.value)


def test_every_stored_network_can_be_on_the_hub(hub):
    pinned = {"kind": "stored", "id": "owner/name", "revision": COMMIT}
    root = Path("hub/models--owner--name/snapshots").resolve() / COMMIT
    assert StoredTextEncoder(path=".", **pinned).folder == root
    assert StoredAutoencoder(path="vae", **pinned).folder == root / "vae"
