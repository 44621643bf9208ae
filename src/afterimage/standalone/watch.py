"""``afterimage watch``: when does this training start to copy? Looks at each checkpoint that a
trainer leaves in a folder, as it appears.

The statistics are those of ``looks``; checkpoints are found, and waited for until they are whole,
by ``checkpoints``. Written to ``--out`` after every look: see ``HELP``.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from afterimage import __version__, artifacts, provenance
from afterimage.config import ConfigError
from afterimage.standalone import (
    checkpoints,
    conditions,
    drawing,
    drawing_flags,
    output,
    watch_page,
)
from afterimage.standalone import images as image_sets
from afterimage.standalone.checkpoints import Checkpoint
from afterimage.standalone.images import ImageSet
from afterimage.standalone.looks import Look, Watch

FILES = ("watch.html", "watch.json", "looks.csv")
SETS = ("train", "holdout")
PIPELINE = "pipeline"
"""Folder with the links that make a pipeline of ``--base`` and a checkpoint's network."""
LOOKS, GENERATIONS = 20, 256
COPIES_SHOWN = 3
"""Exit status if copies are shown."""

HELP = f"""\
exit status:
  0  no look shows copies      {COPIES_SHOWN}  copies are shown      2  bad input

files:
  watch.html          the answer and the curves, as a page
  watch.json          answer, visible (the copying rate that each look would have seen), onset
                      (the first update with copies, or null), forecast (with --forecast, once there
                      are copies: images, after, until), looks, settings
  looks.csv           one row per look: update, checkpoint, generations, copies (at least), flagged
                      and false_alarms (at most) below the threshold of that bound, images (different
                      training images they are nearest to), flagged_share and held_out_share (at the
                      threshold calibrated on held-out images), low_detail (blank or blurred),
                      distance (Frechet distance to held-out images)
  CHECKPOINT/drawn/   the generations of a checkpoint; an interrupted drawing goes on from there
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        metavar="DIR",
        help="the trainer's output folder, in which checkpoints appear",
    )
    parser.add_argument(
        "--train", metavar="SOURCE", required=True, help="training images, as for audit"
    )
    parser.add_argument(
        "--holdout",
        metavar="SOURCE",
        required=True,
        help="real images from the same distribution that the training never sees",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="DIR",
        help="pipeline whose other parts (scheduler, VAE, text encoder) complete a checkpoint that "
        "has a network or LoRA weights alone",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("watch"),
        metavar="DIR",
        help="folder to write (default: %(default)s)",
    )
    looking = parser.add_argument_group("looks")
    looking.add_argument(
        "--looks",
        type=int,
        metavar="N",
        help=f"looks that share the error rate of 5 %% (default: {LOOKS}; with --once, as many as "
        "there are checkpoints)",
    )
    looking.add_argument(
        "--updates", type=int, metavar="N", help="updates of the trainer's final pipeline"
    )
    looking.add_argument(
        "--once", action="store_true", help="look at the checkpoints that are there, and end"
    )
    looking.add_argument(
        "--stop-file",
        type=Path,
        metavar="FILE",
        help="file to create when copies are first shown, for a script that stops the training",
    )
    looking.add_argument(
        "--end-at-copies", action="store_true", help="end when copies are first shown"
    )
    looking.add_argument(
        "--forecast",
        type=int,
        metavar="N",
        help="say when a training on N different images, alike in all else, would start to copy",
    )
    looking.add_argument(
        "--patience",
        type=float,
        default=60,
        metavar="MINUTES",
        help="end when no checkpoint has come for so long (default: %(default)s)",
    )
    looking.add_argument(
        "--poll",
        type=float,
        default=5,
        metavar="SECONDS",
        help="look for new files this often; a checkpoint counts once its files have stayed the "
        "same from one time to the next (default: %(default)s)",
    )
    parser.add_argument(
        "--flips", action="store_true", help="the training mirrors images: compare these too"
    )
    drawing_flags.arguments(parser.add_argument_group("drawing from each checkpoint"))
    image_sets.arguments(parser, SETS)
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of generations and splits (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Look at every checkpoint as it appears; return the exit status."""
    # Check the flags, and read the images.
    out = _check(args)
    sets = {name: image_sets.read_set(name, args) for name in SETS}
    for image_set in sets.values():
        for notice in image_set.notices():
            print(notice)
    there, unnumbered = checkpoints.find(args.folder)
    for path in unnumbered:
        print(f"--folder: {path.name} is left out: its name has no number of updates")
    planned = args.looks
    if planned is None:
        planned = max(1, len(there)) if args.once else LOOKS
    watch = Watch(
        sets["train"].images,
        sets["holdout"].images,
        args.generate,
        planned,
        mirrors=args.flips,
        seed=args.seed,
    )
    record = _Record.of(args, out, sets, watch)
    print(
        f"Each of {planned} looks would see a copying rate of {watch.visible:.2g}; without copies, "
        "at most 5 of 100 trainings are said to copy."
    )
    # Look at each checkpoint.
    try:
        for checkpoint in _appearing(args, record.names):
            if len(watch.looks) == planned:
                print(f"{checkpoint.path.name}: all {planned} planned looks are taken")
                break
            look = watch.look(_draw(args, checkpoint, sets["train"], out), checkpoint.update)
            record.add(checkpoint.path.name)
            print(look.sentence, flush=True)
            if look.copies and args.stop_file is not None:
                args.stop_file.touch()
            if look.copies and args.end_at_copies:
                break
    except KeyboardInterrupt:
        print("\ninterrupted: what was seen until now counts")
    if not watch.looks:
        raise ConfigError(f"--folder {args.folder}: there is no whole checkpoint in it")
    print(f"\n{watch.sentence}")
    if args.forecast is not None:
        print(_forecast(watch, args.forecast))
    print(f"{', '.join(FILES)} written to {args.out}")
    return COPIES_SHOWN if watch.onset else 0


def _forecast(watch: Watch, images: int) -> str:
    """Return the forecast for a training on other images, as a sentence."""
    if (bounds := watch.forecast(images)) is None:
        return f"No copies yet, so that nothing is forecast for {images} images."
    return (
        f"Forecast: a training on {images} different images, {images / watch.different:.3g} times "
        f"the {watch.different} here, starts to copy between updates {bounds[0]} and {bounds[1]}, "
        "if it has the same network, batch size, learning rate and share of duplicates; in "
        "trainings that this was measured on it started then or later, never earlier."
    )


# ---- inputs --------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> Path:
    """Return the folder to write, after checking all flags."""
    if not args.folder.is_dir():
        raise ConfigError(f"--folder {args.folder}: there is no such folder")
    if args.base is not None and not (args.base / checkpoints.INDEX).is_file():
        raise ConfigError(
            f"--base {args.base}: it is no pipeline folder, which has {checkpoints.INDEX}"
        )
    for flag in ("patience", "poll"):
        if not getattr(args, flag) > 0:
            raise ConfigError(f"--{flag} = {getattr(args, flag)}: a number above 0 is needed")
    if args.forecast is not None and args.forecast < 1:
        raise ConfigError(f"--forecast = {args.forecast}: allowed are numbers from 1")
    args.generate = GENERATIONS if args.generate is None else args.generate
    drawing_flags.check_counts(args)
    for flag in ("keep_samples", "lora"):
        if getattr(args, flag) is not None:
            raise ConfigError(
                f"--{flag.replace('_', '-')} is for audit: watch draws from checkpoints, and keeps "
                "what it draws"
            )
    if args.stop_file is not None and args.stop_file.exists():
        raise ConfigError(f"--stop-file {args.stop_file}: it exists already; remove it first")
    for name in SETS:
        image_sets.source_of(name, args)
    ours = set(FILES)
    for name in _names(args.out):  # of an interrupted first look, too
        folder = args.out / name
        ours |= {f"{name}/{file}" for file in drawing.files(folder)}
        ours |= {f"{name}/{PIPELINE}/{file}" for file in _names(folder / PIPELINE)}
    return output.check(args.out, ours)


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []


# ---- checkpoints, one after the other ------------------------------------------------------------


def _appearing(args: argparse.Namespace, names: list[str]) -> Iterator[Checkpoint]:
    """Yield each checkpoint once it is whole, in the order of updates; end at the trainer's final
    pipeline, after ``--patience``, or with ``--once`` after those that are there.

    Args:
        args: The command's arguments.
        names: Of the checkpoints that have been looked at; grows meanwhile.
    """
    before: dict[Path, checkpoints.Contents] = {}
    left_out: set[Path] = set()
    changed = time.monotonic()
    while True:
        there, _ = checkpoints.find(args.folder)
        waiting = [
            checkpoint
            for checkpoint in there
            if checkpoint.path.name not in names and checkpoint.path not in left_out
        ]
        now = {checkpoint.path: checkpoints.contents(checkpoint) for checkpoint in waiting}
        reasons = {
            checkpoint: checkpoints.unfinished(checkpoint)
            if now[checkpoint.path] == before.get(checkpoint.path)
            else "its files are changing"
            for checkpoint in waiting
        }
        if now != before:
            before, changed = now, time.monotonic()
            time.sleep(args.poll)
            continue

        # Trainers write one checkpoint after the other: what is cut short before a whole one stays
        # so.
        whole = next((one for one in waiting if reasons[one] is None), None)
        for checkpoint in (
            waiting[: waiting.index(whole)] if whole else waiting if args.once else []
        ):
            print(f"{checkpoint.path.name} is left out: {reasons[checkpoint]}")
            left_out.add(checkpoint.path)
        if whole is not None and not whole.final:
            yield whole
            changed = time.monotonic()
        elif whole is not None:
            if args.updates is not None:
                yield Checkpoint(True, args.updates, whole.path)
                return
            print(
                f"{whole.path.name} holds the trainer's final pipeline: the training has ended. It "
                "is not looked at, since its number of updates is not known; --updates says it"
            )
            return
        elif args.once:
            return
        elif time.monotonic() - changed > 60 * args.patience:
            print(f"no checkpoint has come for {args.patience:g} minutes")
            return
        else:
            time.sleep(args.poll)


def _draw(
    args: argparse.Namespace, checkpoint: Checkpoint, train: ImageSet, out: Path
) -> np.ndarray:
    """Return the generations of a checkpoint, uint8 (N, H, W, C)."""
    from afterimage.standalone import generations

    place = out / checkpoint.path.name
    drawing_args = copy.copy(args)
    drawing_args.pipeline = str(checkpoint.path)
    if args.base is not None and not (checkpoint.path / checkpoints.INDEX).is_file():
        if (lora := checkpoint.path / checkpoints.LORA).is_file():
            drawing_args.pipeline, drawing_args.lora = str(args.base), lora
        else:
            drawing_args.pipeline = str(_completed(args, checkpoint, place / PIPELINE))
            drawing_args.weights = None  # chosen there
    drawn = generations.plan(drawing_args).draw(train, place)
    for note in drawn.notes:
        print(note)
    return drawn.images.images.pixels


def _completed(args: argparse.Namespace, checkpoint: Checkpoint, folder: Path) -> Path:
    """Return a pipeline folder with the parts of ``--base``, by links, and the checkpoint's
    network."""
    there = [name for name in checkpoints.NETWORKS if (checkpoint.path / name).is_dir()]
    refused = {"raw": "unet_ema", "ema": "unet"}.get(args.weights)
    kind = next((name for name in there if name != refused), None)
    if kind is None:
        raise ConfigError(
            f"--weights = {args.weights}: {checkpoint.path} has {', '.join(there)} alone"
        )
    part = "unet" if kind == "unet_ema" else kind
    if not (args.base / part).is_dir():
        raise ConfigError(f"--base {args.base} has no {part}/, but {checkpoint.path} has {kind}/")
    print(f"{checkpoint.path.name}: {kind}/, with the other parts of --base {args.base}")
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(path.name for path in args.base.iterdir()), part]:
        source = checkpoint.path / kind if name == part else args.base / name
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(source.resolve())
    return folder


# ---- the record ----------------------------------------------------------------------------------


@dataclass
class _Record:
    """What was seen, on disk after every look.

    Attributes:
        out: The folder.
        watch: The looks.
        names: The checkpoint of each look.
        settings: What the looks depend on.
        images: ``--forecast``.
    """

    out: Path
    watch: Watch
    names: list[str]
    settings: dict[str, Any]
    images: int | None

    @classmethod
    def of(
        cls, args: argparse.Namespace, out: Path, sets: dict[str, ImageSet], watch: Watch
    ) -> _Record:
        """Return the record, with the looks of an earlier run in the same folder.

        Raises:
            ConfigError: naming the settings in which that run differs.
        """
        flags = (*drawing_flags.OWN, *drawing_flags.PIXELS, *drawing_flags.BOTH)
        asked = {
            name: getattr(args, name)
            for name in (*flags, "batch_size", "caption_column", "flips", "seed")
        }
        if args.prompts is not None:
            asked["prompts"] = provenance.digest({"values": conditions.read_prompts(args.prompts)})
        settings = asked | {
            "folder": str(args.folder),
            "base": None if args.base is None else str(args.base),
            "looks": watch.planned,
            "version": __version__,
            "inputs": {name: image_set.sha256 for name, image_set in sets.items()},
        }
        record = cls(out, watch, [], settings, args.forecast)
        if (out / "watch.json").is_file():
            try:
                earlier = json.loads((out / "watch.json").read_bytes())
                looks = [dict(look) for look in earlier["looks"]]
                record.names = [look.pop("checkpoint") for look in looks]
                watch.looks = [Look(**look) for look in looks]
            except (ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"--out {out}: watch.json cannot be read: {error}") from error
            if earlier["settings"] != settings:
                raise ConfigError(
                    f"--out {out}: it has looks with other settings: "
                    f"{artifacts.difference(earlier['settings'], settings)}; name another folder"
                )
        return record

    def add(self, name: str) -> None:
        """Add the checkpoint of the last look, and write everything."""
        self.names.append(name)
        onset = self.watch.onset
        looks = [
            {"checkpoint": name} | look.record
            for name, look in zip(self.names, self.watch.looks, strict=True)
        ]
        record = {
            "answer": self.watch.sentence,
            "visible": self.watch.visible,
            "onset": None if onset is None else onset.update,
            "forecast": self._forecast(),
            "looks": looks,
            "settings": self.settings,
        }
        table = pd.DataFrame(looks)
        self.out.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomically(self.out / "looks.csv", table.to_csv(index=False).encode())
        artifacts.write_atomically(
            self.out / "watch.html", watch_page.render(record, table).encode()
        )
        artifacts.write_json(self.out / "watch.json", record)

    def _forecast(self) -> dict[str, int] | None:
        bounds = None if self.images is None else self.watch.forecast(self.images)
        if bounds is None or self.images is None:
            return None
        return {"images": self.images, "after": bounds[0], "until": bounds[1]}
