"""``afterimage sample draw``: generate images from a trained pipeline, each from its own seeded
noise.

DDIM (Song et al. 2021) or ancestral sampling (Ho et al. 2020), both with diffusers' schedulers, and
classifier-free guidance (Ho & Salimans 2022) for label-conditional nets. The noise of an image
depends only on the study's seed, the replicate and the image's id: not on the arm, so that arms are
compared from the same starting noise, and not on the batch size, which changes an image by no more
than the rounding of the convolutions (another batch shape, another order of summation; measured at
batch sizes 1, 7 and 64 on the default study: 1e-5 on the scale [-1, 1], no 8-bit value).

``--block A:B`` draws only the images with ids A to B-1, in whole batches, and ``--blocks DIR ...``
merges the results of such blocks: the same bytes as those of a single process.

The store: ``images.npz``; ``grid.png``, the first 64 images (not in a block).
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.utils.logging import disable_progress_bar
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from afterimage import artifacts, provenance, scratch, seeds
from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError, Sample
from afterimage.diffusion.autoencoder import Autoencoder
from afterimage.diffusion.guidance import Guided
from afterimage.diffusion.latents import FILE as LATENTS
from afterimage.diffusion.layout import lay_out
from afterimage.diffusion.model import classes_of, mark_null, null_of, reads_texts, shape_of
from afterimage.diffusion.pipelines import open_pipeline
from afterimage.diffusion.pixels import to_uint8
from afterimage.diffusion.prompts import Prompts
from afterimage.diffusion.remedy import Files, Remedy, modules, remedy_of
from afterimage.diffusion.router import UNet
from afterimage.diffusion.texts import FILE, TEXT, Texts
from afterimage.images import Images, load_images
from afterimage.progress import batches

DEFAULT_STEPS = {"ddim": 50, "ddpm": 250}
NONE = Remedy()
"""No remedy at inference."""
REMEDY = ("remedy", "mirrors")
"""What the settings of a job have besides the block ``sample``, if the arm has such a remedy."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="DIR", help="result of `afterimage train run`"
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="JSON", help="resolved config of this job"
    )
    parser.add_argument(
        "--texts", type=Path, metavar="DIR", help="embeddings of captions, if the arm reads them"
    )
    parser.add_argument(
        "--train", type=Path, metavar="NPZ", help="images, whose captions are the prompts then"
    )
    parser.add_argument(
        "--members",
        type=Path,
        nargs="+",
        default=[],
        metavar="PARQUET",
        help="the rows of --train that the network was trained on, for remedies that need them",
    )
    parser.add_argument(
        "--latents", type=Path, metavar="DIR", help="their latents, if the network denoises those"
    )
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument(
        "--block", type=span, metavar="A:B", help="draw the images A to B-1 only; default: all"
    )
    parts.add_argument(
        "--blocks",
        type=Path,
        nargs="+",
        metavar="DIR",
        help="results of --block to be merged",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the result; replaced as a whole",
    )


def span(text: str) -> tuple[int, int]:
    """Read ``A:B``.

    Raises:
        argparse.ArgumentTypeError: unless 0 <= A < B.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    first, end = map(int, match.groups()) if match else (0, 0)
    if first >= end:
        raise argparse.ArgumentTypeError(f"{text!r} is not a block of images, such as 0:256")
    return first, end


def load_denoiser(pipeline: str | Path, seed: int = 0) -> tuple[UNet2DModel, dict[str, Any]]:
    """Return the net and the scheduler's config of a pipeline, opened and checked as
    ``pipelines.open_pipeline`` does."""
    opened = open_pipeline(pipeline, seed=seed, texts=True)
    return opened.net, opened.scheduler_config


def default_steps(sampler: str, timesteps: int) -> int:
    """Return the number of steps in an audit: 50 of DDIM, 250 of ancestral sampling, but at most
    the number of training timesteps."""
    return min(DEFAULT_STEPS[sampler], timesteps)


def trained_pipeline(model: Path, weights: str, state: str | None = None) -> Path:
    """Return the pipeline folder of a finished training, its files checked.

    Args:
        model: Result of ``afterimage train run``.
        weights: ``ema`` or ``raw``.
        state: Name of a kept earlier state; None is the finished network.

    Raises:
        ArtifactError: if the training has not finished, has not kept the state, or a file has been
            changed.
    """
    folder = Path("states", state) if state else Path()
    folder /= {"ema": "pipeline", "raw": "raw"}[weights]
    files = [name for name in artifacts.read_run(model)["outputs"] if folder in Path(name).parents]
    if not files:
        raise ArtifactError(f"the training in {model} kept no network {state}")
    for name in files:
        artifacts.check_file(model / name)
    return model / folder


def load_trained(pipeline: Path, seed: int, replicate: int) -> tuple[UNet2DModel, dict[str, Any]]:
    """Open the pipeline of one replicate of an arm as ``load_denoiser`` does, always with the same
    redrawn blocks."""
    net, scheduler_config = load_denoiser(
        pipeline, seeds.derive(seed, "sample", replicate, "blocks")
    )
    # Networks that were trained before null labels were named.
    if net.config["num_class_embeds"] is not None and null_of(net) is None:
        mark_null(net)
    return net, scheduler_config


def scheduler_of(scheduler_config: dict[str, Any], settings: Sample) -> Any:
    """Return diffusers' scheduler of a sampler, with its timesteps set.

    Args:
        scheduler_config: Config of the scheduler that the network was trained with.
        settings: Sampler and steps.

    Raises:
        ConfigError: if there are more steps than training timesteps.
    """
    timesteps = scheduler_config["num_train_timesteps"]
    if settings.steps > timesteps:
        raise ConfigError(
            f"sample.steps = {settings.steps} is more than the model's {timesteps} timesteps"
        )
    kind: Any = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[settings.sampler]
    scheduler = kind.from_config(scheduler_config)
    scheduler.set_timesteps(settings.steps)
    if scheduler.timesteps.max() >= timesteps:
        raise ConfigError(
            f"sample.steps = {settings.steps}: with the scheduler's steps_offset of "
            f"{scheduler.config['steps_offset']} the first step is at timestep "
            f"{scheduler.timesteps.max()}, and the model has 0 to {timesteps - 1}; fewer steps are "
            "allowed"
        )
    return scheduler


@torch.inference_mode()
def denoise(
    unet: torch.nn.Module,
    scheduler_config: dict[str, Any],
    start: torch.Tensor,
    generators: Sequence[torch.Generator],
    settings: Sample,
    labels: torch.Tensor | None = None,
    null: int | None = None,
    texts: tuple[torch.Tensor, torch.Tensor] | None = None,
    until: int | None = None,
    remedy: Remedy = NONE,
) -> torch.Tensor:
    """Denoise one batch from noise to images.

    Args:
        unet: The network; called as ``unet(x, t)``, with labels or texts by name. With 2C output
            channels the first C are the prediction; the others are the variance for ancestral
            sampling, if the scheduler uses one.
        scheduler_config: Config of the scheduler that the network was trained with.
        start: float32, (n, C, H, W): standard normal noise, on the network's device.
        generators: One per image, for samplers that add noise.
        settings: Sampler, steps, eta and guidance scale w.
        labels: int64, (n,), or None. With labels or texts the prediction is null + w (conditional -
            null).
        null: The null label, required unless w = 1.
        texts: Embeddings of the images' captions, float32, (n, L, D), and the null text, (L, D).
        until: Number of steps to take, in [1, settings.steps]; by default all. The images are then
            as noisy as the next step takes them.
        remedy: Remedy at inference.

    Returns:
        float32, (n, C, H, W), in [-1, 1] up to the scheduler's clipping.

    Raises:
        ConfigError: if there are more steps than training timesteps, or guidance is requested
            without a null label.
        ArtifactError: naming the first step, if a prediction or an image is not finite.
    """
    scheduler = scheduler_of(scheduler_config, settings)
    extra: dict[str, Any] = {"eta": settings.eta} if settings.sampler == "ddim" else {}
    w, channels = settings.guidance, start.shape[1]
    if labels is not None and w != 1 and null is None:
        raise ConfigError(f"sample.guidance = {w}: the network has no null label; allowed is 1")
    takes_variance = settings.sampler == "ddpm" and str(
        scheduler.config["variance_type"]
    ).startswith("learned")

    given: dict[str, torch.Tensor] = {}
    nulls: dict[str, torch.Tensor] = {}
    if labels is not None:
        given["class_labels"] = labels
        if null is not None:
            nulls["class_labels"] = torch.full_like(labels, null)
    if texts is not None:
        given[TEXT], nulls[TEXT] = texts[0], texts[1].expand_as(texts[0])

    # Denoise; the check waits for the device, so it comes once at the end.
    x, finite = start, []
    guided = Guided(unet, given, nulls, w, settings.precision)
    guided = remedy.conditions(guided, start, scheduler.timesteps[0])
    for t in scheduler.timesteps[:until]:
        prediction = remedy.prediction(guided, x, t)
        x = scheduler.step(
            prediction if takes_variance else prediction[:, :channels],
            t,
            x,
            generator=list(generators),
            return_dict=False,
            **extra,
        )[0]
        finite.append(torch.stack([prediction.isfinite().all(), x.isfinite().all()]))
    bad = torch.stack(finite).logical_not().nonzero()
    if len(bad):
        step, what = bad[0].tolist()
        raise ArtifactError(
            f"the {('prediction of the network', 'image')[what]} at step {step + 1} of "
            f"{settings.steps} (timestep {scheduler.timesteps[step]}) is not finite: it has NaN or "
            "infinite values"
        )
    return x


def generate(
    unet: UNet,
    scheduler_config: dict[str, Any],
    ids: Sequence[int] | np.ndarray,
    settings: Sample,
    seed: int,
    replicate: int = 0,
    labels: np.ndarray | None = None,
    texts: tuple[Texts, torch.Tensor] | None = None,
    autoencoder: Autoencoder | None = None,
    remedy: Remedy = NONE,
) -> np.ndarray:
    """Return the images with these ``ids``: uint8, (N, H, W, C). A pure function of its arguments.

    Memory is bounded by ``settings.batch_size`` images in addition to the result.

    Args:
        unet, scheduler_config, ids, settings, seed, replicate, labels, texts, remedy: As
            ``denoised_batches`` takes them.
        autoencoder: Decodes latents, for a net of those.

    Raises:
        ConfigError: as in ``denoised_batches``.
        ArtifactError: as in ``denoise``.
    """
    height, width, channels = shape_of(unet)
    shape = (height, width, channels) if autoencoder is None else autoencoder.shape(height, width)
    images = np.empty((len(ids), *shape), np.uint8)
    drawn = denoised_batches(
        unet, scheduler_config, ids, settings, seed, replicate, labels, texts, remedy
    )
    for rows, denoised in drawn:
        images[rows] = to_uint8(denoised if autoencoder is None else autoencoder.decode(denoised))
    return images


def denoised_batches(
    unet: UNet,
    scheduler_config: dict[str, Any],
    ids: Sequence[int] | np.ndarray,
    settings: Sample,
    seed: int,
    replicate: int = 0,
    labels: np.ndarray | None = None,
    texts: tuple[Texts, torch.Tensor] | None = None,
    remedy: Remedy = NONE,
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Yield the images, or latents, with these ``ids`` in batches: their rows, and float32,
    (n, C, H, W).

    Args:
        unet: The network, on the device to use; laid out as the settings say.
        scheduler_config: Config of the scheduler that the network was trained with.
        ids: Ids of the images; each seeds its image's noise.
        settings: The study's ``sample`` block; ``images`` and ``weights`` are not used.
        seed: Root seed.
        replicate: Replicate of the arm.
        labels: int64, (N,), for a label-conditional net.
        texts: Embeddings of captions, and the row of each image's prompt, int64 (N,), for a net
            that is conditioned on texts.
        remedy: Remedy at inference.

    Raises:
        ConfigError: if labels or texts are missing or superfluous, or there are too many steps.
        ArtifactError: as in ``denoise``.
    """
    classes = classes_of(unet)
    if (classes is None) != (labels is None):
        raise ConfigError(
            f"the network knows {classes or 'no'} labels, but labels were "
            f"{'not ' if labels is None else ''}given"
        )
    if reads_texts(unet) != (texts is not None):
        raise ConfigError(
            f"the network is {'' if texts is None else 'not '}conditioned on texts, but they were "
            f"{'not ' if texts is None else ''}given"
        )
    lay_out(unet, settings)
    height, width, channels = shape_of(unet)
    for first in batches(len(ids), settings.batch_size, "drawn", "generations"):
        rows = slice(first, first + settings.batch_size)
        batch_ids = ids[rows]
        generators = [seeds.torch_rng(seed, "sample", replicate, int(i)) for i in batch_ids]
        start = randn_tensor(
            (len(batch_ids), channels, height, width), generator=generators, device=unet.device
        )
        batch_labels = None if labels is None else torch.as_tensor(labels[rows], device=unet.device)
        batch_texts = None
        if texts is not None:
            encoded, prompts = texts
            embeddings = remedy.embeddings(batch_ids, encoded.embeddings[prompts[rows]])
            batch_texts = embeddings.to(unet.device), encoded.null.to(unet.device)
        yield (
            rows,
            denoise(
                unet,
                scheduler_config,
                start,
                generators,
                settings,
                batch_labels,
                null_of(unet),
                batch_texts,
                remedy=remedy,
            ),
        )


def grid(images: np.ndarray, columns: int = 8, pixels: int = 64) -> Image.Image:
    """Arrange uint8 images, (N, H, W, C), in rows, each enlarged without smoothing to a height of
    at least ``pixels``."""
    scale = -(-pixels // images.shape[1])
    big = images.repeat(scale, axis=1).repeat(scale, axis=2)
    rows = -(-len(big) // columns)
    canvas = np.full(
        (rows, columns, big.shape[1] + 2, big.shape[2] + 2, big.shape[3]), 255, np.uint8
    )
    for position, image in enumerate(big):
        canvas[position // columns, position % columns, 1:-1, 1:-1] = image
    flat = canvas.swapaxes(1, 2).reshape(rows * canvas.shape[2], columns * canvas.shape[3], -1)
    return Image.fromarray(flat.squeeze(-1) if flat.shape[-1] == 1 else flat)


def check_block(block: tuple[int, int], settings: Sample) -> None:
    """Refuse a block whose batches would differ from those of the whole.

    Raises:
        ConfigError: naming the allowed bounds.
    """
    first, end = block
    if (
        end > settings.images
        or first % settings.batch_size
        or (end % settings.batch_size and end != settings.images)
    ):
        raise ConfigError(
            f"--block {first}:{end} must begin and end at a multiple of sample.batch_size = "
            f"{settings.batch_size}, or end at sample.images = {settings.images}"
        )


def put_together(
    blocks: Sequence[Path], resolved: dict[str, Any], model_sha256: str
) -> tuple[Images, dict[str, Any]]:
    """Return the images of all blocks in the order of their ids, and the facts for ``run.json``.

    Args:
        blocks: Results of ``--block``.
        resolved: Config of the whole.
        model_sha256: Hash of the network's pipeline folder.

    Raises:
        ArtifactError: naming the block that is damaged or comes from another config, network or
            code, or the images that are missing or occur twice.
    """
    parts: dict[tuple[int, int], tuple[Images, dict[str, Any]]] = {}
    code = provenance.fingerprint(__name__, *modules(resolved["settings"]))
    for folder in blocks:
        block = artifacts.read_run(folder)["config"].get("block")
        run = artifacts.check_store(folder, resolved | {"block": block})
        model = run["inputs"]["model"]
        if model["sha256"] != model_sha256:
            raise ArtifactError(
                f"{folder} was drawn from another network than the one that is now in "
                f"{model['path']}"
            )
        if run["code_sha256"] != code:
            raise ArtifactError(
                f"{folder} was drawn by other code than that of {__name__} and what it imports now"
            )
        parts[tuple(block)] = load_images(folder / "images.npz", check=False), run["facts"]
    spans = sorted(parts)
    expected = 0
    for first, end in [*spans, (resolved["settings"]["images"], 0)]:
        if first != expected:
            raise ArtifactError(
                f"images {min(first, expected)} to {max(first, expected) - 1} are "
                f"{'missing' if expected < first else 'there twice'}"
            )
        expected = end
    images, facts = zip(*(parts[block] for block in spans), strict=True)
    whole = Images.of(
        scratch.joined([part.pixels for part in images]),
        np.concatenate([part.ids for part in images]),
        np.concatenate([part.labels for part in images]),
        captions=np.concatenate([part.captions for part in images]),
    )
    seconds = sum(part["sampling_seconds"] for part in facts)
    counts: Counter[str] = Counter()
    for part in facts:
        counts.update(part.get("remedy", {}))
    remedy = {"remedy": dict(counts)} if counts else {}
    return whole, facts[0] | drawn(len(whole), seconds) | remedy


def drawn(images: int, seconds: float) -> dict[str, Any]:
    """Return the throughput for ``run.json``."""
    return {
        "images": images,
        "sampling_seconds": round(seconds, 3),
        "images_per_second": round(images / seconds, 1),
    }


def draw(
    pipeline: Path,
    resolved: dict[str, Any],
    settings: Sample,
    block: tuple[int, int],
    files: Files,
) -> tuple[Images, dict[str, Any]]:
    """Return the images of a block, and the facts for ``run.json``."""
    disable_progress_bar()
    unet, scheduler_config = load_trained(pipeline, resolved["seed"], resolved["replicate"])
    prompts = Prompts.of(files.texts, files.train, settings.images, resolved)
    remedy = remedy_of(resolved, scheduler_config, prompts, files)
    device = PartialState().device
    classes = classes_of(unet)
    ids = np.arange(*block)
    labels = None if classes is None else ids % classes
    started = time.monotonic()
    pixels = generate(
        unet.to(device),
        scheduler_config,
        ids,
        settings,
        resolved["seed"],
        resolved["replicate"],
        labels,
        None if prompts is None else prompts.rows(ids),
        Autoencoder.of(pipeline),
        remedy,
    )
    facts: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    if remedy.counts:
        facts["remedy"] = remedy.counts
    captions = None if prompts is None else prompts.captions[ids]
    return Images.of(pixels, ids, labels, captions=captions), facts | drawn(
        len(ids), time.monotonic() - started
    )


def run(args: argparse.Namespace) -> None:
    resolved = artifacts.read_config(args.config, "sample")
    settings = Sample.model_validate(
        {key: value for key, value in resolved["settings"].items() if key not in REMEDY}
    )
    pipeline = trained_pipeline(args.model, settings.weights)
    if args.block is not None:
        check_block(args.block, settings)
    block_config = resolved if args.block is None else resolved | {"block": list(args.block)}
    inputs = {"model": pipeline}
    inputs |= {"texts": args.texts / FILE} if args.texts else {}
    inputs |= {"train": args.train} if args.train else {}
    inputs |= artifacts.numbered("members", args.members)
    inputs |= {"latents": args.latents / LATENTS} if args.latents else {}
    entries = (__name__, *modules(resolved["settings"]))
    parts = {} if args.block else {"parts": [folder.name for folder in args.blocks or ()]}
    with artifacts.step(block_config, args.out, inputs, entries, **parts) as step:
        if args.blocks:
            images, facts = put_together(args.blocks, resolved, step.input_sha256["model"])
        else:
            block = args.block or (0, settings.images)
            files = Files(args.texts, args.train, args.members, args.latents)
            images, facts = draw(pipeline, resolved, settings, block, files)
        images.save(step.folder / "images.npz")
        if args.block is None:
            grid(images.pixels[:64]).save(step.folder / "grid.png")
        step.note(**facts)
