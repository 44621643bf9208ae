"""What to do after an audit: steps that its outcome and numbers carry, each with its command."""

from __future__ import annotations

from typing import Any

from afterimage.attacks import verdict
from afterimage.metrics.exceedance import visible_rate
from afterimage.standalone import drawing
from afterimage.standalone.command_line import CommandLine
from afterimage.standalone.record import Findings, NextStep
from afterimage.standalone.statement import number, percent

MORE = 4
"""How many times as many images are proposed."""
HELD_OUT = (100, 400, 2000)
"""Numbers of held-out images whose worth is computed where there are none."""
READING = ("colour", "resize", "resize_filter", "crop", "image_column", "array", "label_column")
DRAWING = (
    *("weights", "variant", "dtype", "prompts", "per_prompt", "guidance", "negative_prompt"),
    *("height", "width", "truncate_prompts", "labels", "sampler", "steps", "device"),
    *("batch_size", "caption_column"),
)
NETWORK = ("revision", "weights", "variant", "lora", "truncate_prompts", "device")
"""Flags of the audit that `attribute` and `watch` have too, those that `watch` has besides, and
those that `attribute` has besides."""
UNSEEN, OUTPUT, BASE = "UNSEEN", "TRAINER_OUTPUT", "BASE_PIPELINE"
"""What stands for a path that is not known."""


def next_steps(findings: Findings, line: CommandLine, out: str) -> list[NextStep]:
    """Return what to do next.

    Args:
        findings: What the audit measured.
        line: Its command line.
        out: Its folder, ``--out``.
    """
    if findings.verdict.outcome == verdict.SHOWN:
        return _after_copies(findings, line, out)
    if findings.verdict.outcome == verdict.NOT_SHOWN:
        return _after_none(findings, line, out)
    return _after_no_answer(findings, line, out)


# ---- copies shown --------------------------------------------------------------------------------


def _after_copies(findings: Findings, line: CommandLine, out: str) -> list[NextStep]:
    counts, steps = findings.counts, []
    if not line.flags.get("show_images"):
        steps.append(
            NextStep(
                text="Look at the pairs: a model whose new images are nearer to training images "
                "than unseen images are, without being copies, is reported too. The page then has "
                "pictures of training images.",
                command=line.text(show_images=True),
            )
        )
    if findings.conditions is not None:
        kind = findings.conditions.kind
        steps.append(
            NextStep(
                text=f"conditions.csv lists the {kind}s with copies first: "
                f"{findings.conditions.with_copies:,} of {findings.conditions.different:,} have "
                "some.",
                command=None,
            )
        )
    if (trace := _trace(findings, line, out)) is not None:
        steps.append(trace)
    if counts.extracted_repeated:
        steps.append(
            NextStep(
                text=f"{counts.extracted_repeated:,} of "
                f"{number(counts.extracted, 'extracted image')} occur more than once among the training images: remove the repetitions and train "
                "again. docs/remedies.md compares this with other remedies, and says how "
                "near-duplicates are detected.",
                command=None,
            )
        )
    else:
        steps.append(
            NextStep(
                text="No extracted image occurs more than once, byte for byte, among the training "
                "images. Remedies, near-duplicates included, are compared in "
                "docs/remedies.md.",
                command=None,
            )
        )
    steps.append(
        NextStep(
            text="Watch the next training, and stop it at the first checkpoint that copies.",
            command=_watch(line),
        )
    )
    steps.append(
        NextStep(
            text="Audit the changed model in the same way, with as many images, in another folder.",
            command=None,
        )
    )
    return steps


def _trace(findings: Findings, line: CommandLine, out: str) -> NextStep | None:
    """Return the step to `attribute`; None where it does not open the pipeline.

    Its queries need what the network is given with an image: texts are in ``drawn/``, labels in the
    file of --keep-samples alone.
    """
    network, drawn = findings.settings.network, findings.settings.drawing or {}
    if network is None and not drawn.get("known_loss"):
        return None
    text = (
        "See which training images each generation goes back to, by the network's gradients and "
        "not by likeness alone."
    )
    labelled = drawn.get("condition") == "class" if network is None else network["classes"]
    kept = line.flags.get("keep_samples")
    if labelled and kept is None:
        return NextStep(
            text=f"{text} `attribute` needs the labels of the generations, which --keep-samples "
            "keeps: audit again with it, and follow this step on that page.",
            command=line.text(keep_samples=f"{out.rstrip('/')}-kept"),
        )
    if labelled:
        text += " It needs the labels of --train: class folders, or --label-column."
    elif line.flags.get("prompts") is not None:
        text += " It needs captions of --train."
    queries = f"{kept}/samples.npz" if labelled else f"{out.rstrip('/')}/{drawing.FOLDER}"
    return NextStep(text=text, command=_attribute(line, out, queries))


# ---- not shown -----------------------------------------------------------------------------------


def _after_none(findings: Findings, line: CommandLine, out: str) -> list[NextStep]:
    generations, held_out = findings.verdict.generations, findings.verdict.held_out
    now, more, control, both = (
        percent(_visible(findings, count, unseen))
        for count, unseen in (
            (generations, held_out),
            (MORE * generations, held_out),
            (generations, MORE * held_out),
            (MORE * generations, MORE * held_out),
        )
    )
    steps = [
        NextStep(
            text=f"Look for rarer copies. This audit sees copying rates from {now}; with "
            f"{number(MORE * generations, 'generation')} it would see {more}, with "
            f"{number(MORE * held_out, 'held-out image')} {control}, with both {both}.",
            command=_more(findings, line, out),
        )
    ]
    if findings.settings.network is not None and findings.settings.sampler == "ddim":
        steps.append(
            NextStep(
                text="Draw by ancestral sampling (DDPM) too, if users do: it can copy far more "
                "often than DDIM.",
                command=_elsewhere(line, out, "ddpm", sampler="ddpm", steps=None),
            )
        )
    drawn = findings.settings.drawing or {}
    if drawn.get("condition") == "prompt" and line.flags.get("prompts") is not None:
        steps.append(
            NextStep(
                text="Other prompts were not tried. Without --prompts the captions of --train are "
                "drawn from, if it has some.",
                command=None,
            )
        )
    steps.append(
        NextStep(
            text="The answer is for these weights alone. Watch the training if it goes on, or the "
            "next one.",
            command=_watch(line),
        )
    )
    return steps


# ---- cannot tell ---------------------------------------------------------------------------------


def _after_no_answer(findings: Findings, line: CommandLine, out: str) -> list[NextStep]:
    """Return a step for everything that is missing, whichever the verdict names first."""
    counts, generations = findings.counts, findings.verdict.generations
    steps = []
    if counts.training_distinct < 2:
        steps.append(
            NextStep(text="Give all training images as --train, not a single one.", command=None)
        )
    if not findings.verdict.held_out:
        which = (
            "Give other images as --holdout: all of those given are training images too."
            if counts.holdout
            else "Give real images from the same distribution that the model never saw."
        )
        rates = {
            f"{unseen:,}": percent(rate)
            for unseen in HELD_OUT
            if (rate := _visible(findings, generations, unseen)) <= verdict.LARGEST_VISIBLE
        }
        seen = f" {number(generations, 'generation')} are too few for any number of these."
        if rates:
            seen = (
                f" With {number(generations, 'generation')}, {_either(list(rates))} of them show "
                f"copying rates from {_either(list(rates.values()))}."
            )
        steps.append(NextStep(text=which + seen, command=line.text(holdout=UNSEEN)))
    low = findings.facts.low_detail_generations
    if 2 * low > generations:
        steps.append(
            NextStep(
                text=f"Look at the generations: {low:,} of {generations:,} are blank or blurred. "
                "Too few steps, other weights than the trainer's, or another size are common "
                "causes.",
                command=None if line.flags.get("show_images") else line.text(show_images=True),
            )
        )
    unseen = findings.verdict.held_out or HELD_OUT[0]
    if _visible(findings, generations, unseen) > verdict.LARGEST_VISIBLE:
        factor = 1
        while (rate := _visible(findings, factor * generations, unseen)) > verdict.LARGEST_VISIBLE:
            if factor * generations <= unseen:
                factor *= 2
            else:
                unseen *= 2
        steps.append(
            NextStep(
                text="Give more images: with "
                f"{number(factor * generations, 'generation')} and "
                f"{number(unseen, 'held-out image')} copying rates from {percent(rate)} would be "
                "seen.",
                command=_more(findings, line, out, factor) if factor > 1 else None,
            )
        )
    copies_alone = findings.facts.zero_means_generations[findings.settings.anchor]
    if copies_alone and findings.settings.gallery == "all":
        steps.append(
            NextStep(
                text="Count neighbours among different training images, so that copies of one are "
                "not each other's neighbours.",
                command=line.text(gallery="distinct"),
            )
        )
    return steps


def _visible(findings: Findings, generations: int, held_out: int) -> float:
    """Return the copying rate that so many images would see, at the confidence of the audit."""
    return visible_rate(generations, held_out, verdict.POWER, findings.verdict.confidence)


def _either(words: list[str]) -> str:
    """Return ``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# ---- commands ------------------------------------------------------------------------------------


def _elsewhere(line: CommandLine, out: str, ending: str, **changes: Any) -> str:
    """Return the command with changes, into a folder next to ``out``, which stays."""
    return line.text(**{**changes, "out": f"{out.rstrip('/')}-{ending}", "keep_samples": None})


def _more(findings: Findings, line: CommandLine, out: str, factor: int = MORE) -> str | None:
    """Return the command for more generations; None if they were given as files."""
    if findings.settings.pipeline is None:
        return None
    changes: dict[str, Any] = {
        "generate": factor * findings.counts.generations,
        "holdout": line.flags.get("holdout", UNSEEN),
    }
    drawn = findings.settings.drawing or {}
    if drawn.get("condition") == "prompt":
        each = drawn["images_per_condition"]
        assert isinstance(each, int)
        changes["per_prompt"] = factor * each
    return _elsewhere(line, out, "more", **changes)


def _shared(line: CommandLine, names: tuple[str, ...], *others: str) -> dict[str, Any]:
    """Return those of some flags that are given, without values for sets that ``others`` names."""
    foreign = tuple(f"{name}=" for name in others)
    return {
        name: [entry for entry in value if not str(entry).startswith(foreign)] or None
        if isinstance(value := line.flags[name], list)
        else value
        for name in names
        if name in line.flags
    }


def _attribute(line: CommandLine, out: str, queries: str) -> str:
    flags = {
        "pipeline": line.flags["pipeline"],
        "train": line.flags["train"],
        "queries": queries,
        "out": f"{out.rstrip('/')}-attributed",
    }
    flags |= _shared(line, READING + NETWORK, "samples", "holdout")
    columns = _shared(line, ("caption_column",), "samples", "holdout").get("caption_column")
    if columns:  # those of the queries have the name that the audit gave them
        flags["caption_column"] = [
            column if "=" in column else f"train={column}" for column in columns
        ]
    return CommandLine("afterimage attribute", flags).text()


def _watch(line: CommandLine) -> str:
    flags = {
        "folder": OUTPUT,
        "train": line.flags["train"],
        "holdout": line.flags["holdout"],
        "flips": line.flags.get("flips"),
    }
    if line.flags.get("lora") is not None:  # checkpoints then have LoRA weights alone
        pinned = line.flags.get("revision") is not None
        flags["base"] = BASE if pinned else line.flags["pipeline"]
    shared = _shared(line, DRAWING + READING, "samples")
    return CommandLine("afterimage watch", flags | shared).text()
