"""The default study's arms and settings as they were when their times were measured."""

import copy

import pytest

from afterimage import config
from afterimage.plan.cost import network

DIGITS = {
    "study": "digits",
    "seed": 1,
    "data": {
        "source": {"kind": "sklearn-digits"},
        "split": {"train": 400, "holdout": 800, "reference": 700},
        "plant": [{"copies": copies, "images": 8} for copies in (2, 4, 8, 16)],
    },
    "classifier": {"channels": [32, 64], "features": 64, "epochs": 30},
    "dedup": {"methods": ["exact", "embedding"], "embedding": {"features": "pixels"}},
    "model": {"channels": [16, 32], "attention": [False, True], "layers_per_block": 1},
    "diffusion": {"schedule": "cosine"},
    "train": {"updates": 1500, "batch_size": 64},
    "forget": {"zeros": {"label": 0}},
    "arms": {
        "baseline": {"method": "baseline"},
        "iet_agc": {"method": "iet_agc", "shards": 4, "rounds": 5},
        "agc": {"method": "iet_agc", "shards": 1, "rounds": 1},
        "short": {
            "method": "baseline",
            "matched_to": {"arm": "iet_agc", "by": "updates_per_model"},
        },
        "kept": {"method": "baseline", "matched_to": {"arm": "agc", "by": "kept_samples"}},
        "rau_net": {"method": "baseline", "rau_net": {"groups": [1, 2]}},
        "loyal": {
            "method": "loyal",
            "switch_timestep": 500,
            "budget": "matched_total",
            "rau_net": {"groups": [1, 2]},
        },
        "dp_sgd": {
            "method": "dp_sgd",
            "noise_multiplier": 1.0,
            "matched_to": {"arm": "short", "by": "updates"},
        },
        "conditional": {"method": "baseline", "condition": "label"},
        "finetune": {
            "method": "baseline",
            "base": "conditional",
            "without": "zeros",
            "train": {"updates": 200},
        },
        "gradient_ascent": {
            "method": "gradient_ascent",
            "base": "conditional",
            "forget": "zeros",
            "train": {"updates": 30},
        },
        "salun": {
            "method": "salun",
            "base": "conditional",
            "forget": "zeros",
            "train": {"updates": 200},
        },
        "selective_amnesia": {
            "method": "selective_amnesia",
            "base": "conditional",
            "forget": "zeros",
            "fisher_samples": 50,
            "replay_images": 400,
            "train": {"updates": 200},
        },
        "erasediff": {
            "method": "erasediff",
            "base": "conditional",
            "forget": "zeros",
            "train": {"updates": 200},
        },
    },
    "sample": {"images": 1024, "steps": 50},
    "membership": {"timesteps": 5, "draws": 4},
    "forgetting": {"relearn_updates": 100, "relearn_every": 10},
    "attribution": {
        "arm": "baseline",
        "subsets": 16,
        "networks_per_job": 4,
        "features": {"dimension": 2048},
        "variants": {"none": {"projection": "none", "rows": False}},
        "counterfactual": {"queries": 2},
        "remedied": {"before": "conditional", "after": ["erasediff"]},
    },
}


@pytest.fixture
def digits():
    """Make the study, or one that differs: keys joined by ``__``."""

    def make(**changes) -> config.Study:
        params = copy.deepcopy(DIGITS)
        for path, value in changes.items():
            *parents, key = path.split("__")
            at = params
            for parent in parents:
                at = at.setdefault(parent, {})
            at[key] = value
        return config.parse(params)

    return make


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder of counts, which no other test has filled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    network._known.cache_clear()
    yield tmp_path / "afterimage" / "networks"
    network._known.cache_clear()
