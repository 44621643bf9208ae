"""What to do next follows from the outcome, and every command is one of this project."""

import argparse
import shlex
from itertools import pairwise

import pytest

from afterimage import cli
from afterimage.attacks.verdict import LARGEST_VISIBLE, POWER, Verdict
from afterimage.metrics.exceedance import visible_rate
from afterimage.standalone import audit
from afterimage.standalone.command_line import CommandLine
from afterimage.standalone.next_steps import next_steps
from afterimage.standalone.statement import percent

from . import records

GIVEN = ["--samples", "drawn.zip"]
DRAWN = ["--pipeline", "model", "--generate", "64", "--sampler", "ddim", "--steps", "20"]
PROMPTED = ["--pipeline", "owner/model", "--revision", "abc", "--prompts", "p.txt"]
PROMPTED += ["--per-prompt", "2", "--lora", "x.safetensors"]
LABELLED = ["--pipeline", "model", "--generate", "64", "--variant", "fp16", "--device", "cpu"]

COLUMNS = ["--array", "samples=a", "train=b", "holdout=c", "--caption-column", "samples=d"]


def line(words):
    parser = argparse.ArgumentParser()
    audit.arguments(parser)
    given = [*words, "--train", "train.zip", "--holdout", "unseen.zip", "--resize", "16"]
    args = parser.parse_args([*given, "--out", "out/", *COLUMNS])
    return CommandLine.of("afterimage audit", audit.arguments, args)


def steps(words=GIVEN, **changes):
    return next_steps(records.findings(**changes), line(words), "out/")


def texts(*arguments, **changes):
    return " ".join(step.text for step in steps(*arguments, **changes))


def commands(*arguments, **changes):
    return [step.command for step in steps(*arguments, **changes) if step.command]


def flags(command):
    """Return flag -> the word that follows it."""
    return dict(pairwise(shlex.split(command)))


@pytest.mark.parametrize("outcome", records.VERDICTS)
@pytest.mark.parametrize(
    ("words", "settings"),
    [
        (GIVEN, {}),
        (DRAWN, records.PIXELS),
        (PROMPTED, records.TEXT),
        (LABELLED, records.LABELS),
        ([*LABELLED, "--keep-samples", "kept"], records.LABELS),
    ],
    ids=["given", "drawn", "prompted", "labelled", "kept"],
)
def test_every_command_is_accepted(outcome, words, settings):
    assert steps(words, outcome=outcome, settings=settings)
    for command in commands(words, outcome=outcome, settings=settings):
        program, *argv = shlex.split(command)
        assert program == "afterimage"
        args = cli._parser(argv).parse_args(argv)
        if args.phase == "watch":  # which refuses these
            assert args.lora is None
            assert args.keep_samples is None
            assert args.array == ["train=b", "holdout=c"]
            assert args.caption_column == []
        if args.phase == "attribute":
            assert args.array == ["train=b"]


def traced(*arguments, **changes):
    """Return the text and the command of the step that traces generations; None without one."""
    found = [step for step in steps(*arguments, **changes) if step.text.startswith("See which")]
    assert len(found) <= 1
    return found[0] if found else None


def test_after_copies_their_training_images_are_traced_where_that_is_possible():
    drawn = flags(traced(DRAWN, settings=records.PIXELS).command)
    assert drawn["--queries"] == "out/drawn"
    assert drawn["--resize"] == "16"
    prompted = traced(PROMPTED, settings=records.TEXT)
    given = flags(prompted.command)
    assert given["afterimage"] == "attribute"
    assert (given["--pipeline"], given["--revision"]) == ("owner/model", "abc")
    assert (given["--lora"], given["--queries"]) == ("x.safetensors", "out/drawn")
    assert "captions of --train" in prompted.text
    assert "captions" not in traced(PROMPTED[:4], settings=records.TEXT).text
    assert traced() is None
    unknown = records.TEXT["drawing"] | {"known_loss": False}
    assert traced(PROMPTED, settings=records.TEXT | {"drawing": unknown}) is None


@pytest.mark.parametrize("of", ["latents", "pixels"])
def test_generations_with_labels_are_traced_where_the_labels_are_kept(of):
    network = records.PIXELS["network"] | {"classes": 10}
    settings = records.LABELS if of == "latents" else records.PIXELS | {"network": network}
    assert flags(traced(LABELLED, settings=settings).command)["--keep-samples"] == "out-kept"
    kept = traced([*LABELLED, "--keep-samples", "kept"], settings=settings)
    assert flags(kept.command)["--queries"] == "kept/samples.npz"
    assert "labels of --train" in kept.text


def test_a_column_of_captions_is_not_looked_for_in_what_was_drawn():
    given = [*PROMPTED[:4], "--caption-column", "story"]
    words = shlex.split(traced(given, settings=records.TEXT).command)
    assert words[words.index("--caption-column") + 1] == "train=story"


def test_repetitions_are_to_be_removed_only_where_there_are_any():
    repeated = texts(counts={"extracted_repeated": 8})
    assert "8 of 9 extracted images occur more than once" in repeated
    assert "remove the repetitions" in repeated
    assert "remove" not in texts()


def test_pictures_are_proposed_unless_they_are_there():
    assert any("--show-images" in command for command in commands())
    assert not any("--show-images " in f"{c} " for c in commands([*GIVEN, "--show-images"])[1:])
    assert "Look at the pairs" not in texts([*GIVEN, "--show-images"])


def test_rates_are_at_the_confidence_of_the_audit():
    """0.975 where an answer by similarity shares the error rate."""
    shared = Verdict("not shown", "", 200, 60, visible_rate=0.12, confidence=0.975)
    now = percent(visible_rate(200, 60, POWER, 0.975))
    assert now != percent(visible_rate(200, 60, POWER))
    assert f"sees copying rates from {now};" in texts(outcome="not shown", verdict=shared)


def test_rarer_copies_need_the_number_of_images_that_is_said():
    step = steps(DRAWN, outcome="not shown", settings=records.PIXELS)[0]
    assert flags(step.command)["--generate"] == "256"
    for generations, held_out in ((64, 353), (256, 353), (64, 1412), (256, 1412)):
        rate = visible_rate(generations, held_out, POWER)
        assert f"{100 * rate:.2g} %" in step.text
    assert visible_rate(256, 1412, POWER) < visible_rate(64, 353, POWER)


def test_more_images_of_prompts_are_more_of_each():
    step = steps(PROMPTED, outcome="not shown", settings=records.TEXT)[0]
    assert flags(step.command)["--generate"] == "256"
    assert flags(step.command)["--per-prompt"] == "8"


def test_other_drawings_leave_the_folder_as_it_is():
    kept = [*DRAWN, "--keep-samples", "kept"]
    for command in commands(kept, outcome="not shown", settings=records.PIXELS):
        if " audit " in command:
            assert flags(command)["--out"].startswith("out-")
            assert "--keep-samples" not in command


def test_ancestral_sampling_is_proposed_after_ddim_alone():
    ddpm = "--sampler ddpm"
    ways = commands(DRAWN, outcome="not shown", settings=records.PIXELS)
    assert sum(ddpm in command for command in ways) == 1
    assert not any("--steps" in command for command in ways if ddpm in command)
    other = records.PIXELS | {"sampler": "ddpm"}
    assert "ancestral" not in texts(DRAWN, outcome="not shown", settings=other)


def test_nobody_is_told_that_the_model_is_safe():
    for outcome in records.VERDICTS:
        words = texts(DRAWN, outcome=outcome, settings=records.PIXELS).lower()
        assert not {"safe", "no copies", "release", "publish"} & set(words.split())


# ---- cannot tell: every reason has a step --------------------------------------------------------


def cannot_tell(generations, held_out, **changes):
    verdict = Verdict("cannot tell", "x", generations, held_out)
    sizes = {"generations": generations, "holdout": held_out} | changes.pop("counts", {})
    return steps(verdict=verdict, counts=sizes, **changes)


def test_missing_held_out_images():
    (step,) = cannot_tell(64, 0)
    assert flags(step.command)["--holdout"] == "UNSEEN"
    few, some, many = (100 * visible_rate(64, held_out, POWER) for held_out in (100, 400, 2000))
    assert step.text.endswith(
        "With 64 generations, 100, 400 or 2,000 of them show copying rates from "
        f"{few:.0f} %, {some:.2g} % or {many:.2g} %."
    )


def test_held_out_images_that_are_training_images():
    (step,) = cannot_tell(64, 0, counts={"holdout": 30})
    assert step.text.startswith("Give other images as --holdout")


@pytest.mark.parametrize(
    ("generations", "held_out", "enough"),
    [(3, 10, None), (1, 1, None), (1, 200, "held out"), (60, 1, "generations")],
)
def test_too_few_images_are_answered_with_numbers_that_suffice(generations, held_out, enough):
    (step,) = cannot_tell(generations, held_out)
    sizes = [int(word.replace(",", "")) for word in step.text.split() if word[0].isdigit()][:2]
    assert visible_rate(*sizes, POWER) <= LARGEST_VISIBLE
    assert visible_rate(generations, held_out, POWER) > LARGEST_VISIBLE
    assert (sizes[0] == generations) == (enough == "generations")
    assert (sizes[1] == held_out) == (enough == "held out")


def test_blank_generations():
    (step,) = cannot_tell(64, 353, facts={"low_detail_generations": 40})
    assert "40 of 64 are blank" in step.text


def test_one_training_image():
    facts = {"zero_means_generations": {"training": 64}}
    (step,) = cannot_tell(64, 353, counts={"training_distinct": 1}, facts=facts)
    assert "--train" in step.text


def test_neighbours_that_are_copies():
    facts = {"zero_means_generations": {"training": 3}}
    (step,) = cannot_tell(64, 353, settings={"gallery": "all"}, facts=facts)
    assert flags(step.command)["--gallery"] == "distinct"
