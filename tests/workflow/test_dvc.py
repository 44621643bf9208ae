"""Two engines, one truth: whatever is done to results between them ends in an error or a right
result, never in a stale one."""

import json

import pandas as pd
import pytest
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture
def sealed(workspace):
    """A clone under git and DVC whose finished results DVC has sealed."""
    workspace.run("git", "init", "--quiet")
    workspace.run("git", "add", ".")
    workspace.run(
        "git",
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "commit",
        "--quiet",
        "-m",
        "study",
    )
    workspace.done = workspace.run("dvc", "repro")
    return workspace


def lock(workspace):
    return yaml.safe_load((workspace.folder / "dvc.lock").read_text())


def modified(workspace):
    return {path: path.stat().st_mtime_ns for path in workspace.results.rglob("run.json")}


def finished_at(workspace):
    return {
        path: json.loads(path.read_text())["finished"]
        for path in workspace.results.rglob("run.json")
    }


def updates_of(workspace, arm="dedup"):
    return json.loads((workspace.results / "train" / arm / "rep0" / "run.json").read_text())[
        "facts"
    ]["updates"]


def report_is_of_the_present_results(workspace):
    """The report's headline is that of the arms as they are now."""
    arms = (
        pd.read_csv(workspace.results / "report" / "tables" / "arms.csv")
        .set_index(["arm", "metric"])
        .value
    )
    return all(arms[arm, "updates"] == updates_of(workspace, arm) for arm in ("baseline", "dedup"))


def test_sealing_after_snakemake_computes_nothing(workspace, sealed, finished):
    assert set(lock(sealed)["stages"]) == {
        "data",
        "train",
        "sample",
        "attack",
        "attribution",
        "report",
    }
    assert list(finished_at(sealed).values()) == list(finished_at(finished).values())
    assert (
        sealed.done.stdout.count("Nothing to be done")
        + sealed.done.stderr.count("Nothing to be done")
        == 5
    )
    again = sealed.run("dvc", "repro")
    assert "Data and pipelines are up to date" in again.stdout + again.stderr
    shown = json.loads(sealed.run("dvc", "metrics", "show", "--json").stdout)
    assert "flagged_generations" in json.dumps(shown)
    plots = sealed.run("dvc", "plots", "show", "--json", "--split").stdout
    assert "extraction against multiplicity" in plots
    assert "training loss" in plots


def test_checked_out_files_are_not_taken_for_new_ones(sealed):
    """Files that DVC rewrites have new times; contents decide."""
    before = finished_at(sealed)
    for phase in ("data", "sample"):
        sealed.run("rm", "-r", str(sealed.results / phase))
    sealed.run("dvc", "checkout")
    assert sealed.planned() == {}
    assert finished_at(sealed) == before


def test_parameter_changed_after_pull_without_adopt(sealed):
    """No Snakemake records, as in a fresh clone: a new parameter must not be sealed with the old
    model."""
    sealed.run("rm", "-r", ".snakemake")
    sealed.edit("arms", "dedup", "train", value={"updates": 4})
    done = sealed.run("dvc", "repro", check=False)
    if done.returncode == 0:
        assert updates_of(sealed) == 4
        assert report_is_of_the_present_results(sealed)
    else:
        assert lock(sealed)["stages"]["train"]["params"]["params.yaml"]["arms"]["dedup"] == {
            "method": "baseline",
            "data": "deduplicated",
            "control": "baseline",
        }


def test_parameter_changed_after_adopt(sealed):
    sealed.run("rm", "-r", ".snakemake")
    sealed.run("afterimage", "adopt")
    assert sealed.planned() == {}
    sealed.edit("arms", "dedup", "train", value={"updates": 4})
    planned = sealed.planned()
    assert planned["fit"] == 1
    sealed.run("dvc", "repro")
    assert updates_of(sealed) == 4
    assert updates_of(sealed, "baseline") == 6
    assert report_is_of_the_present_results(sealed)
    assert lock(sealed)["stages"]["train"]["params"]["params.yaml"]["arms"]["dedup"]["train"] == {
        "updates": 4
    }


@pytest.mark.parametrize("link", ["hardlink", "symlink"])
def test_linked_cache_cannot_seal_a_stale_report(sealed, link):
    """A user who sets another link type than ours."""
    sealed.run("dvc", "config", "cache.type", link)
    sealed.run(
        "rm",
        "-r",
        *(str(sealed.results / phase) for phase in ("data", "train", "sample", "attack")),
    )
    sealed.run("dvc", "checkout", "--relink")
    sealed.edit("arms", "dedup", "train", value={"updates": 4})
    done = sealed.run("dvc", "repro", check=False)
    if done.returncode == 0:
        assert updates_of(sealed) == 4
        assert report_is_of_the_present_results(sealed)
        assert sealed.run("afterimage", "verify").returncode == 0
    else:
        assert "afterimage verify" in done.stdout + done.stderr


def test_verify_refuses_touched_results(sealed):
    """Somebody makes Snakemake believe that old results are new."""
    sealed.edit("sample", "steps", value=3)
    sealed.snakemake("--touch", "--forceall", "--", "all")
    done = sealed.run("dvc", "repro", check=False)
    assert done.returncode != 0
    assert "settings.steps was 4, is now 3" in done.stdout + done.stderr
    assert lock(sealed)["stages"]["sample"]["params"]["params.yaml"]["sample"]["steps"] == 4


def test_adopt_refuses_what_dvc_does_not_know(sealed):
    sealed.edit("sample", "steps", value=3)
    done = sealed.run("afterimage", "adopt", check=False)
    assert done.returncode != 0
    assert "dvc status" in done.stdout + done.stderr
