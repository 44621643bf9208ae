"""The DAG: what runs, what does not, and what the user is told before anything runs."""

import json
import re
import shutil
import time
from collections import Counter
from dataclasses import replace

import pandas as pd
import psutil
import pytest

from afterimage import artifacts, config
from afterimage.plan import jobs
from afterimage.plan.step import TOGETHER

from .conftest import INSTALLED

pytestmark = pytest.mark.slow

OF_AN_ARM = ("fit", "draw_and_attack")
REPORTED = {"tables": 1, "page": 2, "mlflow": 1}


def test_every_folder_of_the_study_is_there(finished):
    study = config.load(finished.params)
    for job in jobs.jobs(study):
        assert (finished.results / job.folder / "run.json").is_file(), job.folder


def test_second_run_has_nothing_to_do(finished):
    assert finished.planned() == {}


def test_rules_of_the_dag(empty):
    once = ["fetch", "split", "planting", "classifier", "dedup", "tables", "mlflow"]
    assert empty.planned() == dict.fromkeys(once, 1) | dict.fromkeys(OF_AN_ARM, 2) | {"page": 2}


def test_no_target_means_all(empty):
    assert empty.planned(target=None) == empty.planned()


def test_replicates_multiply_what_is_trained_and_nothing_else(empty):
    empty.edit("replicates", value=3)
    planned = empty.planned()
    assert {rule: planned[rule] for rule in OF_AN_ARM} == dict.fromkeys(OF_AN_ARM, 6)
    assert planned["split"] == planned["planting"] == planned["dedup"] == planned["tables"] == 1


def test_plantings_multiply_training_sets(empty):
    empty.edit("replicates", value=3)
    empty.edit("data", "plantings", value=2)
    planned = empty.planned()
    assert planned["planting"] == planned["dedup"] == 2
    assert planned["split"] == 1
    assert planned["fit"] == 6


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("arms", "dedup", "train"), {"updates": 5}, dict.fromkeys(OF_AN_ARM, 1)),
        (("arms", "dedup", "control"), None, {}),
        (("sample", "steps"), 5, {"draw_and_attack": 2}),
        (("extraction", "alpha"), 0.6, {"draw_and_attack": 2}),
        (("quality", "neighbours"), 3, {"draw_and_attack": 2}),
        (("membership", "draws"), 2, {"draw_and_attack": 2}),
        (("statistics", "confidence"), 0.9, {"draw_and_attack": 2}),
        (("dedup", "keep"), "medoid", {"dedup": 1} | dict.fromkeys(OF_AN_ARM, 1)),
    ],
)
def test_a_setting_reruns_what_depends_on_it_alone(workspace, path, value, expected):
    workspace.edit(*path, value=value)
    assert workspace.planned() == expected | REPORTED


@pytest.mark.parametrize(
    ("path", "value", "again"),
    [
        (("quality", "neighbours"), 3, {"attack/quality"}),
        (("sample", "steps"), 5, {"sample", "attack/extraction", "attack/quality"}),
    ],
)
def test_stores_of_one_process_are_made_again_one_by_one(workspace, path, value, again):
    """A store that is up to date is kept: generations, when only an attack on them changes, and the
    attack on the network, when others are drawn."""
    arms = ("baseline", "dedup")
    stores = {
        (arm, step): workspace.results / jobs.STEPS[step].job(arm, 0).run
        for arm in arms
        for step in TOGETHER
    }
    before = {name: store.read_bytes() for name, store in stores.items()}
    workspace.edit(*path, value=value)
    workspace.snakemake("--", "all")
    changed = {name for name, store in stores.items() if store.read_bytes() != before[name]}
    assert changed == {(arm, step) for arm in arms for step in again}
    assert workspace.planned() == {}
    assert workspace.run("afterimage", "verify").returncode == 0


def test_an_attack_that_fails_leaves_the_earlier_results_and_is_due(workspace):
    stores = [workspace.results / jobs.STEPS[step].job("baseline", 0).folder for step in TOGETHER]
    files = [path for store in stores for path in store.iterdir() if path.name != "run.json"]
    before = {path: path.read_bytes() for path in files}
    [weights] = (workspace.results / "train/baseline/rep0/pipeline/unet").glob("*.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    workspace.edit("membership", "draws", value=2)
    assert workspace.snakemake("--", "all", check=False).returncode != 0
    assert {path: path.read_bytes() for path in before} == before
    assert not any((store / "run.json").exists() for store in stores)
    weights.write_bytes(whole)
    assert workspace.planned()["draw_and_attack"] >= 1
    workspace.snakemake("--", "all")
    assert workspace.planned() == {}
    assert workspace.run("afterimage", "verify").returncode == 0


def test_generations_that_an_attack_fails_on_are_not_drawn_again(workspace):
    [classifier] = (workspace.results / "data/classifier").glob("*.safetensors")
    whole = classifier.read_bytes()
    classifier.write_bytes(whole[:1000])
    workspace.edit("sample", "steps", value=5)
    assert workspace.snakemake("--", "all", check=False).returncode != 0
    log = (workspace.results / "logs/attack/baseline/rep0.log").read_text()
    assert "classifier.safetensors is not the file that" in log
    sample = workspace.results / "sample" / "baseline" / "rep0"
    assert not (sample / "run.json").exists()
    drawn = artifacts.read_run(artifacts.spare_folder(sample), artifacts.RECORD)
    assert drawn["config"]["settings"]["steps"] == 5
    classifier.write_bytes(whole)
    workspace.snakemake("--", "all")
    assert artifacts.check_store(sample) == drawn
    assert not list(workspace.results.rglob(".*.spare"))
    assert workspace.planned() == {}
    assert workspace.run("afterimage", "verify").returncode == 0


def test_a_setting_of_pages_reruns_no_table(workspace):
    workspace.edit("report", "pairs", value=4)
    assert workspace.planned() == {"page": 2, "mlflow": 1}


def test_a_new_arm_leaves_the_old_ones_alone(workspace):
    workspace.edit("arms", "short", value={"method": "baseline", "train": {"updates": 2}})
    assert workspace.planned() == dict.fromkeys(OF_AN_ARM, 1) | REPORTED


def test_pages_are_those_that_the_arms_ask_for(empty):
    assert empty.planned()["page"] == 2
    empty.edit("arms", "shards", value={"method": "iet_agc", "shards": 2, "rounds": 3})
    assert empty.planned()["page"] == 3
    empty.edit("arms", "blocks", value={"method": "baseline", "rau_net": {"groups": [1]}})
    assert empty.planned()["page"] == 4
    empty.edit("forget", value={"zeros": {"label": 0}})
    empty.edit("arms", "retrained", value={"method": "baseline", "without": "zeros"})
    planned = empty.planned()
    assert (planned["page"], planned["forgetting"]) == (5, 1)


@pytest.mark.parametrize("harm", ["delete", "empty"])
def test_a_harmed_artifact_is_noticed_and_remade(workspace, harm):
    images = workspace.results / "sample" / "dedup" / "rep0" / "images.npz"
    before = images.read_bytes()
    if harm == "delete":
        images.unlink()
        assert workspace.planned()["draw_and_attack"] == 1
    else:
        images.write_bytes(b"")
        refused = workspace.run("afterimage", "verify", check=False)
        assert refused.returncode != 0
        assert "images.npz is not the file that was published" in refused.stdout
        shutil.rmtree(images.parent)
    workspace.snakemake("--", "all")
    assert images.read_bytes() == before
    assert workspace.run("afterimage", "verify").returncode == 0


def test_killed_job_goes_on_where_it_was(empty):
    empty = replace(empty, commands=INSTALLED)
    empty.edit("train", "updates", value=400)
    empty.edit("train", "checkpoint_every", value=20)
    empty.edit("arms", value={"baseline": {"method": "baseline"}})
    running = empty.start("snakemake", "--cores", "2", "--", "all")
    saved = wait_for(lambda: list(empty.results.glob("state/baseline/rep0/*/update-*")))
    training = [
        p for p in psutil.Process(running.pid).children(recursive=True) if "train" in p.cmdline()
    ]
    assert training, "the training ended before it could be killed"
    for process in training:
        process.kill()
    assert running.wait() != 0
    assert saved
    assert not (empty.results / "train" / "baseline" / "rep0" / "run.json").exists()
    empty.snakemake("--", "all")
    facts = json.loads((empty.results / "train/baseline/rep0/run.json").read_text())["facts"]
    assert facts["updates"] == 400
    assert facts["resumed_at"]
    assert empty.run("afterimage", "verify").returncode == 0


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_every_kind_of_arm_runs(empty):
    """Options that the default study does not use, all in one: what each does is tested next to its
    module."""
    arms = {
        "plain": {"method": "baseline"},
        "half": {"method": "baseline", "fraction": 0.5},
        "conditional": {
            "method": "baseline",
            "condition": "label",
            "train": {"precision": "bf16", "accumulation": 2},
        },
        "continued": {"method": "baseline", "base": "plain", "train": {"epochs": 1}},
    }
    empty.edit("arms", value=arms)
    empty.edit("data", "flips", value=True)
    empty.edit(
        "sample",
        value={"images": 40, "steps": 4, "sampler": "ddpm", "guidance": 2.0, "weights": "raw"},
    )
    empty.edit(
        "extraction",
        value={"distance": "tiled", "tiles": 2, "anchor": "candidate", "gallery": "distinct"},
    )
    empty.edit("quality", "features", value="pixels")
    empty.snakemake("--", "all")
    assert empty.run("afterimage", "verify").returncode == 0
    metrics = json.loads((empty.results / "report/tables/metrics.json").read_text())
    assert set(metrics) == set(arms)
    assert metrics["continued"]["updates"] == 4  # 60 images in batches of 16
    assert metrics["half"]["training_images"] < metrics["plain"]["training_images"] == 60
    assert all("FD[pixels]" in numbers for numbers in metrics.values())


def test_bad_study_is_refused_before_any_job(empty):
    empty.edit("train", "lerning_rate", value=1)
    done = empty.snakemake("--", "all", check=False)
    assert done.returncode != 0
    assert "train.lerning_rate: unknown key; did you mean 'learning_rate'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (empty.folder / "results").exists()


def test_another_study_replaces_the_default_one_and_is_not_merged_with_it(empty):
    shutil.copy(empty.params, empty.folder / "other.yaml")
    empty.edit("arms", "extra", value={"method": "baseline"})
    empty.snakemake("--configfile", "other.yaml", "--dry-run", "--", "all")
    study = json.loads((empty.results / "config" / "study.json").read_text())
    assert list(study["arms"]) == ["baseline", "dedup"]


def test_every_shipped_study_plans(root, empty, monkeypatch):
    monkeypatch.setenv("AFTERIMAGE_DATA", "/nowhere")
    for path in sorted((root / "studies").glob("*.yaml")):
        study = config.load(path)
        planned = empty.planned("--configfile", str(path.relative_to(root)))
        assert planned["fit"] == len(study.arms) * study.replicates
        assert planned["fetch"] == 1


AT_PAPER_SCALE = ("loyal-laion10k", "iet-laion10k", "erasediff-imagenette", "das-artbench2-lora")
"""Studies on Stable Diffusion."""


@pytest.mark.parametrize("study", ["cifar10", "iet-cifar10", "erasediff-cifar10", *AT_PAPER_SCALE])
def test_fid_as_published_is_added_to_a_study(empty, study):
    empty.planned("--configfile", f"studies/{study}.yaml", "studies/with/fid.yaml")
    [resolved] = (empty.folder / "results").glob("*/config/study.json")
    quality = json.loads(resolved.read_text())["quality"]
    own = config.read_yaml(empty.folder / "studies" / f"{study}.yaml")["quality"]
    assert quality["features"] == "inception"
    assert quality["kid_subset_size"] == own.get("kid_subset_size", 200)


@pytest.mark.parametrize("study", AT_PAPER_SCALE)
def test_sscd_as_published_is_added_to_a_study(empty, study):
    """By the command in the study's header, but for the weights' name and checksum."""
    files = [f"studies/{name}.yaml" for name in (study, "with/sscd", "with/fid")]
    header = (empty.folder / files[0]).read_text().partition("\nstudy:")[0]
    assert all(file in header for file in files)
    added = "quality={similarity_sha256: $SSCD_SHA256}"
    assert f'--config "{added}"' in header
    given = added.replace("$SSCD_SHA256", "ab" * 32)
    empty.planned("--configfile", *files, "--config", given)
    [resolved] = (empty.folder / "results").glob("*/config/study.json")
    quality = json.loads(resolved.read_text())["quality"]
    assert (quality["features"], quality["similarity"]) == ("inception", "sscd")
    assert quality["similarity_weights"] == "${SSCD}"
    assert quality["similarity_sha256"] == "ab" * 32


def test_sscd_without_a_checksum_is_refused_before_any_job(empty):
    files = [f"studies/{name}.yaml" for name in ("loyal-laion10k", "with/sscd")]
    done = empty.snakemake("--configfile", *files, "--dry-run", "--", "all", check=False)
    assert done.returncode != 0
    needed = "similarity = sscd needs similarity_weights (a path) and similarity_sha256"
    assert needed in done.stdout  # where snakemake writes in a dry run


def test_all_classes_of_imagenette_share_one_base(empty):
    files = [f"studies/{name}.yaml" for name in ("erasediff-imagenette", "with/imagenette-classes")]
    planned = empty.planned("--configfile", *files)
    [resolved] = (empty.folder / "results").glob("*/config/study.json")
    study = config.parse(json.loads(resolved.read_text()))
    assert planned["fit"] == len(study.arms) * study.replicates
    erased = [arm for arm in study.arms.values() if arm.method == "erasediff"]
    forgotten = {arm.forget: arm for arm in erased if (arm.barrier, arm.weight) == ("fixed", 1)}
    assert len({block.caption for block in study.forget.values()}) == len(forgotten) == 10
    for name, arm in forgotten.items():
        assert arm.base == "plain"
        control = study.arms[arm.control]
        assert (control.base, control.without) == ("plain", name)
        retrained = study.arms[control.control]
        assert (retrained.base, retrained.without) == (None, name)


def test_scale_up_of_the_cifar10_study(empty):
    planned = empty.planned("--configfile", "studies/cifar10.yaml", "--config", "replicates=16")
    assert planned["fit"] == 32


def test_pages_need_no_network(finished):
    for name in ("extraction", "comparison"):
        page = (finished.results / f"report/pages/{name}/{name}.html").read_text()
        assert not re.search(r"""(?:src|href)=["']https?://""", page)
        figures = {
            path.stem for path in (finished.results / f"report/pages/{name}/figures").glob("*.png")
        }
        assert page.count('src="data:image/png;base64') == len(
            figures
        )  # the page's own style has pictures too
        assert {
            "extraction": {"pairs_baseline", "pairs_dedup"},
            "comparison": {"pareto", "differences"},
        }[name] <= figures


def test_images_are_withheld_unless_the_study_allows_them(workspace):
    workspace.edit("report", "show_images", value=False)
    workspace.snakemake("--", "all")
    figures = {
        path.stem
        for path in (workspace.results / "report/pages/extraction/figures").iterdir()
        if path.suffix == ".png"
    }
    assert not any(name.startswith("pairs") for name in figures)
    assert "multiplicity" in figures
    assert (
        "does not allow its images to be shown"
        in (workspace.results / "report/pages/extraction/extraction.html").read_text()
    )


def test_snakemake_report_opens_offline(finished):
    finished.snakemake("--report", "report.html", "--", "all")
    report = (finished.folder / "report.html").read_text()
    assert not re.search(r"""<(?:script|link)[^>]*(?:src|href)=["']https?://""", report)
    assert "headline numbers of every arm" in report


def test_tables_agree_with_the_attacks_they_gather(finished):
    tables = finished.results / "report" / "tables"
    copies = pd.read_csv(tables / "copies.csv")
    truth = pd.read_parquet(finished.results / "data/planting/0/index.parquet")
    sources = truth[truth.part == "train"].drop_duplicates("source")
    for arm in ("baseline", "dedup"):
        some = copies[(copies.arm == arm) & (copies.alpha == "fixed")]
        assert dict(zip(some.copies, some.of, strict=True)) == Counter(sources.copies)
    metrics = json.loads((tables / "metrics.json").read_text())
    for arm in ("baseline", "dedup"):
        pairs = pd.read_parquet(
            finished.results / "attack" / arm / "rep0" / "extraction" / "pairs.parquet"
        )
        assert metrics[arm]["flagged_generations"] == pytest.approx(
            (pairs.ratio_training <= 1).mean()
        )
        assert (
            metrics[arm]["unique_images"]
            == pairs[pairs.ratio_training <= 1].nearest_source.nunique()
        )


def test_dvc_stages_are_the_phases(root):
    import yaml

    stages = yaml.safe_load((root / "dvc.yaml").read_text())["stages"]
    assert tuple(stages) == jobs.PHASES
    rule_files = "\n".join(path.read_text() for path in (root / "workflow/rules").glob("*.smk"))
    for phase, stage in stages.items():
        assert f"rule {phase}:" in rule_files
        folder = (
            ["mkdir -p results/${study}/attribution"] if phase == "attribution" else []
        )  # a study may leave this phase out
        assert stage["cmd"] == [
            *folder,
            f"snakemake --cores all -- {phase}",
            f"afterimage verify {phase}",
        ]
        outs = [next(iter(out)) for out in stage["outs"]]
        assert all(out.startswith(f"results/${{study}}/{phase}") for out in outs)
        assert all(next(iter(out.values()))["persist"] for out in stage["outs"])


def test_dvc_params_cover_every_key_of_a_study(root):
    import yaml

    claimed = {
        key
        for stage in yaml.safe_load((root / "dvc.yaml").read_text())["stages"].values()
        for key in stage["params"]
    }
    assert claimed == set(config.Study.model_fields) - {"cluster"}, (
        "no result depends on how the work is cut"
    )
    assert claimed <= set(yaml.safe_load((root / "params.yaml").read_text())), (
        "DVC refuses a claimed key that params.yaml lacks"
    )


def test_dvc_plots_find_their_columns_for_every_arm(root, finished):
    import yaml

    plots = yaml.safe_load((root / "dvc.yaml").read_text())["plots"]
    for plot in (settings for named in plots for settings in named.values()):
        assert (root / ".dvc" / "plots" / f"{plot['template']}.json").is_file()
        [(path, column)] = plot["y"].items()
        table = pd.read_csv(finished.folder / path.replace("${study}", "tiny"))
        assert {"arm", plot["x"], column} <= set(table)
        assert set(table["arm"]) == {"baseline", "dedup"}


def test_dvc_links_cannot_make_stale_results_look_fresh(root):
    import configparser

    settings = configparser.ConfigParser()
    settings.read(root / ".dvc" / "config")
    assert settings["cache"]["type"].strip('"') == "reflink,copy"
