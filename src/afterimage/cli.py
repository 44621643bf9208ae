"""The command line: ``afterimage <phase> <verb>``, one verb per workflow rule.

Each verb is a module with two functions: ``arguments(parser)`` declares its flags and ``run(args)``
does the work. Modules are imported only when their verb is called, so that ``--help`` and the
lightweight verbs start fast.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from importlib import import_module
from itertools import groupby
from pathlib import Path

from afterimage.plan.inputs import HEADING
from afterimage.plan.jobs import STEPS

OTHERS: dict[tuple[str, str], tuple[str, str]] = {
    ("config", "check"): ("afterimage.config.check", "validate a study file"),
    ("config", "schema"): ("afterimage.config.json_schema", "print the JSON schema of a study"),
    ("config", "dvc"): (
        "afterimage.engines.dvc",
        "write the keys that each stage of dvc.yaml depends on",
    ),
    ("report", "rulegraph"): ("afterimage.engines.rulegraph", "draw the workflow's rule graph"),
    ("report", "document"): (
        "afterimage.report.document",
        "write a study's tables as a Markdown document with a figure",
    ),
    ("track", "import"): (
        "afterimage.tracking",
        "import finished results into MLflow; idempotent",
    ),
    ("cluster", "simulate"): (
        "afterimage.engines.simulation.simulate",
        "estimate how long a study takes on a number of GPUs, and what limits it",
    ),
}
"""Phase and verb -> (module, one line of help) for verbs that are not workflow steps."""

COMMANDS: dict[str, dict[str, tuple[str, str]]] = {}
"""Phase -> verb -> (module, one line of help)."""
for (phase, verb), command in [
    *((step.command, (step.module, step.help)) for step in STEPS.values()),
    *OTHERS.items(),
]:
    COMMANDS.setdefault(phase, {})[verb] = command

SINGLE: dict[str, tuple[str, str]] = {
    "status": (
        "afterimage.engines.status",
        "show the progress of a study: phases, arms, and each training's rate and time left",
    ),
    "verify": (
        "afterimage.engines.verify",
        "check that every result matches the study, its inputs and its code",
    ),
    "adopt": (
        "afterimage.engines.adopt",
        "check pulled results and register them with Snakemake",
    ),
    "recover": (
        "afterimage.engines.recover",
        "after snakemake was killed: end the jobs it left behind, and unlock its folder",
    ),
    "audit": (
        "afterimage.standalone.audit",
        "attack your own images or diffusers pipeline; needs no study",
    ),
    "watch": (
        "afterimage.standalone.watch",
        "say when a training starts to copy, from the checkpoints that it leaves",
    ),
    "prompts": (
        "afterimage.standalone.prompt_ranking",
        "rank prompts of a text-to-image pipeline by how memorised they are; needs no study",
    ),
    "membership": (
        "afterimage.standalone.membership",
        "tell training images by their loss, for any pipeline; needs no study",
    ),
    "attribute": (
        "afterimage.standalone.attribute",
        "rank the training images behind generations of any pipeline; needs no study",
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
                called=argv[:2] == [phase, verb],
            )
    for phase, (module, text) in SINGLE.items():
        _attach(
            phases.add_parser(phase, help=text, description=text),
            module,
            called=argv[:1] == [phase],
        )
    return parser


def _attach(parser: argparse.ArgumentParser, module: str, called: bool) -> None:
    if called:
        command = import_module(module)
        command.arguments(parser)
        parser.set_defaults(run=command.run)


THEN = "--then"
"""Between two commands that share a process."""


def main(argv: list[str] | None = None) -> int:
    """Run a command, or several with ``--then`` between them, one after the other.

    Several commands start Python once, and those whose results are up to date are skipped. Errors
    that the user can mend are one message and exit status 2, without a traceback.
    """
    from afterimage.artifacts import ArtifactError, UpToDate, keeping_results
    from afterimage.config import ConfigError
    from afterimage.engines.patches import TEXT, defer_imports

    argv = sys.argv[1:] if argv is None else argv
    commands = [list(words) for last, words in groupby(argv, THEN.__eq__) if not last] or [[]]
    if all(words[:1] and words[0] in COMMANDS for words in commands):
        # Other commands open what others made, and may compile.
        defer_imports(texts=any(map(uses_texts, commands)))
    try:
        gc.disable()  # imports make many objects and no garbage: a seventh of the start-up
        try:
            parsed = [_parser(words).parse_args(words) for words in commands]
        finally:
            gc.freeze()  # neither while the command works nor at its end: a tenth of the start-up
            gc.enable()
        for args, words in zip(parsed, commands, strict=True):
            args.argv = words
        if len(parsed) == 1:
            return parsed[0].run(parsed[0]) or 0
        with keeping_results():
            for args in parsed:
                named = args.argv[: 2 if args.phase in COMMANDS else 1]
                print(HEADING.format(" ".join(named)), flush=True)
                try:
                    if status := args.run(args):
                        raise SystemExit(status)
                except UpToDate as result:
                    print(f"{result} is up to date")
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "afterimage":
            raise
        package = error.name.split(".")[0]
        needed = "studies need the extra `workflow`: pip install '.[workflow]'"
        if package in TEXT:
            needed = "texts need the extra `text`: pip install '.[text]'"
        if package == "bitsandbytes":
            needed = "adamw_8bit needs the extra `adam8bit`: pip install '.[adam8bit]'"
        message = f"{error.name} is not installed; {needed}"
    except (ConfigError, ArtifactError) as error:
        message = str(error)
    print(f"afterimage: error: {message}", file=sys.stderr)
    return 2


def uses_texts(words: list[str]) -> bool:
    """Return whether a command uses the packages of texts: to embed captions, also as a remedy at
    inference changes them, or to train or attribute adapters (``remedy`` and ``model.lora`` of its
    resolved config)."""
    if words[:2] == ["data", "encode"]:
        return True
    if words[:1] not in (["train"], ["sample"], ["attack"], ["attribution"]):
        return False
    flags = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    flags.add_argument("--config", default="")
    unsound = (argparse.ArgumentError, OSError, ValueError, LookupError, TypeError, AttributeError)
    try:
        resolved = json.loads(Path(flags.parse_known_args(words)[0].config).read_text())
        settings = resolved["settings"]
        adapters = settings.get("model", {}).get("lora") is not None
        return adapters or settings.get("remedy", {}).get("method") == "dcr"
    except unsound:
        return False  # told by the command itself


if __name__ == "__main__":
    sys.exit(main())
