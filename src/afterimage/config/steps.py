"""What one job depends on: the steps of the workflow, and the settings that each of them sees."""

from __future__ import annotations

from typing import Any

from afterimage.config.attribution import FINAL
from afterimage.config.selection import plan
from afterimage.config.study import Study

STEPS = {
    "data/fetch": (),
    "data/split": (),
    "data/classifier": (),
    "data/dedup": (),
    "train": ("arm", "replicate"),
    "sample": ("arm", "replicate"),
    "attack/extraction": ("arm", "replicate"),
    "attack/quality": ("arm", "replicate"),
    "attack/membership": ("arm", "replicate"),
    "attack/forgetting": ("arm", "replicate"),
    "attribution/queries": (),
    "attribution/features": ("job",),
    "attribution/retrain": ("job",),
    "attribution/scores": ("job",),
    "attribution/acceleration": (),
    "attribution/counterfactual": ("job",),
    "attribution/remedied": ("job",),
    "report/tables": (),
    "report/page": (),
    "report/swap": ("replicate",),
    "report/selection": (),
}
"""Step -> what addresses one of its jobs."""


def resolve(
    study: Study,
    step: str,
    arm: str | None = None,
    replicate: int | None = None,
    job: str | None = None,
) -> dict[str, Any]:
    """Return the settings that one job depends on, defaults filled in, as plain JSON values."""
    full = study.model_dump(mode="json")
    data = full["data"]
    settings: dict[str, Any]
    if step == "data/fetch":
        keys = ("source", "classes", "images", "colour", "resize", "resize_filter", "crop")
        settings = {key: data[key] for key in keys}
    elif step == "data/split":
        settings = {"split": data["split"], "plant": data["plant"], "flips": data["flips"]}
    elif step == "data/classifier":
        settings = full["classifier"]
    elif step == "data/dedup":
        settings = full["dedup"]
    elif step == "train":
        assert arm is not None
        settings = {
            "arm": _arm(study, arm),
            "forget": {name: full["forget"][name] for name in study.own_forget_sets(arm)},
            "model": full["model"],
            "diffusion": full["diffusion"],
            "flips": data["flips"],
            "states": study.states_of(arm),
        }
    elif step == "sample":
        settings = full["sample"]
    elif step == "attack/extraction":
        settings = full["extraction"] | {"flips": data["flips"], "statistics": full["statistics"]}
    elif step == "attack/quality":
        settings = full["quality"] | {"statistics": full["statistics"]}
    elif step == "attack/membership":
        settings = full["membership"] | {
            "weights": full["sample"]["weights"],
            "flips": data["flips"],
            "statistics": full["statistics"],
        }
    elif step == "attack/forgetting":
        assert arm is not None
        settings = full["forgetting"] | {
            "sets": {name: full["forget"][name] for name in study.forget_sets_of(arm)},
            "sample": full["sample"],
            "membership": full["membership"],
            "extraction": full["extraction"],
            "quality": full["quality"],
            "flips": data["flips"],
            "statistics": full["statistics"],
        }
    elif step == "attribution/queries":
        settings = full["attribution"]["queries"]
    elif step == "attribution/features":
        assert study.attribution is not None
        assert job is not None
        variant, network, block = job.split("/")
        journey = (
            block == "queries"
            and network == FINAL
            and "journey_trak" in study.attribution.attributors_of(variant)
        )
        settings = {
            "features": study.attribution.features_of(variant).model_dump(mode="json"),
            "network": network,
            "block": block,
            "images_per_job": study.attribution.images_per_job,
            "weights": full["sample"]["weights"],
            "journey": full["sample"] if journey else None,
        }
    elif step == "attribution/retrain":
        assert study.attribution is not None
        chosen = full["attribution"]
        own = ("arm", "subsets", "seeds", "share", "networks_per_job", "stacked", "ground_truth")
        settings = {
            "attribution": {key: chosen[key] for key in own},
            "arm": _arm(study, chosen["arm"]),
            "model": full["model"],
            "diffusion": full["diffusion"],
            "flips": data["flips"],
            "weights": full["sample"]["weights"],
        }
    elif step == "attribution/scores":
        assert study.attribution is not None
        assert job is not None
        chosen = full["attribution"]
        settings = {key: chosen[key] for key in ("regularisers", "subsets", "seeds", "share")}
        settings |= {
            "attributors": study.attribution.attributors_of(job),
            "statistics": full["statistics"],
        }
    elif step == "attribution/acceleration":
        chosen = full["attribution"]
        settings = {
            key: chosen[key] for key in ("subsets", "seeds", "share", "reference", "shortlist")
        }
        settings |= {"variants": list(chosen["variants"]), "statistics": full["statistics"]}
    elif step == "attribution/remedied":
        chosen = full["attribution"]
        settings = {
            "before": chosen["remedied"]["before"],
            "queries": chosen["remedied"]["queries"],
            "attributors": chosen["remedied"]["attributors"],
            "features": chosen["features"],
            "weights": full["sample"]["weights"],
        }
    elif step == "attribution/counterfactual":
        chosen = full["attribution"]
        settings = {
            "name": chosen["arm"],
            "arm": _arm(study, chosen["arm"]),
            "model": full["model"],
            "diffusion": full["diffusion"],
            "flips": data["flips"],
            "sample": full["sample"],
            "ground_truth": chosen["ground_truth"],
            "counterfactual": chosen["counterfactual"],
        }
    elif step == "report/tables":
        settings = {
            "arms": list(study.arms),
            "controls": {name: arm.control for name, arm in study.arms.items()},
            "forgetting": [name for name in study.arms if study.forget_sets_of(name)],
            "replicates": study.replicates,
            "confidence": study.statistics.confidence,
        }
    elif step == "report/page":
        settings = {
            "study": study.study,
            "arms": list(study.arms),
            "replicates": study.replicates,
            "confidence": study.statistics.confidence,
        } | full["report"]
    elif step == "report/swap":
        assert study.loyal_selection is not None
        settings = {
            "switch_timesteps": study.loyal_selection.switch_timesteps,
            "flips": data["flips"],
        }
        settings |= {key: full[key] for key in ("sample", "quality", "extraction", "statistics")}
    elif step == "report/selection":
        assert study.loyal_selection is not None
        cells = plan(study.loyal_selection, len(study.model.channels))
        settings = {
            "selection": full["loyal_selection"],
            "arms": [{"arm": name} | cell.model_dump(mode="json") for name, cell in cells.items()],
            "replicates": study.replicates,
            "confidence": study.statistics.confidence,
        }
    else:
        raise KeyError(f"unknown step {step!r}; steps are: {', '.join(STEPS)}")
    address = {"arm": arm, "replicate": replicate} | ({} if job is None else {"job": job})
    return {"step": step, **address, "seed": study.seed, "settings": settings}


def _arm(study: Study, name: str) -> dict[str, Any]:
    """Return the settings of an arm's training: what it takes from its base filled in, what only tables use left out."""
    settings = study.arms[name].model_dump(mode="json", exclude={"control"})
    blocks = study.rau_net_of(name)
    return settings | {
        "condition": study.condition_of(name),
        "rau_net": None if blocks is None else blocks.model_dump(mode="json"),
        "train": study.train_of(name).model_dump(mode="json"),
    }
