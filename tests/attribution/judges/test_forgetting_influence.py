"""The influence of forgotten images."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from afterimage import artifacts, cli
from afterimage.attribution import attributors
from afterimage.attribution.judges import forgetting_influence
from afterimage.images import Images

FORGOTTEN = np.arange(12) % 4 == 0


@given(arrays(np.float64, (3, 12), elements=st.integers(-3, 3).map(float)))
def test_separation_is_the_area_under_the_roc_curve(scores):
    expected = [roc_auc_score(FORGOTTEN, row) for row in scores]
    np.testing.assert_allclose(
        forgetting_influence.auc_of_forgotten(scores, FORGOTTEN), expected, atol=1e-12
    )


def test_images_that_always_lead_are_always_larger_and_share_what_is_theirs():
    scores = np.where(FORGOTTEN, 3.0, -1.0)[None]
    np.testing.assert_array_equal(forgetting_influence.auc_of_forgotten(scores, FORGOTTEN), [1.0])
    np.testing.assert_array_equal(forgetting_influence.auc_of_forgotten(-scores, FORGOTTEN), [0.0])
    np.testing.assert_allclose(forgetting_influence.share_of_forgotten(scores, FORGOTTEN), [9 / 18])
    np.testing.assert_allclose(
        forgetting_influence.share_of_forgotten(np.ones((1, 12)), FORGOTTEN), [FORGOTTEN.mean()]
    )


# ---- the command ---------------------------------------------------------------------------------


def store(folder: Path, write) -> Path:
    with artifacts.step({"step": "made up"}, folder, {}, ("afterimage.seeds",)) as step:
        write(step.folder)
    return folder


def test_generations_are_told_apart_by_what_they_show(tmp_path, monkeypatch):
    """Three generations show forgotten images and one another. Before: forgotten images lead for
    the three, and come last for the other.

    After: all images of a query score alike. The table says which is which, and how many.
    """
    pixels = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 1), np.uint8)
    train = store(
        tmp_path / "train",
        lambda folder: Images.of(pixels, np.arange(12) + 100).save(folder / "train.npz"),
    )
    shown = [4, 1, 0, 8]  # 0, 4 and 8 are forgotten
    samples = store(
        tmp_path / "samples", lambda folder: Images.of(pixels[shown]).save(folder / "images.npz")
    )
    lds = pd.DataFrame(
        [{"attributor": "trak", "queries": "generated", "target": "loss", "regulariser": 0.5}]
    )
    chosen = store(tmp_path / "scores", lambda folder: lds.to_csv(folder / "lds.csv", index=False))
    networks = {}
    for name, forgotten in (("before", np.zeros(12, bool)), ("after", FORGOTTEN)):
        table = pd.DataFrame({"id": np.arange(12) + 100, "trained": True, "forgotten": forgotten})

        def write(folder: Path, table: pd.DataFrame = table) -> None:
            table.to_parquet(folder / "members.parquet")
            (folder / "pipeline").mkdir()
            (folder / "pipeline" / "weights").touch()

        networks[name] = store(tmp_path / name, write)

    def scores(network: str):
        sign = np.array([1, -1, 1, 1])[:, None] * (network == "before")
        return lambda regulariser: {0.5: sign * np.where(FORGOTTEN, 3.0, 1.0)}[regulariser]

    monkeypatch.setattr(
        forgetting_influence, "attribution_inputs", lambda pipeline, *_: pipeline.parent.name
    )
    monkeypatch.setattr(attributors, "scorer", lambda _, network: scores(network))
    settings = {"features": {}, "weights": "ema", "attributors": ["trak"], "queries": 4}
    (tmp_path / "config.json").write_text(
        json.dumps(
            {"step": forgetting_influence.STEP, "replicate": 0, "seed": 1, "settings": settings}
        )
    )
    flags = {
        **networks,
        "train": train / "train.npz",
        "samples": samples / "images.npz",
        "scores": chosen,
        "config": tmp_path / "config.json",
        "out": tmp_path / "out",
    }
    command = [
        "attribution",
        "remedied",
        *(word for name, path in flags.items() for word in (f"--{name}", str(path))),
    ]
    with np.errstate(
        invalid="ignore"
    ):  # the scores after the remedy are 0, of which nothing has a share
        assert cli.main(command) == 0
    found = pd.read_csv(tmp_path / "out" / "influence.csv").set_index(["network", "queries"])
    assert found["count"].to_dict() == {
        ("before", "forgotten"): 3,
        ("before", "others"): 1,
        ("after", "forgotten"): 3,
        ("after", "others"): 1,
    }
    assert found["auc"].tolist() == [1.0, 0.0, 0.5, 0.5]
    assert found.loc["before", "share"].tolist() == [9 / 18, 9 / 18]
    assert set(found["chance"]) == {3 / 12}
