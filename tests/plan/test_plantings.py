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
        if job.replicate is None or job.step == "sample":
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


def test_attribution_reads_the_planting_of_the_replicate_that_it_explains(study):
    asked = [job for job in jobs(study) if job.phase == "attribution"]
    assert set().union(*(read(study, job) for job in asked)) == {"data/planting/0"}


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
