"""``verify`` names everything that no longer fits, and ``adopt`` refuses it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from afterimage import artifacts, cli, config, provenance, tracking
from afterimage.artifacts import ArtifactError
from afterimage.engines import adopt, verify
from afterimage.plan import jobs
from afterimage.plan.jobs import selection_jobs
from afterimage.plan.resolved import modules, resolved
from afterimage.plan.step import Job

Build = Callable[..., None]
ROOT = Path("results/default")


def found(study: config.Study, until: str | None = None) -> list[tuple[str, str]]:
    """Return (folder, text) of every error, and ("warning", folder) of every warning."""
    listed = verify.problems(study, Path("results"), until)
    return [
        ("warning", str(p.folder)) if p.warning else (p.folder.relative_to(ROOT).as_posix(), p.text)
        for p in listed
    ]


def test_finished_results_have_no_problem(
    study: config.Study, capsys: pytest.CaptureFixture[str]
) -> None:
    assert found(study) == []
    assert cli.main(["verify"]) == 0
    assert (
        f"{len(jobs.jobs(study))} results checked, 0 problem(s), 0 warning(s)"
        in capsys.readouterr().out
    )


def test_results_may_lie_elsewhere(
    build: Build, study: config.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path / "scratch")
    build(study, Path("results"))
    assert verify.problems(study, tmp_path / "scratch" / "results") == []


def test_missing_result(study: config.Study, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(ROOT / "attack/dedup/rep1/quality")
    assert [folder for folder, _ in found(study)] == ["attack/dedup/rep1/quality"]
    assert cli.main(["verify"]) == 1
    assert "results/default/attack/dedup/rep1/quality: has no run.json" in capsys.readouterr().out


def test_phase_is_the_last_that_is_checked(study: config.Study) -> None:
    shutil.rmtree(ROOT / "sample/dedup/rep1")
    assert found(study, "data") == found(study, "train") == []
    assert [folder for folder, _ in found(study, "sample")] == ["sample/dedup/rep1"]
    # What was made from it has an input that is gone.
    assert {folder for folder, _ in found(study)} == {
        "sample/dedup/rep1",
        "attack/dedup/rep1/extraction",
        "attack/dedup/rep1/quality",
        "attack/dedup/rep1/forgetting",
    }


def test_changed_setting_is_named_with_both_values(study: config.Study, params: dict) -> None:
    params["arms"]["dedup"]["train"] = {"updates": 7}
    changed = config.parse(params)
    problems = found(changed)
    assert {folder for folder, _ in problems} == {"train/dedup/rep0", "train/dedup/rep1"}
    assert "settings.arm.train.updates was 1500, is now 7" in problems[0][1]


def test_new_replicate_is_missing_and_removed_one_is_a_leftover(
    study: config.Study, params: dict
) -> None:
    params["replicates"] = 3
    missing = {folder for folder, text in found(config.parse(params)) if "run.json" in text}
    assert missing == {
        *(f"{phase}/{arm}/rep2" for phase in ("train", "sample") for arm in study.arms),
        *(
            f"attack/{arm}/rep2/{attack}"
            for attack in ("extraction", "quality", "membership")
            for arm in study.arms
        ),
        "attack/dedup/rep2/forgetting",
    }
    params["replicates"] = 2
    del params["arms"]["dedup"]
    leftovers = [
        problem
        for problem in verify.problems(config.parse(params), Path("results"))
        if problem.warning
    ]
    of_the_arm = [problem for problem in leftovers if "/dedup/" in str(problem.folder)]
    assert len(of_the_arm) == 12
    assert [p.folder for p in leftovers if p not in of_the_arm] == [
        ROOT / "report/pages/erasediff"
    ]  # nothing forgets any more
    assert (
        len(
            [
                p
                for p in verify.problems(config.parse(params), Path("results"), "train")
                if p.warning
            ]
        )
        == 2
    )


def test_changed_code(study: config.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    true = provenance.fingerprint
    monkeypatch.setattr(
        provenance,
        "fingerprint",
        lambda *e: "0" if "afterimage.diffusion.sample" in e else true(*e),
    )
    problems = found(study)
    assert {folder for folder, _ in problems} == {
        f"sample/{arm}/rep{k}" for arm in study.arms for k in (0, 1)
    }
    assert "other code than that of afterimage.diffusion.sample" in problems[0][1]


@pytest.mark.parametrize("harm", ["truncate", "delete", "add"])
def test_harmed_output(study: config.Study, harm: str) -> None:
    folder = ROOT / "attack/baseline/rep0/extraction"
    file = folder / ("extra.txt" if harm == "add" else "pairs.parquet")
    if harm == "delete":
        file.unlink()
    else:
        file.write_text("")
    expected = {
        "truncate": "is not the file that was published",
        "delete": "is missing",
        "add": "is not one of its files",
    }
    assert [folder for folder, _ in found(study)] == ["attack/baseline/rep0/extraction"]
    assert found(study)[0][1].startswith(f"{file.name} {expected[harm]}")


def test_result_whose_input_was_made_again(build: Build, study: config.Study) -> None:
    build(study, Path("results"), only="sample/baseline/rep0", offset=1.0)
    problems = dict(found(study))
    assert problems.keys() == {"attack/baseline/rep0/extraction", "attack/baseline/rep0/quality"}
    assert (
        "input samples (results/default/sample/baseline/rep0/images.npz) has changed"
        in problems.popitem()[1]
    )


def test_selection_is_checked_once_it_was_run(study: config.Study) -> None:
    table, page = selection_jobs(study)[-2:]

    def make(job: Job, text: str, **inputs: Path) -> None:
        wanted_config = resolved(study, job)
        with artifacts.step(wanted_config, ROOT / job.folder, inputs, modules(study, job)) as step:
            (step.folder / "file.txt").write_text(text)

    make(table, "one")
    make(page, "page", tables=ROOT / table.folder / artifacts.RUN)
    assert found(study) == []
    make(table, "other")
    assert found(study) == [
        (
            "selection/page",
            "input tables (results/default/selection/table/run.json) has changed since",
        ),
    ]


def test_input_that_is_not_what_its_store_lists(study: config.Study) -> None:
    """The file is the old one, but the store's record is that of a new one."""
    record = ROOT / "train/dedup/rep1/run.json"
    run = json.loads(record.read_text())
    run["outputs"]["pipeline/model_index.json"] = "0" * 64
    record.write_text(json.dumps(run))
    assert {(folder, text.split(" (")[0]) for folder, text in found(study)} == {
        (
            "train/dedup/rep1",
            "pipeline/model_index.json is not the file that was published: truncated or changed "
            "since",
        ),
        ("sample/dedup/rep1", "input model"),
        ("attack/dedup/rep1/membership", "input model"),
    }


def test_edited_record(study: config.Study) -> None:
    record = ROOT / "sample/dedup/rep0/run.json"
    record.write_text(record.read_text().replace('"sampler": "ddim"', '"sampler": "ddpm"'))
    assert found(study) == [
        (
            "sample/dedup/rep0",
            "run.json was changed: its config is not the one that it has the hash of",
        )
    ]


def test_source_that_is_not_on_this_machine_is_a_warning(study: config.Study) -> None:
    record = ROOT / "data/fetch/run.json"
    run = json.loads(record.read_text())
    run["inputs"]["source"] = {"path": "/nowhere/train.parquet", "sha256": "0" * 64}
    record.write_text(json.dumps(run))
    assert found(study) == [("warning", "results/default/data/fetch")]


def test_other_environment_is_one_warning(
    study: config.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.lock").write_text("torch==1\n")
    monkeypatch.setenv("AFTERIMAGE_LOCK", str(tmp_path / "other.lock"))
    assert found(study) == [("warning", "results/default")]
    assert cli.main(["verify"]) == 0


# ---- adopt ---------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stand-ins for the tools: DVC is clean and Snakemake succeeds. Returns what was called."""
    called: list[tuple[str, ...]] = []

    def call(*command: str) -> subprocess.CompletedProcess[str]:
        called.append(command)
        return subprocess.CompletedProcess(command, 0, stdout="{}\n", stderr="")

    monkeypatch.setattr(adopt, "_call", call)
    return called


def test_adopt_touches_all_phases_of_right_results(
    study: config.Study, calls: list[tuple[str, ...]]
) -> None:
    assert cli.main(["adopt"]) == 0
    assert [command[0] for command in calls] == ["dvc", "snakemake"]
    assert {"--touch", "--forceall"} <= set(calls[1])
    assert calls[1][-2:] == ("--", "all")


def test_adopt_drops_the_record_of_an_import_of_older_results(
    build: Build, study: config.Study, calls: list[tuple[str, ...]]
) -> None:
    imported = ROOT / "track" / "track.json"
    imported.parent.mkdir()
    imported.write_text(json.dumps(tracking.summary(study, tracking.read(study, Path("results")))))
    assert cli.main(["adopt"]) == 0
    assert imported.is_file()
    build(study, Path("results"), only="attack", offset=1.0)
    assert cli.main(["adopt"]) == 0
    assert not imported.exists()


def test_adopt_refuses_wrong_results(
    study: config.Study, calls: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    (ROOT / "sample/dedup/rep0/images.npz").write_text("")
    assert cli.main(["adopt"]) == 2
    assert [command[0] for command in calls] == ["dvc"]
    assert (
        "results/default/sample/dedup/rep0: images.npz is not the file that was published"
        in capsys.readouterr().err
    )


def test_adopt_refuses_what_dvc_does_not_know(
    study: config.Study, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status = json.dumps({"train": [{"changed deps": {"src/afterimage": "modified"}}]})
    monkeypatch.setattr(
        adopt,
        "_call",
        lambda *command: subprocess.CompletedProcess(command, 0, stdout=status, stderr=""),
    )
    assert cli.main(["adopt"]) == 2
    assert "`dvc status` is not clean, so nothing was adopted: train" in capsys.readouterr().err


@pytest.mark.slow
def test_dvc_status_is_read_as_dvc_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="`dvc status` failed"):
        adopt.dvc_changes()
    stages = {"stages": {"train": {"cmd": "echo 1 > out", "params": ["seed"], "outs": ["out"]}}}
    Path("dvc.yaml").write_text(yaml.safe_dump(stages))
    Path("params.yaml").write_text("seed: 1\n")
    for command in (
        ["init", "--no-scm", "--quiet"],
        ["config", "core.analytics", "false"],
        ["repro", "--quiet"],
    ):
        done = adopt._call("dvc", *command)
        assert done.returncode == 0, done.stderr
    assert adopt.dvc_changes() == []
    Path("params.yaml").write_text("seed: 2\n")
    assert adopt.dvc_changes() == ["train"]
