"""Each replicate reads the files of its own planting, in every step."""

import pytest

from afterimage import config
from afterimage.config import ConfigError
from afterimage.plan.jobs import STEPS, jobs


def files(value):
    if isinstance(value, str):
        return [value]
    return list(value.values() if isinstance(value, dict) else value)


def read(study, job):
    """Return the folders of plantings and of their deduplication that a job reads."""
    given = [file for value in STEPS[job.step].inputs(study, job).values() for file in files(value)]
    return {file.rsplit("/", 1)[0] for file in given if file.startswith(PLANTED)}


PLANTED = ("data/planting/", "data/dedup/")


@pytest.fixture
def study(digits):
    return digits(
        replicates=3,
        data__plantings=2,
        arms__dedup={"method": "baseline", "data": "deduplicated"},
    )


def test_every_replicate_reads_its_planting(study):
    seen = set()
    for job in jobs(study):
        if job.arm is None or job.step == "sample":
            continue
        number = job.replicate % 2
        expected = {f"data/planting/{number}"}
        if job.step == "train" and job.arm == "dedup":
            expected = {f"data/dedup/{number}"}
        assert read(study, job) == expected, job.folder
        seen.add((job.step, number))
    assert {step for step, number in seen if number == 1} >= {
        "train",
        "attack/extraction",
        "attack/quality",
        "attack/membership",
    }


def test_deduplication_reads_its_planting_and_tables_read_all(study):
    by_folder = {job.folder: job for job in jobs(study)}
    for number in range(2):
        assert read(study, by_folder[f"data/dedup/{number}"]) == {f"data/planting/{number}"}
    assert "data/dedup/2" not in by_folder
    assert read(study, by_folder["report/tables"]) == {"data/dedup/0", "data/dedup/1"}
    page = read(study, by_folder["report/pages/extraction"])
    assert page == {"data/planting/0", "data/planting/1"}


def test_attribution_reads_the_planting_of_the_replicate_that_it_explains(digits):
    """And files of no other replicate of an arm, nor of another's attribution."""
    study = digits(replicates=3, data__plantings=3, attribution__replicates=2)
    asked = [job for job in jobs(study) if job.phase == "attribution"]
    assert {job.replicate for job in asked} == {0, 1}
    for job in asked:
        assert read(study, job) <= {f"data/planting/{job.replicate}"}
        given = STEPS[job.step].inputs(study, job).values()
        named = [file for value in given for file in files(value) if "/rep" in file]
        assert all(f"/rep{job.replicate}/" in file for file in named)
        assert named or job.step == "attribution/queries"
    for step in ("features", "scores", "acceleration", "counterfactual", "remedied"):
        some = {job.replicate for job in asked if job.step == f"attribution/{step}"}
        assert some == {0, 1}


def test_the_report_reads_every_explained_replicate(digits):
    study = digits(replicates=2, attribution__replicates=2)
    (tables,) = [job for job in jobs(study) if job.step == "report/tables"]
    given = STEPS["report/tables"].inputs(study, tables)["attribution"]
    for k in range(2):
        assert f"attribution/rep{k}/scores/main/run.json" in given
        assert f"attribution/rep{k}/counterfactual/das/1/run.json" in given
        assert f"attribution/rep{k}/acceleration/run.json" in given
        assert f"attribution/rep{k}/scores/none/run.json" not in given
    told = STEPS["report/tables"].settings(study, tables)["attribution"]
    assert (told["replicates"], told["variants"]) == (2, True)
    assert "dtrak/0" in told["counterfactual"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__plantings": 4}, r"data\.plantings = 4 is more than replicates = 3"),
        ({"data__plantings": 0}, r"data\.plantings = 0"),
        ({"data__plant": [], "data__plantings": 2}, r"plantings = 2: nothing is planted"),
        (
            {"data__plantings": 2, "forget__some": {"ids": [3]}},
            r"forget\.some\.ids = \[3\]: with data\.plantings = 2",
        ),
    ],
)
def test_plantings_that_cannot_be_are_refused(digits, changes, message):
    with pytest.raises(ConfigError, match=message):
        digits(replicates=3, **changes)


def test_rows_of_one_planting_may_be_forgotten(digits):
    assert isinstance(digits(replicates=3, forget__some={"ids": [3]}), config.Study)
