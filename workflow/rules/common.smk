"""Validation and input functions. Rule files hold rules only; a change of this file reruns nothing."""

from os.path import relpath
from pathlib import Path

from snakemake.exceptions import WorkflowError

from afterimage import config as studies
from afterimage import layout

try:
    STUDY = studies.parse(
        config,
        name=", ".join(map(str, workflow.overwrite_configfiles)) or "params.yaml",
    )
except studies.ConfigError as error:
    raise WorkflowError(str(error)) from None

ARMS = list(STUDY.arms)
REPLICATES = list(range(STUDY.replicates))
PAGES = ["extraction"]
# Beside the workflow, wherever results lie (--directory).
NOTEBOOKS = Path(relpath(Path(workflow.current_basedir).parent.parent / "notebooks"))

# Written before planning and only where something changed: every job takes its resolved config and the fingerprint of
# its code as inputs. A job that runs in a process of its own reads what the main process planned with.
if workflow.is_main_process:
    layout.write_configs(STUDY, Path("results"))


wildcard_constraints:
    study=STUDY.study,
    arm="|".join(ARMS),
    rep=r"\d+",


def per_replicate(*outputs):
    """All files of some rules' outputs, for every arm and replicate."""
    return [
        expand(output, study=STUDY.study, arm=ARMS, rep=REPLICATES)
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


def training_images(wildcards):
    """The planted training set, or what deduplication left of it."""
    step = {"planted": "split", "deduplicated": "dedup"}[STUDY.arms[wildcards.arm].data]
    return f"results/{wildcards.study}/data/{step}/train.npz"


def base_run(wildcards):
    """The run that an arm starts from, if it has one."""
    base = STUDY.arms[wildcards.arm].base
    return (
        f"results/{wildcards.study}/train/{base}/rep{wildcards.rep}/run.json"
        if base
        else []
    )


def base_flag(wildcards, input):
    """The flag that hands that run to the training step."""
    return f"--base {Path(input.base).parent}" if input.base else ""
