"""The study, and what its rules take from the plan. A change of this file reruns nothing."""

import signal
import sys
from os.path import relpath
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from afterimage.artifacts import ArtifactError
from afterimage.engines import patches, settings_lock
from afterimage.engines.rules import Rules, in_place, read_study, uses_scratch
from afterimage.plan.jobs import STEPS, jobs, pages
from afterimage.report.page import mark_earlier

STUDY = read_study(config, workflow.overwrite_configfiles or [Path("params.yaml")])
SCRATCH = uses_scratch(workflow.storage_settings)

# Beside the workflow, wherever results lie (--directory).
NOTEBOOKS = Path(relpath(Path(workflow.current_basedir).parent.parent / "notebooks"))

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

PLAN = Rules(STUDY, lambda: [getattr(rules, r.name) for r in workflow.rules], SCRATCH)
PARTS = PLAN.parts
inputs, flags, commands, needs, phase, kept = (
    PLAN.inputs,
    PLAN.flags,
    PLAN.commands,
    PLAN.needs,
    PLAN.phase,
    PLAN.kept,
)


wildcard_constraints:
    study=STUDY.study,
    arm="|".join(PLAN.whole.arms),
    rep=r"\d+",


inputflags:
    in_place,
