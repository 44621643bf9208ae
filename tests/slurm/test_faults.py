"""What can go wrong on a cluster. Each ends with complete results, those of an undisturbed run, and
with no more done than need be."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BOTH = ("baseline", "dedup")
ANYWHERE = pytest.mark.parametrize(
    "where", [[], ["--workflow-profile", "slurm/scratch.yaml"]], ids=["", "scratch"]
)
"""Unfinished results on the shared file system, and on the disk of the node."""


def running(study, cluster, *arms, seconds=120.0):
    """Wait until some trainings are at work; return arm -> SLURM job."""
    for arm in arms:
        cluster.wait_for(lambda arm=arm: study.progress(arm), f"the training of {arm}", seconds)
    return {arm: cluster.job_of(f"rule_fit_wildcards_slurm_{arm}_0", "RUNNING") for arm in arms}


def lost(study, arm, done):
    """Return how many updates were done twice: those between where the next job went on and
    ``done``, where the curves were.

    `pytest -rP` shows them, and the seconds that they took.
    """
    facts = study.facts(arm)
    updates = max(0, done - facts["resumed_at"][0])
    seconds = updates * facts["images_seen"] / facts["updates"] / facts["images_per_second"]
    print(
        f"{arm}: at {done} of {facts['updates']}, resumed at {facts['resumed_at']}; lost "
        f"{updates} updates, {seconds:.1f} s"
    )
    return updates


def only_signals_save(study):
    """Let a training save its state only where it is told to stop; the result is the same."""
    study.edit("train", "checkpoint_every", value=1_000_000)


# ---- jobs ----------------------------------------------------------------------------------------


def test_a_job_that_fails_once(cluster, untrained, same):
    tool = Path(sys.executable).parent / "afterimage"
    wrapped = untrained.folder / "bin" / "afterimage"
    wrapped.parent.mkdir()
    wrapped.write_text(
        "#!/bin/sh\n"
        'case "$*" in *"train run"*/baseline/*) [ -e failed ] || { touch failed; echo bad luck >&2; exit 1; };; esac\n'
        f'exec {tool} "$@"\n'
    )
    wrapped.chmod(0o755)
    untrained.slurm("--", "train")
    assert (untrained.folder / "failed").exists()
    assert untrained.trainings() == {"baseline": 2, "dedup": 1}
    same(untrained, "data", "train")


@ANYWHERE
def test_a_job_that_is_cancelled(cluster, untrained, same, stop, where):
    only_signals_save(untrained)
    process = untrained.begin(*where, "--", "train")
    stop(process)
    job = running(untrained, cluster, "baseline")["baseline"]
    done = untrained.progress("baseline")
    subprocess.run(["scancel", job], check=True)
    assert untrained.wait(process) == 0
    assert untrained.trainings() == {"baseline": 2, "dedup": 1}
    assert lost(untrained, "baseline", done) == 0, "SIGTERM reaches the training, which saves"
    assert untrained.facts("dedup")["resumed_at"] == []
    same(untrained, "data", "train")


LONG = 7_000
"""Updates that take longer than a minute, the shortest limit that SLURM knows."""


def lengthen(study):
    """Leave one training of more than a minute in a study."""
    study.edit("arms", value={"baseline": {"method": "baseline", "train": {"updates": LONG}}})
    only_signals_save(study)


@pytest.fixture(scope="module")
def long_local(local, tmp_path_factory):
    """The long training without a cluster."""
    made = local.untrained(tmp_path_factory.mktemp("long") / "clone")
    lengthen(made)
    made.run("snakemake", "--cores", "1", "--", "train")
    assert float(made.facts("baseline")["training_seconds"]) > 70, (
        "this machine is too fast for the test: raise LONG"
    )
    return made


@pytest.mark.parametrize("warning", ["profile", "none"])
def test_a_time_limit_in_the_middle_of_a_training(cluster, untrained, long_local, warning, stop):
    """With the warning that the profile asks for, and with the SIGTERM that SLURM sends at the
    limit anyway."""
    study = untrained
    lengthen(study)
    extra = [] if warning == "profile" else ["slurm_extra="]
    limit = ["--default-resources", "mem_mb=2000", *(extra or ["slurm_extra='--signal=USR1@20'"])]
    process = study.begin(
        "--set-resources", "fit:runtime=1", *limit, "--retries", "9", "--", "train"
    )
    stop(process)
    assert study.wait(process, 900) == 0
    facts = study.facts("baseline")
    assert facts["resumed_at"]
    assert facts["updates"] == LONG
    jobs = study.trainings()["baseline"] - study.in_vain("fit")
    assert jobs == len(facts["resumed_at"]) + 1, (
        "every job went on where the one before it had stopped"
    )
    for name in ("pipeline", "raw"):
        made, expected = (
            one.results / "train/baseline/rep0" / name / "unet" for one in (study, long_local)
        )
        weights = "diffusion_pytorch_model.safetensors"
        assert (made / weights).read_bytes() == (expected / weights).read_bytes()
    assert "0 problem(s)" in study.run("afterimage", "verify", "train").stdout


# ---- machines ------------------------------------------------------------------------------------


def test_a_node_that_goes_down(cluster, untrained, same, stop):
    # With all GPUs of a node for each training, the two are on different nodes.
    process = untrained.begin("--set-resources", f"fit:gpu={cluster.gpus}", "--", "train")
    stop(process)
    job = running(untrained, cluster, *BOTH)["baseline"]
    cluster.wait_for(lambda: untrained.saved("baseline"), "a saved state")
    done = untrained.progress("baseline")
    cluster.kill_node(cluster.jobs()[job][2])
    assert untrained.wait(process) == 0
    assert untrained.trainings() == {"baseline": 2, "dedup": 1}
    assert lost(untrained, "baseline", done) <= 200, (
        "no more than since the last state that it saved by itself"
    )
    assert untrained.facts("dedup")["resumed_at"] == []
    same(untrained, "data", "train")


def test_a_controller_that_is_restarted(cluster, untrained, same, stop):
    process = untrained.begin("--", "train")
    stop(process)
    running(untrained, cluster, *BOTH)
    cluster.stop_controller()
    cluster.wait_for(
        lambda: "SLURM does not answer; 2 job(s)" in (untrained.folder / "said").read_text(),
        "a look in vain",
        120,
    )
    cluster.start_controller()
    assert untrained.wait(process) == 0
    assert untrained.trainings() == {"baseline": 1, "dedup": 1}
    same(untrained, "data", "train")


@pytest.fixture
def small_disk(untrained):
    """Results on a file system of their own, with next to no room; the function makes room."""
    kept = untrained.folder / "kept"
    untrained.results.rename(kept)
    untrained.results.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", untrained.results],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    shutil.copytree(kept, untrained.results, dirs_exist_ok=True, copy_function=shutil.copy2)
    ballast = untrained.results / "ballast"
    room = shutil.disk_usage(untrained.results).free - 96 * 1024
    ballast.write_bytes(bytes(room))
    yield ballast.unlink
    subprocess.run(["umount", "--lazy", untrained.results], check=True)


def test_a_full_disk(cluster, untrained, small_disk, same):
    failed = untrained.slurm("--retries", "0", "--", "train", check=False)
    assert failed.returncode != 0
    assert not list(untrained.results.glob("train/*/rep0/run.json")), (
        "nothing half-written is taken for a result"
    )
    assert "No space left on device" in failed.stdout + failed.stderr
    small_disk()
    untrained.slurm("--", "train")
    assert untrained.trainings() == {"baseline": 2, "dedup": 2}
    same(untrained, "data", "train")


# ---- snakemake itself ----------------------------------------------------------------------------


def test_ctrl_c_and_again(cluster, untrained, same, stop):
    only_signals_save(untrained)
    process = untrained.begin("--", "train")
    stop(process)
    running(untrained, cluster, *BOTH)
    done = {arm: untrained.progress(arm) for arm in BOTH}
    os.kill(process.pid, signal.SIGINT)
    assert untrained.wait(process, 120) != 0
    cluster.wait_for(lambda: not cluster.jobs(), "the jobs to be cancelled")
    untrained.slurm("--", "train")
    assert untrained.trainings() == {"baseline": 2, "dedup": 2}
    assert [lost(untrained, arm, done[arm]) for arm in BOTH] == [0, 0], (
        "the trainings went on where they were"
    )
    same(untrained, "data", "train")


@ANYWHERE
def test_a_killed_snakemake_is_recovered_from(cluster, untrained, same, stop, where):
    only_signals_save(untrained)
    process = untrained.begin(*where, "--", "train")
    stop(process)
    jobs = running(untrained, cluster, *BOTH)
    process.kill()
    process.wait()
    assert set(jobs.values()) <= set(cluster.jobs("RUNNING")), "orphans"
    refused = untrained.slurm(*where, "--", "train", check=False)
    assert refused.returncode != 0
    assert "afterimage recover" in refused.stdout + refused.stderr

    shown = untrained.run("afterimage", "recover", "--dry-run").stdout
    assert "(fit of slurm_baseline_0, running)" in shown
    assert set(jobs.values()) <= set(cluster.jobs("RUNNING"))
    done = {arm: untrained.progress(arm) for arm in BOTH}
    said = untrained.run("afterimage", "recover").stdout
    assert f"2 job(s) ended; {untrained.folder} is unlocked" in said
    assert "to resume, type: snakemake --profile slurm" in said
    assert not cluster.jobs()

    untrained.slurm(*where, "--", "train")
    assert untrained.trainings() == {"baseline": 2, "dedup": 2}
    assert [lost(untrained, arm, done[arm]) for arm in BOTH] == [0, 0]
    same(untrained, "data", "train")


def test_two_calls_at_once(cluster, untrained, same, stop):
    process = untrained.begin("--", "train")
    stop(process)
    running(untrained, cluster, *BOTH)
    settings = untrained.settings()
    second = untrained.slurm("--", "train", check=False)
    assert second.returncode != 0
    assert "Directory cannot be locked" in second.stdout + second.stderr
    assert (
        "train"
        in untrained.run("snakemake", "--profile", "slurm", "--dry-run", "--", "train").stdout
    )
    untrained.run("snakemake", "--lint")

    study = untrained.params.read_text()
    untrained.edit("train", "updates", value=10)
    for command in (["--dry-run", "--", "train"], ["--", "train"]):
        other = untrained.slurm(*command, check=False)
        assert other.returncode != 0
        assert (
            "works with results/slurm/config. The study or the code has changed since"
            in other.stdout + other.stderr
        )
    assert untrained.settings() == settings
    untrained.params.write_text(study)

    assert untrained.wait(process) == 0
    assert untrained.trainings() == {"baseline": 1, "dedup": 1}
    same(untrained, "data", "train")


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", ["deleted", "truncated"])
def test_an_artifact_is(cluster, finished, same, harm):
    images = finished.results / "sample/dedup/rep0/images.npz"
    if harm == "deleted":
        images.unlink()
    else:
        images.write_bytes(images.read_bytes()[:1000])
        assert "truncated or changed" in finished.run("afterimage", "verify", check=False).stdout
        shutil.rmtree(images.parent)
    before = finished.submissions()
    finished.slurm("--", "sample", "attack")
    assert (finished.submissions() - before)["draw_and_attack", "slurm_dedup_0"] == 1
    assert not {rule for rule, _ in finished.submissions() - before} & {
        "fit",
        "split",
        "classifier",
        "dedup",
    }
    same(finished, "data", "train", "sample", "attack")


def test_a_preempted_job(cluster, untrained, same, stop):
    """A partition whose jobs are put back into the queue; the profile's line for it is
    ``slurm-requeue: true``."""
    profile = untrained.folder / "slurm" / "profile.yaml"
    profile.write_text(profile.read_text().replace("slurm-no-requeue: true", "slurm-requeue: true"))
    only_signals_save(untrained)
    process = untrained.begin("--set-resources", f"fit:gpu={cluster.gpus}", "--", "train")
    stop(process)
    job = running(untrained, cluster, *BOTH)["baseline"]
    node, done = cluster.jobs()[job][2], untrained.progress("baseline")
    urgent = [
        "sbatch",
        "--partition",
        "urgent",
        "--nodelist",
        node,
        "--exclusive",
        "--output",
        "/dev/null",
    ]
    subprocess.run([*urgent, "--wrap", "sleep 5"], check=True)
    with contextlib.suppress(AssertionError):
        cluster.wait_for(lambda: job not in cluster.jobs("RUNNING"), "the preemption", 40)
    assert untrained.wait(process) == 0
    assert untrained.trainings() == {"baseline": 1, "dedup": 1}, "SLURM starts the same job again"
    assert lost(untrained, "baseline", done) == 0
    same(untrained, "data", "train")
