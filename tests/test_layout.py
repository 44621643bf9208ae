"""What the workflow writes before it plans: only what changed, and nothing of the study lost."""

from afterimage import config, layout


def test_the_written_study_is_the_study_in_its_order(params, tmp_path):
    params["arms"] = {"z": {"method": "baseline"}, "a": {"method": "baseline", "base": "z"}, "m": {"method": "baseline"}}
    study = config.parse(params)
    layout.write_configs(study, tmp_path)
    again = config.load(tmp_path / study.study / "config" / "study.json")
    assert again == study
    assert list(again.arms) == ["z", "a", "m"]
    assert [config.resolve(again, job.step, job.arm, job.replicate) for job in layout.jobs(again)] == [
        config.resolve(study, job.step, job.arm, job.replicate) for job in layout.jobs(study)
    ]


def test_only_what_changed_is_touched(params, tmp_path):
    layout.write_configs(config.parse(params), tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    params["sample"]["steps"] = 7
    layout.write_configs(config.parse(params), tmp_path)
    touched = {
        path.relative_to(tmp_path / "default/config").as_posix()
        for path, then in before.items()
        if path.stat().st_mtime_ns != then
    }
    assert touched == {"study.json", "sample/baseline/rep0.json", "sample/dedup/rep0.json"}
