"""The study, and short names for the plan's functions. A change of this file reruns nothing."""

import signal
import sys
from os.path import relpath
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from afterimage.artifacts import ArtifactError
from afterimage.config import ConfigError
from afterimage.engines import bases, check_inputs, patches, settings_lock
from afterimage.engines.rules import (
    Rules,
    before_first_job,
    in_place,
    read_study,
    uses_scratch,
)
from afterimage.plan.jobs import STEPS, jobs, pages
from afterimage.plan.step import TOGETHER
from afterimage.report.page import mark_earlier

STUDY = read_study(config, workflow.overwrite_configfiles or [Path("params.yaml")])
SCRATCH = uses_scratch(workflow.storage_settings)

# Next to the workflow, wherever the results are (--directory).
NOTEBOOKS = Path(relpath(Path(workflow.current_basedir).parent.parent / "notebooks"))

# Inputs are checked before anything is written or planned, here alone: jobs are other processes.
#
# Written before planning, and only files that changed: the resolved config and the code fingerprint
# of every job are among its inputs. A job in a separate process reads what the main process planned
# with. The lock is held as long as this process runs; `--unlock` must work without it.
if workflow.is_main_process and "--unlock" not in sys.argv:
    try:
        if bases.fetch_configs(STUDY):
            STUDY = read_study(
                config, workflow.overwrite_configfiles or [Path("params.yaml")]
            )
        check_inputs.check(STUDY, Path("results"))
        HOLD = settings_lock.write_configs(
            STUDY, Path("results"), Path(".snakemake"), scratch=SCRATCH
        )
    except (ArtifactError, ConfigError) as error:
        raise WorkflowError(str(error)) from None
    if HOLD.others:
        logger.warning(f"{HOLD.others}. If it was killed, type `afterimage recover`.")

# SLURM signals every process of a job before its time limit (slurm/profile.yaml sets the time). A
# training then saves its state; processes without a handler would be killed by the signal, first
# the snakemake between SLURM and the training.
if not workflow.is_main_process:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

PLAN = Rules(STUDY, lambda: [getattr(rules, r.name) for r in workflow.rules], SCRATCH)
PARTS = PLAN.parts
inputs, flags, needs, phase, kept = (
    PLAN.inputs,
    PLAN.flags,
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
