"""Two calls of snakemake at once: the second may look, and may not change what the jobs of the
first will read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from afterimage import config
from afterimage.engines import settings_lock


@pytest.fixture
def study(params: dict) -> Callable[..., config.Study]:
    def make(**changes: object) -> config.Study:
        arms = {"baseline": {"method": "baseline"}}
        return config.parse(params | {"loyal_selection": None, "arms": arms} | changes)

    return make


def settings(folder: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != settings_lock.LOCK
    }


def test_other_settings_are_refused_while_a_process_holds_the_study(tmp_path, study):
    hold = settings_lock.write_configs(study(), tmp_path, tmp_path / ".snakemake")
    assert (hold.lock is not None, hold.others) == (True, "")
    before = settings(tmp_path)
    same = settings_lock.write_configs(study(), tmp_path, tmp_path / ".snakemake")
    assert same.lock is None
    assert f"process {os.getpid()} on " in same.others
    with pytest.raises(
        settings_lock.ArtifactError,
        match=r"process \d+ on .* works with .*/default/config.*2 files.*afterimage recover",
    ):
        settings_lock.write_configs(study(sample={"images": 7}), tmp_path, tmp_path / ".snakemake")
    assert settings(tmp_path) == before
    hold.lock.close()
    assert settings_lock.holder(tmp_path / "default/config") is None
    assert (
        settings_lock.write_configs(
            study(sample={"images": 7}), tmp_path, tmp_path / ".snakemake"
        ).others
        == ""
    )
    assert settings(tmp_path) != before


def test_the_lock_goes_with_its_process(tmp_path, study):
    settings_lock.write_configs(study(), tmp_path, tmp_path / ".snakemake").lock.close()
    script = "import fcntl, sys, time; f = open(sys.argv[1]); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(60)"
    folder = tmp_path / "default/config"
    child = subprocess.Popen(
        [sys.executable, "-c", script, str(folder / settings_lock.LOCK)], stdout=subprocess.PIPE
    )
    child.stdout.readline()
    assert settings_lock.holder(folder) is not None
    child.kill()
    child.wait()
    child.stdout.close()
    assert settings_lock.holder(folder) is None


def test_the_lock_of_a_killed_snakemake_keeps_its_jobs_settings(tmp_path, study, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results, engine = Path("results"), Path(".snakemake")
    settings_lock.write_configs(study(), results, engine).lock.close()
    (engine / "locks").mkdir(parents=True)
    (engine / "locks/0.output.lock").write_text("results/other/run.json\n")
    assert settings_lock.write_configs(study(sample={"images": 7}), results, engine).others == ""
    (engine / "locks/1.output.lock").write_text("x\nresults/default/data/fetch/run.json\n")
    with pytest.raises(
        settings_lock.ArtifactError, match=r"\.snakemake/locks/1\.output\.lock says"
    ):
        settings_lock.write_configs(study(sample={"images": 8}), results, engine)
    assert (
        ".snakemake/locks/1.output.lock"
        in settings_lock.write_configs(study(sample={"images": 7}), results, engine).others
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_who_sends_outputs_from_another_disk_works_alone(tmp_path, study, first, second):
    """Snakemake's lock would let both make the same files."""
    hold = settings_lock.write_configs(study(), tmp_path, tmp_path / ".snakemake", scratch=first)
    if first or second:
        with pytest.raises(
            settings_lock.ArtifactError,
            match=r"With slurm/scratch\.yaml one call at a time .* `afterimage recover`",
        ):
            settings_lock.write_configs(study(), tmp_path, tmp_path / ".snakemake", scratch=second)
    else:
        settings_lock.write_configs(study(), tmp_path, tmp_path / ".snakemake", scratch=second)
    hold.lock.close()
    assert (
        settings_lock.write_configs(
            study(), tmp_path, tmp_path / ".snakemake", scratch=second
        ).others
        == ""
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("second", [False, True])
def test_the_lock_of_a_killed_snakemake_tells_how_it_worked(
    tmp_path, study, monkeypatch, first, second
):
    monkeypatch.chdir(tmp_path)
    results, engine = Path("results"), Path(".snakemake")
    settings_lock.write_configs(study(), results, engine, scratch=first).lock.close()
    (engine / "locks").mkdir(parents=True)
    disk = ".snakemake/storage/fs/" if first else ""
    (engine / "locks/0.output.lock").write_text(f"{disk}results/default/data/fetch/run.json\n")
    if first or second:
        with pytest.raises(
            settings_lock.ArtifactError,
            match=r"0\.output\.lock says .* With slurm/scratch\.yaml one call at a time",
        ):
            settings_lock.write_configs(study(), results, engine, scratch=second)
    else:
        assert (
            "0.output.lock says"
            in settings_lock.write_configs(study(), results, engine, scratch=second).others
        )
