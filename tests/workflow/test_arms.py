"""Every method in one study, from raw data to the pages: that arms meet every attack and find the
arms that they name."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pandas as pd
import pytest

from afterimage import artifacts, config
from afterimage.images import load_images
from afterimage.plan import jobs

pytestmark = pytest.mark.slow


def facts(workspace, arm):
    return artifacts.read_run(workspace.results / "train" / arm / "rep0")["facts"]


def test_the_study_has_every_method_and_every_page(every_arm):
    study = config.load(every_arm.params)
    needs_captions = {"uce", "dcr", "wen"}  # see test_text_study
    assert {arm.method for arm in study.arms.values()} == set(config.METHODS) - needs_captions
    notebooks = {path.stem for path in (every_arm.folder / "notebooks").glob("*.py")}
    assert {*jobs.pages(study), "loyal_selection"} == notebooks
    for page in jobs.pages(study):
        assert (every_arm.results / "report" / "pages" / page / f"{page}.html").stat().st_size > 0


def test_finished_results_are_right_and_final(every_arm):
    assert every_arm.run("afterimage", "verify").returncode == 0
    assert every_arm.planned() == {}


def test_the_workflow_knows_every_file_of_a_result(every_arm):
    """It neither misses nor sends what no rule names."""
    lines = every_arm.snakemake("--summary").stdout.splitlines()
    named = {line.split("\t")[0] for line in lines if line.startswith("results/")}
    runs = list(every_arm.results.rglob(artifacts.RUN))
    assert len(runs) > 100
    files = {run.parent / name for run in runs for name in json.loads(run.read_text())["outputs"]}
    files = {file.relative_to(every_arm.folder) for file in files | set(runs)}
    assert [
        file for file in sorted(files) if named.isdisjoint(map(str, [file, *file.parents]))
    ] == []


def test_every_arm_is_in_every_table(every_arm):
    study = config.load(every_arm.params)
    tables = every_arm.results / "report" / "tables"
    wide = pd.read_csv(tables / "comparison_wide.csv").set_index("arm")
    assert list(wide.index) == list(study.arms)
    assert {
        arm: None if pd.isna(control) else control for arm, control in wide["control"].items()
    } == {name: arm.control for name, arm in study.arms.items()}
    assert wide["verdict"].notna().tolist() == [
        arm.control is not None for arm in study.arms.values()
    ]
    for table in ("arms", "extraction", "quality", "membership", "points", "multiplicity"):
        assert set(pd.read_csv(tables / f"{table}.csv")["arm"]) == set(study.arms), table
    assert set(pd.read_csv(tables / "loss.csv")["arm"]) == set(study.arms) - {"amg"}
    judged = {name for name in study.arms if study.forget_sets_of(name)}
    assert set(pd.read_csv(tables / "forgetting.csv")["arm"]) == judged
    assert set(json.loads((every_arm.results / "track" / "track.json").read_text())["arms"]) == set(
        study.arms
    )


def test_matched_arms_take_their_budget_from_the_other(every_arm):
    shards = facts(every_arm, "iet_agc")
    assert facts(every_arm, "short")["updates"] == shards["updates_per_model"] == 3
    assert facts(every_arm, "kept")["updates"] == -(-shards["kept_samples"] // 16)


def test_what_extraction_found_is_what_is_forgotten(every_arm):
    members = pd.read_parquet(every_arm.results / "train/forgets_found/rep0/members.parquet")
    pairs = pd.read_parquet(every_arm.results / "attack/baseline/rep0/extraction/pairs.parquet")
    first = pairs[: len(pairs) // 2]
    found = set(first["nearest_source"][first["flagged_training_fixed"]])
    assert found
    assert found < set(pairs["nearest_source"][pairs["flagged_training_fixed"]])
    assert set(members["source"][members["forgotten"]]) == found
    for arm in ("found_finetune", "found_retrained"):
        table = pd.read_parquet(every_arm.results / "train" / arm / "rep0/members.parquet")
        assert set(table["source"][~table["trained"]]) == found
    for arm in ("baseline", "forgets_found", "found_finetune", "found_retrained"):
        run = every_arm.results / "attack" / arm / "rep0/forgetting/run.json"
        judged = json.loads(run.read_text())["facts"]["sets"]["found"]
        assert judged["generations_judged"] == 20
    passes = facts(every_arm, "forgets_found")["backward_passes"]
    assert facts(every_arm, "found_finetune")["updates"] == passes == 12


def test_retrained_never_saw_what_others_forget(every_arm):
    split = load_images(every_arm.results / "data/planting/0/train.npz")
    zeros = set(split.ids[split.labels == 0])
    for arm in ("retrained", "finetune"):
        members = pd.read_parquet(every_arm.results / "train" / arm / "rep0/members.parquet")
        assert zeros == set(members["id"][~members["trained"]])


def test_attribution_has_every_attributor_query_and_judge(every_arm):
    study, phase = config.load(every_arm.params), every_arm.results / "attribution/rep0"
    asked = study.attribution
    assert asked is not None
    lds = pd.read_csv(phase / "scores/main/lds.csv")
    sets = [
        name
        for name in ("holdout", "generated", "extracted")
        if len(load_images(phase / f"queries/{name}.npz"))
    ]
    expected = {
        (name, part, target)
        for name in asked.attributors
        for part in sets
        for target in ("loss", "shift")
    }
    assert {
        *lds[["attributor", "queries", "target"]].itertuples(index=False, name=None)
    } == expected
    cheaper = pd.read_csv(phase / "acceleration/acceleration.csv")
    assert set(cheaper["variant"]) == {"main", "coarse", "two_stage"}
    own = cheaper[cheaper["variant"] == asked.reference]
    assert own["agreement"].dropna().tolist() == pytest.approx([1] * own["agreement"].notna().sum())
    for arm in asked.remedied.after:
        influence = pd.read_csv(phase / f"remedied/{arm}/influence.csv")
        assert set(influence["network"]) == {"before", "after"}
        assert influence["auc"].between(0, 1).all()
    with closing(sqlite3.connect(every_arm.folder / "mlflow.db")) as database:
        shown = {name for (name,) in database.execute("select distinct key from latest_metrics")}
    assert {
        name
        for name in asked.attributors
        if any(f"lds/generated/{name}" in metric for metric in shown)
    } >= {
        "das",
        "dtrak",
    }
