"""The plugin for SLURM forgets jobs when nobody answers; with ``watch`` it does not. Its own code,
on commands that can be silenced."""

from __future__ import annotations

import asyncio
import inspect
import logging
import subprocess
import sys
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from throttler import Throttler

from afterimage.engines import patches

plugin = pytest.importorskip("snakemake_executor_plugin_slurm")

COMMAND = """#!/bin/sh
[ -e {folder}/away ] && {{ echo 'Unable to contact slurm controller' >&2; exit 1; }}
echo '{says}'
"""


@pytest.fixture
def controller(tmp_path, monkeypatch):
    """Commands of a cluster on which job 1 has ended and job 2 runs; the file ``away`` silences
    them."""
    for name, says in {
        "squeue": "1|COMPLETED\n2|RUNNING",
        "scontrol": "MinJobAge = 300 sec",
        "sacct": "",
    }.items():
        (tmp_path / name).write_text(COMMAND.format(folder=tmp_path, says=says))
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.fixture
def executor():
    """The plugin's executor without a workflow; ``done`` are the jobs that it reported."""
    made = object.__new__(plugin.Executor)
    settings = SimpleNamespace(
        status_command="squeue",
        init_seconds_before_status_checks=2,
        status_attempts=2,
        keep_successful_logs=True,
    )
    made.workflow = SimpleNamespace(executor_settings=settings)
    made.logger, made.run_uuid = logging.getLogger("test"), "run"
    made.status_rate_limiter = Throttler(rate_limit=1000)
    made.next_seconds_between_status_checks = 2
    made._status_query_calls = made._status_query_failures = 0
    made._status_query_total_seconds = made._status_query_max_seconds = 0.0
    made._status_query_min_seconds = None
    made._status_query_cycle_rows = []
    made.done = []
    made.report_job_success = lambda job: made.done.append(job.external_jobid)
    return made


JOBS = [SimpleNamespace(external_jobid=number, aux={}) for number in ("1", "2")]


def look(executor, jobs=JOBS):
    async def still_there():
        return [job.external_jobid async for job in executor.check_active_jobs(jobs)]

    return asyncio.run(still_there())


def test_jobs_are_kept_while_nobody_answers_and_reported_once_then(controller, executor):
    (controller / "away").touch()
    assert look(executor) == [], (
        "the plugin remembers them by itself now: patches.py is not needed any more"
    )
    patches.keep_unanswered(executor)
    assert look(executor) == ["1", "2"]
    assert look(executor, []) == []
    (controller / "away").unlink()
    assert look(executor) == ["2"]
    assert executor.done == ["1"]


@pytest.fixture
def workflow():
    """A run whose executor is not that of SLURM."""
    executor = SimpleNamespace(check_active_jobs=lambda jobs: iter(jobs))
    return SimpleNamespace(scheduler=SimpleNamespace(_executor=executor, job_rate_limiter="limit"))


def test_other_executors_are_left_alone(workflow):
    kept = workflow.scheduler._executor.check_active_jobs
    patches.apply(workflow)
    assert workflow.scheduler._executor.check_active_jobs is kept
    assert workflow.scheduler.job_rate_limiter is None


@pytest.mark.parametrize("name", ["SNAKEMAKE", "SLURM_PLUGIN"])
def test_another_version_of_what_is_patched_stops_the_run(name, workflow, executor, monkeypatch):
    workflow.scheduler._executor = executor
    monkeypatch.setattr(patches, name, "0.1")
    with pytest.raises(patches.UnknownVersionError, match=r"is installed, but .* patches 0\.1"):
        patches.apply(workflow)


def test_the_scheduler_still_has_the_limit_that_is_taken_away():
    """Without it ``drop_rate_limiter`` would set an unused name."""
    from snakemake.scheduling import job_scheduler

    assert "self.job_rate_limiter" in inspect.getsource(job_scheduler)


def deferred(code: str) -> list[str]:
    """Return what ``code`` prints after imports were deferred."""
    before = "import sys\nfrom afterimage.engines.patches import defer_imports\ndefer_imports()\n"
    done = subprocess.run(
        [sys.executable, "-c", before + code], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_compiler_stays_away_until_something_is_compiled():
    code = """
import torch
from torch._dynamo import allow_in_graph, disable
@torch.compiler.disable
def double(x):
    return 2 * x
@torch.compiler.disable(recursive=False)
def half(x):
    return x / 2
print(allow_in_graph(double) is double, double(2), half(2), "sympy" in sys.modules)
print(torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item())
print("sympy" in sys.modules, type(sys.modules["torch._dynamo"]) is type(sys))
compiled = torch.compile(torch.nn.Identity(), backend="eager")
from diffusers.utils.torch_utils import is_compiled_module
print(is_compiled_module(compiled), is_compiled_module(torch.nn.Identity()))
"""
    assert deferred(code) == ["True", "4", "1.0", "False", "2.0", "True", "True", "True", "False"]


@pytest.mark.parametrize(
    "statement",
    [
        "import torch._dynamo.config as it",
        "from torch._dynamo import config as it",
        "import torch._dynamo; it = torch._dynamo.config",
    ],
)
def test_submodules_come_from_the_module_itself(statement):
    code = f"""
import torch
{statement}
print(it is sys.modules["torch._dynamo.config"], it is torch._dynamo.config)
print(it is vars(sys.modules["torch._dynamo"])["config"])
"""
    assert deferred(code) == ["True"] * 3


@pytest.mark.parametrize(
    "statement",
    [
        "from scipy.stats import rankdata",
        "import scipy.stats; rankdata = scipy.stats.rankdata",
        "from scipy import stats; rankdata = stats.rankdata",
        "from scipy.stats._stats_py import rankdata",
    ],
)
def test_scipy_is_itself_when_it_is_used(statement):
    assert deferred(f"{statement}\nprint(*rankdata([3, 1, 2]))") == ["3.0", "1.0", "2.0"]


@pytest.mark.parametrize(
    "statement",
    [
        "from requests.exceptions import HTTPError",
        "import requests.exceptions; HTTPError = requests.exceptions.HTTPError",
        "from requests import HTTPError",
        "import requests; HTTPError = requests.HTTPError",
    ],
)
def test_a_submodule_that_is_imported_first_is_that_of_its_package(statement):
    """Loaded a second time, it would have classes of its own, and ``except`` would miss errors."""
    code = f"""
{statement}
import requests
print(requests.HTTPError is HTTPError, requests.exceptions.HTTPError is HTTPError)
print(requests.exceptions is sys.modules["requests.exceptions"], type(requests) is type(sys))
print(requests.exceptions.__spec__.origin == requests.exceptions.__file__)
print([finder for finder in sys.meta_path if type(finder).__name__ == "_Loaded"])
"""
    assert deferred(code) == ["True"] * 5 + ["[]"]


def test_networks_need_no_package_of_the_web():
    code = """
import diffusers.models.unets.unet_2d
print("urllib3" in sys.modules)
from diffusers.utils import loading_utils
print(loading_utils.requests.get.__module__, "urllib3" in sys.modules)
"""
    assert deferred(code) == ["False", "requests.api", "True"]


def test_notebooks_are_checked_without_grammars_of_addresses():
    code = """
import nbformat
nbformat.validate(nbformat.v4.new_notebook())
print("jsonschema" in sys.modules, "lark" in sys.modules)
"""
    assert deferred(code) == ["True", "False"]


def test_the_compiler_finds_the_kernels_of_the_meta_device():
    """They were put off too, and torch's tracers know shapes by them alone."""
    code = """
import torch
def there():
    return hasattr(torch._meta_registrations, "meta__linalg_eigh")
print(there(), torch.Generator().manual_seed(1).initial_seed(), there())
smallest = torch.compile(lambda x: torch.linalg.eigh(x)[0][0], backend="aot_eager")
print(smallest(torch.eye(3)).item(), there())
"""
    assert deferred(code) == ["False", "1", "False", "1.0", "True"]


def test_networks_are_counted_where_the_kernels_were_put_off(monkeypatch, tmp_path):
    """As in commands that plan: counting runs a network on the meta device."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = """
from afterimage.config import Model
from afterimage.plan.cost import network
model = Model(channels=[8, 8], attention=[False, True], norm_groups=8)
print(network.unet(model, 8, 8, 1).flop > 0, network.unet(model, 8, 8, 1, None, (4, 8)).flop > 0)
"""
    assert deferred(code) == ["True", "True"]


def test_distributions_are_looked_up_when_they_are_asked_for():
    code = """
import importlib.metadata
from afterimage.engines import patches
asked = []
real = patches.packages_distributions
patches.packages_distributions = lambda: asked.append(1) or real()
import diffusers.models.unets.unet_2d
print(len(asked))
found = importlib.metadata.packages_distributions()
print(found["yaml"], "no such package" in found, dict(found) == real(), len(asked))
"""
    assert deferred(code) == ["0", "['PyYAML']", "False", "True", "1"]


def test_networks_are_imported_without_the_others_until_they_are_asked_for():
    code = """
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
package = "diffusers.models.transformers"
print(sorted(name.removeprefix(package) for name in sys.modules if name.startswith(package)))
from diffusers.models.transformers import FluxTransformer2DModel
from diffusers.models.transformers.dual_transformer_2d import DualTransformer2DModel
real = sys.modules[package]
print(real.__file__.endswith("transformers/__init__.py"), FluxTransformer2DModel.__name__)
print(real.DualTransformer2DModel is DualTransformer2DModel)
"""
    found = deferred(code)
    assert "flux" not in "".join(found[:-3])
    assert found[-3:] == ["True", "FluxTransformer2DModel", "True"]


def test_what_is_there_already_stays():
    code = """
import scipy.stats
kept = sys.modules["scipy.stats"]
print(type(kept).__name__)
defer_imports()
print(sys.modules["scipy.stats"] is kept)
"""
    assert deferred(code)[1] == "True"


def test_the_versions_are_those_that_were_looked_at():
    """Look again at what they import, and at what ``defer_imports`` says of it, when a pin
    moves."""
    assert version("diffusers") == "0.42.1"
    assert version("torch").partition("+")[0] == "2.13.0"


def test_the_deferred_imports_are_those_of_the_installed_versions():
    """With others nothing is deferred, and every step takes twice as long to start."""
    for name, known in patches.DEFERRED_OF.items():
        assert version(name).partition("+")[0] == known
