"""The risk statement of an audit: what was measured, against whom, what was findings, and what was not
measured, as sentences for a data-protection file.

Every sentence follows from the record. There is no date in it: the same audit gives the same text.
"""

from __future__ import annotations

import textwrap
from typing import Any

from afterimage.attacks import verdict
from afterimage.standalone.record import AuditRecord, Findings, RiskStatement

ERROR_RATE = (
    "Where a model copies nothing, at most 5 of 100 such audits report copies (one-sided, over all "
    "thresholds at once), if its generations are otherwise as near to the training images as the "
    "held-out images are."
)
DISTANCES = {
    "l2": "by the root mean square difference of their pixels",
    "tiled": "by the root mean square difference of their pixels in the most different of {tiles} "
    "x {tiles} tiles",
}
"""Names of ``--distance`` in sentences."""
HEADINGS = {
    "measured": "What was measured",
    "attacker": "Against what attacker",
    "found": "What was found",
    "not_measured": "What was not measured",
}
"""Part of the statement -> its heading."""
WIDTH = 88


def risk_statement(findings: Findings) -> RiskStatement:
    """Return the statement that an audit's findings carry."""
    return RiskStatement(
        measured=_measured(findings),
        attacker=_attacker(findings),
        found=_results(findings),
        not_measured=_not_measured(findings),
    )


def percent(share: float) -> str:
    """Return a share as a percentage with two significant digits."""
    return f"{100 * share:.2g} %" if share < 0.1 else f"{100 * share:.0f} %"


def number(count: int, noun: str) -> str:
    """Return a count with its noun, in the plural unless it is one."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def conditions(findings: Findings) -> str:
    """Return what generations were drawn from, e.g. ``3 different prompts (prompts.txt)``; empty if
    that is not known."""
    if findings.conditions is None:
        return ""
    source = (findings.settings.drawing or {}).get("prompts")
    kinds = number(findings.conditions.different, f"different {findings.conditions.kind}")
    return f"{kinds} ({source})" if source else kinds


def _measured(findings: Findings) -> list[str]:
    counts, settings = findings.counts, findings.settings
    control = "There is no control: no image that the model never saw was compared."
    if findings.verdict.held_out:
        control = (
            f"The control: {number(findings.verdict.held_out, 'held-out image')}, which the model "
            "is said never to have seen."
        )
    shape = findings.inputs["train"].manifest["image_shape"]
    assert isinstance(shape, list)
    size = " x ".join(map(str, shape[:2]))
    mirrored = ", or with their mirror images," if settings.flips else ""
    return [
        f"The comparison is of {number(counts.generations, 'generation')} with "
        f"{number(counts.training, 'training image')}, {counts.training_distinct:,} of them "
        f"different. {control}",
        _drawing(findings),
        f"Images were compared at {size} pixels{mirrored} "
        f"{DISTANCES[settings.distance].format(tiles=settings.tiles)}. The distance of a generation "
        "to its nearest training image counts relative to the mean distance of that training image "
        f"to its {settings.neighbours_used} nearest others (Carlini et al. 2023).",
        *_space(findings),
    ]


def _space(findings: Findings) -> list[str]:
    if (similarity := findings.similarity) is None:
        return []
    weights = (
        f", weights of sha256 {similarity.weights_sha256}" if similarity.weights_sha256 else ""
    )
    return [
        f"They were also compared by the cosine of their features ({similarity.space}{weights}): "
        "a second answer."
    ]


def _drawing(findings: Findings) -> str:
    """Return how the generations were made."""
    settings = findings.settings
    from_what = f" from {conditions(findings)}" if findings.conditions else ""
    if settings.pipeline is None:
        return (
            f"The generations were given as files ({settings.samples}){from_what}. How they were "
            "drawn, and whether they were selected, is not known to the audit."
        )
    model = settings.pipeline
    if settings.network is not None:
        weights, kind = settings.network["weights_sha256"], settings.network["network_class"]
        call = f"by {str(settings.sampler).upper()} with {settings.steps} steps"
    else:
        drawing: dict[str, Any] = settings.drawing or {}
        weights, kind = drawing["sha256"]["pipeline"], drawing["pipeline_class"]
        arguments = ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in drawing["arguments"].items()
            if value not in (None, "")
        )
        schedulers = ", ".join(drawing["schedulers"].values())
        call = "by the pipeline's own call" + "".join(
            f", {text}" for text in (schedulers, arguments, str(drawing["dtype"])) if text
        )
        if drawing["commit"]:
            model += f" at commit {drawing['commit']}"
        if drawing["lora"]:
            kind = (
                f"{kind} with LoRA weights {drawing['lora']} of sha256 {drawing['sha256']['lora']}"
            )
    return (
        f"The generations were drawn from {model} ({kind}, weights of sha256 {weights})"
        f"{from_what}, {call}, with seed {settings.seed}."
    )


def _attacker(findings: Findings) -> list[str]:
    images = number(findings.counts.generations, "image")
    if findings.settings.pipeline is None:
        who = f"Someone who sees {images} that were drawn like those given, and nothing else."
    else:
        with_what = f" from {conditions(findings)}" if findings.conditions else ""
        who = (
            f"Someone who can have the model draw {images}{with_what}, as they were drawn here, and "
            "sees nothing but the images."
        )
    return [
        who,
        "The audit recognises copies by comparison with the training images. Such a person may not "
        "have these, and may not know which images are copies.",
        "Not covered is someone who has the weights, draws more images, searches for prompts, "
        "labels or seeds that give copies, or draws in another way. They may find more.",
    ]


def _results(findings: Findings) -> list[str]:
    result, counts = findings.verdict, findings.counts
    sentences = [result.sentence]
    if result.outcome == verdict.CANNOT_TELL:
        sentences.append(
            "The comparison shows neither that the model copies training images nor that it does "
            "not."
        )
    elif result.outcome == verdict.NOT_SHOWN:
        sentences += [ERROR_RATE, "It is not shown that the model holds no copies."]
    else:
        sentences += [
            "The numbers of copies and of copied images are lower bounds, which hold together with "
            f"{100 * result.confidence:g} % confidence.",
            ERROR_RATE,
            _visible(result.visible_rate),
        ]
    if findings.similarity is not None:
        sentences += [
            findings.similarity.verdict.sentence,
            "The answers by distance in pixels and by similarity share the error rate.",
        ]
    if identical := counts.generations_identical:
        sentences.append(
            f"{identical:,} of {number(counts.generations, 'generation')} are identical to a "
            "training image, as they were compared."
        )
    return sentences


def _visible(rate: float | None) -> str:
    if rate is None:
        return "With so few images no copying rate would have been seen with 95 % probability."
    return (
        f"A copying rate of {percent(rate)} or more would have been seen with 95 % probability, if "
        "copies are nearer than every held-out image."
    )


def _not_measured(findings: Findings) -> list[str]:
    settings = findings.settings
    mirrors = "" if settings.flips else "mirror images, "
    sentences = [
        "Whether the model reveals that an image was among its training images (membership "
        "inference).",
        "What can be recovered with the weights, by inversion or by completing parts of a training "
        "image.",
        f"Copies that the distance in pixels does not see: crops, shifts, {mirrors}changed colours "
        "or contrast, single objects or persons, and style."
        + (" Features may see some of them." if findings.similarity else ""),
        "Copies of images that were not among the training images given, for example those that the "
        "model was first trained on, before a fine-tuning.",
        "Other checkpoints, and other trainings of the same model: one with another seed may give "
        "another answer.",
    ]
    if findings.conditions is not None:
        kind, different = findings.conditions.kind, findings.conditions.different
        sentences.append(f"Other {kind}s than the {different:,} of this audit.")
    if settings.pipeline is not None:
        sentences.append("Other ways of drawing: samplers, numbers of steps, guidance and seeds.")
    if low := findings.facts.low_detail_generations:
        sentences.append(
            f"{low:,} of {number(findings.counts.generations, 'generation')}, which are blank or "
            "blurred next to their nearest training image: they count as no copies."
        )
    return sentences


def document(record: AuditRecord) -> str:
    """Return ``statement.txt``: the statement on its own, with what it is about."""
    settings = record.settings
    lines = ["RISK STATEMENT: COPIES OF TRAINING IMAGES", ""]
    subject = {
        "Audited": settings.pipeline or settings.samples,
        "Training images": settings.train,
        "Held-out images": settings.holdout or "none",
        "Outcome": record.verdict.outcome,
        "Made by": f"afterimage {settings.version}, audit.json of schema {record.schema_version}",
        "Command": record.command,
    }
    for name, images in sorted(record.inputs.items()):
        subject[f"Images of --{name}"] = f"sha256 {images.sha256}"
    lines += [f"{name + ':':<20} {value}" for name, value in subject.items()]
    for part, heading in HEADINGS.items():
        lines += ["", heading.upper(), ""]
        for sentence in getattr(record.risk_statement, part):
            lines += textwrap.wrap(
                sentence,
                WIDTH,
                initial_indent="- ",
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
    lines += ["", "Date, and name of the person who files it:", ""]
    return "\n".join(lines)
