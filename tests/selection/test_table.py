"""The choice of skip groups and switch timesteps: its arms, its formulas, its rules."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import UNet2DModel
from torch import nn

from afterimage import artifacts, cli, config
from afterimage.config.selection import plan
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.images import Images
from afterimage.metrics import spaces
from afterimage.plan import jobs
from afterimage.plan.jobs import selection_jobs
from afterimage.plan.resolved import resolve, write_configs
from afterimage.selection import table, timestep_ablation

SELECTION = {"base": "baseline", "updates": 100, "switch_timesteps": [250, 500]}


@pytest.fixture
def study(params):
    params["loyal_selection"] = SELECTION
    return params


# ---- the arms ------------------------------------------------------------------------------------


def test_one_arm_for_each_group_and_three_for_each_timestep(study):
    parsed = config.parse(study)
    cells = plan(parsed.loyal_selection, levels=2)
    assert list(cells)[:5] == ["select_none", "select_g0", "select_g1", "select_g2", "select_whole"]
    assert list(cells)[5:] == [
        f"select_t{tau}_{kind}" for tau in (250, 500) for kind in ("split", "tail", "front")
    ]
    assert cells["select_whole"].groups == [1, 2]
    assert plan(parsed.loyal_selection, levels=4)["select_whole"].groups == [3, 4]
    assert plan(parsed.loyal_selection, levels=1)["select_whole"].groups == [1]


def test_derived_arms_differ_from_their_control_in_what_they_are_named_after(study):
    study["arms"]["baseline"] |= {
        "data": "deduplicated",
        "train": {"updates": 7, "learning_rate": 0.5},
    }
    arms = config.parse(study).with_selection.arms
    control = arms["select_none"].model_dump(exclude={"rau_net", "method", "weights"})
    assert (
        control.items()
        >= {
            "base": "baseline",
            "data": "deduplicated",
            "train": {"learning_rate": 0.5, "updates": 100},
        }.items()
    )
    for name in plan(config.parse(study).loyal_selection, 2):
        own = arms[name].model_dump(
            exclude={"rau_net", "method", "weights", "switch_timestep", "blocks_in", "budget"}
        )
        assert own == control, name
    assert arms["select_g0"].rau_net.groups == [0]
    assert (arms["select_t250_tail"].switch_timestep, arms["select_t250_tail"].blocks_in) == (
        250,
        "tail",
    )
    assert arms["select_t250_front"].blocks_in == "front"
    assert arms["select_t250_split"].rau_net is None
    assert arms["select_t250_tail"].budget == "matched_total"


def test_the_study_itself_stays_as_it_was(study, params, tmp_path):
    with_block = config.parse(study)
    without = config.parse(
        {key: value for key, value in params.items() if key != "loyal_selection"}
    )
    assert jobs.jobs(with_block) == jobs.jobs(without)
    assert selection_jobs(without) == []
    assert "loyal_selection" not in jobs.pages(with_block)
    assert [job.folder for job in selection_jobs(with_block)][-2:] == [
        "selection/table",
        "selection/page",
    ]
    assert without.with_selection is without
    write_configs(with_block, tmp_path)
    for job in jobs.jobs(with_block) + selection_jobs(with_block):
        assert (tmp_path / "default" / "config" / f"{job.folder}.json").is_file()
        assert (tmp_path / "default" / "config" / f"{job.folder}.code").is_file()
    written = json.loads((tmp_path / "default/config/train/select_g1/rep0.json").read_text())[
        "settings"
    ]["arm"]
    assert written["rau_net"] == {"groups": [1], "variant": "trained_random", "convolutions": 2}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"base": "basline"}, ["loyal_selection.base", "'basline'", "did you mean 'baseline'"]),
        ({"base": "two"}, ["loyal_selection.base = 'two'", "one network without rau_net"]),
        ({"base": "half"}, ["loyal_selection.base = 'half'", "all its images"]),
        ({"switch_timesteps": [1000]}, ["switch_timesteps = [1000]", "1 to 999"]),
        ({"groups": [1, 3]}, ["loyal_selection", "groups = [1, 3]", "groups 0 to 2"]),
        ({"updates": 1}, ["loyal_selection.updates = 1"]),
        ({"keeep": 1}, ["loyal_selection.keeep", "did you mean 'keep'"]),
    ],
)
def test_what_cannot_be_selected_is_refused(study, keys, words):
    study["arms"]["two"] = {"method": "loyal", "switch_timestep": 500}
    study["arms"]["half"] = {"method": "baseline", "fraction": 0.5}
    study["loyal_selection"] = SELECTION | keys
    with pytest.raises(config.ConfigError) as error:
        config.parse(study)
    for word in words:
        assert word in str(error.value)


def test_names_of_derived_arms_are_taken(study):
    study["arms"]["select_g1"] = {"method": "baseline"}
    with pytest.raises(
        config.ConfigError, match=r"arms.select_g1: loyal_selection makes an arm of this name"
    ):
        config.parse(study)


# ---- the formulas --------------------------------------------------------------------------------


def test_sensitivity_and_cost_by_hand():
    """Selection formulas: s = (R_base - R) / R_base and c = (FD - FD_base) / FD_base."""
    one, control = np.array([0.6]), np.array([0.8])
    assert table.relative(one, control, "R", 0.95).value == pytest.approx(0.25)
    assert table.relative(one, control, "frechet", 0.95).value == pytest.approx(-0.25)
    assert math.isnan(table.relative(one, control, "R", 0.95).low)
    assert math.isnan(table.relative(one, np.array([0.0]), "R", 0.95).value)


def test_intervals_are_paired_by_replicate():
    values, control = np.array([0.5, 0.9]), np.array([1.0, 1.8])
    found = table.relative(values, control, "R", 0.95)
    assert found.value == pytest.approx(0.5)
    assert math.isnan(found.low)  # equal in both: no spread to measure
    values[1] = 1.08
    found = table.relative(values, control, "R", 0.95)
    half = 12.706 * np.std([0.5, 0.4], ddof=1) / np.sqrt(2)
    assert (found.value, found.low, found.high) == pytest.approx(
        (0.45, 0.45 - half, 0.45 + half), rel=1e-4
    )


def arms_table(**numbers) -> pd.DataFrame:
    """Return ``arms.csv`` of one replicate from arm -> (R, FD); the other measures of copying are R
    too."""
    cells = plan(config.LoyalSelection.model_validate(SELECTION), 2)
    rows = []
    for arm, cell in cells.items():
        r, fd = numbers.get(arm, (0.8, 1.0))
        row = {
            "arm": arm,
            **cell.model_dump(),
            "groups": " ".join(map(str, cell.groups)),
            "replicate": 0,
        }
        rows.append(row | {"R": r, "similarity": r, "flagged_generations": r, "frechet": fd})
    return pd.DataFrame(rows)


def ranked(arms: pd.DataFrame, **keys) -> pd.DataFrame:
    settings = config.LoyalSelection.model_validate(SELECTION | keys).model_dump()
    return table.ranking(arms, table.changes(arms, 0.95), settings).set_index("arm")


def test_groups_are_ranked_by_copying_among_those_that_cost_little():
    arms = arms_table(select_g0=(0.4, 1.5), select_g1=(0.6, 1.09), select_g2=(0.7, 0.9))
    table = ranked(arms)
    assert table.loc["select_g0", ["s", "c", "admissible", "chosen"]].tolist() == pytest.approx(
        [0.5, 0.5, False, False]
    )
    assert table.loc[["select_g1", "select_g2"], "rank"].tolist() == [1, 2]
    assert table.loc[["select_g1", "select_g2"], "chosen"].all()
    assert ranked(arms, keep=1).chosen.drop("select_t250_tail").sum() == 1
    assert ranked(arms, largest_cost=0.5).loc["select_g0", "rank"] == 1


def test_a_group_that_raises_copying_is_not_chosen():
    table = ranked(arms_table(select_g1=(0.9, 0.5)))
    assert not table.loc["select_g1", "chosen"]
    assert table.loc["select_g1", "s"] == pytest.approx(-0.125)


@pytest.mark.parametrize(
    ("costs", "expected"),
    [((0.05, 0.0), "select_t250_tail"), ((0.2, 0.09), "select_t500_tail"), ((1, 1), None)],
)
def test_the_longest_affordable_range_with_blocks_is_chosen(costs, expected):
    """The paper's rule of 2.3: the largest tail whose cost stays below the limit."""
    table = ranked(
        arms_table(select_t250_tail=(0.1, 1 + costs[0]), select_t500_tail=(0.1, 1 + costs[1]))
    )
    tails = table[table.switch_timestep.notna()]
    assert tails.index[tails.chosen].tolist() == ([] if expected is None else [expected])
    assert set(tails.index) == {"select_t250_tail", "select_t500_tail"}


def test_networks_of_half_a_range_are_compared_with_such_without_blocks_too():
    changed = table.changes(
        arms_table(select_t500_split=(0.4, 1.0), select_t500_tail=(0.6, 1.0)), 0.95
    )
    found = (
        changed[(changed.arm == "select_t500_tail") & (changed.measure == "R")]
        .set_index("against")
        .change
    )
    assert found.to_dict() == pytest.approx({"select_none": 0.25, "select_t500_split": -0.5})


# ---- swapping networks ---------------------------------------------------------------------------


def test_ranges_are_none_all_ends_and_pieces():
    assert timestep_ablation.ranges([500, 250], 1000) == [
        (0, 0),
        (0, 1000),
        (250, 1000),
        (500, 1000),
        (0, 250),
        (0, 500),
        (250, 500),
    ]
    assert timestep_ablation.ranges([], 10) == [(0, 0), (0, 10)]


class Constant(UNet2DModel):
    """A network that predicts one number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__(
            sample_size=2,
            block_out_channels=(4, 4),
            norm_num_groups=4,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            add_attention=False,
        )
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, t, class_labels=None, return_dict=True):
        return (self.value.expand_as(x),)


@pytest.mark.parametrize(("low", "high"), timestep_ablation.ranges([3, 7], 10))
def test_the_network_with_blocks_predicts_in_its_range_alone(low, high):
    net = timestep_ablation.swapped(Constant(0.0), Constant(1.0), low, high)
    times = torch.arange(10)
    found = net(torch.zeros(10, 3, 2, 2), times, return_dict=False)[0][:, 0, 0, 0]
    assert found.tolist() == [float(low <= t < high) for t in range(10)]


def test_changes_of_swaps_are_against_their_own_control():
    rows = pd.DataFrame({"low": [0, 0] * 2, "high": [0, 9] * 2, "R": [0.8, 0.4, 0.5, 0.5], "similarity": [0.8, 0.4, 0.5, 0.5],
                          "flagged_generations": [0.0, 0.1, 0.2, 0.1], "frechet": [1.0, 3.0, 2.0, 1.0], "replicate": [0, 0, 1, 1]})  # fmt: skip
    found = table.against_first(rows)
    assert found.s_R.tolist() == pytest.approx([0, 0.5, 0, 0])
    assert found.c.tolist() == pytest.approx([0, 2, 0, -0.5])
    assert found.s_flagged_generations.tolist() == pytest.approx(
        [math.nan, math.nan, 0, 0.5], nan_ok=True
    )


# ---- through the commands ------------------------------------------------------------------------


def resolved(study, step: str, folder, **address):
    path = folder / f"{step.replace('/', '_')}.json"
    path.write_text(json.dumps(resolve(study, step, **address)))
    return str(path)


def test_swap_measures_every_range(study, tmp_path, monkeypatch):
    """The whole range is the network with blocks, the empty one the control; a control with the
    same weights changes nothing."""
    study |= {"quality": {"features": "pixels"}, "sample": {"images": 6, "steps": 4}}
    parsed = config.parse(study)
    model = config.Model(
        channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4
    )
    rng = np.random.default_rng(0)
    with artifacts.step({"settings": {}}, tmp_path / "split", {}, ("afterimage.seeds",)) as step:
        for name in ("train", "reference"):
            Images.of(rng.integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)).save(
                step.folder / f"{name}.npz"
            )
    nets = {
        "none": build_unet(model, (8, 8, 1), seed=1),
        "whole": build_unet(model, (8, 8, 1), seed=1, blocks=config.TransferBlocks(groups=[2])),
        "same": build_unet(
            model,
            (8, 8, 1),
            seed=1,
            blocks=config.TransferBlocks(groups=[2], variant="trained_identity"),
        ),
    }
    for name, net in nets.items():
        with artifacts.step({"settings": {}}, tmp_path / name, {}, ("afterimage.seeds",)) as step:
            save_pipeline(net, build_scheduler(config.Diffusion()), step.folder / "pipeline")
            pd.DataFrame({"id": np.arange(20), "trained": np.arange(20) < 15}).to_parquet(
                step.folder / "members.parquet"
            )
    (tmp_path / "classifier").mkdir()
    monkeypatch.setattr(spaces, "classes", lambda network: None)
    command = [
        "selection",
        "timestep_ablation",
        "--config",
        resolved(parsed, "selection/timestep_ablation", tmp_path, replicate=0),
    ]
    command += [
        "--train",
        str(tmp_path / "split/train.npz"),
        "--reference",
        str(tmp_path / "split/reference.npz"),
    ]
    command += ["--classifier", str(tmp_path / "classifier"), "--control", str(tmp_path / "none")]
    tables = {}
    for blocks in ("whole", "same"):
        assert (
            cli.main(
                [
                    *command,
                    "--blocks",
                    str(tmp_path / blocks),
                    "--out",
                    str(tmp_path / f"out_{blocks}"),
                ]
            )
            == 0
        )
        tables[blocks] = pd.read_csv(tmp_path / f"out_{blocks}" / "table.csv")
    assert list(
        zip(tables["whole"].low, tables["whole"].high, strict=True)
    ) == timestep_ablation.ranges([250, 500], 1000)
    assert tables["whole"].iloc[0].equals(tables["same"].iloc[0])
    assert set(tables["same"].frechet) == {tables["same"].frechet[0]}
    assert tables["whole"].frechet.nunique() == len(tables["whole"])


def test_the_tables_are_gathered_from_the_stores(study, tmp_path):
    study |= {"replicates": 2}
    parsed = config.parse(study)
    cells = list(plan(parsed.loyal_selection, 2))
    for at, arm in enumerate(cells):
        for k in range(2):
            stores = {"train": tmp_path / "train" / arm / f"rep{k}"}
            stores |= {
                name: tmp_path / "attack" / arm / f"rep{k}" / name
                for name in ("extraction", "quality")
            }
            found = {"subset": "all", "anchor": "training", "alpha": "fixed"}
            rows = {
                "extraction": [found | {"metric": metric, "value": 0.5, "count": 3}
                               for metric in ("flagged_generations", "flagged_holdout", "extracted_images")],
                "quality": [{"metric": f"{metric}[pixels]", "of": of, "value": 0.9 - 0.01 * at - 0.1 * (of == "holdout")}
                            for metric in ("R", "similarity", "FD_balanced") for of in ("generations", "holdout")],
            }  # fmt: skip
            rows["quality"] += [  # of all classes together: moved by their shares, decides nothing
                {"metric": "FD[pixels]", "of": of, "value": 99.0}
                for of in ("generations", "holdout")
            ]
            for name, store in stores.items():
                with artifacts.step(
                    {"settings": {"anchor": "training"}}, store, {}, ("afterimage.seeds",)
                ) as step:
                    pd.DataFrame(rows.get(name, [])).to_csv(
                        step.folder / "results.csv", index=False
                    )
                    step.note(updates=100, images_seen=6400)
    for k in range(2):
        with artifacts.step(
            {"settings": {}},
            tmp_path / "selection" / "timestep_ablation" / f"rep{k}",
            {},
            ("afterimage.seeds",),
        ) as step:
            row = {"R": 0.8, "similarity": 0.8, "flagged_generations": 0.5, "frechet": 1.0}
            pd.DataFrame([{"low": 0, "high": 0} | row]).to_csv(
                step.folder / "table.csv", index=False
            )
    command = [
        "selection",
        "table",
        "--results",
        str(tmp_path),
        "--config",
        resolved(parsed, "selection/table", tmp_path),
    ]
    assert cli.main([*command, "--out", str(tmp_path / "table")]) == 0
    run = artifacts.check_store(tmp_path / "table")
    assert set(run["outputs"]) == {"arms.csv", "changes.csv", "ranking.csv", "swap.csv"}
    arms = pd.read_csv(tmp_path / "table" / "arms.csv")
    assert len(arms) == 2 * len(cells)
    assert arms.iloc[2][
        ["R", "R_holdout", "frechet", "extracted_images", "updates"]
    ].tolist() == pytest.approx([0.89, 0.79, 0.89, 3, 100])
    ranking = pd.read_csv(tmp_path / "table" / "ranking.csv").set_index("arm")
    assert ranking.loc["select_g1", "s"] == pytest.approx(0.02 / 0.9)
    assert run["facts"] == {"chosen_groups": [2, 1], "chosen_switch_timestep": 250}
