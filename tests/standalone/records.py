"""What an audit measured, for tests of what follows from it."""

from __future__ import annotations

from typing import Any

from afterimage.attacks.verdict import Verdict
from afterimage.standalone.record import Findings

SHARE = dict.fromkeys(("share", "low", "high", "exact_low", "exact_high"), 0.0)
VERDICTS = {
    "copies shown": Verdict("copies shown", "", 64, 353, 12, 16, 4, 5, 9, 5, 0.24, 0.095),
    "not shown": Verdict("not shown", "", 64, 353, visible_rate=0.095),
    "cannot tell": Verdict("cannot tell", "no held-out images were given.", 64, 0),
}
PIXELS: dict[str, Any] = {
    "pipeline": "model",
    "samples": None,
    "sampler": "ddim",
    "steps": 20,
    "network": {"network_class": "UNet2DModel", "weights_sha256": "abc", "classes": None},
}
TEXT: dict[str, Any] = {
    "pipeline": "owner/model",
    "samples": None,
    "drawing": {
        "pipeline_class": "StableDiffusionPipeline",
        "schedulers": {"scheduler": "DDIMScheduler"},
        "arguments": {"num_inference_steps": 30, "guidance_scale": 7.5, "negative_prompt": None},
        "condition": "prompt",
        "prompts": "captions of --train",
        "images_per_condition": 2,
        "commit": "0123abc",
        "dtype": "float32",
        "lora": None,
        "sha256": {"pipeline": "def"},
        "known_loss": True,
    },
}
LABELS: dict[str, Any] = TEXT | {
    "pipeline": "model",
    "drawing": TEXT["drawing"] | {"condition": "class", "prompts": None},
}
"""Settings of generations that were drawn, by a U-Net of pixels and by a pipeline's own call, from
prompts or labels."""


def findings(
    outcome: str = "copies shown",
    settings: dict[str, Any] | None = None,
    counts: dict[str, int] | None = None,
    verdict: Verdict | None = None,
    facts: dict[str, Any] | None = None,
    **changes: Any,
) -> Findings:
    """Return the findings of an audit of 64 generations against 390 training images."""
    result = VERDICTS[outcome] if verdict is None else verdict
    held_out = result.held_out or 0
    share = {"count": 0, "of": 64} | SHARE
    values = {
        "command": "afterimage audit",
        "verdict": result.record,
        "limits": [],
        "notices": [],
        "left_out": [],
        "counts": {
            "generations": 64,
            "generations_identical": 0,
            "training": 390,
            "training_distinct": 200,
            "training_never_nearest": 150,
            "extracted": result.images,
            "extracted_repeated": 0,
            "holdout": held_out,
            "holdout_left_out": 0,
        }
        | (counts or {}),
        "unique_images": {"training": {"fixed": share}},
        "flagged_generations": {"training": {"fixed": share}},
        "flagged_holdout": None,
        "conditions": None,
        "mq": {},
        "alpha": {"training": {"fixed": 0.5}},
        "similarity": None,
        "quality": None,
        "quality_missing": {},
        "facts": {"low_detail_generations": 0, "zero_means_generations": {"training": 0}}
        | (facts or {}),
        "inputs": {"train": {"sha256": "0", "manifest": {"image_shape": [16, 24, 3]}}},
        "settings": {
            "version": "0.1.0",
            "seed": 7,
            "train": "train.zip",
            "holdout": "unseen.zip" if held_out else None,
            "samples": "drawn.zip",
            "flips": False,
            "resize": None,
            "distance": "l2",
            "tiles": 4,
            "gallery": "distinct",
            "anchor": "training",
            "neighbours_used": 50,
        }
        | (settings or {}),
        "seconds": 1.0,
    }
    return Findings.model_validate(values | changes)
