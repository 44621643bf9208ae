"""Sets of images named on the command line: the source that a flag means, reading it, and notices.

Messages of the readers name flags here, and keys in a study.
"""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from afterimage import config
from afterimage.config import ConfigError
from afterimage.config.data import LARGEST, SMALLEST, Crop, ResizeFilter
from afterimage.data import parquet, pictures, sources
from afterimage.data.walk import walk
from afterimage.images import Images

NAMED = 10
"""Maximum number of names in one notice, and in the record of a set."""

_CHOICES = {
    "image_column": ("--image-column", ("parquet", "huggingface")),
    "label_column": ("--label-column", ("parquet", "huggingface", "npz")),
    "array": ("--array", ("npz",)),
}
"""Option -> flag, and the kinds of source that it applies to."""


def arguments(parser: argparse.ArgumentParser, sets: Sequence[str]) -> None:
    """Declare the flags that control how images are read.

    Args:
        parser: The command's parser.
        sets: Flags without ``--`` of the command's sets of images, e.g. train, samples, holdout.
    """
    parser.set_defaults(image_sets=tuple(sets))
    group = parser.add_argument_group("how images are read")
    group.add_argument(
        "--colour",
        choices=get_args(pictures.Colour),
        default="keep",
        help="convert all images to grey or to RGB (default: keep)",
    )
    group.add_argument(
        "--resize",
        type=int,
        metavar="SIDE",
        help="resize all images to squares with this side length in pixels",
    )
    group.add_argument(
        "--resize-filter",
        choices=get_args(ResizeFilter),
        help="interpolation of --resize, always antialiased; use that of the model's trainer "
        "(default: bilinear, like most trainers)",
    )
    group.add_argument(
        "--crop",
        choices=get_args(Crop),
        help="with --resize: centre resizes the shorter side and crops the longer to its centre, "
        "like most trainers; none squashes the whole image into the square (default: centre)",
    )
    suffix = f"; SET is one of {', '.join(sets)}; without it, NAME applies to all sets"
    for option, text in (
        ("image_column", "parquet column with the images, if several columns hold images"),
        ("label_column", "parquet column, or array of an .npz, with the labels"),
        ("array", "array of an .npz with the images, if it is not called images"),
    ):
        group.add_argument(
            _CHOICES[option][0],
            nargs="+",
            action="extend",
            default=[],
            metavar="[SET=]NAME",
            help=text + suffix,
        )


@dataclass(frozen=True)
class ImageSet:
    """One set of images as it was read.

    Attributes:
        name: The flag that named it, without ``--``.
        images: The images; ids are row numbers.
        names: (N,), the file of each row, or its row number.
        manifest: The manifest of ``sources.read`` as ``condensed``; ``assumed`` lists the flags of
            the transform that were left at their defaults.
        sha256: Over pixels and labels, whatever kind of file they were read from.
        captions: The caption or prompt of each image; None without.
    """

    name: str
    images: Images
    names: np.ndarray
    manifest: dict[str, Any]
    sha256: str
    captions: tuple[str, ...] | None = None

    def notices(self) -> list[str]:
        """Return one sentence for everything that was left out or chosen by default."""
        manifest, flag = self.manifest, f"--{self.name}"
        sentences = []
        for reason, ignored in manifest["ignored"].items():
            sentences.append(f"{flag}: {ignored['count']} left out, {reason}: {_named(ignored)}")
        skipped, frames = manifest["skipped"], manifest["frames"]
        if skipped["count"]:
            sentences.append(
                f"{flag}: {_count(skipped['count'], 'image')} skipped: {_named(skipped)}"
            )
        if frames["count"]:
            sentences.append(
                f"{flag}: {_count(frames['count'], 'file')} with several pages or frames, each "
                f"read as an image of its own: {_named(frames)}"
            )
        for option, choice in manifest["choices"].items():
            chosen, others = choice["taken"], choice["others"]
            if not choice["given"] and (others or chosen not in _EXPECTED[option]):
                instead = f", not {_named(_first(others))}" if others else ""
                sentences.append(
                    f"{flag}: the {_READ[option]} were read from {chosen}{instead}; "
                    f"{_FLAGS[option]} chooses another"
                )
        if manifest["transparent"]:
            sentences.append(
                f"{flag}: {_count(manifest['transparent'], 'image')} with transparency, which was "
                "dropped: the colours below it are used, as in most trainers"
            )
        resize = manifest["resize"]
        if resize and resize["images"] and manifest["assumed"]:
            how = {
                "centre": "the shorter side, and the longer cropped to its centre",
                "none": "the whole image squashed into the square",
            }[resize["crop"]]
            sentences.append(
                f"{flag}: {_count(resize['images'], 'image')} resized to "
                f"{resize['side']}x{resize['side']}: {how}, {resize['filter']} with antialias. "
                "This was assumed, as most trainers do it; "
                f"{' and '.join(manifest['assumed'])} choose otherwise"
            )
        return sentences


_READ = {
    "image_column": "images",
    "label_column": "labels",
    "array": "images",
    "label_array": "labels",
}
_FLAGS = {option: flag for option, (flag, _) in _CHOICES.items()} | {
    "label_array": "--label-column",
    "caption_column": "--caption-column",
}
_EXPECTED = {
    "image_column": {"image", "img"},
    "label_column": {"label"},
    "array": {"images"},
    "label_array": {"labels"},
}
"""Setting -> names that need no notice if there is no other candidate."""


def read_set(
    name: str,
    args: argparse.Namespace,
    labels: bool = False,
    each: sources.Each | None = None,
) -> ImageSet:
    """Read the set of images that the flag ``--<name>`` gives.

    Args:
        name: The flag without ``--``.
        args: The command's arguments.
        labels: Whether the command needs labels. Otherwise they are read only if
            ``--label-column`` is given.
        each: Called with each image as it is read; see ``sources.read``.

    Raises:
        ConfigError: naming the flag, if the source cannot be found as described.
        ArtifactError: naming the flag, if files are damaged or hold images of several shapes.
    """
    source = source_of(name, args)
    asked = _chosen("label_column", name, source.kind, args) is not None
    images, manifest = sources.read(
        source,
        colour=args.colour,
        resize=args.resize,
        resize_filter=args.resize_filter or "bilinear",
        crop=args.crop or "centre",
        labels=labels or asked,
        names=_names(name),
        each=each,
    )
    assumed = {"--resize-filter": args.resize_filter, "--crop": args.crop}
    manifest["assumed"] = (
        [flag for flag, value in assumed.items() if value is None] if args.resize else []
    )
    names = manifest["names"]
    return ImageSet(
        name,
        images,
        images.ids if names is None else np.array(names),
        condensed(manifest),
        sha256(images.pixels, images.labels),
    )


def condensed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest whose size does not grow with the number of files.

    ``raw_files`` becomes the number of files and one sha256, over the lines
    ``<sha256>  <name>`` in the order of names, as ``sha256sum`` prints them. ``skipped``,
    ``ignored`` (by reason) and ``frames`` become counts and the first ``NAMED`` names. ``names``
    is left out.
    """
    files = manifest["raw_files"]
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    ignored: dict[str, list[str]] = {}
    for entry in manifest["ignored"]:
        ignored.setdefault(entry["reason"], []).append(entry["name"])
    skipped = [f"{entry['name']} ({entry['reason']})" for entry in manifest["skipped"]]
    frames = [f"{name} ({count})" for name, count in manifest["frames"].items()]
    rest = {key: value for key, value in manifest.items() if key != "names"}
    return rest | {
        "raw_files": {"count": len(files), "sha256": hashlib.sha256(lines.encode()).hexdigest()},
        "ignored": {reason: _first(names) for reason, names in ignored.items()},
        "skipped": _first(skipped),
        "frames": _first(frames),
    }


def _first(names: list[str]) -> dict[str, Any]:
    return {"count": len(names), "first": names[:NAMED]}


def _named(entry: dict[str, Any]) -> str:
    more = entry["count"] - len(entry["first"])
    return ", ".join(entry["first"]) + (f" and {more} more" if more else "")


def with_classes_of(other: ImageSet, images: ImageSet) -> ImageSet:
    """Return ``images`` with its labels numbered as in ``other``, where classes have names.

    Raises:
        ConfigError: if it has classes that ``other`` lacks.
    """
    known, names = other.manifest["class_names"], images.manifest["class_names"]
    if names is None or known == names:
        return images
    unknown = sorted(set(names) - set(known or []))
    if unknown:
        raise ConfigError(
            f"--{images.name}: its classes {_named(_first(unknown))} are not in "
            f"--{other.name}, which has {_named(_first(known or ['none']))}"
        )
    codes = np.array([known.index(name) for name in names], np.int64)
    labels = np.where(images.images.labels < 0, -1, codes[images.images.labels])
    renumbered = replace(images.images, labels=labels)
    return replace(
        images,
        images=renumbered,
        manifest=images.manifest | {"class_names": known},
        sha256=sha256(renumbered.pixels, labels),
    )


def sha256(*arrays: np.ndarray) -> str:
    """Return the sha256 of the bytes of arrays, one after the other."""
    total = hashlib.sha256()
    for array in arrays:
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _names(name: str) -> dict[str, str]:
    """Return setting -> its name in messages, for the source of ``--name``."""
    flag = f"--{name}"
    places = ("source", "path", "test_path", "sha256", "config", "classes")
    captions = ("captions", "caption_files")
    others = {"colour": "--colour", "resize": "--resize"}
    return dict.fromkeys(places + captions, flag) | _FLAGS | others


# ---- which source --------------------------------------------------------------------------------


def source_of(name: str, args: argparse.Namespace) -> config.Source:
    """Return the source that ``--<name>`` means, after every check that needs no reading.

    A path that exists is meant literally; only other text can be a pattern of parquet files or a
    data set on the Hub.

    Raises:
        ConfigError: naming the flag, if there is no such thing, or a flag for reading does not fit.
    """
    flag, text = f"--{name}", getattr(args, name)
    if args.resize is not None and not SMALLEST <= args.resize <= LARGEST:
        raise ConfigError(f"--resize = {args.resize}: allowed are {SMALLEST} to {LARGEST} pixels")
    for option, value in (("--resize-filter", args.resize_filter), ("--crop", args.crop)):
        if value is not None and args.resize is None:
            raise ConfigError(
                f"{option} = {value}: it says how to resize, but --resize is not given"
            )
    for option in _CHOICES:
        _parsed(option, args)
    kind, settings = _kind_of(flag, text)
    for option in _CHOICES:
        if (value := _chosen(option, name, kind, args)) is not None:
            settings["label_array" if (kind, option) == ("npz", "label_column") else option] = value
    return _BLOCKS[kind].model_validate({"kind": kind} | settings)


_BLOCKS: dict[str, Any] = {
    "image_folder": config.ImageFolder,
    "npz": config.ArrayFile,
    "parquet": config.Parquet,
    "huggingface": config.HuggingFace,
}


def _kind_of(flag: str, text: str) -> tuple[str, dict[str, Any]]:
    """Return the kind of source that a text means, and its settings."""
    try:
        path = Path(config.expand(text))
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from error
    if path.is_dir():
        return ("parquet" if _holds_parquet_alone(path) else "image_folder"), {"path": text}
    if path.exists():
        suffix = path.suffix.lower()
        if suffix == ".npz":
            return "npz", {"path": text}
        if parquet.is_parquet(path.name):
            return "parquet", {"path": text}
        if suffix == ".zip" or pictures.is_image(path.name):
            return "image_folder", {"path": text}
    elif hub := re.fullmatch(r"([\w.-]+/[\w.-]+)@([\w./-]+)", text):
        return "huggingface", {"dataset": hub[1], "revision": hub[2]}
    elif any(parquet.is_parquet(match.name) for match in parquet.matching(str(path))):
        return "parquet", {"path": text}
    elif path.suffix.lower() in (".npz", ".zip", *parquet.SUFFIXES, *pictures.SUFFIXES):
        raise ConfigError(f"{flag}: {text}: no such file")
    raise ConfigError(
        f"{flag} {text}: not a folder or zip of images, an image, an .npz, a parquet file, folder "
        "or pattern of these, or a Hub data set (owner/name@revision)"
    )


def _holds_parquet_alone(path: Path) -> bool:
    """Say whether a folder has parquet files, at any depth, and no image."""
    files = walk(path, {})
    return any(map(parquet.is_parquet, files)) and not any(map(pictures.is_image, files))


# ---- SET=NAME ------------------------------------------------------------------------------------


def _parsed(option: str, args: argparse.Namespace) -> dict[str | None, str]:
    """Return set -> name of one option; None means all sets."""
    return parsed(_CHOICES[option][0], getattr(args, option), args)


def parsed(flag: str, texts: Sequence[str], args: argparse.Namespace) -> dict[str | None, str]:
    """Return set -> name of the values ``[SET=]NAME`` of a flag; None means all sets.

    Raises:
        ConfigError: naming the flag, if a set does not exist, is not given or is repeated.
    """
    chosen: dict[str | None, str] = {}
    for text in texts:
        start, equals, name = text.partition("=")
        image_set = start if equals else None
        if image_set is not None and image_set not in args.image_sets:
            raise ConfigError(
                f"{flag} = {text}: {image_set!r} is not a set of images; sets are "
                f"{', '.join(args.image_sets)}"
            )
        if image_set is not None and getattr(args, image_set) is None:
            raise ConfigError(f"{flag} = {text}: --{image_set} is not given")
        if image_set in chosen:
            raise ConfigError(
                f"{flag} = {text}: it is given more than once for "
                f"{'--' + image_set if image_set else 'all sets'}"
            )
        chosen[image_set] = name if equals else text
    return chosen


def _chosen(option: str, name: str, kind: str, args: argparse.Namespace) -> str | None:
    """Return the value of an option for one set: the one given for this set, or else the one for
    all sets, if it applies to its kind."""
    flag, kinds = _CHOICES[option]
    chosen = _parsed(option, args)
    if name in chosen:
        if kind not in kinds:
            raise ConfigError(
                f"{flag} = {name}={chosen[name]}: it is for {_for(kinds)}, and --{name} is none"
            )
        return chosen[name]
    if None not in chosen or kind in kinds:
        return chosen.get(None)
    others = [other for other in args.image_sets if getattr(args, other) is not None]
    if not any(_kind_of(f"--{other}", getattr(args, other))[0] in kinds for other in others):
        raise ConfigError(
            f"{flag} = {chosen[None]}: it is for {_for(kinds)}, and no set of images is one"
        )
    return None


def _for(kinds: Sequence[str]) -> str:
    return " or ".join(
        {"parquet": "parquet", "npz": "an .npz"}[kind] for kind in kinds if kind != "huggingface"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def check_shapes(sets: Mapping[str, ImageSet]) -> None:
    """Check that all sets have images of one shape.

    Raises:
        ConfigError: naming the flags, if they have not.
    """
    shapes = {
        f"--{name}": "x".join(map(str, image_set.images.pixels.shape[1:]))
        for name, image_set in sets.items()
    }
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{flag} {shape}" for flag, shape in shapes.items())
        raise ConfigError(
            f"images have different shapes: {listed}; --resize and --colour convert them"
        )
