"""Where everything of a study lies, and which code makes it: the one list of jobs that the workflow and ``verify`` share.

``results/<study>/<job>`` is the folder of a job; ``results/<study>/config/<job>.json`` its resolved config and
``results/<study>/config/<job>.code`` the fingerprint of its code. The workflow writes both before it plans, and every rule takes
them as inputs: what changes there, and only that, reruns a job. ``results/<study>/config/parts.json`` says which jobs are cut.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from afterimage import artifacts, config, provenance
from afterimage.cli import COMMANDS
from afterimage.plan.cost import estimate
from afterimage.provenance import digest

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
            judged = [
                (arm, k) for arm, k in cells if name != "forgetting" or study.forget_sets_of(arm)
            ]
            listed += [
                Job("attack", f"attack/{arm}/rep{k}/{name}", step, arm, k) for arm, k in judged
            ]
    if study.attribution is not None:
        listed.append(Job("attribution", "attribution/queries", "attribution/queries"))
        for step, names in study.attribution.jobs(study.data.split.train).items():
            listed += [Job("attribution", f"{step}/{name}", step, job=name) for name in names]
        if study.attribution.variants:
            listed.append(
                Job("attribution", "attribution/acceleration", "attribution/acceleration")
            )
    listed.append(Job("report", "report/tables", "report/tables"))
    return listed + [Job("report", f"report/pages/{page}", "report/page") for page in pages(study)]


def selection_jobs(study: config.Study) -> list[Job]:
    """Return the jobs of ``snakemake loyal_selection`` that the study itself does not have."""
    if study.loyal_selection is None:
        return []
    derived = [arm for arm in study.with_selection().arms if arm not in study.arms]
    cells = [(arm, replicate) for arm in derived for replicate in range(study.replicates)]
    listed = [
        Job(phase, f"{phase}/{arm}/rep{k}", phase, arm, k)
        for phase in ("train", "sample")
        for arm, k in cells
    ]
    for name in ("extraction", "quality"):
        listed += [
            Job("attack", f"attack/{arm}/rep{k}/{name}", f"attack/{name}", arm, k)
            for arm, k in cells
        ]
    listed += [
        Job("report", f"selection/swap/rep{k}", "report/swap", None, k)
        for k in range(study.replicates)
    ]
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
        return module, *(
            config.ATTRIBUTORS[name]
            for name in study.attribution.scored_by(job.step, job.job or "")
        )
    if job.step == "report/page":
        page = "loyal_selection" if job.folder == "selection/page" else Path(job.folder).name
        return module, f"afterimage.report.pages.{page}"
    return (module,)


def parts(study: config.Study, job: Job) -> list[str]:
    """Return the jobs that do a part of ``job`` before it finishes, by the study's ``cluster``; most jobs have none.

    Parts of a training are named by their place, ``1of3`` and ``2of3``, those of a sampling by their images, ``0-256``.
    """
    cluster = study.cluster
    if job.step == "train" and cluster.max_minutes_per_job is not None:
        assert job.arm is not None
        minutes = cluster.headroom * estimate.training_minutes(study, job.arm)
        count = math.ceil(minutes / cluster.max_minutes_per_job)
        return [f"{k}of{count}" for k in range(1, count)]
    if job.step == "sample" and cluster.generations_per_job is not None:
        images, each = study.sample.images, cluster.generations_per_job
        return (
            [f"{first}-{min(first + each, images)}" for first in range(0, images, each)]
            if each < images
            else []
        )
    return []


def parts_of_jobs(
    study: config.Study, root: Path, settings: Mapping[str, tuple[str, str]]
) -> dict[str, list[str]]:
    """Return folder -> parts of every training and sampling.

    A result that stands keeps the parts that it was made in: others would be other inputs, and Snakemake would make it again. It
    stands if it was made under the settings of now, by the code of now, and from results that stand.

    Args:
        study: With the arms of its selection.
        root: ``results/<study>``.
        settings: Folder of every job -> hashes of its resolved config and of its code.
    """
    here = root.resolve()

    @cache
    def standing(folder: str) -> dict[str, Any] | None:
        try:
            run = artifacts.read_run(root / folder)
        except artifacts.ArtifactError:
            return None
        if (run["config_sha256"], run["code_sha256"]) != settings[folder]:
            return None
        for recorded in run["inputs"].values():
            path = Path(recorded["path"]).resolve()
            if path.is_relative_to(here):  # what lies elsewhere is the user's
                store = store_of(path)
                source = "" if store is None else store.relative_to(here).as_posix()
                if (
                    source not in settings
                    or standing(source) is None
                    or listed_sha256(path) != recorded["sha256"]
                ):
                    return None
        return run

    found = {}
    for job in jobs(study):
        if job.step in ("train", "sample"):
            run = standing(job.folder)
            found[job.folder] = parts(study, job) if run is None else run["facts"]["parts"]
    return found


def store_of(path: Path) -> Path | None:
    """Return the store that a file or folder lies in, None outside of stores."""
    return next(
        (folder for folder in (path, *path.parents) if (folder / artifacts.RUN).is_file()), None
    )


def listed_sha256(path: Path) -> str | None:
    """Return the hash of a file or folder according to the store that it lies in, None outside of stores."""
    store = store_of(path)
    if store is None:
        return None
    if path.name == artifacts.RUN:
        return artifacts.sha256(path)
    outputs = artifacts.read_run(store)["outputs"]
    name = path.relative_to(store).as_posix()
    if path.is_file():
        return outputs.get(name, "unlisted")
    prefix = "" if path == store else f"{name}/"
    inside = {
        Path(file.removeprefix(prefix)): sha256
        for file, sha256 in outputs.items()
        if file.startswith(prefix)
    }
    return artifacts.folder_sha256(inside)


def write_configs(study: config.Study, results: Path) -> None:
    """Write the resolved config and the code fingerprint of every job, and the whole study; touch only what changed."""
    write(changed_configs(study, results))


def changed_configs(study: config.Study, results: Path) -> dict[Path, bytes]:
    """Return the files that ``write_configs`` would write, with their new content."""
    root = Path(results) / study.study / "config"
    # Arms in their order, which pages follow; how the work is cut is no part of what was asked.
    texts = {root / "study.json": study.model_dump_json(indent=2, exclude={"cluster"})}
    settings: dict[str, tuple[str, str]] = {}
    derived = study.with_selection()
    for job in jobs(study) + selection_jobs(study):
        asked = study if job.arm is None or job.arm in study.arms else derived
        resolved = config.resolve(asked, job.step, job.arm, job.replicate, job.job)
        texts[root / f"{job.folder}.json"] = json.dumps(resolved, indent=2, sort_keys=True)
        code = texts[root / f"{job.folder}.code"] = provenance.fingerprint(*entries(asked, job))
        settings[job.folder] = digest(resolved), code
    texts[root / "parts.json"] = json.dumps(parts_of_jobs(derived, root.parent, settings), indent=2)
    contents = {path: f"{text}\n".encode() for path, text in texts.items()}
    return {
        path: content
        for path, content in contents.items()
        if not path.is_file() or path.read_bytes() != content
    }


def write(files: dict[Path, bytes]) -> None:
    """Write files, each as a whole."""
    for path, content in files.items():
        artifacts.write_atomically(path, content)
