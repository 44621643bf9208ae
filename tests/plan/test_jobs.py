"""What the workflow writes before it plans: only what changed, and nothing of the study lost."""

import pytest

from afterimage import config
from afterimage.plan import jobs
from afterimage.plan.resolved import resolved, write_configs


@pytest.fixture
def params(params):
    """The default study, free to have other arms than those that its selection starts from."""
    return params | {"loyal_selection": None}


def test_the_written_study_is_the_study_in_its_order(params, tmp_path):
    params["arms"] = {
        "z": {"method": "baseline"},
        "a": {"method": "baseline", "base": "z"},
        "m": {"method": "baseline"},
    }
    study = config.parse(params)
    write_configs(study, tmp_path)
    again = config.load(tmp_path / study.study / "config" / "study.json")
    assert again == study
    assert list(again.arms) == ["z", "a", "m"]
    assert [resolved(again, job) for job in jobs.jobs(again)] == [
        resolved(study, job) for job in jobs.jobs(study)
    ]


def test_only_what_changed_is_touched(params, tmp_path):
    params["forget"] = {"zeros": {"label": 0}}
    params["arms"] = {
        "baseline": {"method": "baseline"},
        "without": {"method": "baseline", "without": "zeros"},
    }
    write_configs(config.parse(params), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    params["sample"]["steps"] = 7
    write_configs(config.parse(params), tmp_path)
    touched = {
        path.relative_to(tmp_path / "default/config").as_posix()
        for path, then in before.items()
        if path.stat().st_mtime_ns != then
    }
    sampled = {
        "sample/baseline/rep0.json",
        "sample/without/rep0.json",
        "attack/without/rep0/forgetting.json",
    }
    assert touched == {"study.json", *sampled}


def pages(params, **arms):
    params["arms"] = {"plain": {"method": "baseline"}, **arms}
    return jobs.pages(config.parse(params))


def test_pages_are_those_that_the_arms_ask_for(params):
    params["forget"] = {"zeros": {"label": 0}}
    blocks = {"method": "baseline", "rau_net": {"groups": [1]}}
    without = {"method": "baseline", "without": "zeros"}
    shards = {"method": "iet_agc", "shards": 2, "rounds": 2, "train": {"updates": 8}}
    assert pages(params) == ["extraction", "comparison"]
    assert pages(params, iet=shards) == ["extraction", "comparison", "iet_agc"]
    assert pages(params, rau=blocks) == ["extraction", "comparison", "loyal"]
    assert pages(params, split={"method": "loyal", "switch_timestep": 500}) == [
        "extraction",
        "comparison",
        "loyal",
    ]
    assert pages(params, retrained=without) == ["extraction", "comparison", "erasediff"]
    whole = config.parse(params | {"arms": {"iet": shards, "rau": blocks, "retrained": without}})
    assert jobs.pages(whole) == ["extraction", "comparison", "iet_agc", "loyal", "erasediff"]
    assert [job.folder for job in jobs.jobs(whole) if job.step == "report/page"] == [
        f"report/pages/{page}" for page in jobs.pages(whole)
    ]
    tables = next(resolved(whole, job) for job in jobs.jobs(whole) if job.step == "report/tables")
    assert tables["settings"]["attacks"]["forgetting"] == ["retrained"]
