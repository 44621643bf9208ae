"""How a study is cut into jobs: what the DAG becomes, and that no cut changes, or makes again, what
is finished."""

import shutil
from dataclasses import replace

import pytest

from afterimage import artifacts, config
from afterimage.plan.cost import estimate

pytestmark = pytest.mark.slow


def cut(workspace, parts: int = 3, generations: int | None = 16, **more) -> None:
    """Cut every training into ``parts``, and sampling into jobs of 16 of its 40 images, in batches
    of 8."""
    workspace.edit("sample", "batch_size", value=8)
    study = config.load(workspace.params)
    minutes = study.cluster.headroom * estimate.training_minutes(study, "baseline") / (parts - 0.5)
    workspace.edit(
        "cluster", value={"max_minutes_per_job": minutes, "generations_per_job": generations} | more
    )


def planned(workspace) -> dict[str, int]:
    return workspace.planned(target="sample")


def shell_commands(workspace, *arguments: str) -> list[str]:
    out = workspace.snakemake("--dry-run", "--printshellcmds", *arguments, "--", "sample").stdout
    commands = [
        " ".join(line.split()[2:])
        for line in out.splitlines()
        if line.startswith("Shell command: afterimage ")
    ]
    assert commands
    for step in (step for command in commands for step in command.split(" --then ")):
        flags = [word for word in step.split() if word.startswith("--")]
        assert len(flags) == len(set(flags)), step
    return commands


@pytest.fixture(scope="module")
def done(finished, tmp_path_factory):
    """The tiny study, cut, run until its generations are drawn and attacked. Read only: take ``copy`` to change
    something."""
    folder = tmp_path_factory.mktemp("cut") / "study"
    shutil.copytree(finished.folder, folder, ignore=shutil.ignore_patterns("results", ".snakemake"))
    made = replace(finished, folder=folder)
    cut(made)
    made.snakemake("--", "data", "sample")
    return made


@pytest.fixture
def copy(done, tmp_path):
    """A copy of it with its times kept."""
    return done.copy(tmp_path / "study")


def test_a_study_that_says_nothing_is_not_cut(empty):
    assert planned(empty) == {
        **{"fetch": 1, "split": 1, "planting": 1, "classifier": 1, "dedup": 1},
        **{"fit": 2, "draw_and_attack": 2},
    }
    commands = shell_commands(empty)
    assert not [
        command
        for command in commands
        if "--part" in command or "--processes" in command or "--block" in command
    ]


def test_a_cut_study_has_parts_and_blocks(empty):
    whole = planned(empty)
    cut(empty)
    assert planned(empty) == whole | {"slice": 4, "draw_block": 6}
    commands = shell_commands(empty)
    for part in ("1/3", "2/3", "3/3"):
        assert sum(f"--part {part} " in command for command in commands) == 2
    for block in ("0:16", "16:32", "32:40"):
        assert sum(f"--block {block} " in command for command in commands) == 2
    assert sum(command.count("rep0/0-16 ") for command in commands if "--blocks" in command) == 2


def test_parts_come_one_after_the_other(empty):
    cut(empty)
    assert empty.planned(target="results/tiny/state/baseline/rep0/1of3") == {
        "fetch": 1,
        "split": 1,
        "planting": 1,
        "slice": 1,
    }
    assert empty.planned(target="results/tiny/state/baseline/rep0/2of3") == {
        "fetch": 1,
        "split": 1,
        "planting": 1,
        "slice": 2,
    }


def test_a_limit_longer_than_the_training_cuts_nothing(empty):
    cut(empty, parts=1, generations=40)
    assert {"slice", "draw_block"}.isdisjoint(planned(empty))


def test_processes_are_started_where_the_method_can_share(empty):
    empty.edit("arms", "private", value={"method": "dp_sgd", "noise_multiplier": 1.0})
    empty.edit("arms", "shards", value={"method": "iet_agc", "shards": 2, "rounds": 3})
    empty.edit("cluster", value={"gpus_per_training": 4})
    trainings = [
        command for command in shell_commands(empty) if command.startswith("afterimage train run")
    ]
    assert len(trainings) == 4
    for arm, flag in {
        "baseline": "--processes 4",
        "dedup": "--processes 4",
        "shards": "--processes 2",
    }.items():
        assert [flag in command for command in trainings if f"train/{arm}/" in command] == [True], (
            arm
        )
    assert ["--processes" in command for command in trainings if "train/private/" in command] == [
        False
    ]


def test_a_cut_study_gives_the_same_files_and_leaves_nothing_behind(done, finished):
    """Trainings against the uncut study's; what is drawn against the same settings in one job, in a
    test of its own."""
    for arm in ("baseline", "dedup"):
        mine, its = (
            artifacts.check_store(where.results / "train" / arm / "rep0")
            for where in (done, finished)
        )
        assert mine["facts"]["parts"] == ["1of3", "2of3"]
        assert mine["config"] == its["config"]
        assert {
            name: mine["outputs"][name] for name in mine["outputs"] if name != "metrics.jsonl"
        } == {name: its["outputs"][name] for name in its["outputs"] if name != "metrics.jsonl"}
    assert not list(done.results.glob("state/*/*/*"))
    assert not list(done.results.glob("blocks/*/*/*"))
    assert done.run("afterimage", "verify", "sample").returncode == 0


def test_one_job_draws_the_bytes_of_all_blocks(copy):
    sample = copy.results / "sample" / "baseline" / "rep0"
    before = {name: (sample / name).read_bytes() for name in ("images.npz", "grid.png")}
    shutil.rmtree(sample)
    copy.edit("cluster", value={})
    assert planned(copy) == {"draw_and_attack": 1}
    copy.snakemake("--", "sample")
    assert {name: (sample / name).read_bytes() for name in before} == before
    assert copy.run("afterimage", "verify", "sample").returncode == 0


def test_what_is_finished_is_not_made_again_by_another_cut(copy):
    assert planned(copy) == {}
    for parts, generations in ((2, 8), (5, 24), (3, None)):
        cut(copy, parts, generations)
        assert planned(copy) == {}
    copy.edit("cluster", value={"gpus_per_training": 2, "device": "a100", "threads": 2})
    assert planned(copy) == {}


def test_what_must_be_made_again_is_cut_as_the_study_says_now(copy):
    copy.edit("arms", "dedup", "train", value={"learning_rate": 2e-3})
    assert planned(copy) == {"slice": 2, "fit": 1, "draw_block": 3, "draw_and_attack": 1}
    cut(copy, 2, 8)
    assert planned(copy) == {"slice": 1, "fit": 1, "draw_block": 5, "draw_and_attack": 1}
    copy.edit("cluster", value={})
    assert planned(copy) == {"fit": 1, "draw_and_attack": 1}


def test_no_block_is_drawn_for_a_change_of_an_attack(copy):
    sample = copy.results / "sample" / "baseline" / "rep0"
    before = {name: (sample / name).read_bytes() for name in ("images.npz", "grid.png")}
    copy.edit("quality", "neighbours", value=3)
    assert planned(copy) == {"draw_and_attack": 2}
    copy.snakemake("--", "sample")
    assert {name: (sample / name).read_bytes() for name in before} == before
    assert planned(copy) == {}
    cut(copy, 5, 24)
    assert planned(copy) == {}
    assert copy.run("afterimage", "verify", "attack").returncode == 0


@pytest.mark.parametrize("harm", ["everything", "one file"])
def test_a_deleted_training_is_made_in_parts_again(harm, copy):
    """Its states were removed when it was done: no mark may say that they are there."""
    train = copy.results / "train" / "dedup" / "rep0"
    if harm == "everything":
        shutil.rmtree(train)
    else:
        (train / "members.parquet").unlink()
    before = copy.planned(target="train")
    assert before == {"slice": 2, "fit": 1}
    copy.snakemake("--", "train")
    assert artifacts.check_store(train)["facts"]["resumed_at"] == [2, 4]


def test_dvc_and_adopt_know_nothing_of_parts(copy):
    """A clone that pulled results has none of Snakemake's records."""
    shutil.rmtree(copy.folder / ".snakemake")
    copy.snakemake("--touch", "--forceall", "--", "sample")
    assert planned(copy) == {}
    image = copy.results / "data" / "planting" / "0" / "train.npz"
    image.write_bytes(image.read_bytes())  # what `dvc checkout` does to its time
    assert planned(copy) == {}


# ---- slurm/scratch.yaml --------------------------------------------------------------------------

SCRATCH = ("--workflow-profile", "slurm/scratch.yaml")


@pytest.mark.skipif(
    shutil.which("rsync") is None, reason="Snakemake's storage plugin for file systems needs rsync"
)
def test_results_by_way_of_another_disk_are_the_same(empty, done, tmp_path):
    """Parts of trainings and blocks of generations included; another call without that disk finds
    nothing left to do."""
    cut(empty)
    disk = tmp_path / "disk"
    empty.snakemake(*SCRATCH, "--local-storage-prefix", str(disk), "--", "data", "sample")
    stores = [run.parent.relative_to(done.results) for run in done.results.rglob(artifacts.RUN)]
    assert {store.parts[0] for store in stores} == {"data", "train", "sample", "attack"}
    for store in stores:
        mine, its = (
            artifacts.check_store(where.results / store)["outputs"] for where in (empty, done)
        )
        assert mine.keys() == its.keys(), store
        assert {name for name in its if mine[name] != its[name]} <= {"metrics.jsonl"}, store
    assert {path.suffix for path in disk.rglob("*") if path.is_file()} <= {".log", ".tsv"}
    assert not list(empty.results.glob("state/*/*/*"))
    assert not list(empty.results.glob("blocks/*/*/*"))
    assert planned(empty) == {}


def test_a_disk_that_is_not_there_is_named(empty):
    said = empty.snakemake(
        *SCRATCH, "--local-storage-prefix", "$NOWHERE/disk", "--dry-run", "--", "data", check=False
    )
    assert said.returncode != 0
    assert (
        "the prefix for unfinished results is $NOWHERE/disk, with a variable that is not set on"
        in said.stderr + said.stdout
    )
