"""Where everything of a study lies, and which code makes it: the one list of jobs that the workflow and ``verify`` share.

``results/<study>/<job>`` is the folder of a job; ``results/<study>/config/<job>.json`` its resolved config and
``results/<study>/config/<job>.code`` the fingerprint of its code. The workflow writes both before it plans, and every rule takes
them as inputs: what changes there, and only that, reruns a job.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from afterimage import config, provenance
from afterimage.artifacts import write_atomically
from afterimage.cli import COMMANDS

PHASES = ("data", "train", "sample", "attack", "attribution", "report")
"""In the order in which they depend on each other; DVC has one stage for each."""


class Job(NamedTuple):
    """One folder of results.

    Attributes:
        folder: Relative to ``results/<study>``.
        step: Key of ``config.STEPS``.
        job: Which one of the step's jobs, where no arm and replicate address it.
    """

    phase: str
    folder: str
    step: str
    arm: str | None = None
    replicate: int | None = None
    job: str | None = None


def jobs(study: config.Study) -> list[Job]:
    """Return every job of a study, upstream first."""
    listed = [Job("data", step, step) for step in config.STEPS if step.startswith("data/")]
    cells = [(arm, replicate) for arm in study.arms for replicate in range(study.replicates)]
    for phase in ("train", "sample"):
        listed += [Job(phase, f"{phase}/{arm}/rep{k}", phase, arm, k) for arm, k in cells]
    for step in config.STEPS:
        if step.startswith("attack/"):
            name = step.removeprefix("attack/")
            judged = [(arm, k) for arm, k in cells if name != "forgetting" or study.forget_sets_of(arm)]
            listed += [Job("attack", f"attack/{arm}/rep{k}/{name}", step, arm, k) for arm, k in judged]
    if study.attribution is not None:
        listed.append(Job("attribution", "attribution/queries", "attribution/queries"))
        for step, names in study.attribution.jobs(study.data.split.train).items():
            listed += [Job("attribution", f"{step}/{name}", step, job=name) for name in names]
        if study.attribution.variants:
            listed.append(Job("attribution", "attribution/acceleration", "attribution/acceleration"))
    listed.append(Job("report", "report/tables", "report/tables"))
    return listed + [Job("report", f"report/pages/{page}", "report/page") for page in pages(study)]


def selection_jobs(study: config.Study) -> list[Job]:
    """Return the jobs of ``snakemake loyal_selection`` that the study itself does not have."""
    if study.loyal_selection is None:
        return []
    derived = [arm for arm in study.with_selection().arms if arm not in study.arms]
    cells = [(arm, replicate) for arm in derived for replicate in range(study.replicates)]
    listed = [Job(phase, f"{phase}/{arm}/rep{k}", phase, arm, k) for phase in ("train", "sample") for arm, k in cells]
    for name in ("extraction", "quality"):
        listed += [Job("attack", f"attack/{arm}/rep{k}/{name}", f"attack/{name}", arm, k) for arm, k in cells]
    listed += [Job("report", f"selection/swap/rep{k}", "report/swap", None, k) for k in range(study.replicates)]
    listed.append(Job("report", "selection/table", "report/selection"))
    return [*listed, Job("report", "selection/page", "report/page")]


def pages(study: config.Study) -> list[str]:
    """Return the notebooks that have something to show of a study; each gives the page of its name."""
    methods = {arm.method for arm in study.arms.values()}
    wanted = {
        "extraction": True,
        "comparison": True,
        "iet_agc": "iet_agc" in methods,
        "loyal": "loyal" in methods or any(study.rau_net_of(arm) for arm in study.arms),
        "erasediff": any(study.forget_sets_of(arm) for arm in study.arms),
        "attribution": study.attribution is not None,
    }
    return [page for page, shown in wanted.items() if shown]


def entries(study: config.Study, job: Job) -> tuple[str, ...]:
    """Return the modules whose code makes the result of ``job``."""
    if job.phase == "train":
        assert job.arm is not None
        return COMMANDS["train"]["run"][0], config.METHODS[study.arms[job.arm].method]
    if job.phase == "sample":
        return (COMMANDS["sample"]["draw"][0],)
    phase, verb = job.step.split("/")
    module = COMMANDS[phase][verb][0]
    if job.step in ("attribution/scores", "attribution/remedied"):  # attributors are found by name
        assert study.attribution is not None
        return module, *(config.ATTRIBUTORS[name] for name in study.attribution.scored_by(job.step, job.job or ""))
    return (module, "afterimage.report.notebook") if job.step == "report/page" else (module,)


def write_configs(study: config.Study, results: Path) -> None:
    """Write the resolved config and the code fingerprint of every job, and the whole study; touch only what changed."""
    root = Path(results) / study.study / "config"
    _write_changed(root / "study.json", study.model_dump_json(indent=2))  # arms in their order, which pages follow
    derived = study.with_selection()
    for job in jobs(study) + selection_jobs(study):
        asked = study if job.arm is None or job.arm in study.arms else derived
        resolved = config.resolve(asked, job.step, job.arm, job.replicate, job.job)
        _write_changed(root / f"{job.folder}.json", json.dumps(resolved, indent=2, sort_keys=True))
        _write_changed(root / f"{job.folder}.code", provenance.fingerprint(*entries(asked, job)))


def _write_changed(path: Path, text: str) -> None:
    content = f"{text}\n".encode()
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
