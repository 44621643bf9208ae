"""CIFAR tarballs: the authors' form is read, and nothing in them is run."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile

import numpy as np
import pytest

from afterimage import config
from afterimage.artifacts import ArtifactError
from afterimage.data import archive, sources


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 wrote its strings, so that batches look like the authors' own."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def batch(planes: np.ndarray, **labels: list[int]) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(
        {b"data": planes, b"batch_label": b"x"} | {k.encode(): v for k, v in labels.items()}
    )
    return stream.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def tarball(path, members: dict[str, bytes]):
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def planes(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 3072), dtype=np.uint8)


def cifar10(test_rows: int = 3) -> dict[str, bytes]:
    members = {
        f"cifar-10-batches-py/data_batch_{number}": batch(planes(2, number), labels=[number, 0])
        for number in range(1, 6)
    }
    return members | {
        "cifar-10-batches-py/test_batch": batch(planes(test_rows, 9), labels=list(range(test_rows)))
    }


@pytest.fixture
def served(server, tmp_path, monkeypatch):
    """Serve a tarball of the given members; return the source that points there."""
    monkeypatch.setenv("AFTERIMAGE_CACHE", str(tmp_path / "cache"))

    def serve(members, layout="cifar10", **options):
        data = tarball(tmp_path / "made.tar.gz", members).read_bytes()
        server.answer = lambda handler: handler.reply(200, data)
        checksum = hashlib.sha256(data).hexdigest()
        url = f"{server.url}/made.tar.gz"
        return config.ArchiveUrl(
            kind="archive_url", layout=layout, url=url, sha256=checksum, **options
        )

    return serve


def test_batches_are_python_2_pickles():
    data = batch(planes(1), labels=[4])
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in data
    assert b"_codecs" not in data
    with pytest.raises(UnicodeDecodeError):
        pickle.loads(data)  # noqa: S301 - our own bytes; shows that they need encoding="bytes", as the authors' do


def test_cifar10_is_read_in_order_with_its_test_part(served):
    images, manifest = sources.read(served(cifar10()))
    assert images.pixels.shape == (13, 32, 32, 3)
    assert images.labels.tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 0, 1, 2]
    assert images.official_test.tolist() == [False] * 10 + [True] * 3
    assert list(manifest["raw_files"]) == ["made.tar.gz"]


def test_planes_become_channels(served):
    images, _ = sources.read(served(cifar10()))
    row = planes(2, 1)[1]
    for channel in range(3):
        assert np.array_equal(
            images.pixels[1, :, :, channel].ravel(), row[1024 * channel : 1024 * (channel + 1)]
        )


@pytest.mark.parametrize(("labels", "expected"), [("fine", [7, 8, 50]), ("coarse", [1, 2, 3])])
def test_cifar100_has_two_kinds_of_labels(served, labels, expected):
    members = {
        "cifar-100-python/train": batch(planes(2), fine_labels=[7, 8], coarse_labels=[1, 2]),
        "cifar-100-python/test": batch(planes(1), fine_labels=[50], coarse_labels=[3]),
    }
    images, _ = sources.read(served(members, "cifar100", labels=labels))
    assert images.labels.tolist() == expected


class Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_calls_code_is_refused_and_not_run(tmp_path, protocol):
    trace = tmp_path / "ran"
    data = pickle.dumps({"data": Malicious(f"touch {trace}")}, protocol)
    with pytest.raises(ArtifactError, match=r"batch is refused: it asks for posix\.system"):
        archive.load_arrays(data, "batch")
    assert not trace.exists()
    pickle.loads(data)  # noqa: S301 - shows that the trap works
    assert trace.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "numpy load", "numpy.core.multiarray scalar", "numpy ndarray.tofile"]
)
def test_other_names_are_refused(name):
    module, attribute = name.split()
    data = (
        b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, attribute))
        + b"\x93."
    )
    with pytest.raises(ArtifactError, match="it asks for"):
        archive.load_arrays(data, "batch")


def test_object_arrays_cannot_smuggle_code(tmp_path):
    trace = tmp_path / "ran"
    data = pickle.dumps(np.array([Malicious(f"touch {trace}")], object), 2)
    with pytest.raises(ArtifactError, match="refused"):
        archive.load_arrays(data, "batch")
    assert not trace.exists()


def test_truncated_pickles_are_refused():
    with pytest.raises(ArtifactError, match="batch is refused"):
        archive.load_arrays(batch(planes(1), labels=[4])[:-40], "batch")


def test_members_outside_the_archive_are_never_written(served, tmp_path):
    evil = {
        "../../escaped": b"x",
        f"{tmp_path}/absolute": b"x",
        "../cifar-10-batches-py/data_batch_1": b"x",
    }
    images, _ = sources.read(served(evil | cifar10()))
    assert len(images) == 13
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {"made.tar.gz", "made.tar.gz.lock"}


def test_a_missing_batch_is_named(served):
    members = cifar10()
    del members["cifar-10-batches-py/data_batch_3"]
    with pytest.raises(
        ArtifactError, match=r"has no file cifar-10-batches-py/data_batch_3; it has: .*test_batch"
    ):
        sources.read(served(members))


def test_a_link_does_not_stand_for_a_batch(served, tmp_path, server):
    source = served({})
    with tarfile.open(tmp_path / "linked.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(link)
    data = (tmp_path / "linked.tar.gz").read_bytes()
    server.answer = lambda handler: handler.reply(200, data)
    with pytest.raises(ArtifactError, match="has no file"):
        sources.read(source.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()}))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (batch(planes(2), other=[1, 2]), "needs the keys 'data' and 'labels'"),
        (batch(planes(2), labels=[1]), r"must be uint8 of shape \(1, 3072\)"),
        (batch(planes(2).astype(np.int16), labels=[1, 2]), "must be uint8"),
    ],
)
def test_a_batch_of_another_form_is_an_error(served, bad, message):
    with pytest.raises(ArtifactError, match=message):
        sources.read(served(cifar10() | {"cifar-10-batches-py/data_batch_2": bad}))


def test_a_file_that_is_no_tar_is_an_error(served, server):
    source = served({})
    data = b"<html>please log in</html>"
    server.answer = lambda handler: handler.reply(200, data)
    with pytest.raises(ArtifactError, match="not a readable tar file"):
        sources.read(source.model_copy(update={"sha256": hashlib.sha256(data).hexdigest()}))


def test_the_authors_checksums_are_built_in():
    assert archive.LAYOUTS["cifar10"].sha256.startswith("6d958be0")
    assert archive.LAYOUTS["cifar100"].sha256.startswith("85cd44d0")
