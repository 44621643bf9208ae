"""The files for clusters, as far as they can be checked without one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake_executor_plugin_slurm import ExecutorSettings
from snakemake_executor_plugin_slurm.partitions import get_best_partition, read_partition_file
from snakemake_executor_plugin_slurm.validation import validate_slurm_extra


@pytest.fixture
def profile(root):
    return yaml.safe_load((root / "slurm/profile.yaml").read_text())


@pytest.mark.parametrize("name", ["profile.yaml", "scratch.yaml"])
def test_every_line_of_a_profile_has_its_reason(root, name):
    text = (root / "slurm" / name).read_text()
    lines, settings = text.splitlines(), yaml.safe_load(text)
    keys = [at for at, line in enumerate(lines) if re.match(r"\s*[a-z_-]+:", line)]
    assert len(keys) == len(settings) + len(settings.get("default-resources", {})) > 0
    assert [lines[at] for at in keys if not lines[at - 1].lstrip().startswith("#")] == []


def test_settings_of_the_plugin_are_ones_it_has(profile):
    known = {f"slurm-{name.replace('_', '-')}" for name in ExecutorSettings.__dataclass_fields__}
    named = {key for key in profile if key.startswith("slurm-")}
    assert named
    assert named <= known
    validate_slurm_extra(
        SimpleNamespace(
            resources=SimpleNamespace(
                slurm_extra=profile["default-resources"]["slurm_extra"].strip("'")
            )
        )
    )


def test_the_preset_for_accounting_differs_in_two_lines(root, profile):
    other = yaml.safe_load((root / "slurm/sacct.yaml").read_text())
    assert (
        other
        | {
            key: profile[key]
            for key in ("slurm-status-command", "slurm-init-seconds-before-status-checks")
        }
        == profile
    )
    assert other["slurm-status-command"] == "sacct"


def test_the_default_profile_hides_nothing_of_it(root, profile):
    default = yaml.safe_load((root / "profiles/default/profile.yaml").read_text())
    assert {key: value for key, value in default.items() if profile.get(key) != value} == {}


def test_failed_jobs_are_tried_again_by_the_profile_alone(root, profile):
    """``retries`` of a rule would count again inside of each job."""
    assert profile["retries"] == 2
    for path in [*(root / "workflow").rglob("*.smk"), root / "workflow/Snakefile"]:
        assert not re.search(r"^\s*retries:", path.read_text(), re.MULTILINE), path


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"mem_mb": 2000, "runtime": 30}, "cpu"),
        ({"mem_mb": 8000, "runtime": 600, "gpu": 1}, "gpu"),
        ({"mem_mb": 8000, "runtime": 3000, "gpu": 1}, "gpu_long"),
        ({"mem_mb": 8000, "runtime": 3000, "gpu": 16}, None),
    ],
)
def test_the_partition_file_sends_jobs_where_they_fit(root, asked, expected):
    said = []
    logger = SimpleNamespace(debug=said.append, info=said.append, warning=said.append)
    job = SimpleNamespace(name="fit", threads=2, resources=asked)
    assert (
        get_best_partition(read_partition_file(root / "slurm/partitions.yaml"), job, logger)
        == expected
    )


@pytest.mark.slow
@pytest.mark.parametrize("profile", ["slurm", "slurm/sacct.yaml"])
def test_the_command_plans_from_a_clone(root, profile, tmp_path):
    for name in ("Snakefile", "workflow", "slurm", "profiles", "notebooks", "params.yaml"):
        (shutil.copytree if (root / name).is_dir() else shutil.copy)(root / name, tmp_path / name)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    }
    command = ["snakemake", "--profile", profile, "--dry-run", "all"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^fit +\d+$", done.stdout, re.MULTILINE)
    assert "slurm_extra=--signal=USR1@120" in done.stdout
