"""What rules take from the plan: studies read with clear errors, inputs, resources and flags of
files."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from snakemake.exceptions import WorkflowError
from snakemake.io import AnnotatedString
from snakemake.iocontainers import Wildcards

from afterimage import config
from afterimage.engines import rules
from afterimage.engines.rules import Rules, in_place, read_study, uses_scratch
from afterimage.plan.jobs import STEPS


def wildcards(**named):
    return Wildcards(fromdict=named)


def made():
    """Rules of which one makes the results of two steps."""
    places = {
        "fit": ["train/{arm}/rep{rep}/run.json", "train/{arm}/rep{rep}/pipeline"],
        "slice": ["state/{arm}/rep{rep}/{k}of{parts}"],
        "attacks": [
            "attack/{arm}/rep{rep}/extraction/run.json",
            "attack/{arm}/rep{rep}/quality/run.json",
        ],
    }
    return [
        SimpleNamespace(output=[f"results/{{study}}/{path}" for path in files])
        for files in places.values()
    ]


@pytest.fixture
def planned(params):
    return Rules(config.parse(params), made, scratch=False)


def test_a_key_given_twice_is_refused_though_snakemake_keeps_the_last(params, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(params, sort_keys=False) + "seed: 8\n")
    with pytest.raises(WorkflowError, match="seed"):
        read_study(params | {"seed": 8}, [path])


def test_an_error_of_a_study_names_its_file_and_key(params, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(params | {"replicates": 0}))
    with pytest.raises(WorkflowError, match=r"mine.yaml[\s\S]*replicates"):
        read_study(params | {"replicates": 0}, [path])


def test_scratch_is_what_a_storage_provider_makes_it(monkeypatch):
    monkeypatch.setattr(rules.shutil, "which", lambda name: f"/usr/bin/{name}")
    none = SimpleNamespace(default_storage_provider=None)
    some = SimpleNamespace(default_storage_provider="fs", local_storage_prefix=Path("/scratch/me"))
    assert not uses_scratch(none)
    assert uses_scratch(some)


def test_a_scratch_folder_that_cannot_be_is_refused(monkeypatch):
    storage = SimpleNamespace(
        default_storage_provider="fs", local_storage_prefix=Path("/scratch/$NOWHERE")
    )
    with pytest.raises(WorkflowError, match=r"\$NOWHERE.*slurm/scratch.yaml"):
        uses_scratch(storage)


def test_scratch_without_rsync_is_refused(monkeypatch):
    monkeypatch.setattr(rules.shutil, "which", lambda name: None)
    storage = SimpleNamespace(default_storage_provider="fs", local_storage_prefix=Path("/scratch"))
    with pytest.raises(WorkflowError, match="rsync"):
        uses_scratch(storage)


def test_an_input_in_storage_is_read_where_it_lies():
    stored = SimpleNamespace(query="q", keep_local=True, retrieve=True, provider="fs")
    path = AnnotatedString("results/a")
    path.flags["storage_object"] = stored
    marked = in_place(path).flags["storage_object"]
    assert vars(marked) == vars(stored) | {"retrieve": False}
    assert in_place("results/a") == "results/a"


def test_inputs_are_those_of_the_job_that_the_wildcards_address(planned):
    inputs = planned.inputs("attack/extraction")(wildcards(arm="baseline", rep="1"))
    root = f"results/{planned.study.study}"
    assert inputs["samples"] == f"{root}/sample/baseline/rep1/images.npz"
    assert inputs["config"] == f"{root}/config/attack/baseline/rep1/extraction.json"
    flags = planned.flags("attack/extraction")(wildcards(arm="baseline", rep="1"))
    assert f"--samples {root}/sample/baseline/rep1/images.npz" in flags
    assert "--config" not in flags  # rules give it themselves
    given = planned.flags("attack/extraction", "samples")(wildcards(arm="baseline", rep="1"))
    assert given == flags.replace(f"--samples {root}/sample/baseline/rep1/images.npz ", "")


def test_a_second_attempt_asks_for_twice_as_much(planned):
    needs = planned.needs("attack/membership")
    cell = wildcards(arm="baseline", rep="0")
    for name, times in (("mem_mb", 2), ("runtime", 2), ("gpu", 1)):
        assert needs[name](cell, 2) == times * needs[name](cell, 1)


def test_processes_are_the_clusters_and_threads_are_theirs(params):
    cluster = {"device": "h100", "gpus_per_training": 4, "threads": 8}
    planned = Rules(config.parse(params | {"cluster": cluster}), made, scratch=False)
    cell = wildcards(arm="baseline")
    assert planned.processes_flag(cell, None) == "--processes 4"
    assert planned.training_threads(cell) == 32


def test_one_process_needs_no_flag(planned):
    assert planned.processes_flag(wildcards(arm="baseline"), None) == ""


def test_an_earlier_version_is_kept_where_outputs_are_written_in_place(params):
    study = config.parse(params)
    assert Rules(study, made, scratch=False).kept("page.html").flags["update"]
    assert Rules(study, made, scratch=True).kept("page.html") == "page.html"


def test_a_phase_is_every_file_of_its_jobs(planned):
    study = planned.study
    cells = [(arm, k) for arm in study.arms for k in range(study.replicates)]
    assert set(planned.phase("train")(None)) == {
        f"results/{study.study}/train/{arm}/rep{k}/{file}"
        for arm, k in cells
        for file in ("run.json", "pipeline")
    }


def test_the_files_of_a_step_are_found_in_the_rule_that_makes_several(planned):
    root = f"results/{planned.study.study}/attack/baseline/rep0"
    for verb in ("extraction", "quality"):
        job = STEPS[f"attack/{verb}"].job("baseline", 0)
        assert planned.results([job]) == [f"{root}/{verb}/run.json"]


def test_a_process_does_not_ask_for_what_it_makes(planned):
    cell = wildcards(arm="baseline", rep="0")
    inputs = planned.inputs("sample", "attack/extraction")(cell)
    alone = planned.inputs("attack/extraction")(cell)
    assert "samples" not in inputs
    assert alone.keys() - inputs.keys() == {"samples"}
    assert f"--samples {alone['samples']}" in planned.flags("attack/extraction")(cell)


def test_steps_of_one_process_share_inputs_and_resources(planned):
    steps = ("attack/extraction", "attack/membership")
    cell = wildcards(arm="baseline", rep="0")
    alone = [planned.inputs(step)(cell) for step in steps]
    both = planned.inputs(*steps)(cell)
    assert both["config"] == [inputs["config"] for inputs in alone]
    assert both["train"] == [alone[0]["train"]] == [alone[1]["train"]]
    assert both.keys() == alone[0].keys() | alone[1].keys()
    needs = [planned.needs(step) for step in steps]
    assert planned.needs(*steps)["runtime"](cell, 1) == sum(n["runtime"](cell, 1) for n in needs)
    assert planned.needs(*steps)["mem_mb"](cell, 1) == max(n["mem_mb"](cell, 1) for n in needs)


def test_a_study_without_a_selection_cannot_select(params):
    planned = Rules(config.parse(params | {"loyal_selection": None}), made, scratch=False)
    with pytest.raises(WorkflowError, match="loyal_selection"):
        planned.selection_results(None)
