"""Into which jobs a study's work is cut, and that what is finished keeps the cut it was made in."""

import json
import shutil
from contextlib import nullcontext

import pytest

from afterimage import artifacts, config
from afterimage.plan import jobs
from afterimage.plan.cost import estimate
from afterimage.plan.parts import parts
from afterimage.plan.resolved import changed_configs, modules, resolve, resolved, write_configs
from afterimage.plan.step import TOGETHER

CUT = {"max_minutes_per_job": 60, "generations_per_job": 64, "headroom": 1.5}


@pytest.fixture
def params(params, monkeypatch):
    """Two arms, one of which starts from the other; every training takes 100 minutes."""
    monkeypatch.setattr(estimate, "training_minutes", lambda study, arm: 100.0)
    params["arms"] = {
        "next": {"method": "baseline", "base": "plain"},
        "plain": {"method": "baseline"},
    }
    params["sample"] |= {"images": 150, "batch_size": 32}
    return params | {"loyal_selection": None}


def job_of(study, folder):
    return next(job for job in jobs.jobs(study) if job.folder == folder)


@pytest.mark.parametrize(
    ("limit", "headroom", "expected"),
    [
        (None, 2.0, []),
        (100, 1.0, []),
        (99.9, 1.0, ["1of2"]),
        (100, 2.0, ["1of2"]),
        (60, 1.5, ["1of3", "2of3"]),
        (12, 1.0, [f"{k}of9" for k in range(1, 9)]),
    ],
)
def test_a_training_has_as_many_parts_as_its_limit_asks_for(limit, headroom, expected, params):
    params["cluster"] = {"max_minutes_per_job": limit, "headroom": headroom}
    study = config.parse(params)
    assert parts(study, job_of(study, "train/plain/rep0")) == expected


@pytest.mark.parametrize(
    ("each", "expected"),
    [(None, []), (64, ["0-64", "64-128", "128-150"]), (96, ["0-96", "96-150"]), (160, [])],
)
def test_a_sampling_has_blocks_of_the_size_asked_for(each, expected, params):
    params["cluster"] = {"generations_per_job": each}
    study = config.parse(params)
    assert parts(study, job_of(study, "sample/plain/rep0")) == expected
    assert parts(study, job_of(study, "attack/plain/rep0/extraction")) == []


def test_how_the_work_is_cut_is_no_setting_of_any_job(params):
    study = config.parse(params)
    other = config.parse(
        params | {"cluster": CUT | {"gpus_per_training": 4, "device": "h100", "threads": 8}}
    )
    for job in jobs.jobs(study):
        address = (job.step, job.arm, job.replicate, job.job)
        assert resolve(study, *address) == resolve(other, *address)


@pytest.fixture
def planned(params, tmp_path):
    """Return a function that plans with a cluster block and changed settings, and gives the cut and
    the files that were written."""

    def plan(cluster: dict, **changed) -> tuple[dict[str, list[str]], set[str]]:
        study = config.parse(params | changed | {"cluster": cluster})
        root = tmp_path / "default" / "config"
        written = {path.relative_to(root).as_posix() for path in changed_configs(study, tmp_path)}
        write_configs(study, tmp_path)
        return json.loads((root / "parts.json").read_text()), written

    return plan


@pytest.fixture
def finish(params, tmp_path):
    """Return a function that puts a result in its place."""

    def make(folder: str, *sources: str, parts: tuple[str, ...] = (), text: str = "") -> None:
        study, root = config.parse(params), tmp_path / "default"
        job = job_of(study, folder)
        wanted_config = resolved(study, job)
        inputs = {name: root / name / "file" for name in sources}
        keeping = artifacts.keeping_results() if job.step in TOGETHER else nullcontext()
        made = artifacts.step(wanted_config, root / folder, inputs, modules(study, job))
        with keeping, made as step:
            (step.folder / "file").write_text(text)
            step.note(parts=list(parts))

    return make


@pytest.fixture
def finished(finish):
    """Everything up to the attacks, made in one piece but for the training of ``plain``."""
    finish("data/split")
    finish("train/plain/rep0", "data/split", parts=("1of2",))
    finish("train/next/rep0", "data/split", "train/plain/rep0")
    for arm in ("plain", "next"):
        draw_and_attack(finish, arm)


def draw_and_attack(finish, arm: str, parts: tuple[str, ...] = ()) -> None:
    finish(f"sample/{arm}/rep0", f"train/{arm}/rep0", parts=parts)
    for attack in ("extraction", "quality", "membership"):
        finish(f"attack/{arm}/rep0/{attack}", f"train/{arm}/rep0", f"sample/{arm}/rep0")


UNCUT = {
    "train/next/rep0": [],
    "train/plain/rep0": [],
    "sample/next/rep0": [],
    "sample/plain/rep0": [],
}
MADE = UNCUT | {"train/plain/rep0": ["1of2"]}
TRAINED, DRAWN = ["1of3", "2of3"], ["0-64", "64-128", "128-150"]
NOW = {
    "train/next/rep0": TRAINED,
    "train/plain/rep0": TRAINED,
    "sample/next/rep0": DRAWN,
    "sample/plain/rep0": DRAWN,
}


def test_what_is_not_there_is_cut_as_the_study_says(planned):
    assert planned(CUT)[0] == NOW
    assert planned({}) == (UNCUT, {"parts.json"})


def test_what_is_finished_keeps_its_parts_and_no_other_file_knows_of_them(planned, finished):
    assert planned({})[0] == MADE
    for cluster in (CUT, {"max_minutes_per_job": 1, "gpus_per_training": 2}):
        assert planned(cluster) == (MADE, set())


def test_other_settings_cut_anew_what_they_make_again(planned, finished, params):
    train = params["train"] | {"updates": 9}
    assert planned(CUT, train=train)[0] == NOW
    assert planned(CUT, sample=params["sample"] | {"steps": 3})[0] == MADE | {
        "sample/next/rep0": DRAWN,
        "sample/plain/rep0": DRAWN,
    }
    data = params["data"] | {"split": params["data"]["split"] | {"holdout": 300}}
    assert planned(CUT, data=data)[0] == NOW


@pytest.mark.parametrize(
    ("folder", "again"),
    [
        (
            "data/split",
            {"train/next/rep0", "train/plain/rep0", "sample/next/rep0", "sample/plain/rep0"},
        ),
        (
            "train/plain/rep0",
            {"train/next/rep0", "train/plain/rep0", "sample/next/rep0", "sample/plain/rep0"},
        ),
        ("train/next/rep0", {"train/next/rep0", "sample/next/rep0"}),
        ("sample/next/rep0", {"sample/next/rep0"}),
    ],
)
def test_what_follows_from_a_missing_result_is_cut_anew(folder, again, planned, finished, tmp_path):
    shutil.rmtree(tmp_path / "default" / folder)
    assert planned(CUT)[0] == MADE | {name: NOW[name] for name in again}


def test_what_follows_from_a_changed_result_is_cut_anew(planned, finished, finish):
    finish("data/split")  # the same again
    assert planned(CUT)[0] == MADE
    finish("train/next/rep0", "data/split", "train/plain/rep0", text="other")
    assert planned(CUT)[0] == MADE | {"sample/next/rep0": DRAWN}
    finish("data/split", text="other")
    assert planned(CUT)[0] == NOW


@pytest.fixture
def drawn_in_blocks(finished, finish, tmp_path):
    """The generations of ``plain`` were drawn in blocks; return the folder of these."""
    for phase in ("sample", "attack"):
        shutil.rmtree(tmp_path / "default" / phase / "plain")
    draw_and_attack(finish, "plain", ("0-96", "96-150"))
    return tmp_path / "default/blocks/plain/rep0"


ALL_BLOCKS = MADE | {"sample/plain/rep0": ["0-96", "96-150"]}


def test_generations_that_are_kept_for_another_attack_need_no_blocks(
    planned, drawn_in_blocks, params
):
    """Their blocks are removed when all of the process is done, and would be drawn once more."""
    assert planned(CUT)[0] == ALL_BLOCKS
    other = params["quality"] | {"neighbours": 3}
    assert planned(CUT, quality=other)[0] == MADE
    sample = params["sample"] | {"steps": 3}
    again = MADE | {"sample/next/rep0": DRAWN, "sample/plain/rep0": DRAWN}
    assert planned(CUT, quality=other, sample=sample)[0] == again


@pytest.mark.parametrize("killed", ["process", "process and snakemake"])
def test_blocks_of_a_process_that_was_killed_are_removed_with_it(
    killed, planned, drawn_in_blocks, tmp_path
):
    """After that, as before: Snakemake removes what a process read when it is done."""
    (tmp_path / "default/attack/plain/rep0/membership/run.json").unlink()
    if killed == "process":
        (tmp_path / "default/sample/plain/rep0/run.json").unlink()
    assert planned(CUT)[0] == MADE
    for block in ("0-96", "96-150"):
        (drawn_in_blocks / block).mkdir(parents=True)
    assert planned(CUT)[0] == ALL_BLOCKS
