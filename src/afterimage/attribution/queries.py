"""``afterimage attribution queries``: select the images to be attributed.

Three sets: held-out images and generations of the explained arm, as in the LDS protocol of D-TRAK
and DAS, and generations that the extraction attack matched to a training image, so that their
source is known.

The result is ``holdout.npz``, ``generated.npz`` and ``extracted.npz``. The source of an extracted
generation is that of the matched training image; this set may be empty.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from afterimage import artifacts, config, seeds
from afterimage.attribution.replicate import root_seed
from afterimage.images import Images, load_images

if TYPE_CHECKING:
    from afterimage.diffusion.latents import EncodedImages
    from afterimage.diffusion.texts import Texts

STEP = "attribution/queries"
EXTRACTED = "extracted"
GENERATED = ("generated", EXTRACTED)
SETS = ("holdout", *GENERATED)


def extracted_queries(samples: Images, images: pd.DataFrame, anchor: str, count: int) -> Images:
    """Return the generations that match a training image, nearest first, with its source.

    A generation that matches several training images has the source of the nearest.

    Args:
        samples: The generations.
        images: ``images.parquet`` of the extraction attack on them.
        anchor: Images whose neighbours normalise the distances; the calibrated threshold is used.
        count: Maximum number of generations to return.
    """
    matches = images[images[f"extracted_{anchor}_calibrated"]].sort_values("best_l2", kind="stable")
    matches = matches.drop_duplicates("best_sample").head(count)
    row_of_id = pd.Series(np.arange(len(samples)), samples.ids)
    rows = row_of_id.loc[matches["best_sample"]].to_numpy(dtype=np.int64)
    return replace(samples.take(rows), sources=matches["source"].to_numpy())


def texts_for(image_set: str, texts: Texts | None) -> Texts | None:
    """Return the embeddings with which the captions of a set of images are looked up: those of
    generations are their prompts, texts of the arm's variant already."""
    if texts is None or image_set not in GENERATED:
        return texts
    return replace(texts, row_of_image=None)


def latents_for(
    image_set: str, images: Images, stored: EncodedImages | None, pipeline: Path
) -> EncodedImages | None:
    """Return the latents of a set of images, for a network that denoises those: generations are
    encoded again, others are among the stored ones.

    A generation was decoded and rounded to 8 bits, so that its latent is not the very one that was
    drawn.

    Args:
        image_set: Name of the set.
        images: Its images.
        stored: Those of ``data/latents``; None for a network of pixels.
        pipeline: Folder of the explained network's pipeline, with its autoencoder.
    """
    if stored is None or image_set not in GENERATED or not len(images):
        return stored
    from afterimage.diffusion.autoencoder import Autoencoder
    from afterimage.diffusion.latents import EncodedImages

    autoencoder = Autoencoder.of(pipeline)
    assert autoencoder is not None
    return EncodedImages.of(autoencoder, images.pixels, mirrors=False)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument(
        "--holdout", type=Path, required=True, metavar="NPZ", help="held-out part of the split"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        required=True,
        metavar="NPZ",
        help="generations of the explained arm",
    )
    parser.add_argument(
        "--extraction", type=Path, required=True, metavar="DIR", help="extraction attack on them"
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this step"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def run(args: argparse.Namespace) -> None:
    """Select the queries and store them."""
    resolved = artifacts.read_config(args.config, STEP)
    settings = config.Queries.model_validate(resolved["settings"])
    inputs = {
        "holdout": args.holdout,
        "samples": args.samples,
        "extraction": args.extraction / "images.parquet",
    }
    with artifacts.step(resolved, args.out, inputs, entries=(__name__,)) as step:
        artifacts.check_file(inputs["extraction"])
        holdout, samples = load_images(args.holdout), load_images(args.samples)
        seed = root_seed(resolved["seed"], resolved["replicate"])
        rng = seeds.numpy_rng(seed, "attribution", "queries")
        holdout_rows = np.sort(rng.permutation(len(holdout))[: settings.holdout])
        anchor = artifacts.read_run(args.extraction)["config"]["settings"]["anchor"]
        sets = {
            "holdout": holdout.take(holdout_rows),
            "generated": samples.take(np.arange(settings.generated)),
            "extracted": extracted_queries(
                samples, pd.read_parquet(inputs["extraction"]), anchor, settings.extracted
            ),
        }
        for name, images in sets.items():
            images.save(step.folder / f"{name}.npz")
        step.note(**{name: len(images) for name, images in sets.items()})
