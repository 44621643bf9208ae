"""What is done about what a killed snakemake left behind. The cluster is two scripts on the
path."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from afterimage import cli
from afterimage.engines import recover

LOG = """\
Assuming unrestricted shared filesystem usage.

SNAKEMAKE
=========
  Date: 2026-11-22 03:43:00
  Host: {host}
  User: root
  Command: /opt/venv/bin/{command}

Building DAG of jobs...
{run}Using shell: /usr/bin/bash
"""
RUN, OLD, OTHER = (
    "0b1c2d3e-0000-4000-8000-000000000001",
    "0b1c2d3e-0000-4000-8000-000000000002",
    "somebody-else",
)

SQUEUE = """\
#!/bin/sh
echo "squeue $*" >> "$FAKE_SLURM/calls"
[ -e "$FAKE_SLURM/down" ] && { echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1; }
for word; do names=$word; done
while IFS='|' read -r number name rest; do
    case ",$names," in *",$name,"*) echo "$number|$name|$rest";; esac
done < "$FAKE_SLURM/jobs"
"""
# A job is gone only when it was looked at again.
SCANCEL = """\
#!/bin/sh
echo "scancel $*" >> "$FAKE_SLURM/calls"
for number; do
    sed -i "/^$number|/s/RUNNING/COMPLETING/; /^$number|/s/PENDING/COMPLETING/" "$FAKE_SLURM/jobs"
done
(sleep 0.5; sed -i "/COMPLETING/d" "$FAKE_SLURM/jobs"; [ -e "$FAKE_SLURM/late" ] && mv "$FAKE_SLURM/late" "$FAKE_SLURM/jobs") &
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which snakemake was killed: locked, with something finished."""
    (tmp_path / ".snakemake/log").mkdir(parents=True)
    (tmp_path / ".snakemake/locks").mkdir()
    (tmp_path / ".snakemake/locks/0.output.lock").write_text(
        "results/tiny/train/baseline/rep0/run.json\n"
    )
    (tmp_path / "results/tiny/config").mkdir(parents=True)
    (tmp_path / "results/tiny/config/.lock").write_text("process 1 on here\n")
    (tmp_path / "results/tiny/done").write_text("done")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recover.socket, "gethostname", lambda: "here")
    return tmp_path


@pytest.fixture
def log(folder: Path) -> Callable[..., None]:
    """Writes the log of a call of snakemake, later than those before it."""

    def write(
        run: str | None = None, host: str = "here", command: str = "snakemake --profile slurm all"
    ) -> None:
        logs = folder / ".snakemake/log"
        said = f"SLURM run ID: {run}\n" if run else ""
        name = f"2026-11-22T0{len(list(logs.iterdir()))}0000.000000.snakemake.log"
        (logs / name).write_text(LOG.format(host=host, command=command, run=said))

    return write


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster with jobs of this folder's runs and of others."""
    fake = tmp_path / "fake"
    (fake / "bin").mkdir(parents=True)
    for name, text in {"squeue": SQUEUE, "scancel": SCANCEL}.items():
        (fake / "bin" / name).write_text(text)
        (fake / "bin" / name).chmod(0o755)
    (fake / "jobs").write_text(
        f"11|{RUN}|RUNNING|rule_fit_wildcards_tiny_baseline_0\n"
        f"12|{RUN}|PENDING|rule_dedup_wildcards_tiny\n"
        f"13|{OTHER}|RUNNING|rule_fit\n"
        f"9|{OLD}|RUNNING|rule_classifier_wildcards_tiny\n"
    )
    monkeypatch.setenv("FAKE_SLURM", str(fake))
    monkeypatch.setenv("PATH", str(fake / "bin"), prepend=os.pathsep)
    return fake


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No SLURM on this host."""
    monkeypatch.setattr(recover.shutil, "which", lambda name: None)


def locked(folder: Path) -> bool:
    return any((folder / ".snakemake/locks").iterdir())


def test_jobs_of_all_runs_from_here_are_ended_and_no_others(folder, log, slurm, capsys):
    log(OLD)
    log()
    log(RUN)
    assert cli.main(["recover"]) == 0
    assert (slurm / "jobs").read_text() == f"13|{OTHER}|RUNNING|rule_fit\n"
    assert "scancel 11 12 9" in (slurm / "calls").read_text().splitlines()
    assert not locked(folder)
    assert (folder / "results/tiny/done").read_text() == "done"
    out = capsys.readouterr().out
    assert "SLURM job 11 (fit of tiny_baseline_0, running)" in out
    assert "SLURM job 12 (dedup of tiny, pending)" in out
    assert (
        f"3 job(s) ended; {folder} is unlocked\nto resume, type: snakemake --profile slurm all\n"
        in out
    )


def test_a_job_that_was_just_being_submitted_is_ended_too(folder, log, slurm):
    log(RUN)
    (slurm / "late").write_text(f"14|{RUN}|PENDING|rule_fit_wildcards_tiny_dedup_0\n")
    assert cli.main(["recover"]) == 0
    assert (slurm / "jobs").read_text() == ""
    assert [call for call in (slurm / "calls").read_text().splitlines() if "scancel" in call] == [
        "scancel 11 12",
        "scancel 14",
    ]


def test_dry_run_changes_nothing(folder, log, slurm, capsys):
    log(RUN)
    before = (slurm / "jobs").read_text()
    assert cli.main(["recover", "--dry-run"]) == 0
    assert (slurm / "jobs").read_text() == before
    assert locked(folder)
    out = capsys.readouterr().out
    assert "SLURM job 11" in out
    assert "2 job(s) left behind; the folder is locked; nothing was done" in out


@pytest.mark.parametrize("cluster", ["slurm", "alone"])
def test_nothing_left_behind_is_no_error(folder, log, cluster, request, capsys):
    request.getfixturevalue(cluster)
    log()
    shutil.rmtree(folder / ".snakemake/locks")  # as snakemake does at its end
    assert cli.main(["recover"]) == 0
    assert "0 job(s) ended" in capsys.readouterr().out


def test_jobs_that_stay_keep_the_folder_locked(folder, log, slurm, monkeypatch, capsys):
    log(RUN)
    (slurm / "bin/scancel").write_text(
        "#!/bin/sh\necho 'scancel: error: Access/permission denied' >&2\nexit 1\n"
    )
    monkeypatch.setattr(recover, "PATIENCE", 0.0)
    assert cli.main(["recover"]) == 2
    said = capsys.readouterr()
    assert "permission denied" in said.out
    assert "still there after 0 s: SLURM job 11" in said.err
    assert locked(folder)


def test_a_controller_that_does_not_answer_keeps_the_folder_locked(folder, log, slurm, capsys):
    log(RUN)
    (slurm / "down").touch()
    assert cli.main(["recover"]) == 2
    assert "Unable to contact slurm controller" in capsys.readouterr().err
    assert locked(folder)


def test_a_host_without_squeue_cannot_recover_a_run_on_a_cluster(folder, log, alone, capsys):
    log(RUN)
    assert cli.main(["recover"]) == 2
    assert "there is no squeue on this host" in capsys.readouterr().err
    assert locked(folder)


def test_a_run_from_another_host_needs_force(folder, log, slurm, capsys):
    log(RUN, host="login2")
    assert cli.main(["recover"]) == 2
    assert "last started on login2" in capsys.readouterr().err
    assert locked(folder)
    assert not (slurm / "calls").exists()
    assert cli.main(["recover", "--force"]) == 0
    assert not locked(folder)


def test_a_folder_without_snakemake_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["recover"]) == 2
    assert "has no .snakemake: snakemake never worked there" in capsys.readouterr().err


# ---- processes on this host ----------------------------------------------------------------------

STEP = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (open("saved", "w").write("state"), sys.exit(75)))
open("started", "w").close()
time.sleep(60)
"""


@pytest.fixture
def process(folder: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """Starts a script of a given name in the folder."""
    started = []

    def start(name: str, *arguments: str, **environment: str) -> subprocess.Popen:
        script = folder / name
        script.write_text(STEP)
        (folder / "started").unlink(missing_ok=True)
        child = subprocess.Popen(
            [sys.executable, str(script), *arguments], cwd=folder, env=os.environ | environment
        )
        started.append(child)
        while not (folder / "started").exists():
            time.sleep(0.01)
        return child

    yield start
    for child in started:
        child.kill()
        child.wait()


def test_a_step_that_goes_on_without_snakemake_is_ended_and_saves(
    folder, log, alone, process, capsys
):
    log(command="snakemake -c2 all")
    orphan = process(
        "afterimage", "train", "run", "--config", "results/tiny/config/train/baseline/rep0.json"
    )
    other = process("afterimage.other", "--config", "something")
    in_a_job = process("afterimage", "train", "run", "--config", "x.json", SLURM_JOB_ID="7")
    assert cli.main(["recover", "--dry-run"]) == 0
    assert f"process {orphan.pid} on this host" in capsys.readouterr().out
    assert orphan.poll() is None
    assert cli.main(["recover"]) == 0
    assert not psutil.pid_exists(orphan.pid)
    assert (folder / "saved").read_text() == "state"
    assert other.poll() is None
    assert in_a_job.poll() is None
    assert not locked(folder)
    assert "to resume, type: snakemake -c2 all" in capsys.readouterr().out


def test_a_living_snakemake_is_left_alone(folder, log, slurm, process, capsys):
    log(RUN)
    alive = process("snakemake", "--profile", "slurm", "all")
    assert cli.main(["recover", "--force"]) == 2
    assert f"snakemake is at work in {folder}: process {alive.pid}" in capsys.readouterr().err
    assert alive.poll() is None
    assert locked(folder)
    assert len((slurm / "jobs").read_text().splitlines()) == 4
    alive.send_signal(signal.SIGKILL)
    alive.wait()
    assert not psutil.pid_exists(alive.pid)
    assert cli.main(["recover"]) == 0


def test_the_snakemake_inside_of_a_job_is_no_reason_to_refuse(folder, log, slurm, process):
    log(RUN)
    process("snakemake", "--mode", "remote", SLURM_JOB_ID="11")
    assert cli.main(["recover"]) == 0
