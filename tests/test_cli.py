"""Commands: one, or several in one process."""

import sys
from pathlib import Path
from types import ModuleType

import pytest

from afterimage import artifacts, cli


@pytest.fixture
def ran(monkeypatch, tmp_path):
    """Put a made-up verb into the command line; what it did is listed by its ``--name``."""
    done: list[str] = []
    verb = ModuleType("made_up_verb")

    def arguments(parser):
        parser.add_argument("--name", required=True)
        parser.add_argument("--fail", action="store_true")

    def run(args):
        if args.fail:
            raise artifacts.ArtifactError(f"{args.name} is broken")
        with artifacts.step({"step": "made up"}, tmp_path / args.name, {}, ("afterimage.seeds",)):
            done.append(args.name)

    verb.arguments, verb.run = arguments, run
    monkeypatch.setitem(sys.modules, "made_up_verb", verb)
    monkeypatch.setitem(cli.COMMANDS["attack"], "made_up", ("made_up_verb", "a made-up verb"))
    return done


def words(*names: str) -> list[str]:
    commands = [["attack", "made_up", "--name", *name.split()] for name in names]
    return [word for command in commands for word in ["--then", *command]][1:]


def test_several_commands_run_in_order_and_skip_what_is_up_to_date(ran, capsys, tmp_path):
    assert cli.main(words("a", "b")) == 0
    assert cli.main(words("a", "c", "b")) == 0
    assert ran == ["a", "b", "c"]
    heading = "afterimage attack made_up:"
    assert capsys.readouterr().out.splitlines()[2:] == [
        heading,
        f"{tmp_path / 'a'} is up to date",
        heading,
        heading,
        f"{tmp_path / 'b'} is up to date",
    ]


def test_a_single_command_always_runs(ran):
    assert [cli.main(words("a")), cli.main(words("a"))] == [0, 0]
    assert ran == ["a", "a"]


def test_the_first_command_that_fails_ends_the_process_and_keeps_what_is_there(
    ran, capsys, tmp_path
):
    assert cli.main(words("a", "b --fail", "c")) == 2
    assert ran == ["a"]
    assert "afterimage: error: b is broken" in capsys.readouterr().err
    assert Path(tmp_path, "a", "run.json").is_file()
    assert cli.main(words("a", "b", "c")) == 0
    assert ran == ["a", "b", "c"]


def test_flags_of_every_command_are_read_before_the_first_one_runs(ran, capsys):
    with pytest.raises(SystemExit):
        cli.main([*words("a"), "--then", "attack", "made_up", "--name", "b", "--fial"])
    assert ran == []
    assert "--fial" in capsys.readouterr().err


def test_a_command_without_a_verb_and_one_that_reads_its_words_may_share_a_process(
    ran, monkeypatch, capsys
):
    """``audit`` has no verb; a training starts its processes with its own command line."""
    lone, seen = ModuleType("made_up_command"), []
    lone.arguments = lambda parser: parser.add_argument("--name")
    lone.run = lambda args: seen.append(args.argv)
    monkeypatch.setitem(sys.modules, "made_up_command", lone)
    monkeypatch.setitem(cli.SINGLE, "audit", ("made_up_command", "made up"))
    assert cli.main([*words("a"), "--then", "audit", "--name", "b"]) == 0
    assert (ran, seen) == (["a"], [["audit", "--name", "b"]])
    assert "afterimage audit:" in capsys.readouterr().out.splitlines()


def test_without_a_command_the_usage_is_printed(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    assert "PHASE" in capsys.readouterr().err
