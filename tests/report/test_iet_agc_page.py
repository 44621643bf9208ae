"""The page of IET-AGC on made-up results: what it says of arms, of their controls, and of one
training."""

from __future__ import annotations

import json
import re
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from afterimage import artifacts, config
from afterimage.report.notebook import Notebook
from afterimage.report.pages.iet_agc import IetAgc

ARMS = {
    "baseline": {"method": "baseline"},
    "short": {"method": "baseline", "matched_to": {"arm": "iet_agc", "by": "updates_per_model"}},
    "iet_agc": {"method": "iet_agc", "shards": 2, "rounds": 1, "control": "short"},
    "finetuned": {
        "method": "iet_agc",
        "shards": 2,
        "rounds": 1,
        "base": "baseline",
        "control": "trained_on",
    },
    "trained_on": {"method": "baseline", "base": "baseline"},
}
MQ = {"baseline": 0.4, "short": 0.01, "iet_agc": 0.005, "finetuned": 0.3, "trained_on": 0.42}
UPDATES = {
    "baseline": (1500, 1500),
    "short": (750, 750),
    "iet_agc": (1500, 750),
    "finetuned": (400, 200),
    "trained_on": (400, 400),
}
TRAINING = 92


def mq_rows(arm: str, replicate: int, rng: np.random.Generator) -> list[dict]:
    """MQ of an arm's generations and of real held-out images, of which one in a hundred is
    counted."""
    rows = []
    for tau in (0.4, 0.5, 0.6):
        for name, count, of in (("mq", rng.binomial(400, MQ[arm]), 400), ("mq_holdout", 2, 200)):
            share = count / of
            row = {
                "arm": arm,
                "replicate": replicate,
                "metric": f"{name}@{tau}",
                "anchor": "none",
                "alpha": "none",
                "subset": "all",
            }
            row |= {"count": count, "of": of, "value": share, "low": share, "high": share}
            rows.append(row | {"exact_low": max(0, share - 0.05), "exact_high": share + 0.05})
    return rows


def with_tables_of_training(
    folder: Path, arm: str, replicate: int, rng: np.random.Generator
) -> None:
    """Add what the method writes of skipped samples, and an arm's budget."""
    run = artifacts.read_run(folder)
    every, each = UPDATES[arm]
    run["facts"] |= {
        "updates": every,
        "updates_per_model": each,
        "kept_samples": 60 * every,
        "images_seen": 64 * every,
    }
    run["facts"] |= {"steps_per_round": each} if ARMS[arm]["method"] == "iet_agc" else {}
    artifacts.write_json(folder / artifacts.RUN, run)
    ids = np.arange(TRAINING)
    pd.DataFrame({"id": ids, "source": ids, "trained": True}).to_parquet(folder / "members.parquet")
    (folder / "tables").mkdir(exist_ok=True)
    seen = np.full(TRAINING, 100)
    skipped = rng.binomial(seen, np.where(ids < 60, 0.05, 0.3))
    pd.DataFrame({"seen": seen, "skipped": skipped}).to_parquet(
        folder / "tables/skips_by_image.parquet"
    )
    steps = pd.DataFrame({"timestep": range(50), "seen": 100, "skipped": 10})
    steps.to_parquet(folder / "tables/skips_by_timestep.parquet")
    with (folder / "metrics.jsonl").open("a") as lines:
        for update in (10, 20, 30):
            lines.write(json.dumps({"name": "skipped", "value": 0.1, "step": update}) + "\n")


@pytest.fixture(scope="module")
def study(root, captioned, make_up, truth, tmp_path_factory):
    """Return a function that makes up a study with everything that the page reads."""

    @cache
    def build(replicates: int, captions: bool = False) -> tuple[config.Study, Path]:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        params |= {
            "arms": ARMS,
            "replicates": replicates,
            "forget": {},
            "loyal_selection": None,
            "attribution": None,
        }
        made = config.parse(params)
        if captions:
            other = ARMS["iet_agc"] | {"train": {"warmup": 7, "log_every": 3}}
            made = captioned(ARMS | {"iet_agc": other}, replicates=replicates)
        truths = {arm: truth(alignment=0.7 if captions else None) for arm in ARMS}
        results = make_up(tmp_path_factory.mktemp("made"), made, truths)
        rng = np.random.default_rng(0)
        copies = np.repeat([1, 2, 4, 8, 16], [60, 8, 8, 8, 8])
        index = pd.DataFrame({"id": range(TRAINING), "part": "train", "copies": copies})
        index["repeat"] = np.where(copies > 1, "both", "neither")
        index.to_parquet(results / "data/planting/0/index.parquet")
        rows = []
        for arm in ARMS:
            for k in range(replicates):
                with_tables_of_training(results / "train" / arm / f"rep{k}", arm, k, rng)
                losses = pd.DataFrame(
                    {
                        "set": "train",
                        "trained": True,
                        "source": range(TRAINING),
                        "loss": rng.lognormal(size=TRAINING),
                    }
                )
                losses.to_parquet(
                    results / "attack" / arm / f"rep{k}" / "membership/losses.parquet"
                )
                rows += mq_rows(arm, k, rng)
        table = results / "report/tables/extraction.csv"
        known = pd.read_csv(table)
        pd.concat([known[~known["metric"].str.startswith("mq")], pd.DataFrame(rows)]).to_csv(
            table, index=False
        )
        return made, results

    return build


def claims(text: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(arm, what is compared with) -> what the two have equal, and the verdict about MQ at 0.5 in
    the last table."""
    found = {}
    for row in text.split("<tr"):
        if "MQ at 0.5 is lower than with" in row:
            arm, statement, *_, verdict = (
                cell.rsplit(">", 1)[-1] for cell in row.split("</td>")[:-1]
            )
            other, equal = statement.rsplit("(", 1)[1].rstrip(")").split("; equal: ")
            found[arm, other] = equal, verdict
    return found


def test_controls_are_named_with_what_is_equal(study, show):
    text, figures = show("iet_agc", *study(3))
    assert {"mq", "changes", "skips", "skips_by_copies", "losses"} <= figures
    assert (
        "under its control short, which is plain training too (equal: updates per network)." in text
    )
    assert {pair: equal for pair, (equal, _) in claims(text).items()} == {
        ("iet_agc", "baseline"): "updates in all, samples with gradient",
        ("iet_agc", "short"): "updates per network",
        ("finetuned", "trained_on"): "updates in all, samples with gradient",
    }


def test_nothing_is_claimed_over_a_floor_or_a_longer_training(study, show):
    """The fine-tune's networks move half as far as its control's."""
    verdict = {pair: said for pair, (_, said) in claims(show("iet_agc", *study(6))[0]).items()}
    assert verdict["iet_agc", "short"] == "not testable"
    for pair in (("iet_agc", "baseline"), ("finetuned", "trained_on")):
        assert verdict[pair].endswith("the other was trained longer"), pair


def test_verdicts_are_adjusted_for_all_differences_of_the_page(study, show):
    """Three trainings show each difference alone, and not among so many."""
    text, _ = show("iet_agc", *study(3))
    assert claims(text)["finetuned", "trained_on"][1].startswith("undecided here")
    judged = re.search(r"(\d+) differences are judged on this page", text)
    assert judged is not None
    assert int(judged[1]) > 10


def test_captioned_images_have_the_columns_of_the_papers_table(study, show, tmp_path):
    made, built = study(3, captions=True)
    results = tmp_path / "results"
    shutil.copytree(built, results)
    path = results / "report/tables/quality.csv"
    table = pd.read_csv(path)
    halved = (table["arm"] == "iet_agc") & (table["metric"] == "R[pixels]")
    table.loc[halved & (table["of"] == "generations"), ["value", "low", "high"]] *= 0.5
    table.to_csv(path, index=False)
    page = IetAgc(Notebook(results, tmp_path / "figures", 0.95), list(ARMS), 3)
    rows = {str(row["arm"]): row for row in page.text_table()}
    own = rows["<b>iet_agc</b>"]
    assert list(own)[1:6] == [
        *("mean similarity", "R[pixels]", "share above 0.5", "FD_balanced[classifier]"),
        "text_alignment[classifier]",
    ]
    assert own["R[pixels]"].startswith("0.45 <small>")
    assert own["mean similarity"].startswith("0.7 <small>")
    assert own["share above 0.5"].startswith("90.0 % <small>")
    assert own["text_alignment[classifier]"].startswith(("0.69", "0.7"))
    for column, other in (("plain training", "baseline"), ("its control", "short")):
        assert own[f"R, change to {column}"].startswith("-0.45")
        assert own[f"R, change to {column}"].endswith(f"(-50.0 %; to {other})")
    assert "(+0.0 %; to trained_on)" in rows["<b>finetuned</b>"]["R, change to its control"]
    published = next(row for name, row in rows.items() if "published" in name)
    assert published["R, change to plain training"].startswith("−46.7 %")
    assert rows["real held-out images"]["text_alignment[classifier]"].startswith("0.8 <small>")
    text, _ = show("iet_agc", made, built)
    assert "R, change to plain training" in text
    equal, _ = claims(text)["iet_agc", "baseline"]  # plain training at another rate is one, too
    assert equal.endswith("; other training: warmup")


def test_without_captions_there_is_no_table_of_them(study, show):
    made, results = study(3)
    text, _ = show("iet_agc", made, results)
    assert "No arm of this study is drawn from captions." in text
    assert "change to plain training" not in text
    assert "other training" not in text


def test_one_training_gives_no_verdict(study, show):
    text, _ = show("iet_agc", *study(1))
    assert {said for _, said in claims(text).values()} == {"one training: no verdict"}
    last = text[text.rindex("evidence for the published") :]
    assert "holds here" not in last
