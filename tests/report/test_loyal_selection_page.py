"""The page of the selection on made-up tables of it: nothing else of the study is there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from afterimage import artifacts, cli, config
from afterimage.config.selection import plan
from afterimage.plan.resolved import resolve
from afterimage.selection import table, timestep_ablation


@pytest.fixture
def chosen(params, tmp_path):
    """Return a function that makes up the selection of a study; it gives the study and its
    results."""

    def make(replicates: int, taus: list[int], **keys) -> tuple[config.Study, Path]:
        block = {"base": "baseline", "updates": 10, "switch_timesteps": taus} | keys
        study = config.parse(
            params
            | {
                "replicates": replicates,
                "loyal_selection": block,
                "statistics": {"confidence": 0.9},
            }
        )
        results = tmp_path / "made" / study.study
        choose(study, results)
        return study, results

    return make


def choose(study: config.Study, results: Path) -> None:
    """Write made-up tables of the selection: blocks in group 1 halve all copying at no cost, those
    elsewhere do nothing."""
    resolved = resolve(study, "selection/table")
    rng = np.random.default_rng(0)
    cells = []
    for arm, cell in plan(study.loyal_selection, len(study.model.channels)).items():
        for k in range(study.replicates):
            level = (0.4 if cell.groups == [1] else 0.8) + 0.001 * rng.random()
            row = {
                "arm": arm,
                **cell.model_dump(),
                "groups": " ".join(map(str, cell.groups)),
                "replicate": k,
            }
            for name in ("R", "similarity", "flagged_generations"):
                row |= {name: level, f"{name.split('_')[0]}_holdout": 0.3}
            cells.append(
                row
                | {
                    "frechet": 5 + 0.01 * rng.random(),
                    "frechet_holdout": 1.0,
                    "updates": 10,
                    "images_seen": 640,
                }
            )
    arms = pd.DataFrame(cells)
    changed = table.changes(arms, study.statistics.confidence)
    ranked = table.ranking(arms, changed, resolved["settings"]["selection"])
    taus = study.loyal_selection.switch_timesteps
    ranges = [
        (*ends, k) for k in range(study.replicates) for ends in timestep_ablation.ranges(taus, 1000)
    ]
    swaps = pd.DataFrame(ranges, columns=["low", "high", "replicate"])
    swaps = swaps.assign(R=0.8, similarity=0.7, flagged_generations=0.5, frechet=5.0)
    with artifacts.step(
        resolved, results / "selection" / "table", {}, ("afterimage.seeds",)
    ) as step:
        tables = {
            "arms": arms,
            "changes": changed,
            "ranking": ranked,
            "swap": table.against_first(swaps),
        }
        for name, rows in tables.items():
            rows.to_csv(step.folder / f"{name}.csv", index=False)
        groups = ranked[ranked.chosen].group.dropna().astype(int).tolist()
        step.note(chosen_groups=groups, chosen_switch_timestep=min(taus, default=None))


@pytest.mark.parametrize(
    ("replicates", "taus", "groups"),
    [(1, [500], [2]), (3, [250, 500, 750], None), (2, [], [0, 1, 2])],
)
def test_what_was_chosen_and_why(replicates, taus, groups, chosen, show):
    text, figures = show("loyal_selection", *chosen(replicates, taus, groups=groups))
    assert figures == {"loyal_groups", "loyal_swap"} | ({"loyal_timesteps"} if taus else set())
    assert "**groups 1" in text
    assert (f"**τ = {min(taus)}**" if taus else "**no τ**") in text
    if replicates == 3:
        assert "1 lower `R` with an interval above zero" in text
    if replicates == 1:
        assert "not known whether any choice is more than chance" in text
    assert ("In brackets: 90 % intervals between replicates" in text) == (replicates > 1)


@pytest.mark.slow
def test_page_is_made_of_its_tables_alone(root, tmp_path, chosen):
    study, results = chosen(1, [500])
    (tmp_path / "page.json").write_text(json.dumps(resolve(study, "report/page")))
    flags = {
        "notebook": root / "notebooks" / "loyal_selection.py",
        "results": results,
        "tables": results / "selection" / "table",
        "config": tmp_path / "page.json",
        "out": results / "selection" / "page",
    }
    assert (
        cli.main(
            [
                "report",
                "page",
                *(word for name, path in flags.items() for word in (f"--{name}", str(path))),
            ]
        )
        == 0
    )
    run = artifacts.check_store(results / "selection" / "page")
    figures = {f"figures/{name}.png" for name in ("loyal_groups", "loyal_swap", "loyal_timesteps")}
    assert set(run["outputs"]) == {"loyal_selection.ipynb", "loyal_selection.html", *figures}
    tables = run["inputs"]["tables"]
    assert tables["path"].endswith("selection/table/run.json")
    assert tables["sha256"] == artifacts.sha256(results / "selection" / "table" / "run.json")
