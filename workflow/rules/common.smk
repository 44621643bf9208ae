"""Validation and input functions. Rule files hold rules only; a change of this file reruns nothing."""

import json
import platform
import shlex
import shutil
import signal
import sys
from functools import cache
from os.path import relpath
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.io import AnnotatedString, get_flag_value
from snakemake.logging import logger

from afterimage.engines import settings_lock
from afterimage.plan import jobs
from afterimage.engines import patches
from afterimage import config as studies
from afterimage.artifacts import ArtifactError
from afterimage.plan.cost import estimate
from afterimage.report.page import mark_earlier

try:
    # Snakemake, which read them into `config`, keeps the last of several keys of one name without a word.
    for path in workflow.overwrite_configfiles or ["params.yaml"]:
        studies.read_yaml(path)
    STUDY = studies.parse(
        config,
        name=", ".join(map(str, workflow.overwrite_configfiles)) or "params.yaml",
    )
except studies.ConfigError as error:
    raise WorkflowError(str(error)) from None

ARMS = list(STUDY.arms)
REPLICATES = list(range(STUDY.replicates))
JUDGED = [arm for arm in ARMS if STUDY.forget_sets_of(arm)]
PAGES = jobs.pages(STUDY)
# Beside the workflow, wherever results lie (--directory).
NOTEBOOKS = Path(relpath(Path(workflow.current_basedir).parent.parent / "notebooks"))

# With a storage provider (slurm/scratch.yaml) outputs are written on the disk of the machine that makes them, and sent from there.
SCRATCH = workflow.storage_settings.default_storage_provider is not None
if SCRATCH:
    place = workflow.storage_settings.local_storage_prefix
    if "$" in str(place):
        raise WorkflowError(
            f"the prefix for unfinished results is {place}, with a variable that is not set on {platform.node()}:"
            " name another folder in slurm/scratch.yaml"
        )
    if not shutil.which("rsync"):
        raise WorkflowError(
            f"slurm/scratch.yaml needs rsync, which is not found on {platform.node()}"
        )

# Written before planning and only where something changed: every job takes its resolved config and the fingerprint of
# its code as inputs. A job that runs in a process of its own reads what the main process planned with. The hold lasts as
# long as this process; `--unlock` is for those who cannot get it.
if workflow.is_main_process and "--unlock" not in sys.argv:
    try:
        HOLD = settings_lock.write_configs(
            STUDY, Path("results"), Path(".snakemake"), scratch=SCRATCH
        )
    except ArtifactError as error:
        raise WorkflowError(str(error)) from None
    if HOLD.others:
        logger.warning(f"{HOLD.others}. If it was killed, type `afterimage recover`.")

# SLURM warns every process of a job before its time limit (slurm/profile.yaml says when). A training saves its state then; whoever
# does not handle the signal would die of it, the snakemake between SLURM and the training first.
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

# From here on the arms of `loyal_selection` are found like others; only `all` leaves them out.
SELECTION = STUDY.loyal_selection
STUDY = STUDY.with_selection()
DERIVED = [arm for arm in STUDY.arms if arm not in ARMS]


wildcard_constraints:
    study=STUDY.study,
    arm="|".join(STUDY.arms),
    rep=r"\d+",


def in_place(path):
    """An input that is read where it lies, not from a copy of its own: steps open what lies beside it, too."""
    if not hasattr(path, "flags"):
        path = AnnotatedString(path)
    stored = get_flag_value(path, "storage_object")
    if stored:
        path.flags["storage_object"] = type(stored)(
            query=stored.query,
            keep_local=stored.keep_local,
            retrieve=False,
            provider=stored.provider,
        )
    return path


inputflags:
    in_place,


def kept(path):
    """An output of which a failed job leaves the earlier version. `run.json` beside it must not be
    one: without it the job is due, and the version known to be old. Snakemake looks for the earlier
    version on the job's disk; with a storage provider it is not there.
    """
    return path if SCRATCH else update(path)


def per_replicate(*outputs, arms=ARMS):
    """All files of some rules' outputs, for every arm, or some, and every replicate."""
    return [
        expand(output, study=STUDY.study, arm=arms, rep=REPLICATES)
        for output in outputs
    ]


def once(*outputs):
    """All files of some rules' outputs that a study has once."""
    return [expand(output, study=STUDY.study) for output in outputs]


def dedup_network(wildcards):
    """The feature network, where deduplication uses it."""
    wanted = STUDY.dedup.embedding.features == "classifier"
    return (
        f"results/{wildcards.study}/data/classifier/classifier.safetensors"
        if wanted
        else []
    )


def dedup_network_flag(wildcards, input):
    """The flag that hands it to deduplication."""
    return f"--classifier {Path(input.classifier).parent}" if input.classifier else ""


def images_of(study, arm):
    """The planted training set, or what deduplication left of it."""
    step = {"planted": "split", "deduplicated": "dedup"}[arm.data]
    return f"results/{study}/data/{step}/train.npz"


def training_images(wildcards):
    """The training set of an arm."""
    return images_of(wildcards.study, STUDY.arms[wildcards.arm])


def selection_images(wildcards):
    """The same for the arms of the selection, which share it."""
    return images_of(wildcards.study, STUDY.arms[SELECTION.base])


def selection_results(wildcards):
    """What `loyal_selection` makes."""
    if SELECTION is None:
        raise WorkflowError(
            "the study has no loyal_selection: say what to select in a block of this name"
        )
    made = [*rules.selection.output, *rules.selection_page.output]
    return expand(made, study=STUDY.study)


def of_replicate(wildcards, pattern, arm):
    """A file of another arm of the same replicate; nothing where there is no such arm."""
    return (
        []
        if arm is None
        else f"results/{wildcards.study}/{pattern.format(arm=arm, rep=wildcards.rep)}"
    )


def base_run(wildcards):
    """The training that an arm starts from, if it has one."""
    return of_replicate(
        wildcards, "train/{arm}/rep{rep}/run.json", STUDY.arms[wildcards.arm].base
    )


def matched_run(wildcards):
    """The training whose budget an arm takes, if it takes one."""
    matched = STUDY.arms[wildcards.arm].matched_to
    return of_replicate(
        wildcards, "train/{arm}/rep{rep}/run.json", matched and matched.arm
    )


def extractions_of(wildcards, sets):
    """Set -> the attack that names its images, of those forget sets that are made of extracted images."""
    origins = {name: STUDY.forget[name].extracted_from for name in sets}
    pattern = "attack/{arm}/rep{rep}/extraction/run.json"
    return {
        name: of_replicate(wildcards, pattern, arm)
        for name, arm in origins.items()
        if arm is not None
    }


def extraction_to_forget(wildcards):
    """The attack whose finds an arm forgets or is trained without, if it does; it has one such set at most."""
    found = extractions_of(wildcards, STUDY.own_forget_sets(wildcards.arm))
    return next(iter(found.values()), [])


def extractions_judged(wildcards):
    """The attacks that name the images of the forget sets on which an arm is judged."""
    found = extractions_of(wildcards, STUDY.forget_sets_of(wildcards.arm))
    return list(dict.fromkeys(found.values()))


def extractions_judged_flags(wildcards):
    """The flags that hand them to the judge, one for each set."""
    found = extractions_of(wildcards, STUDY.forget_sets_of(wildcards.arm))
    return " ".join(
        f"--extraction {name}={shlex.quote(str(Path(run).parent))}"
        for name, run in found.items()
    )


def optional_stores(**named):
    """Flags that hand stores to a step, each given by its ``run.json`` or not at all."""
    return " ".join(
        f"--{flag} {shlex.quote(str(Path(run).parent))}"
        for flag, run in named.items()
        if run
    )


def store_lists(**named):
    """Flags that hand lists of stores to a step, each given by its ``run.json``."""
    return " ".join(
        f"--{flag} {' '.join(shlex.quote(str(Path(run).parent)) for run in runs)}"
        for flag, runs in named.items()
        if runs
    )


def explained_images(wildcards):
    """The training set of the arm whose images are traced back."""
    return images_of(wildcards.study, STUDY.arms[STUDY.attribution.arm])


def of_explained(pattern):
    """A file of the first replicate of that arm."""

    def path(wildcards):
        return f"results/{wildcards.study}/{pattern.format(arm=STUDY.attribution.arm)}"

    return path


def attribution_jobs(step):
    """The jobs of a step of the attribution phase, by the name of their folder."""
    jobs = STUDY.attribution.jobs(STUDY.data.split.train)
    return jobs.get(f"attribution/{step}", [])


def features_of_jobs(wildcards, prefix):
    """The features that jobs of some names make, training blocks in order."""
    wanted = [job for job in attribution_jobs("features") if job.startswith(prefix)]
    return expand(rules.features.output.run, study=wildcards.study, job=wanted)


def features_of_variant(wildcards):
    """The features of the final network that the scores of a variant are computed from."""
    return features_of_jobs(wildcards, f"{wildcards.job}/final/")


def features_of_variants(wildcards):
    """The same of all variants and of the main features."""
    wanted = [job for job in attribution_jobs("features") if "/final/" in job]
    return expand(rules.features.output.run, study=wildcards.study, job=wanted)


def scores_of_variants(wildcards):
    """The scores of all variants and of the main features."""
    jobs = attribution_jobs("scores")
    return expand(rules.scores.output.run, study=wildcards.study, job=jobs)


def features_of_states(wildcards):
    """The features of its earlier states, which are not made anew for a variant."""
    return features_of_jobs(wildcards, "main/state") if wildcards.job == "main" else []


def retrained(wildcards):
    """The losses under all retrained networks."""
    return expand(
        rules.retrain.output.run, study=wildcards.study, job=attribution_jobs("retrain")
    )


def of_unremedied(pattern):
    """A file of the first replicate of the arm that remedied ones are compared with."""

    def path(wildcards):
        arm = STUDY.attribution.remedied.before
        return f"results/{wildcards.study}/{pattern.format(arm=arm)}"

    return path


def remedied_images(wildcards):
    """The training set that they share."""
    before = STUDY.attribution.remedied.before
    return images_of(wildcards.study, STUDY.arms[before])


def attribution_results(wildcards):
    """All files of the phase; none where the study does not have it."""
    if STUDY.attribution is None:
        return []
    phase = {
        "features": rules.features,
        "retrain": rules.retrain,
        "scores": rules.scores,
        "counterfactual": rules.counterfactual,
        "remedied": rules.remedied,
    }
    made = expand(rules.queries.output, study=STUDY.study)
    if STUDY.attribution.variants:
        made += expand(rules.acceleration.output, study=STUDY.study)
    for step, made_by in phase.items():
        jobs = attribution_jobs(step)
        made += expand(made_by.output, study=STUDY.study, job=jobs)
    return made


def attribution_of_page(wildcards):
    """What the page on attribution shows."""
    return attribution_results(wildcards) if wildcards.page == "attribution" else []


@cache
def parts_of_jobs():
    """The jobs that do a part of another job's work, by the folder of that job."""
    return json.loads(Path("results", STUDY.study, "config", "parts.json").read_text())


def blocks_of(wildcards):
    """The blocks that a replicate's generations are drawn in, if they are."""
    arm, rep = wildcards.arm, wildcards.rep
    parts = parts_of_jobs()[f"sample/{arm}/rep{rep}"]
    return [f"results/{wildcards.study}/blocks/{arm}/rep{rep}/{part}" for part in parts]


def state_of_part(wildcards, part):
    """The mark of a part of a training."""
    return f"results/{wildcards.study}/state/{wildcards.arm}/rep{wildcards.rep}/{part}"


def part_before(wildcards):
    """The part of a training that comes before another, if there is one."""
    k = int(wildcards.k) - 1
    return state_of_part(wildcards, f"{k}of{wildcards.parts}") if k else []


def last_part(wildcards):
    """The part that comes before the end, if the training has parts."""
    parts = parts_of_jobs()[f"train/{wildcards.arm}/rep{wildcards.rep}"]
    return state_of_part(wildcards, parts[-1]) if parts else []


def part_flag(wildcards, input):
    """The flag that says which part is the last."""
    count = input.before and Path(input.before).name.partition("of")[2]
    return f"--part {count}/{count}" if count else ""


def training_threads(wildcards):
    """The threads of all processes of a training."""
    return STUDY.cluster.threads * STUDY.processes_of(wildcards.arm)


def processes_flag(wildcards, resources):
    """The flag for several processes. As it takes the resources it is no setting for Snakemake, whose change would rerun the job."""
    count = STUDY.processes_of(wildcards.arm)
    return f"--processes {count}" if count > 1 else ""


def share_of_job(step, wildcards):
    """The share of a job's work that is done at a time, where the work is cut into parts."""
    if step not in ("train", "sample"):
        return 1
    known = {"train": "{k}of{parts}", "sample": "{first}-{end}"}[step]
    own = dict(wildcards.items())
    part = known.format(**own) if {"k", "first"} & own.keys() else None
    parts = parts_of_jobs()[f"{step}/{wildcards.arm}/rep{wildcards.rep}"]
    return estimate.share_of(STUDY, step, part, parts)


def needs(step):
    """What jobs of a step ask for, as estimated: gpu, mem_mb and runtime (minutes), of the last two more at each attempt."""

    def asked(what, wildcards, attempt):
        name = wildcards.get("arm") or wildcards.get("job") or ""
        share = share_of_job(step, wildcards)
        limit = STUDY.cluster.max_minutes_per_job if step == "train" else None
        cost = estimate.step_cost(STUDY, step, name, share=share)
        return cost.asks(STUDY.cluster.headroom, attempt, limit)[what]

    def function(what):
        return lambda wildcards, attempt: asked(what, wildcards, attempt)

    return {what: function(what) for what in ("gpu", "mem_mb", "runtime")}
