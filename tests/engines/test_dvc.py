"""DVC's stages depend on what the declared steps are made of."""

import shutil

import pytest
import yaml

from afterimage import cli, config
from afterimage.engines import dvc
from afterimage.plan.jobs import PHASES


def test_the_committed_file_is_the_generated_one(root, tmp_path, monkeypatch):
    shutil.copy(root / "dvc.yaml", tmp_path)
    shutil.copy(root / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "dvc"]) == 0
    assert (tmp_path / "dvc.yaml").read_text() == (root / "dvc.yaml").read_text()


def test_every_stage_has_the_blocks_of_its_steps(root):
    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert list(stages) == list(PHASES)
    assert {"arms", "replicates", "train", "model"} <= set(stages["train"]["params"])
    assert "sample" not in stages["train"]["params"]
    assert {"membership", "extraction", "forget"} <= set(stages["attack"]["params"])


def test_keys_that_the_study_leaves_out_are_left_out():
    assert dvc.params({"study", "data"})["data"] == ["study", "data"]
    every = dvc.params(set(config.Study.model_fields))
    assert every["sample"] == ["study", "seed", "replicates", "arms", "sweeps", "sample"]


def test_a_stage_that_is_not_there_is_named(tmp_path, monkeypatch, root, capsys):
    shutil.copy(root / "params.yaml", tmp_path)
    (tmp_path / "dvc.yaml").write_text("stages:\n  data:\n    params: []\n")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "dvc"]) == 2
    assert "has no stage train" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["cluster"])
def test_how_work_is_cut_reruns_no_stage(key):
    every = dvc.params(set(config.Study.model_fields))
    assert not [phase for phase, keys in every.items() if key in keys]
