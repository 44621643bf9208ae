"""Each replicate reads the files of its own planting, in every step."""

import pytest

from afterimage import config
from afterimage.config import ConfigError
from afterimage.plan.data import training_images
from afterimage.plan.jobs import STEPS, jobs
from afterimage.plan.report import paired_with_control
from afterimage.plan.resolved import resolved
from afterimage.provenance import digest


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


OWN = {
    "method": "baseline",
    "data": "deduplicated",
    "dedup": {"methods": ["embedding"], "embedding": {"features": "pixels", "similarity": 0.9}},
}


@pytest.fixture
def several(digits):
    """Three deduplications: the study's, one of two arms and what is loyal's base, and another."""
    return digits(
        replicates=3,
        data__plantings=2,
        dedup={"methods": ["exact"], "embedding": {"features": "classifier"}},
        arms__dedup={"method": "baseline", "data": "deduplicated"},
        arms__near=OWN,
        arms__again=OWN | {"control": "near"},
        arms__as_the_study=OWN | {"dedup": {"methods": ["exact"]}},
        arms__found=OWN | {"dedup": {"methods": ["phash"]}},
        loyal_selection={"base": "again", "updates": 100, "switch_timesteps": [500]},
    )


def test_arms_train_on_what_their_own_deduplication_leaves(several):
    assert list(several.deduplications) == ["near", "found"]
    sets = {
        arm: training_images(several.with_selection, arm, 2)
        for arm in several.with_selection.arms
        if several.with_selection.arms[arm].data == "deduplicated"
    }
    assert sets.pop("dedup") == sets.pop("as_the_study") == "data/dedup/0/train.npz"
    assert sets.pop("found") == "data/dedup/found/0/train.npz"
    assert {"near", "again"} < sets.keys()  # and those of the selection
    assert set(sets.values()) == {"data/dedup/near/0/train.npz"}


def test_every_deduplication_has_its_settings_and_its_planting(several):
    made = {job.job: job for job in jobs(several) if job.step == "data/dedup"}
    assert list(made) == ["0", "1", "near/0", "near/1", "found/0", "found/1"]
    methods = {name: resolved(several, job)["settings"]["methods"] for name, job in made.items()}
    assert methods["1"] == ["exact"]
    assert methods["near/1"] == ["embedding"]
    assert methods["found/1"] == ["phash"]
    for name, job in made.items():
        assert read(several, job) == {f"data/planting/{name[-1]}"}
    asked = {
        name: "classifier" in STEPS["data/dedup"].inputs(several, job) for name, job in made.items()
    }
    assert asked["0"]
    assert not asked["near/0"]
    assert asked["found/0"]
    (tables,) = [job for job in jobs(several) if job.step == "report/tables"]
    assert read(several, tables) == {f"data/dedup/{name}" for name in made}


def test_an_arm_is_out_of_date_when_its_deduplication_is(digits):
    def hashes(**changes):
        study = digits(arms__near=OWN | changes)
        return {
            job.folder: digest(resolved(study, job)) for job in jobs(study) if job.replicate == 0
        }

    before = hashes()
    after = hashes(dedup={"methods": ["phash"]})
    changed = {folder for folder in before if before[folder] != after[folder]}
    assert changed == {"train/near/rep0"}
    none = hashes(dedup={})
    assert none["train/near/rep0"] != before["train/near/rep0"]


def test_arms_of_other_deduplications_are_not_paired(several):
    assert paired_with_control(several, "again")
    control = several.arms["found"].model_copy(update={"control": "near"})
    changed = several.model_copy(update={"arms": several.arms | {"found": control}})
    assert not paired_with_control(changed, "found")


def test_an_unlearner_knows_what_its_base_saw(digits):
    arms = {"arms__near": OWN | {"condition": "label"}}
    erase = {"method": "erasediff", "base": "near", "forget": "zeros", "data": "deduplicated"}
    with pytest.raises(
        ConfigError, match=r"arms\.erase: data = 'deduplicated', but base = 'near' was"
    ):
        digits(**arms, arms__erase=erase)
    assert digits(**arms, arms__erase=erase | {"dedup": OWN["dedup"]})
    with pytest.raises(
        ConfigError, match=r"arms\.amg: .* give its data = 'deduplicated' and dedup ="
    ):
        digits(**arms, arms__amg={"method": "amg", "base": "near", "data": "deduplicated"})
