"""The command line: ``afterimage <phase> <verb>``, one verb per workflow rule.

Each verb is a module with two functions: ``arguments(parser)`` declares its flags and ``run(args)`` does the work. Modules are
imported only when their verb is called, so that ``--help`` and the light verbs start fast.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {
    "config": {
        "check": ("afterimage.config.check", "validate a study file"),
        "schema": ("afterimage.config.json_schema", "print the JSON schema of a study"),
    },
    "data": {
        "fetch": (
            "afterimage.data.fetch",
            "read the source into one checked array file; the only step that may use the network",
        ),
        "split": (
            "afterimage.data.split",
            "draw train, holdout and reference parts and plant duplicates",
        ),
        "classifier": (
            "afterimage.metrics.classifier",
            "train the feature network on the reference part",
        ),
        "dedup": (
            "afterimage.data.dedup",
            "find and remove near-duplicates, scored against the planted truth",
        ),
    },
    "train": {"run": ("afterimage.methods.run", "train one replicate of one arm, or continue it")},
    "sample": {"draw": ("afterimage.diffusion.sample", "draw generations from a trained pipeline")},
    "attack": {
        "extraction": (
            "afterimage.attacks.extraction",
            "which training images come back (Carlini et al. 2023)",
        ),
        "quality": ("afterimage.attacks.quality", "how good and varied the generations are"),
        "membership": (
            "afterimage.attacks.membership",
            "which images were trained on, by their loss",
        ),
        "forgetting": (
            "afterimage.attacks.forgetting",
            "what is left of images that were to be forgotten",
        ),
    },
    "attribution": {
        "queries": (
            "afterimage.attribution.queries",
            "choose the images whose origin is asked for",
        ),
        "features": (
            "afterimage.attribution.features",
            "project the gradients of a network for one block of images",
        ),
        "retrain": (
            "afterimage.attribution.judges.retrain",
            "losses of the queries under networks retrained on random halves",
        ),
        "scores": (
            "afterimage.attribution.scores",
            "who made what, by every attributor, judged by retraining",
        ),
        "acceleration": (
            "afterimage.attribution.acceleration",
            "what cheaper features and two-stage ranking cost in quality",
        ),
        "remedied": (
            "afterimage.attribution.judges.forgetting_influence",
            "whether the influence of forgotten images falls",
        ),
        "counterfactual": (
            "afterimage.attribution.judges.counterfactual",
            "train without what made a generation, and generate it again",
        ),
    },
    "report": {
        "tables": ("afterimage.report.tables", "gather the results of all arms into tidy tables"),
        "page": ("afterimage.report.page", "run one notebook and write its HTML page"),
        "swap": (
            "afterimage.selection.timestep_ablation",
            "sample with the blocks at some timesteps only, without training anew",
        ),
        "selection": (
            "afterimage.selection.table",
            "rank skip groups and switch timesteps for LoyalDiffusion",
        ),
        "rulegraph": ("afterimage.engines.rulegraph", "draw the workflow's rule graph"),
    },
    "track": {
        "import": (
            "afterimage.engines.tracking",
            "import finished results into MLflow; doing it twice changes nothing",
        )
    },
    "cluster": {
        "simulate": (
            "afterimage.engines.simulation.simulate",
            "how long a study would take on so many GPUs, and what it would wait for",
        )
    },
}
"""Phase -> verb -> (module, one line of help)."""

SINGLE: dict[str, tuple[str, str]] = {
    "status": (
        "afterimage.engines.status",
        "how far a study is: phases, arms, and each training's rate and time left",
    ),
    "verify": (
        "afterimage.engines.verify",
        "check that every result matches the study, its inputs and its code",
    ),
    "adopt": (
        "afterimage.engines.adopt",
        "make pulled results known to Snakemake, after checking them",
    ),
    "recover": (
        "afterimage.engines.recover",
        "after snakemake was killed: end the jobs that it left behind, and unlock its folder",
    ),
    "audit": (
        "afterimage.standalone.audit",
        "attack somebody's own images or diffusers pipeline; needs no study",
    ),
    "attribute": (
        "afterimage.standalone.attribute",
        "which training images made these, for any pipeline; needs no study",
    ),
}
"""Commands without a verb."""


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="afterimage", description=__doc__.splitlines()[0])
    phases = parser.add_subparsers(dest="phase", metavar="PHASE", required=True)
    for phase, verbs in COMMANDS.items():
        summary = "; ".join(f"{verb}: {text}" for verb, (_, text) in verbs.items())
        verb_parsers = phases.add_parser(phase, help=summary).add_subparsers(
            dest="verb", metavar="VERB", required=True
        )
        for verb, (module, text) in verbs.items():
            _attach(
                verb_parsers.add_parser(verb, help=text, description=text),
                module,
                wanted=argv[:2] == [phase, verb],
            )
    for phase, (module, text) in SINGLE.items():
        _attach(
            phases.add_parser(phase, help=text, description=text),
            module,
            wanted=argv[:1] == [phase],
        )
    return parser


def _attach(parser: argparse.ArgumentParser, module: str, wanted: bool) -> None:
    if wanted:
        command = import_module(module)
        command.arguments(parser)
        parser.set_defaults(run=command.run)


def main(argv: list[str] | None = None) -> int:
    """Run one command; errors that the user can mend are one message and exit status 2, without a traceback."""
    from afterimage.artifacts import ArtifactError
    from afterimage.config import ConfigError
    from afterimage.engines.patches import defer_imports

    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] and argv[0] in COMMANDS:  # other commands open what others made, and may compile
        defer_imports()
    args = _parser(argv).parse_args(argv)
    args.argv = argv
    try:
        return args.run(args) or 0
    except (ConfigError, ArtifactError) as error:
        print(f"afterimage: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
