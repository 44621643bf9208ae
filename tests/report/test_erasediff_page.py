"""The page on forgetting, run in this process on made-up results: every number of it is computed
from them."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from afterimage import artifacts, cli, config
from afterimage.attacks.table import Reading, Results
from afterimage.images import Images
from afterimage.metrics import ranking
from afterimage.plan import jobs
from afterimage.plan.resolved import resolved
from afterimage.report.notebook import Notebook
from afterimage.report.pages.erasediff import Unlearning

BASE = {"base": "conditional", "train": {"updates": 20}}
ARMS = {
    "baseline": {"method": "baseline"},
    "conditional": {"method": "baseline", "condition": "label"},
    "retrained": {"method": "baseline", "condition": "label", "without": "zeros"},
    "finetune": {"method": "baseline", "without": "zeros", **BASE},
    "salun": {"method": "salun", "forget": "zeros", **BASE},
    "erasediff": {"method": "erasediff", "forget": "zeros", **BASE},
    "erasediff_found": {"method": "erasediff", "forget": "found", "control": "conditional", **BASE},
    "ascent": {"method": "gradient_ascent", "forget": "few", **BASE},
}
SETS = {"zeros": {"label": 0}, "few": {"ids": [1, 2]}, "found": {"extracted_from": "conditional"}}
PROBABILITY = {
    "conditional": 0.95,
    "retrained": 0.01,
    "finetune": 0.9,
    "salun": 0.05,
    "erasediff": 0.3,
    "erasediff_found": 0.2,
    "ascent": 0.5,
}
BACK = {"conditional": 0, "retrained": 8, "finetune": 0, "salun": None, "erasediff": 4}


def judged(folder: Path, arm: str, sets: list[str], replicate: int) -> None:
    """Write what the attack would have found, around ``PROBABILITY`` and ``BACK``."""
    rng = np.random.default_rng([len(arm), replicate])
    tables, curves = [], []
    for name in sets:
        table = Results(config.Statistics(bootstrap=50), replicate, name)
        chance = PROBABILITY[arm]
        if name == "zeros":
            p = np.clip(chance + 0.05 * rng.standard_normal(40), 0, 1)
            for kind in ("", "_holdout"):
                table.mean(f"probability{kind}", p, "forget")
                table.mean(f"entropy{kind}", 1 - p, "forget")
                table.share(f"classified{kind}", p > 0.5, subset="forget")
                table.share(f"accuracy{kind}", rng.random(80) < 0.9, subset="remain")
                for label in (1, 2):
                    table.share(
                        f"accuracy_by_label{kind}", rng.random(40) < 0.9, subset=f"label={label}"
                    )
                for metric in ("FD_balanced", "precision", "recall"):
                    value = 1 + 0.05 * rng.standard_normal()
                    table.number(
                        f"{metric}[classifier]{kind}",
                        value,
                        80,
                        (value - 0.2, value + 0.2),
                        "remain",
                    )
            table.number("relearn_updates", BACK[arm], 8, subset="forget")
        for alpha in ("fixed", "calibrated"):
            for subset in ("forget", "remain"):
                table.share(
                    "extracted_images",
                    rng.random(20) < chance,
                    Reading("training", alpha, 0.5),
                    subset,
                )
        table.contrast(
            "roc_auc",
            ranking.area,
            rng.normal(-chance, 1, 20),
            rng.normal(size=30),
            "forget",
        )
        tables.append(table.frame().assign(set=name))
        curve = pd.DataFrame(
            {"set": name, "update": [0, 4, 8], "loss": 0.1 + np.array([0.3, 0.1, 0.0])}
        )
        curves.append(curve.assign(probability=[chance, 0.6, 0.9] if name == "zeros" else np.nan))
    pd.concat(tables).to_csv(folder / "results.csv", index=False)
    pd.concat(curves).to_csv(folder / "relearning.csv", index=False)


@pytest.fixture(scope="module")
def study(root, make_up, truth, tmp_path_factory):
    """Return a function that makes up a study with everything that the page reads."""

    @cache
    def build(replicates: int, **report) -> tuple[config.Study, Path]:
        params = yaml.safe_load((root / "tests" / "study.yaml").read_text())
        params |= {
            "arms": ARMS,
            "replicates": replicates,
            "report": report,
            "forget": SETS,
            "loyal_selection": None,
        }
        params["attribution"] = None
        params["forgetting"] = {"relearn_updates": 8, "relearn_every": 4}
        made = config.parse(params)
        results = make_up(tmp_path_factory.mktemp("made"), made, {arm: truth() for arm in ARMS})
        rng = np.random.default_rng(0)
        for job in jobs.jobs(made):
            if job.arm in PROBABILITY and job.step in ("train", "sample", "attack/forgetting"):
                wanted_config = resolved(made, job)
                facts = artifacts.read_run(results / job.folder)["facts"]
                with artifacts.step(
                    wanted_config, results / job.folder, {}, ("afterimage.seeds",)
                ) as step:
                    if job.step == "train":
                        names = ["loss", "forget_loss"] if made.arms[job.arm].base else ["loss"]
                        names += (
                            ["lambda", "cosine", "barrier", "descent_asked"]
                            if job.arm.startswith("erasediff")
                            else []
                        )
                        for update in (5, 10, 15, 20):
                            for name in names:
                                step.metric(
                                    name, 0.1 + rng.random() - 0.6 * (name == "cosine"), update
                                )
                        step.note(**facts, pushed_updates=17)
                    elif job.step == "sample":
                        pixels = rng.integers(0, 256, (60, 8, 8, 1), np.uint8)
                        Images.of(pixels, labels=np.arange(60) % 3).save(step.folder / "images.npz")
                    else:
                        wanted = list(wanted_config["settings"]["sets"])
                        judged(step.folder, job.arm, wanted, job.replicate)
                        step.note(
                            sets={
                                name: {
                                    "sources": 20,
                                    "trained": 0 if job.arm == "retrained" else 20,
                                }
                                for name in wanted
                            }
                        )
        command = [
            "report",
            "tables",
            "--results",
            str(results),
            "--config",
            str(results / "config/report/tables.json"),
        ]
        assert cli.main([*command, "--out", str(results / "report/tables")]) == 0
        return made, results

    return build


def test_every_figure_and_the_published_table(study, show):
    text, figures = show("erasediff", *study(1, show_images=True))
    of_each = {
        f"{what}_{name}" for what in ("arms", "forgetting", "images", "relearning") for name in SETS
    }
    assert figures == of_each | {"classes_zeros", "steps", "gradients"}
    assert "EraseDiff rl" in text
    assert "second-hand" in text
    assert "76.73" not in text  # no arm of the label set is NegGrad
    assert text.count("not within 8") == 3  # salun: in both tables and under the curves
    assert "the forgotten images moved the weights in 17 of 1500 updates" in text
    assert "baseline" not in text


def test_unlearning_accuracy_is_what_the_classifier_does_not_take_for_the_class(study, tmp_path):
    """No generation of the one arm is taken for it, every one of the other."""
    made, results = study(1, show_images=True)
    page = Unlearning(Notebook(results, tmp_path / "figures", 0.95), list(made.arms), 1)
    table = page.table("zeros").set_index("arm")["UA"]
    assert table["<b>erasediff</b>"] == "100.0 % <small>[91.2, 100.0]</small>"
    assert table["<b>conditional</b>"] == "0.0 % <small>[0.0, 8.8]</small>"
    assert page.unmeasured("zeros") == ""
    few = page.unmeasured("few")
    assert few.startswith("*P_psi, UA and entropy*: not measured of any arm; needs")


def test_run_times_are_those_of_own_training_and_setup_beside_the_published(study, tmp_path):
    made, built = study(2, show_images=False)
    results = tmp_path / "results"
    shutil.copytree(built, results)
    spent = {"finetune": 20, "salun": 50, "erasediff": 40}
    for arm, seconds in spent.items():
        for k in range(2):
            store = results / "train" / arm / f"rep{k}"
            run = artifacts.read_run(store)
            run["facts"] |= {"training_seconds": seconds + 2 * k - 1}
            run["facts"] |= {"setup_seconds": 30} if arm == "salun" else {}
            artifacts.write_json(store / artifacts.RUN, run)
    page = Unlearning(Notebook(results, tmp_path / "figures", 0.95), list(made.arms), 2)
    rows = {str(row["arm"]): row for row in page.run_times("zeros")}
    told = {
        arm: (row["seconds"].split()[0], row["times erasediff's"], row["published"])
        for arm, row in rows.items()
    }
    assert told == {
        "<b>finetune</b>": ("20", "0.5", ""),
        "<b>salun</b>": ("80", "2", 2),
        "<b>erasediff</b>": ("40", "1", 1),
    }
    assert "times" not in " ".join(page.run_times("few")[0])  # no arm of it is EraseDiff's


def test_sets_of_captions_are_compared_in_what_is_copied(captioned, make_up, truth, tmp_path):
    base = {"base": "plain", "train": {"updates": 20}}
    arms = {
        "plain": {"method": "baseline"},
        "finetune": {"method": "baseline", "without": "faces", **base},
        "erasediff": {"method": "erasediff", "forget": "faces", "control": "plain", **base},
    }
    made = captioned(
        arms, forget={"faces": {"caption": "face", "surrogate": "a thing"}}, replicates=8
    )
    truths = {name: truth(alignment=0.7) for name in arms}
    truths["erasediff"] = truth(alignment=0.6, forgotten=0.0)
    results = make_up(tmp_path / "made", made, truths)
    page = Unlearning(Notebook(results, tmp_path / "figures", 0.95), list(arms), 8)
    table = page.table("faces").set_index("arm")
    aligned = table["text_alignment[classifier], all"]
    assert aligned["<b>erasediff</b>"].startswith(("0.59", "0.6"))
    assert aligned["<b>plain</b>"].startswith(("0.7", "0.69"))
    assert aligned["<i>real held-out images</i>"].startswith("0.8")
    said = page.unmeasured("faces")
    assert "*P_psi, UA and entropy*: not measured of any arm; needs" in said
    assert "*accuracy, rest*: not measured of any arm; needs" in said
    against = page.against_base_and_retrained("faces").set_index("arm").loc["<b>erasediff</b>"]
    for measure in ("extracted", "copied", "brought back"):
        assert against[f"{measure}, to plain"].startswith("<b>lower</b>"), measure
    assert "no difference seen" in against["FD_balanced[classifier] of the rest, to plain"]


def test_an_arm_that_is_changed_in_one_step_is_named_and_has_no_panel(study, tmp_path):
    made, built = study(1, show_images=True)
    results = tmp_path / "results"
    shutil.copytree(built, results)
    curve = results / "train" / "salun" / "rep0" / "metrics.jsonl"
    first = curve.read_text().splitlines()
    curve.write_text("\n".join(line for line in first if '"step": 5,' in line))
    page = Unlearning(Notebook(results, tmp_path / "figures", 0.95), list(made.arms), 1)
    assert "salun" not in page.curves()
    assert "erasediff" in page.curves()
    assert page.at_once() == "Changed in one step, without a curve: salun."
    whole = Unlearning(Notebook(built, tmp_path / "figures", 0.95), list(made.arms), 1)
    assert "salun" in whole.curves()
    assert whole.at_once() == ""


def test_one_training_gives_no_verdict(study, show):
    text, _ = show("erasediff", *study(1, show_images=True))
    assert "one training: no verdict: -0.6" in text
    assert not any(
        word in text
        for word in (
            "<b>lower</b>",
            "<b>higher</b>",
            "<b>as published</b>",
            "<b>the other way round</b>",
        )
    )


def test_verdicts_follow_the_numbers(study, show):
    text, _ = show("erasediff", *study(3, show_images=False))
    order = text[text.index("published order among the methods") :]
    rows = [row for row in order.split("<tr>") if "P_psi" in row]
    said = {
        other: next(row for row in rows if f">{other}<" in row)
        for other in ("conditional", "finetune", "salun")
    }
    for (
        other
    ) in said:  # 0.3 against 0.95 and 0.9: lower, as published; against 0.05: higher, as published
        assert "<b>as published</b>" in said[other], other
    assert "<b>lower</b>: -0.6" in said["conditional"]
    assert "<b>higher</b>: +0.2" in said["salun"]
    assert "its base; no arm was retrained without the images" in text


def test_a_set_that_an_attack_chose_is_judged_against_its_origin(study, show):
    """One half of the origin's generations chose it, the other half judges everyone."""
    made, results = study(3, show_images=False)
    text, _ = show("erasediff", made, results)
    assert "extracted from the first half of the generations of conditional" in text
    assert "counted on the second half of every arm's" in text
    row = next(
        row for row in text.split("<tr") if "<b>erasediff_found</b>" in row and "lower" in row
    )
    assert "not testable" not in row
    compared = pd.read_csv(results / "report/tables/comparison.csv").set_index(["arm", "metric"])
    metric = "forgotten_extracted_calibrated[found]"
    assert compared.loc[("erasediff_found", metric), "verdict"] == "better"


def test_replicates_and_images_that_may_not_be_shown(study, show):
    text, figures = show("erasediff", *study(2, show_images=False))
    assert not any(name.startswith("images") for name in figures)
    assert text.count("does not allow its images to be shown") == 1
    assert "between 2 replicates (Student's t)" in text
    assert "not within 8, not within 8" in text
