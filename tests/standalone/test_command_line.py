"""The command line that is written down is read as the same flags."""

import argparse
import shlex

import pytest

from afterimage.standalone import audit
from afterimage.standalone.command_line import CommandLine


def parse(words):
    parser = argparse.ArgumentParser()
    audit.arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words",
    [
        ["--samples", "a folder/x.npz", "--train", "it's.zip"],
        ["--pipeline", "p", "--train", "t", "--labels", "3", "1", "--flips", "--alpha", "0.25"],
        [
            "--pipeline",
            "p",
            "--train",
            "t",
            "--negative-prompt=-blue --seed 3",
            "--guidance",
            "-1.5",
        ],
        ["--samples", "s", "--train", "t", "--array", "samples=a", "train=b", "--array", "c"],
        ["--pipeline", "p", "--train", "t", "--lora", "x.safetensors", "--truncate-prompts"],
        ["--samples=-s", "--train", "$HOME;ls"],
    ],
)
def test_the_command_is_read_as_the_same_flags(words):
    args = parse(words)
    line = CommandLine.of("afterimage audit", audit.arguments, args)
    program, command, *written = shlex.split(line.text())
    assert (program, command) == ("afterimage", "audit")
    assert vars(parse(written)) == vars(args)


def test_changes_replace_add_and_leave_out():
    line = CommandLine("afterimage audit", {"train": "t", "steps": 5, "flips": True})
    assert line.text() == "afterimage audit --train t --steps 5 --flips"
    changed = line.text(steps=None, flips=False, holdout="UNSEEN", train="u")
    assert changed == "afterimage audit --train u --holdout UNSEEN"
