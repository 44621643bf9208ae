"""The whole study on a cluster: the command of slurm/README.md, and the results of a run without a
cluster."""

import pandas as pd

PHASES = ("data", "train", "sample", "attack")
ONCE = {("classifier", "slurm"): 1, ("dedup", "slurm_0"): 1}
"""Rule and wildcards of jobs that serve every arm; deduplication has one for each planting."""
OF_AN_ARM = ("fit", "draw_and_attack")


def tables(study):
    """Return name -> table of a study's report, without the one number that is a time."""
    found = {}
    for path in (study.results / "report/tables").glob("*.csv"):
        table = pd.read_csv(path).drop(columns="training_seconds", errors="ignore")
        found[path.name] = (
            table[table["metric"] != "training_seconds"] if "metric" in table else table
        )
    return {name: table.to_csv(index=False) for name, table in found.items()}


def test_the_command_gives_the_results_of_a_local_run(cluster, empty, local, same):
    done = empty.run("snakemake", "--profile", "slurm", "all")
    same(empty, *PHASES)
    assert "arms.csv" in tables(local)
    assert tables(empty) == tables(local)
    assert "0 problem(s)" in empty.run("afterimage", "verify").stdout
    arms = {(rule, f"slurm_{arm}_0"): 1 for rule in OF_AN_ARM for arm in ("baseline", "dedup")}
    expected = ONCE | arms
    assert empty.submissions() == expected, "one SLURM job for each job that is no local rule"
    assert "Look at results/slurm/report/pages" in done.stdout + done.stderr
    assert not cluster.jobs()
    again = empty.run("snakemake", "--profile", "slurm", "all")
    assert "Nothing to be done" in again.stdout + again.stderr


def test_results_elsewhere(cluster, empty, tmp_path):
    """``--directory``: results and records on another file system than the clone."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    empty.slurm("--directory", str(elsewhere), "--configfile", "params.yaml", "--", "data")
    assert not (empty.folder / "results").exists()
    empty.results = elsewhere / "results" / "slurm"
    done = empty.run(
        "snakemake",
        "--profile",
        "slurm",
        "--directory",
        str(elsewhere),
        "--configfile",
        "params.yaml",
        "-n",
        "--",
        "data",
    )
    assert "Nothing to be done" in done.stdout + done.stderr
    for name in (
        "split/pool.npz",
        "planting/0/train.npz",
        "classifier/classifier.safetensors",
        "dedup/0/train.npz",
    ):
        assert (empty.results / "data" / name).is_file()


def test_unfinished_results_on_the_disk_of_the_node(
    cluster, empty, local, same, tmp_path, monkeypatch
):
    """``slurm/scratch.yaml``, Snakemake's storage plugin: a job writes on its node, and sends its
    result when it is complete."""
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    empty.slurm("--workflow-profile", "slurm/scratch.yaml", "--", "all")
    same(empty, *PHASES)
    assert tables(empty) == tables(local)
    assert "0 problem(s)" in empty.run("afterimage", "verify").stdout
    used = list(own.glob("afterimage-*"))
    assert {folder.name for folder in used} == {
        f"afterimage-{number}" for number, _, _ in empty.jobs()
    }
    left = [path for folder in used for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in left} <= {".log", ".tsv"}
    without = empty.run("snakemake", "--profile", "slurm", "-n", "--", "all")
    assert "Nothing to be done" in without.stdout + without.stderr
