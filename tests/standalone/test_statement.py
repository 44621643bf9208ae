"""The risk statement says what the record carries, and no more."""

import pytest

from afterimage.attacks.verdict import Verdict
from afterimage.standalone import statement
from afterimage.standalone.record import SCHEMA_VERSION, AuditRecord

from . import records

OUTCOMES = tuple(records.VERDICTS)
CONDITIONS = {"kind": "prompt", "different": 32, "with_copies": 4}


def stated(**changes):
    return statement.risk_statement(records.findings(**changes))


def test_copies_are_bounded_below_with_their_error_rate():
    found = stated(outcome="copies shown").found
    assert found[0].startswith("Copies shown: at least 12 of 64 generations (19 %)")
    assert "lower bounds, which hold together with 95 % confidence" in found[1]
    assert found[2] == statement.ERROR_RATE
    assert found[3].startswith("A copying rate of 9.5 % or more would have been seen with 95 %")


def test_no_copies_state_the_rate_that_would_have_been_seen():
    found = stated(outcome="not shown").found
    assert "a copying rate of 9.5 % would have been seen in 95 of 100" in found[0]
    assert statement.ERROR_RATE in found
    assert found[-1] == "It is not shown that the model holds no copies."


def test_no_answer_has_no_error_rate_and_shows_nothing():
    found = stated(outcome="cannot tell").found
    assert found[0] == "Cannot tell: no held-out images were given."
    assert "neither that the model copies training images nor that it does not" in found[1]
    assert len(found) == 2


def test_copies_among_too_few_images_to_miss_none():
    verdict = Verdict("copies shown", "", 3, 20, 2, 3, 1, 1, 1, 1, 0.2, None)
    found = stated(verdict=verdict).found
    assert found[-1].startswith("With so few images no copying rate would have been seen")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_identical_generations_are_said_whatever_the_outcome(outcome):
    assert not any("identical" in sentence for sentence in stated(outcome=outcome).found)
    found = stated(outcome=outcome, counts={"generations_identical": 5}).found
    assert found[-1].startswith("5 of 64 generations are identical to a training image")


def test_what_was_drawn_by_a_network_of_pixels():
    text = stated(settings=records.PIXELS)
    assert text.measured[1] == (
        "The generations were drawn from model (UNet2DModel, weights of sha256 abc), by DDIM with "
        "20 steps, with seed 7."
    )
    assert text.attacker[0].startswith("Someone who can have the model draw 64 images, as they")
    assert any(sentence.startswith("Other ways of drawing") for sentence in text.not_measured)


def test_what_was_drawn_from_prompts_by_the_pipelines_own_call():
    text = stated(settings=records.TEXT, conditions=CONDITIONS)
    assert text.measured[1] == (
        "The generations were drawn from owner/model at commit 0123abc (StableDiffusionPipeline, "
        "weights of sha256 def) from 32 different prompts (captions of --train), by the pipeline's own call, "
        "DDIMScheduler, num inference steps 30, guidance scale 7.5, float32, with seed 7."
    )
    assert "draw 64 images from 32 different prompts (captions of --train)" in text.attacker[0]
    assert "Other prompts than the 32 of this audit." in text.not_measured


def test_weights_that_were_added_are_named_with_their_checksum():
    drawing = records.TEXT["drawing"] | {"lora": "x.safetensors"}
    drawing["sha256"] = {"pipeline": "def", "lora": "fed"}
    text = stated(settings=records.TEXT | {"drawing": drawing})
    assert "with LoRA weights x.safetensors of sha256 fed" in text.measured[1]


def test_given_files_leave_open_how_they_were_drawn():
    text = stated()
    assert text.measured[1].startswith("The generations were given as files (drawn.zip). How they")
    assert "drawn like those given" in text.attacker[0]
    assert not any("Other ways of drawing" in sentence for sentence in text.not_measured)


def test_the_control_is_counted_or_said_to_be_missing():
    first = stated().measured[0]
    assert "of 64 generations with 390 training images, 200 of them different" in first
    assert "The control: 353 held-out images, which" in first
    assert "There is no control" in stated(outcome="cannot tell").measured[0]


def test_the_comparison_is_described_as_it_was_made():
    plain, mirrored = stated().measured[2], stated(settings={"flips": True}).measured[2]
    assert plain.startswith("Images were compared at 16 x 24 pixels by the root mean square")
    assert "mirror images" in mirrored
    assert "mirror images" not in plain
    tiled = stated(settings={"distance": "tiled", "tiles": 3}).measured[2]
    assert "in the most different of 3 x 3 tiles" in tiled


def test_mirror_images_are_not_measured_unless_they_were_compared():
    def unseen(**changes):
        return next(s for s in stated(**changes).not_measured if s.startswith("Copies that"))

    assert "mirror images" in unseen()
    assert "mirror images" not in unseen(settings={"flips": True})


def test_blank_generations_are_not_measured():
    text = stated(facts={"low_detail_generations": 3})
    assert text.not_measured[-1].startswith("3 of 64 generations, which are blank or blurred")


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_statement_excludes_the_other_attacks(outcome):
    text = stated(outcome=outcome)
    joined = " ".join(text.not_measured)
    for words in ("membership inference", "inversion", "crops", "style", "Other checkpoints"):
        assert words in joined
    assert "has the weights, draws more images, searches for prompts" in text.attacker[-1]


def test_the_file_stands_alone():
    findings = records.findings(settings=records.PIXELS)
    text = statement.document(
        AuditRecord(
            **dict(findings),
            schema_version=SCHEMA_VERSION,
            given=[],
            risk_statement=statement.risk_statement(findings),
            next_steps=[],
        )
    )
    for words in ("model", "train.zip", "unseen.zip", "copies shown", "afterimage 0.1.0"):
        assert words in text
    joined = " ".join(text.split())
    for part in statement.HEADINGS:
        for sentence in getattr(statement.risk_statement(findings), part):
            assert f"- {sentence}" in joined
    assert all(heading.upper() in text for heading in statement.HEADINGS.values())
