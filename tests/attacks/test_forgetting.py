"""What is judged on a forget set: known answers, relearning against a plain loop, and the verb on
really trained arms."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from sklearn.datasets import load_digits

from afterimage import artifacts, cli, config
from afterimage.artifacts import ArtifactError
from afterimage.attacks import forgetting, relearning
from afterimage.attacks.table import Reading, Results
from afterimage.config import ConfigError
from afterimage.data import forget
from afterimage.diffusion.model import build_scheduler, build_unet, save_pipeline
from afterimage.diffusion.noising import Pixels
from afterimage.diffusion.sample import load_denoiser
from afterimage.diffusion.texts import Texts
from afterimage.images import Images, load_images
from afterimage.metrics import classifier
from afterimage.plan.resolved import resolve
from afterimage.training.order import Order

STATISTICS = config.Statistics(bootstrap=50)


def numbers_of(add, *arguments):
    table = Results(STATISTICS, 0, "forgetting")
    add(table, *arguments)
    return table.frame().set_index(["metric", "subset"])


# ---- by class ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    rows = np.random.default_rng(0).permutation(len(data.target))
    return Images.of(
        np.rint(data.images[rows] / 16 * 255).astype(np.uint8)[..., None], labels=data.target[rows]
    )


def store(folder, network, description):
    folder.mkdir()
    classifier.save(folder, network, description)
    outputs = {path.name: artifacts.sha256(path) for path in folder.iterdir()}
    artifacts.write_json(folder / "run.json", {"outputs": outputs})
    return folder


def test_a_constant_classifier_gives_one_tenth_and_the_largest_entropy(digits, tmp_path):
    """EraseDiff known answer 10, first half."""
    description = classifier.Description("labels", list(range(10)), 1, [8], 8, [0.5], [0.3])
    network = classifier.Network(description)
    for weight in network.head.parameters():
        weight.data.zero_()
    classify = forgetting.label_classifier(store(tmp_path / "constant", network, description))
    numbers = numbers_of(forgetting.by_class, classify(digits.pixels[:100]), digits.labels[:100], 3)
    assert numbers.loc[("probability", "forget"), "value"] == pytest.approx(0.1)
    assert numbers.loc[("entropy", "forget"), "value"] == pytest.approx(math.log(10))


def test_real_images_of_the_class_give_about_the_accuracy(digits, tmp_path):
    """EraseDiff known answer 10, second half; entropy is at most ln 10."""
    settings = config.Classifier(channels=[16, 32], features=32, epochs=25)
    network, description, _ = classifier.fit(digits.take(np.arange(900)), settings, 0)
    classify = forgetting.label_classifier(store(tmp_path / "fitted", network, description))
    held = digits.take(np.arange(900, 1797))
    numbers = numbers_of(forgetting.by_class, classify(held.pixels), held.labels, 0)
    share = numbers.loc[("classified", "forget")]
    assert share["value"] > 0.8
    assert numbers.loc[("probability", "forget"), "value"] == pytest.approx(share["value"], abs=0.1)
    assert 0 < numbers.loc[("entropy", "forget"), "value"] < math.log(10)
    right = classify(held.pixels).argmax(1) == held.labels
    assert numbers.loc[("accuracy", "remain"), "value"] == pytest.approx(
        right[held.labels != 0].mean()
    )
    assert numbers.loc[("accuracy_by_label", "label=7"), "value"] == pytest.approx(
        right[held.labels == 7].mean()
    )


def test_numbers_of_a_known_table_of_probabilities():
    probabilities = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0.25, 0, 0.75], [0.6, 0, 0.4]])
    asked = np.array([0, 0, 1, 2, 2])
    numbers = numbers_of(forgetting.by_class, probabilities, asked, 0)
    assert numbers.loc[("probability", "forget"), "value"] == 0.75
    assert numbers.loc[("entropy", "forget"), "value"] == pytest.approx(math.log(2) / 2)
    assert numbers.loc[("classified", "forget"), ["count", "of"]].tolist() == [2, 2]
    assert numbers.loc[("accuracy", "remain"), ["count", "of"]].tolist() == [2, 3]
    assert numbers.loc[("accuracy_by_label", "label=2"), ["count", "of"]].tolist() == [1, 2]
    unlabelled = numbers_of(forgetting.by_class, probabilities, np.full(5, -1), 0)
    assert unlabelled.index.tolist() == [
        ("probability", "all"),
        ("entropy", "all"),
        ("classified", "all"),
    ]
    assert unlabelled.loc[("probability", "all"), "value"] == pytest.approx(2.35 / 5)


def test_a_classifier_of_some_labels_answers_in_their_columns(digits, tmp_path):
    some = digits.take(np.isin(digits.labels, [2, 5]))
    network, description, _ = classifier.fit(
        some, config.Classifier(channels=[8], features=8, epochs=2), 0
    )
    found = forgetting.label_classifier(store(tmp_path / "some", network, description))(
        some.pixels[:7]
    )
    assert found.shape == (7, 6)
    np.testing.assert_allclose(found[:, [2, 5]].sum(1), 1, rtol=1e-6)


def test_without_labels_there_is_no_classifier(digits, tmp_path):
    plain = Images.of(digits.pixels[:40])
    network, description, _ = classifier.fit(
        plain, config.Classifier(channels=[8], features=8, epochs=1), 0
    )
    assert forgetting.label_classifier(store(tmp_path / "turns", network, description)) is None


# ---- by extraction, and what is recorded ---------------------------------------------------------


def test_forgotten_images_are_counted_apart_from_the_others():
    readings = [
        Reading("training", "fixed", 0.5),
        Reading("training", "calibrated", 0.3),
        Reading("candidate", "fixed", 0.5),
    ]
    images = pd.DataFrame({"source": [10, 11, 12, 13, 14]})
    pairs = pd.DataFrame(
        {
            "nearest_source": [10, 11, 12, 13, 10, 14],
            "flagged_training_fixed": [True, True, False, True, True, False],
            "flagged_training_calibrated": [True, False, False, False, True, False],
            "flagged_candidate_fixed": [True] * 6,
        }
    )
    found = SimpleNamespace(readings=readings, images=images, pairs=pairs)
    table, last = Results(STATISTICS, 0), Results(STATISTICS, 0)
    sources = np.array([11, 12, 10])
    forgetting.by_extraction(table, found, sources, "training", np.ones(6, bool))
    forgetting.by_extraction(last, found, sources, "training", ~forget.choosing(6))
    judged = last.frame().set_index(["alpha", "subset"])["count"]
    assert judged.loc["fixed"].to_dict() == {"forget": 1, "remain": 1}  # 10 and 13
    assert judged.loc["calibrated"].to_dict() == {"forget": 1, "remain": 0}
    numbers = table.frame().set_index(["alpha", "subset"])
    assert (numbers["anchor"] == "training").all()
    assert numbers.loc[("fixed", "forget"), ["count", "of", "alpha_value"]].tolist() == [2, 3, 0.5]
    assert numbers.loc[("fixed", "remain"), ["count", "of"]].tolist() == [1, 2]
    assert numbers.loc[("calibrated", "forget"), ["count", "of"]].tolist() == [1, 3]
    assert forgetting.headline(table.frame()) == {
        "extracted_images": 2,
        "extracted_images_remain": 1,
        "extracted_images_calibrated": 1,
        "extracted_images_calibrated_remain": 0,
    }


def counted(shown: np.ndarray, sources: np.ndarray, generations: np.ndarray) -> int:
    """Return how many of the sources some generations are counted to show."""
    images = pd.DataFrame({"source": np.arange(40)})
    pairs = pd.DataFrame({"nearest_source": shown, "flagged_training_fixed": True})
    found = SimpleNamespace(
        readings=[Reading("training", "fixed", 0.5)], images=images, pairs=pairs
    )
    table = Results(STATISTICS, 0)
    forgetting.by_extraction(table, found, sources, "training", generations)
    return int(table.frame().set_index("subset").loc["forget", "count"])


def test_an_arm_that_chose_a_set_has_no_disadvantage_on_the_half_that_judges_it():
    """Two arms without any difference, one of which chose the set: by its own choosing half it
    shows all of it, on the judging half both show as much."""
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.full(40, 0.3))
    choosing = forget.choosing(60)
    differences, by_choice = [], []
    for _ in range(60):
        base, other = (rng.choice(40, 60, p=chances) for _ in range(2))
        chosen = np.unique(base[choosing])
        differences.append(counted(base, chosen, ~choosing) - counted(other, chosen, ~choosing))
        by_choice.append(counted(base, chosen, choosing) - counted(other, chosen, choosing))
    error = np.std(differences) / 60**0.5
    assert abs(np.mean(differences)) < 3 * error
    assert np.mean(by_choice) > 6 * error


def test_controls_subsets_and_missing_numbers_stay_out_of_the_headline():
    table = Results(STATISTICS, 0)
    table.number("relearn_updates", None, 8, subset="forget")
    table.number("FD[classifier]", 3.0, 8, subset="remain")
    table.number("FD[classifier]_holdout", 1.0, 8, subset="remain")
    table.share("accuracy_by_label", np.array([True]), subset="label=1")
    assert forgetting.headline(table.frame()) == {"FD[classifier]_remain": 3.0}


def test_extraction_stores_are_given_for_the_sets_that_need_one():
    sets = {
        "zeros": {"extracted_from": None},
        "a": {"extracted_from": "x"},
        "b": {"extracted_from": "x"},
    }
    given = forgetting.extractions(["a=one", "b=two=2"], sets)
    assert {name: str(path) for name, path in given.items()} == {"a": "one", "b": "two=2"}
    for wrong in ([], ["a=one"], ["a=one", "b=two", "zeros=three"], ["one"]):
        with pytest.raises(ConfigError, match="--extraction SET=DIR must be given for: a, b"):
            forgetting.extractions(wrong, sets)


# ---- relearning ----------------------------------------------------------------------------------


def test_a_class_is_back_at_the_first_look_that_reaches_the_probability():
    curve = pd.DataFrame({"update": [0, 5, 10, 12], "probability": [0.1, 0.5, 0.4, 0.9]})
    assert forgetting.back_at(curve, 0.5) == 5
    assert forgetting.back_at(curve, 0.1) == 0
    assert forgetting.back_at(curve, 0.95) is None


def relearned(trained, arm, looks, **keys):
    net, scheduler = load_denoiser(trained.store("train", arm) / "pipeline")
    train = load_images(trained.store("data/planting") / "train.npz")
    zeros = train.take(train.labels == 0)
    settings = config.Forgetting(relearn_batch_size=4, relearn_learning_rate=3e-3, **keys)

    def look():
        assert not net.training
        looks.append({name: value.clone() for name, value in net.state_dict().items()})
        return {"number": len(looks)}

    curve = relearning.relearn(net, scheduler, zeros, settings, look, 5, ("a", "path"))
    return net, scheduler, zeros, curve


def trained_plainly(net, task: Pixels, updates: int) -> dict[str, torch.Tensor]:
    """Return the weights after a loop of AdamW with clipped gradients and nothing else."""
    order = Order(5, ("a", "path"), len(task), 4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0)
    for s in range(updates):
        optimizer.zero_grad()
        task.losses(net, task.batch(order.rows(s), order.generator(s))).mean().backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize("arm", ["conditional", "plain"])
def test_relearning_is_plain_training(trained, arm):
    """With dropped labels: as a loop written out."""
    looks = []
    _, scheduler, zeros, curve = relearned(trained, arm, looks, relearn_updates=7, relearn_every=3)
    assert curve.to_dict("list") == {"update": [0, 3, 6, 7], "number": [1, 2, 3, 4]}

    net, _ = load_denoiser(trained.store("train", arm) / "pipeline")
    net.train()
    assert all(torch.equal(looks[0][name], value) for name, value in net.state_dict().items())
    labels = zeros.labels if arm == "conditional" else None
    task = Pixels(zeros.pixels, DDPMScheduler.from_config(scheduler), labels, 10, 0.1)
    for name, value in trained_plainly(net, task, 7).items():
        torch.testing.assert_close(looks[-1][name], value, rtol=1e-4, atol=1e-5)


def test_looking_changes_nothing(trained):
    often, seldom = [], []
    relearned(trained, "conditional", often, relearn_updates=5, relearn_every=1)
    relearned(trained, "conditional", seldom, relearn_updates=5, relearn_every=5)
    assert (len(often), len(seldom)) == (6, 2)
    assert all(torch.equal(often[-1][name], value) for name, value in seldom[-1].items())


# ---- the verb ------------------------------------------------------------------------------------


def results(folder):
    return (
        pd.read_csv(folder / "results.csv")
        .set_index(["set", "metric", "subset", "alpha"])
        .sort_index()
    )


def test_the_verb_on_arms_that_saw_the_class_and_that_did_not(trained, tmp_path):
    out = trained.run("attack/forgetting", "conditional", out=str(tmp_path / "conditional"))
    numbers = results(out)
    train = load_images(trained.store("data/planting") / "train.npz")
    holdout = load_images(trained.store("data/split") / "holdout.npz")
    zeros = len(np.unique(train.sources[train.labels == 0]))
    here = numbers.loc["zeros"]
    assert (
        here.loc[("probability", "forget", "none"), "of"] == 4
    )  # labels count round: 40 generations, 10 classes
    assert here.loc[("accuracy", "remain", "none"), "of"] == 36
    assert here.loc[("classified_holdout", "forget", "none"), "of"] == (holdout.labels == 0).sum()
    for alpha in ("fixed", "calibrated"):
        assert here.loc[("extracted_images", "forget", alpha), "of"] == zeros
        assert (
            here.loc[("extracted_images", "remain", alpha), "of"]
            == len(np.unique(train.sources)) - zeros
        )
    assert here.loc[("roc_auc", "forget", "none"), "of"] == zeros
    assert {"tpr@0.05", "tpr@0.1", "FD[classifier]", "coverage[classifier]_holdout"} <= set(
        here.index.get_level_values(0)
    )
    assert here.loc[("FD[classifier]", "remain", "none"), "of"] == 36

    curve = pd.read_csv(out / "relearning.csv")
    assert curve.columns.tolist() == ["set", "update", "probability", "loss"]
    assert curve["update"].tolist() == [0, 3, 4]
    back = curve.loc[curve["probability"] >= 0.5, "update"]
    value = here.loc[("relearn_updates", "forget", "none"), "value"]
    assert math.isnan(value) if back.empty else value == back.iloc[0]

    recorded = {
        row["name"]: row["value"]
        for row in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    }
    assert recorded["zeros/probability"] == pytest.approx(
        here.loc[("probability", "forget", "none"), "value"]
    )
    facts = artifacts.read_run(out)["facts"]["sets"]
    assert facts["zeros"] == {"sources": zeros, "trained": zeros, "generations_judged": 40}

    again = trained.run("attack/forgetting", "conditional", out=str(tmp_path / "again"))
    for name in ("results.csv", "relearning.csv", "metrics.jsonl"):
        assert (again / name).read_bytes() == (out / name).read_bytes()

    never = trained.run("attack/forgetting", "retrained", out=str(tmp_path / "retrained"))
    assert artifacts.read_run(never)["facts"]["sets"]["zeros"] == {
        "sources": zeros,
        "trained": 0,
        "generations_judged": 40,
    }
    assert pd.read_csv(never / "relearning.csv")["loss"].iloc[0] != curve["loss"].iloc[0]


def test_an_arm_without_labels_is_judged_over_all_it_generates(trained, tmp_path):
    numbers = results(trained.run("attack/forgetting", "plain", out=str(tmp_path / "out"))).loc[
        "zeros"
    ]
    assert numbers.loc[("probability", "all", "none"), "of"] == 40
    assert numbers.loc[("classified_holdout", "all", "none"), "of"] == 60
    assert not {"accuracy", "FD[classifier]"} & set(numbers.index.get_level_values(0))
    assert ("relearn_updates", "forget", "none") in numbers.index


def with_sets(trained, tmp_path, arm, **sets):
    """Return the arm's command line, judged on other sets."""
    command = trained.command("attack/forgetting", arm, out=str(tmp_path / "out"))
    at = command.index("--config") + 1
    with open(command[at]) as stream:
        resolved = json.load(stream)
    full = {name: config.ForgetSet(**one).model_dump() for name, one in sets.items()}
    resolved["settings"]["sets"] = full
    command[at] = str(tmp_path / "config.json")
    artifacts.write_json(tmp_path / "config.json", resolved)
    return command


def test_sets_of_single_and_of_extracted_images(trained, tmp_path):
    train = load_images(trained.store("data/planting") / "train.npz")
    found = np.unique(train.sources)[:3]
    attack = {"step": "attack/extraction", "settings": {"anchor": "candidate"}}
    with artifacts.step(attack, tmp_path / "extraction", {}, ("afterimage.seeds",)) as step:
        pairs = pd.DataFrame({"nearest_source": np.unique(train.sources)[:6]})
        pairs["flagged_candidate_calibrated"] = True
        pairs.to_parquet(step.folder / "pairs.parquet")
    command = with_sets(
        trained, tmp_path, "conditional", some={"ids": [3, 5]}, found={"extracted_from": "plain"}
    )
    assert cli.main([*command, "--extraction", f"found={tmp_path / 'extraction'}"]) == 0
    numbers = results(tmp_path / "out")
    some = np.unique(train.sources[np.isin(train.ids, [3, 5])])
    for name, sources in (("some", some), ("found", found)):
        assert numbers.loc[(name, "extracted_images", "forget", "fixed"), "of"] == len(sources)
        assert numbers.loc[(name, "roc_auc", "forget", "none"), "of"] == len(sources)
    assert not {"probability", "accuracy", "relearn_updates", "FD[classifier]"} & set(
        numbers.index.get_level_values(1)
    )
    judged = artifacts.read_run(tmp_path / "out")["facts"]["sets"]
    assert {name: one["generations_judged"] for name, one in judged.items()} == {
        "some": 40,
        "found": 20,
    }
    curve = pd.read_csv(tmp_path / "out" / "relearning.csv")
    assert curve["set"].tolist() == ["found"] * 3 + ["some"] * 3
    assert curve["probability"].isna().all()
    assert curve["loss"].notna().all()


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            {"found": {"extracted_from": "plain"}},
            "--extraction SET=DIR must be given for: found; given: none",
        ),
        ({"eleven": {"label": 11}}, "forget.eleven is empty"),
        (
            {"odd": {"ids": [3, 999]}},
            "forget.odd.ids: 999 is not a row of the training split (0 to 59)",
        ),
    ],
)
def test_sets_that_cannot_be_judged(trained, tmp_path, capsys, sets, words):
    assert cli.main(with_sets(trained, tmp_path, "conditional", **sets)) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_classes_that_nothing_can_be_compared_with(trained):
    """No generation of the class, no held-out image of it."""
    split = trained.store("data/split")
    parts = {name: load_images(split / f"{name}.npz") for name in ("holdout", "reference")}
    parts["train"] = load_images(trained.store("data/planting") / "train.npz")
    arm = trained.store("train", "conditional") / "pipeline"
    samples = load_images(trained.store("sample", "conditional") / "images.npz")
    resolved = resolve(trained.study, "attack/forgetting", "conditional", 0)
    trained_on, chosen = np.ones(60, bool), parts["train"].labels == 0
    network = trained.store("data/classifier")
    few = samples.take(samples.labels != 0)
    judge = forgetting.Judge(
        resolved,
        arm,
        network,
        few,
        parts["train"],
        trained_on,
        parts["holdout"],
        parts["reference"],
    )
    with pytest.raises(
        ConfigError,
        match=r"forget\.zeros\.label = 0: none of the 36 generations \(sample\.images\) has it",
    ):
        judge.judge("zeros", chosen, 0, np.ones(len(few), bool))
    others = parts["holdout"].take(parts["holdout"].labels != 0)
    judge = forgetting.Judge(
        resolved, arm, network, samples, parts["train"], trained_on, others, parts["reference"]
    )
    with pytest.raises(
        ArtifactError, match=r"forget\.zeros\.label = 0: no image of the holdout split has it"
    ):
        judge.judge("zeros", chosen, 0, np.ones(len(samples), bool))


# ---- arms with captions --------------------------------------------------------------------------

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def texts() -> Texts:
    """Made-up embeddings of the captions of ``captioned``."""
    captions = [f"a {kind} {word}" for word in WORDS for kind in ("thin", "bold")]
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn((len(captions), 4, 12), generator=generator)
    return Texts({text: row for row, text in enumerate(captions)}, embeddings, torch.zeros(4, 12))


def captioned(images: Images) -> Images:
    """Every other source is bold."""
    captions = [
        f"a {'bold' if source % 2 else 'thin'} {WORDS[label]}"
        for source, label in zip(images.sources, images.labels, strict=True)
    ]
    return dataclasses.replace(images, captions=np.array(captions))


@pytest.fixture(scope="module")
def text_arm(trained, tmp_path_factory):
    """Return a function that makes the judge of an untrained arm with captions, of which keywords
    differ; its generations, forty, are prompted with the captions of the first training images."""
    split = trained.store("data/split")
    images = {name: captioned(load_images(split / f"{name}.npz")) for name in PARTS}
    images["train"] = captioned(load_images(trained.store("data/planting") / "train.npz"))
    drawn = load_images(trained.store("sample", "plain") / "images.npz")
    images["samples"] = dataclasses.replace(drawn, captions=images["train"].captions[:40])
    settings = config.Model(
        channels=[8, 16], attention=[False, True], layers_per_block=1, norm_groups=4
    )
    scheduler = build_scheduler(config.Diffusion(timesteps=50))
    net = build_unet(settings, (8, 8, 1), seed=1, text_width=12)
    pipeline = tmp_path_factory.mktemp("text-arm") / "pipeline"
    save_pipeline(net, scheduler, pipeline)
    resolved = resolve(trained.study, "attack/forgetting", "conditional", 0)

    def make(**changed) -> forgetting.Judge:
        given = images | {"texts": texts()} | changed
        trained_on = np.ones(len(given["train"]), bool)
        network = trained.store("data/classifier")
        return forgetting.Judge(resolved, pipeline, network, trained=trained_on, **given)

    return make


PARTS = ("holdout", "reference")


def without_embeddings(arm: forgetting.Judge) -> forgetting.Judge:
    """Seek no embeddings."""
    arm.settings = arm.settings.model_copy(update={"embedding_images": 0})
    return arm


def test_a_set_by_caption_is_judged_with_its_captions(text_arm):
    arm = text_arm()
    rows = forget.mentions(arm.train.captions, "Zero")
    numbers, curve = arm.judge("zeros", rows, None, np.ones(40, bool), "Zero")
    numbers = numbers.set_index(["metric", "subset", "alpha"])
    sources = len(np.unique(arm.train.sources[rows]))
    assert numbers.loc[("roc_auc", "forget", "none"), "of"] == sources
    for alpha in ("fixed", "calibrated"):
        assert numbers.loc[("copied", "forget", alpha), "of"] == 8
        assert numbers.loc[("copied_images", "forget", alpha), "of"] == sources
    # The class of all its images is that of the prompts, and of held-out zeros.
    assert numbers.loc[("classified", "forget", "none"), "of"] == 8
    zeros = int((arm.holdout.labels == 0).sum())
    assert numbers.loc[("classified_holdout", "forget", "none"), "of"] == zeros
    assert ("relearn_updates", "forget", "none") in numbers.index
    assert curve["probability"].notna().all()
    first = numbers.loc[("probability", "forget", "none"), "value"]
    assert curve["probability"].iloc[0] == pytest.approx(first)
    # The rest: other prompts, against images that are no zeros.
    others = int((~forget.mentions(arm.samples.captions, "zero")).sum())
    assert numbers.loc[("FD[classifier]", "remain", "none"), "of"] == others < 40
    # Every caption names its label.
    assert numbers.loc[("accuracy", "remain", "none"), "of"] == others
    labels = arm.train.labels[:40]
    seen = arm.classify(arm.samples.pixels).argmax(axis=1)
    for label in range(1, 10):
        row = numbers.loc[("accuracy_by_label", f"label={label}", "none")]
        assert row["of"] == (labels == label).sum()
        assert row["count"] == ((labels == label) & (seen == label)).sum()
    held_out = arm.holdout.take(arm.holdout.labels != 0)
    right = arm.classify(held_out.pixels).argmax(axis=1) == held_out.labels
    row = numbers.loc[("accuracy_holdout", "remain", "none")]
    assert row[["count", "of"]].tolist() == [right.sum(), len(right)]
    held = numbers.loc[("FD[classifier]_holdout", "remain", "none"), "of"]
    assert held == len(arm.holdout) - zeros
    assert not {"all"} & set(numbers.index.get_level_values("subset"))


def test_prompts_ask_for_the_label_that_all_images_of_their_caption_have():
    captions = np.array(["a cat", "a dog", "a cat", "odd", "a dog", "unlabelled", "odd"])
    labels = np.array([3, 5, 3, 3, 5, -1, 5])
    prompts = np.array(["a dog", "odd", "a cat", "a dog", "never seen", "unlabelled"])
    asked = forgetting.labels_of(prompts, captions, labels)
    assert asked.tolist() == [5, -1, 3, 5, -1, -1]
    assert asked.dtype == np.int64


def test_prompts_of_several_labels_are_left_out_of_the_accuracy(text_arm):
    arm = text_arm()
    first = arm.samples.captions[np.flatnonzero(arm.train.labels[:40] != 0)[0]]
    labels = arm.train.labels.copy()
    labels[np.flatnonzero(arm.train.captions == first)[0]] = 0  # as a planted caption may do
    arm.train = dataclasses.replace(arm.train, labels=labels)
    rows = forget.mentions(arm.train.captions, "zero")
    numbers, _ = arm.judge("zeros", rows, None, np.ones(40, bool), "zero")
    numbers = numbers.set_index(["metric", "subset", "alpha"])
    rest = ~forget.mentions(arm.samples.captions, "zero")
    without = int((rest & (arm.samples.captions != first)).sum())
    assert numbers.loc[("accuracy", "remain", "none"), "of"] == without < rest.sum()
    assert numbers.loc[("FD[classifier]", "remain", "none"), "of"] == rest.sum()


def test_a_set_by_label_is_judged_with_its_captions(text_arm):
    """As the set by caption with the same images."""
    arm = text_arm()
    rows, every = arm.train.labels == 0, np.ones(40, bool)
    by_label, by_words = (
        arm.judge("zeros", rows, *given) for given in ((0, every), (None, every, "zero"))
    )
    pd.testing.assert_frame_equal(by_label[0], by_words[0])
    pd.testing.assert_frame_equal(by_label[1], by_words[1])


def test_a_set_of_several_labels_has_no_class(text_arm):
    arm = text_arm()
    rows = forget.mentions(arm.train.captions, "bold")
    numbers, curve = arm.judge("bold", rows, None, np.ones(40, bool), "bold")
    assert {"copied", "FD[classifier]", "roc_auc"} <= set(numbers["metric"])
    assert not {"probability", "classified", "relearn_updates"} & set(numbers["metric"])
    assert curve["probability"].isna().all()


def test_without_held_out_images_of_the_words_membership_is_missing(text_arm):
    holdout = text_arm().holdout
    arm = text_arm(holdout=holdout.take(holdout.labels != 0))
    rows = forget.mentions(arm.train.captions, "zero")
    numbers, _ = arm.judge("zeros", rows, None, np.ones(40, bool), "zero")
    assert {"copied", "probability"} <= set(numbers["metric"])
    assert not {"roc_auc", "classified_holdout"} & set(numbers["metric"])


@pytest.mark.parametrize(("of_set", "share"), [(True, 1.0), (False, 0.0)])
def test_copies_of_forgotten_images_are_counted_among_generations_for_their_captions(
    of_set, share, text_arm, monkeypatch
):
    """A model that gives back forgotten images, or others."""
    arm = without_embeddings(text_arm())
    rows = arm.train.labels == 0
    shown = arm.train.take(rows == of_set)
    _, first = np.unique(shown.sources, return_index=True)
    shown = shown.take(first[:4])
    pixels = np.resize(shown.pixels, (8, *shown.pixels.shape[1:]))
    monkeypatch.setattr(forgetting, "generate", lambda *given: pixels)
    numbers, _ = arm.judge("zeros", rows, 0, np.ones(40, bool))
    numbers = numbers.set_index(["metric", "alpha"])
    assert numbers.loc[("copied", "fixed"), ["count", "of"]].tolist() == [8 * share, 8]
    sources = len(np.unique(arm.train.sources[rows]))
    found = numbers.loc[("copied_images", "fixed"), ["count", "of"]].tolist()
    assert found == [4 * share, sources]


@pytest.mark.parametrize("kind", ["", "_holdout"])
def test_images_that_an_embedding_brings_back_are_counted_against_their_own(
    kind, text_arm, monkeypatch
):
    """Of four images one generation shows the first, all show the second, those of the third show
    the first, and those of the fourth nothing. Held-out images are judged in the same way."""
    arm = text_arm()
    keys = {"embedding_images": 4, "embedding_generations": 2, "embedding_updates": 1}
    arm.settings = arm.settings.model_copy(update=keys)
    rows, asked = arm.train.labels == 0, []

    def shown(self, net, scheduler_config, images):
        asked.append(images)
        noise = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
        if len(asked) == 1 + (kind == "_holdout"):
            noise[[0, 4, 5]] = images.pixels[0]
            noise[[2, 3]] = images.pixels[1]
        return noise

    monkeypatch.setattr(forgetting.Judge, "_for_embeddings", shown)
    numbers, _ = arm.judge("zeros", rows, 0, np.ones(40, bool))
    numbers = numbers.set_index(["metric", "alpha"])["count"]
    other = "" if kind else "_holdout"
    assert numbers.loc[(f"brought_back{kind}", "fixed")] == 2
    assert numbers.loc[(f"brought_back{other}", "fixed")] == 0
    forgotten, control = asked
    assert set(forgotten.sources) <= set(arm.train.sources[rows])
    assert set(control.ids) <= set(arm.holdout.ids)
    assert (control.labels == 0).all()
    counts = pd.Series(arm.train.sources[rows]).value_counts()
    most = counts.loc[forgotten.sources].to_numpy()
    assert most.tolist() == sorted(counts, reverse=True)[:4], "those with the most copies first"


def test_embeddings_change_neither_the_network_nor_other_numbers(text_arm):
    rows = text_arm().train.labels == 0
    sought, not_sought = (
        change(text_arm()).judge("zeros", rows, 0, np.ones(40, bool))
        for change in (lambda arm: arm, without_embeddings)
    )
    pd.testing.assert_frame_equal(sought[1], not_sought[1])
    own = sought[0]["metric"].str.startswith("brought_back")
    assert own.sum() == 4, "two thresholds, forgotten and held-out images"
    pd.testing.assert_frame_equal(sought[0][~own].reset_index(drop=True), not_sought[0])


def test_prompts_are_the_captions_of_all_forgotten_sources_in_turn(text_arm, monkeypatch):
    """The same for every arm; their starting noise is not that of the arm's generations."""
    arm, asked = without_embeddings(text_arm()), []
    original = forgetting.generate

    def generate(net, scheduler, ids, settings, seed, replicate, labels, prompts, autoencoder):
        asked.append((seed, prompts[1].tolist()))
        arguments = (net, scheduler, ids, settings, seed, replicate, labels, prompts, autoencoder)
        return original(*arguments)

    monkeypatch.setattr(forgetting, "generate", generate)
    rows = np.isin(arm.train.sources, np.unique(arm.train.sources)[:3])
    arm.judge("three", rows, None, np.ones(40, bool))
    _, first = np.unique(arm.train.sources[rows], return_index=True)
    each = arm.texts.rows(arm.train.captions[rows][first]).tolist()
    [(seed, prompts)] = asked
    assert len(prompts) == 8
    assert sorted(prompts[:3]) == sorted(each)
    assert prompts[3:6] == prompts[:3]
    assert seed != arm.seed


def test_relearning_with_captions_is_plain_training(text_arm):
    arm, looks = text_arm(), []
    net, scheduler = load_denoiser(arm.pipeline)
    images = arm.train.take(arm.train.labels < 3)
    settings = config.Forgetting(
        relearn_batch_size=4, relearn_learning_rate=3e-3, relearn_updates=3, relearn_every=3
    )

    def look():
        looks.append({name: value.clone() for name, value in net.state_dict().items()})
        return {}

    path = ("a", "path")
    relearning.relearn(net, scheduler, images, settings, look, 5, path, texts=arm.texts)
    other, _ = load_denoiser(arm.pipeline)
    other.train()
    given = arm.texts, arm.texts.rows(images.captions)
    task = Pixels(
        images.pixels, DDPMScheduler.from_config(scheduler), label_dropout=0.1, texts=given
    )
    # Adam divides by the gradient: where that is near 0, rounding decides about a single weight.
    expected = trained_plainly(other, task, 3)
    apart, moved = (
        sum(float((here[name] - there[name]).square().sum()) for name in expected) ** 0.5
        for here, there in ((looks[-1], expected), (expected, looks[0]))
    )
    assert apart < 1e-3 * moved


def test_images_have_one_class_if_they_all_have_the_same_label():
    assert forgetting.only_label(np.array([3, 3])) == 3
    assert forgetting.only_label(np.array([3, 4])) is None
    assert forgetting.only_label(np.array([-1, -1])) is None
