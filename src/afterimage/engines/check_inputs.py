"""What a study reads, checked by the main process of every call of snakemake before any job: what
is on this machine, as far as looking at it is quick.

- Checksums of stored networks (``sha256`` of ``model``, ``text`` and ``autoencoder``), and of the
  files that quality is measured with.
- Captions: every image has one, in every variant that is a column.
- Forget sets by caption or label: they are some of the images, not all. Where a training set is made
  already, sets are compared with it, too; otherwise ``data planting`` does, before any training.
- The images' sides and channels, which the networks must take; those of the first image, as all have
  one shape or ``data fetch`` refuses them.

Files that are not here, and those on the Hub that are not in the local cache, are checked by the
step that reads them, as it may run on another machine. A run whose jobs are this machine's does not
start without the files that they read (``refuse_absent``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from afterimage import artifacts, config
from afterimage.config import (
    AbsentError,
    ArrayFile,
    ConfigError,
    ImageFolder,
    Parquet,
    Study,
)
from afterimage.config.stored import Stored
from afterimage.engines import bases, checksums
from afterimage.plan.jobs import jobs
from afterimage.plan.parts import up_to_date_in
from afterimage.plan.resolved import hashes

if TYPE_CHECKING:
    from afterimage.data.records import Record

STEPS = ("data/fetch", "data/split", "data/planting")
"""The steps that make training sets, upstream first."""
READERS = {
    "data.source": {"fetch"},
    "text": {"encode"},
    "autoencoder": {"autoencoder"},
    "model": {"slice", "fit", "features", "retrain", "counterfactual"},
    "quality": {"draw_and_attack", "path", "forgetting"},
}
"""Block of the study -> the rules whose jobs read the files that it names."""


def check(study: Study, results: Path) -> None:
    """Check what a study reads.

    Args:
        results: The folder that contains ``<study>``.

    Raises:
        ConfigError, ArtifactError: naming the key, its value and what is allowed.
    """
    _check_stored(study)
    _check_quality(study)
    _check_source(study)
    _check_training_sets(study, results)


def refuse_absent(study: Study, rules: Collection[str]) -> None:
    """Check that the files that jobs read are on this machine; what is on the Hub is not looked at.

    Args:
        rules: Names of the rules of these jobs.

    Raises:
        ConfigError: naming the key and its value.
    """
    read = {block for block, readers in READERS.items() if not readers.isdisjoint(rules)}
    source = study.data.source
    if "data.source" in read and isinstance(source, (ArrayFile, ImageFolder, Parquet)):
        from afterimage.data import sources
        from afterimage.data.records import STUDY, Reading

        with sources.named(STUDY):
            sources.contents_of(source, Reading(look=True))
    for key, block in bases.stored(study).items():
        if key in read and block.id is None:
            folder = _expanded(f"{key}.path", block.path)
            if not (folder / block.config_file).is_file() or not bases.is_whole(block):
                raise ConfigError(
                    f"{key}.path = {block.path!r}: there is no {block.config_file} with weights in "
                    f"safetensors in {folder}"
                )
    spaces = study.quality.features, study.quality.similarity
    for name, path, _ in _quality_files(study) if "quality" in read else ():
        if name == "inception" and name not in spaces:  # given, but nothing is measured with it
            continue
        key = f"quality.{name}_weights"
        if not _expanded(key, path).exists():
            raise ConfigError(f"{key} = {path!r}: there is no such file or folder")


def _expanded(key: str, path: str) -> Path:
    """Return the path that a key has on this machine.

    Raises:
        ConfigError: naming the key, if a variable is not set.
    """
    try:
        return Path(config.expand(path))
    except AbsentError as error:
        raise ConfigError(f"{key} = {error}") from None


def _check_stored(study: Study) -> None:
    """Compare stored networks with their checksums."""
    for key, block in bases.stored(study).items():
        if block.described is not None and (block.id is None or bases.is_whole(block)):
            artifacts.check_sums(block.folder, block.sha256, f"{key}.sha256", checksums.sha256)


def _check_quality(study: Study) -> None:
    """Compare the files that quality is measured with with their checksums; folders are left to the
    step that opens them."""
    for name, path, checksum in _quality_files(study):
        with suppress(AbsentError):
            file = Path(config.expand(path))
            if file.is_file():
                key = f"quality.{name}_sha256"
                artifacts.check_sums(file.parent, {file.name: checksum}, key, checksums.sha256)


def _quality_files(study: Study) -> list[tuple[str, str, str]]:
    """Return, of the networks that are given to measure quality with, the first word of their keys,
    path and checksum."""
    settings = study.quality
    given = (
        ("similarity", settings.similarity_weights, settings.similarity_sha256),
        ("inception", settings.inception_weights, settings.inception_sha256),
    )
    return [(name, path, sha256) for name, path, sha256 in given if path and sha256]


def _check_source(study: Study) -> None:
    """Look at the source's captions, labels and images, as far as anything depends on them."""
    source = study.data.source
    labels = study.data.known_labels is None and any(
        block.label is not None for block in study.forget.values()
    )
    stored = isinstance(study.model, Stored) or isinstance(study.autoencoder, Stored)
    shape = source.known_shape is None and (stored or study.data.resize is None)
    if not (source.captioned or labels or shape):
        return
    # Only where it is needed: reading images imports more than planning does.
    import numpy as np

    from afterimage.data import forget, sources
    from afterimage.data.records import STUDY, Reading
    from afterimage.images import Images

    reading = Reading(captions=study.caption_columns, look=True)
    try:
        with sources.named(STUDY):
            contents = sources.contents_of(source, reading)
            kept = [
                record
                for record in contents.records
                if study.data.classes is None or record.label in study.data.classes
            ]
            sources.refuse_silent(kept, reading)
    except AbsentError:
        return
    if shape and (refused := _first_shape(kept, study.images_refused)):
        raise ConfigError(refused)
    trained = [
        record for record in kept if not (study.data.split.official and record.official_test)
    ]
    if trained:
        images = Images.of(
            np.zeros((len(trained), 1, 1, 1), np.uint8),
            labels=np.array([record.label for record in trained]),
            captions=np.array([record.caption or "" for record in trained]),
        )
        what = "images that training sets can be drawn from"
        forget.refuse_unfit(images, _sets(study), ("label", "caption"), what)


def _first_shape(
    records: list[Record], refused: Callable[[tuple[int, int, int]], str | None]
) -> str | None:
    """Return what ``refused`` says of the shape of the first image that can be read."""
    from afterimage.data import pictures, zips

    for record in records:
        try:
            picture = next(pictures.decode(record.load(), pictures.Transform()))
        except (*pictures.DAMAGE, *zips.DAMAGE):
            continue
        if picture.pixels is not None:
            height, width, channels = picture.pixels.shape
            return refused((height, width, channels))
    return None


def _check_training_sets(study: Study, results: Path) -> None:
    """Compare forget sets with the training sets that are made already."""
    if not study.forget:
        return
    planned = [job for job in jobs(study) if job.step in STEPS]
    root = results / study.study
    up_to_date = up_to_date_in(root, {job.folder: hashes(study, job) for job in planned})
    made = [job.folder for job in planned if job.step == STEPS[-1] and up_to_date(job.folder)]
    if made:
        from afterimage.data import forget
        from afterimage.images import load_images

        for folder in made:
            train = load_images(root / folder / "train.npz", check=False)
            forget.refuse_unfit(train, _sets(study), forget.OF_IMAGES)


def _sets(study: Study) -> dict[str, dict[str, Any]]:
    """Return the forget sets as plain values."""
    return {name: block.model_dump(mode="json") for name, block in study.forget.items()}
