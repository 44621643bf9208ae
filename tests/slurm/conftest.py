"""A real cluster, started once, and a small study that is run to the end without it: what the
cluster makes must equal that.

The tests of this folder that need the cluster are collected only by `make test-slurm`
(AFTERIMAGE_TEST_SLURM=1).
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUBMITTED = re.compile(
    r"has been submitted with SLURM jobid (\d+) \(log: \S*/rule_([^/]+)/(?:([^/]+)/)?\d+\.log\)"
)
UNLIKE = {"run.json", "metrics.jsonl"}
"""Files with times in them."""

if not os.environ.get("AFTERIMAGE_TEST_SLURM"):
    collect_ignore = ["test_study.py", "test_faults.py"]


def _module(path: Path):
    spec = importlib.util.spec_from_file_location(f"slurm_tests_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


clusters = _module(HERE / "cluster.py")
sys.path.append(str(HERE.parent / "workflow"))  # for what its conftest.py imports
workflow = _module(HERE.parent / "workflow" / "conftest.py")


class Study(workflow.Workspace):
    """A clone with a study, whose jobs go to the cluster."""

    QUICK = (
        "--slurm-init-seconds-before-status-checks",
        "2",
        "--latency-wait",
        "10",
        "--jobs",
        "4",
    )

    @property
    def environment(self):
        own = {"PATH": f"{self.folder / 'bin'}{os.pathsep}{super().environment['PATH']}"}
        return {
            name: value
            for name, value in (super().environment | own).items()
            if not name.startswith("SLURM_")
        }

    def slurm(self, *arguments, check=True):
        """Call snakemake with the profile and wait for it."""
        return self.run("snakemake", "--profile", "slurm", *self.QUICK, *arguments, check=check)

    def begin(self, *arguments):
        """Call snakemake with the profile and do not wait; its output is in the file ``said``."""
        command = ["snakemake", "--profile", "slurm", *self.QUICK, *arguments]
        with (self.folder / "said").open("w") as said:
            return subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
                # As from a terminal: a shell lets what it starts in the background ignore Ctrl-C.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            )

    @staticmethod
    def wait(process, seconds=420.0):
        """Return the exit status of a call of snakemake."""
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"snakemake has not ended after {seconds:.0f} s") from None

    def untrained(self, folder):
        """Return a copy of a finished study without what comes after its data phase."""
        shutil.copytree(self.folder, folder, copy_function=shutil.copy2)
        made = Study(folder)
        for name in ("train", "sample", "attack", "report", "track", "state"):
            shutil.rmtree(made.results / name, ignore_errors=True)
        shutil.rmtree(folder / ".snakemake" / "log")
        return made

    def submissions(self):
        """Return (rule, wildcards) -> number of SLURM jobs, over all calls of snakemake so far."""
        return Counter((rule, wildcards) for _, rule, wildcards in self.jobs())

    def jobs(self):
        """Return number, rule and wildcards of its SLURM jobs, over all calls of snakemake so
        far."""
        logs = (path.read_text() for path in (self.folder / ".snakemake/log").glob("*.log"))
        return [job for log in logs for job in SUBMITTED.findall(log)]

    def trainings(self):
        """Return arm -> number of SLURM jobs that trained it."""
        return {
            wildcards.split("_")[1]: count
            for (rule, wildcards), count in self.submissions().items()
            if rule == "fit"
        }

    def in_vain(self, rule):
        """Return the number of SLURM jobs of a rule whose work was lost, in a study with one
        training.

        SLURM may say TIMEOUT of a job that has finished a few seconds after its limit. Snakemake
        removes what such a job made, and the training, whose state is gone, starts over.
        """
        numbers = [number for number, name, _ in self.jobs() if name == rule]
        finished = [
            index
            for index, number in enumerate(numbers[:-1], 1)
            for log in (self.folder / ".snakemake" / "slurm_logs").rglob(f"{number}.log")
            if "1 of 1 steps (100%) done" in log.read_text()
        ]
        return max(finished, default=0)

    def facts(self, arm):
        return json.loads((self.results / "train" / arm / "rep0" / "run.json").read_text())["facts"]

    def saved(self, arm):
        """Return the newest saved state of an unfinished training, None if there is none."""
        return max(self.results.glob(f"state/{arm}/rep0/*/update-*"), default=None)

    def progress(self, arm):
        """Return the last line of an unfinished training's curves, None if there is none."""
        curves = next(self.results.glob(f"state/{arm}/rep0/*/metrics.jsonl"), None)
        lines = curves.read_text().splitlines() if curves else []
        return json.loads(lines[-1])["step"] if lines else None

    def settings(self):
        """Return what its jobs read, by name."""
        folder = self.results / "config"
        return {
            str(path): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and path.name != ".lock"
        }


@pytest.fixture(scope="session")
def cluster():
    """The cluster, or a skip with the reason."""
    folder = Path(tempfile.mkdtemp(prefix="afterimage-slurm-"))
    made = clusters.Cluster(folder)
    try:
        clusters.install()
        made.start()
    except clusters.NoClusterError as reason:
        shutil.rmtree(folder)
        pytest.skip(f"no SLURM here: {reason}")
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def _healthy(request):
    """Before each test: no job of another one, every node and the controller there."""
    if "cluster" in request.fixturenames:
        cluster = request.getfixturevalue("cluster")
        if cluster.pid("slurmctld") is None:
            cluster.start_controller()
        for number in cluster.jobs():
            subprocess.run(["scancel", number], check=False)
        for name in cluster.names:
            if cluster.pid(f"slurmd.{name}") is None:
                cluster.start_node(name)
        cluster.wait_for(lambda: cluster.idle() == cluster.nodes, "all nodes", 120)


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """The study, run to the end without a cluster by one job at a time. Read only."""
    folder = tmp_path_factory.mktemp("local")
    workflow.clone(folder)
    shutil.copy(HERE / "study.yaml", folder / "params.yaml")
    made = Study(folder)
    made.run("snakemake", "--cores", "1", "--", "all")
    return made


@pytest.fixture
def empty(tmp_path):
    """A clone without results."""
    folder = tmp_path / "clone"
    folder.mkdir()
    workflow.clone(folder)
    shutil.copy(HERE / "study.yaml", folder / "params.yaml")
    return Study(folder)


@pytest.fixture
def untrained(local, tmp_path):
    """A clone whose data phase is done: what is left to the cluster are the two trainings and what
    follows."""
    return local.untrained(tmp_path / "clone")


@pytest.fixture
def finished(local, tmp_path):
    """A copy of the finished study, free to harm."""
    folder = tmp_path / "clone"
    shutil.copytree(local.folder, folder, copy_function=shutil.copy2)
    shutil.rmtree(folder / ".snakemake" / "log")
    return Study(folder)


@pytest.fixture
def stop():
    """Ends what a test has begun, whatever becomes of the test."""
    begun = []
    yield begun.append
    for process in begun:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture
def same(local):
    """Checks that a study has the results of the local run, bit for bit, in some phases."""

    def check(study, *phases):
        for phase in phases:
            expected = contents(local.results / phase)
            assert expected
            assert contents(study.results / phase) == expected
        done = study.run("afterimage", "verify", phases[-1])
        assert "0 problem(s)" in done.stdout

    return check


def contents(folder):
    """Return name -> content of the files of some results that have no times in them, and the
    curves without theirs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in UNLIKE and not path.name.startswith("."):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.relative_to(folder).as_posix()] = [
                row for row in rows if "per_second" not in row["name"]
            ]
    return found
