"""The page of LoyalDiffusion on made-up results: with and without arms that it is about, with and without a selection."""

from __future__ import annotations

from pathlib import Path

import jupytext
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import yaml
from matplotlib import pyplot as plt

from afterimage import artifacts, config
from afterimage.config.selection import plan
from afterimage.report import selection, swap

BLOCKS = {"groups": [1, 2]}
ARMS = {
    "baseline": {"method": "baseline"},
    "dedup": {"method": "baseline", "data": "deduplicated", "control": "baseline"},
    "rau_net": {"method": "baseline", "rau_net": BLOCKS, "control": "baseline"},
    "split": {"method": "loyal", "switch_timestep": 500},
    "loyal": {"method": "loyal", "switch_timestep": 500, "rau_net": BLOCKS, "control": "split"},
    "alone": {"method": "loyal", "switch_timestep": 500, "rau_net": BLOCKS, "blocks_in": "front"},
}


@pytest.fixture
def page(root, tmp_path, monkeypatch, make_up, truth):
    """Return a function that makes up a study and runs the notebook; it gives what that showed, and its figures."""

    def run(replicates: int, taus: list[int] | None = None, **selected) -> tuple[str, set[str]]:
        params = yaml.safe_load((root / "params.yaml").read_text())
        chosen = None if taus is None else {"base": "baseline", "updates": 10, "switch_timesteps": taus} | selected
        params |= {"arms": ARMS, "replicates": replicates, "forget": {}, "loyal_selection": chosen}
        study = config.parse(params)
        results = make_up(tmp_path / "made", study, {name: truth() for name in ARMS} | {"rau_net": truth(0.1, 0.1)})
        if taus is not None:
            choose(study, results)
        shown: list = []
        monkeypatch.setattr("IPython.display.display", shown.append)
        (tmp_path / "figures").mkdir()
        parameters = config.resolve(study, "report/page")["settings"]
        parameters |= {"results": str(results), "figures": str(tmp_path / "figures")}
        space: dict = {}
        with mpl.rc_context({"backend": "agg"}):
            for cell in jupytext.read(root / "notebooks" / "loyal.py").cells:
                if cell.cell_type == "code":
                    exec(cell.source, space)
                if "parameters" in cell.metadata.get("tags", []):
                    assert parameters.keys() <= space.keys()
                    space |= parameters
        assert not plt.get_fignums()
        text = "\n".join(str(getattr(one, "data", one)) for one in shown if not hasattr(one, "embed"))
        return text, {path.stem for path in (tmp_path / "figures").glob("*.png")}

    return run


def choose(study: config.Study, results: Path) -> None:
    """Write made-up tables of the selection: blocks in group 1 halve all copying at no cost, those elsewhere do nothing."""
    resolved = config.resolve(study, "report/selection")
    rng = np.random.default_rng(0)
    rows = []
    for arm, cell in plan(study.loyal_selection, len(study.model.channels)).items():
        for k in range(study.replicates):
            level = (0.4 if cell.groups == [1] else 0.8) + 0.001 * rng.random()
            row = {"arm": arm, **cell.model_dump(), "groups": " ".join(map(str, cell.groups)), "replicate": k}
            for name in ("R", "similarity", "flagged_generations"):
                row |= {name: level, f"{name.split('_')[0]}_holdout": 0.3}
            rows.append(row | {"FD": 5 + 0.01 * rng.random(), "FD_holdout": 1.0, "updates": 10, "images_seen": 640})
    arms = pd.DataFrame(rows)
    changed = selection.changes(arms, 0.95)
    ranked = selection.ranking(arms, changed, resolved["settings"]["selection"])
    taus = study.loyal_selection.switch_timesteps
    ranges = [(*ends, k) for k in range(study.replicates) for ends in swap.ranges(taus, 1000)]
    swaps = pd.DataFrame(ranges, columns=["low", "high", "replicate"])
    swaps = swaps.assign(R=0.8, similarity=0.7, flagged_generations=0.5, FD=5.0)
    with artifacts.step(resolved, results / "selection" / "table", {}, ("afterimage.seeds",)) as step:
        tables = {"arms": arms, "changes": changed, "ranking": ranked, "swap": selection.against_first(swaps)}
        for name, table in tables.items():
            table.to_csv(step.folder / f"{name}.csv", index=False)
        groups = ranked[ranked.chosen].group.dropna().astype(int).tolist()
        step.note(chosen_groups=groups, chosen_switch_timestep=min(taus, default=None))


@pytest.mark.parametrize("replicates", [1, 2])
def test_page_without_a_selection(replicates, page):
    text, figures = page(replicates)
    assert figures == {"loyal_arms"}
    assert "arms on this page: baseline, rau_net, split, loyal, alone." in text
    assert "**rau_net** against baseline: remembers less" in text
    assert "**alone** names no control" in text
    assert "Not run for this study. `snakemake loyal_selection` makes it" in text


def test_page_gives_every_published_row_its_arm_or_says_that_there_is_none(page):
    text, _ = page(1)
    row = {line.split("</td>")[0].split(">")[-1]: line for line in text.split("<tr") if "<td" in line}
    assert "<b>loyal</b>" in row["two networks, blocks in the tail (LoyalDiffusion)"]
    assert "<b>alone</b>" in row["two networks, blocks in the front (mirrored)"]
    assert "not tested here: needs captions" in row["LoyalDiffusion with generalised captions and dual fusion"]
    assert "value not verified" in row["RAU-Net at all timesteps"]
    assert "held-out images" in row["real images that no model saw"]


@pytest.mark.parametrize(("replicates", "taus", "groups"), [(1, [500], [2]), (3, [250, 500, 750], None), (2, [], [0, 1, 2])])
def test_page_with_a_selection(replicates, taus, groups, page):
    text, figures = page(replicates, taus, groups=groups)
    assert figures == {"loyal_arms", "loyal_groups", "loyal_swap"} | ({"loyal_timesteps"} if taus else set())
    assert "**groups 1" in text
    assert (f"**τ = {min(taus)}**" if taus else "**no τ**") in text
    if replicates == 3:
        assert "1 lower `R` by more than chance explains" in text
    if replicates == 1:
        assert "not known whether any choice is more than chance" in text
