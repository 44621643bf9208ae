"""``afterimage attribution scores`` on planted features and losses, whose tables are known.

The training images' loss gradients are a diagonal matrix s and those of query q are w_q / s, so
that ``gradient_dot`` scores w_q. The losses are minus the sum of w_q over the images that a network
saw: what ``gradient_dot`` predicts without an error. ``trak`` scores w_q / (s^2 + lambda), which is
w_q again for a large lambda.
"""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr, ttest_1samp

from afterimage import artifacts, config, provenance, seeds
from afterimage.artifacts import ArtifactError
from afterimage.attribution import scores
from afterimage.attribution.consistency import read_retraining_effects
from afterimage.attribution.judges import differences, subsets
from afterimage.attribution.queries import SETS
from afterimage.attribution.ranking import top_images
from afterimage.images import Images
from afterimage.metrics import classifier
from afterimage.plan import jobs
from afterimage.plan.resolved import modules, resolve

SEED, N, SUBSETS = 5, 20, 10
SIZES = {"holdout": 4, "generated": 3, "extracted": 2}
OF = {"holdout": slice(0, 4), "generated": slice(4, 7), "extracted": slice(7, 9)}
SOURCES = np.array([50, 50, 50, 51, 51, *range(52, 67)])
"""Two images have copies: three of one, two of the other."""
SMALL, LARGE = 1e-6, 1e6
SECOND = slice(SUBSETS // 2, None)
COLUMNS = [
    "attributor",
    "queries",
    "regulariser",
    "lds",
    "low",
    "high",
    "undefined",
    "oracle_regulariser",
    "oracle",
    "seconds",
    "repeatability",
]


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


TRAINED = rng(0).permutation(N + 4) < N
EVERYTHING = Images.of(
    rng(1).integers(0, 256, (N + 4, 4, 4, 1), np.uint8),
    np.arange(N + 4) * 3 + 100,
    np.arange(N + 4) % 2,
)
MEMBERS = EVERYTHING.take(TRAINED)
S = rng(2).uniform(0.5, 2, N).astype(np.float32)
W = rng(3).normal(size=(9, N))
MASKS = subsets.masks(MEMBERS.labels, 0.5, SUBSETS, SEED)


def additive(weights: np.ndarray = W, repeats: int = 1) -> np.ndarray:
    """Return the losses of networks that weigh images so, each query on a level of its own, float64
    (S, M, Q)."""
    return np.repeat((rng(4).normal(size=len(weights)) - MASKS @ weights.T)[None], repeats, axis=0)


def correlation(weights: np.ndarray, losses: np.ndarray, half: slice = SECOND) -> np.ndarray:
    """Return Spearman's correlation of predictions by ``weights``, (Q, N), and losses, (M, Q), over
    some subsets."""
    predicted = -(MASKS[half] @ weights.T)
    return np.array(
        [spearmanr(a, b).statistic for a, b in zip(predicted.T, losses[half].T, strict=True)]
    )


def write(folder: Path, step: str, **files) -> Path:
    """Write a store: tensors, arrays or images by their file's name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    read = folder.parent.parent / "read"
    read.write_bytes(b"net and images")
    inputs = dict.fromkeys(("model", "train", "members", *SETS), read)
    settings = {
        "step": step,
        "seed": SEED,
        "settings": {"block": int(folder.name)} if "features" in files else {},
    }
    with artifacts.step(settings, folder, inputs, ("afterimage.seeds",)) as at:
        for name, content in files.items():
            if isinstance(content, Images):
                content.save(at.folder / f"{name}.npz")
            elif name == "features":
                save_file(
                    {key: np.ascontiguousarray(each, np.float32) for key, each in content.items()},
                    at.folder / "features.safetensors",
                )
            elif name == "losses":
                np.savez(at.folder / "losses.npz", **content)
            else:
                content.to_parquet(at.folder / f"{name}.parquet")
    return folder


def side(part: str, loss: np.ndarray, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    n = len(loss)
    return {
        f"{part}/loss": loss,
        f"{part}/rows": np.ones((n, 2, N)) if rows is None else rows,
        f"{part}/residual": np.ones(n),
    }


@pytest.fixture
def study(params, tmp_path):
    """Return a function that writes all inputs and gives the arguments of the job; the keywords are
    what differs."""

    def make(
        out: str = "out",
        losses: np.ndarray | None = None,
        asked: np.ndarray | None = None,
        attributors: tuple[str, ...] = ("gradient_dot", "trak"),
        states: tuple[np.ndarray, ...] = (),
        sources: np.ndarray = SOURCES,
        sizes: dict[str, int] = SIZES,
        rows: np.ndarray | None = None,
        blocks: tuple[slice, ...] = (slice(0, 12), slice(12, None)),
        per_job: int = 3,
        journey: bool = False,
        repeat: np.ndarray | None = None,
    ) -> argparse.Namespace:
        losses = additive() if losses is None else losses
        folder, asked = tmp_path / f"{out}.inputs", W / S if asked is None else asked
        own = {
            "arm": "baseline",
            "subsets": SUBSETS,
            "seeds": len(losses),
            "regularisers": [SMALL, 1.0, LARGE],
        }
        params.update(seed=SEED, attribution=own | {"attributors": list(attributors)})
        resolved = resolve(config.parse(params), "attribution/scores", None, 0, "main")
        (tmp_path / f"{out}.json").write_text(json.dumps(resolved))

        every = np.full(N + 4, 99)
        every[TRAINED] = sources
        train = Images(
            EVERYTHING.pixels,
            EVERYTHING.ids,
            EVERYTHING.labels,
            every,
            EVERYTHING.official_test,
            EVERYTHING.captions,
            every,
        )
        sets = {
            name: Images.of(rng(9).integers(0, 256, (size, 4, 4, 1), np.uint8))
            for name, size in sizes.items()
        }
        shown = [0, 3][: sizes["extracted"]]
        sets["extracted"] = Images.of(MEMBERS.pixels[shown], sources=sources[shown])
        table = pd.DataFrame({"id": train.ids, "trained": TRAINED})
        inputs = write(folder / "x" / "inputs", "inputs", train=train, members=table, **sets)
        at = {name: OF[name].start + np.arange(size) for name, size in sizes.items()}

        def network(name: str, query_loss: np.ndarray) -> list[Path]:
            queries = {}
            for part, of in at.items():
                queries |= side(part, query_loss[of], None if rows is None else rows[: len(of)])
                queries |= (
                    {f"{part}/journey": query_loss[of]} if journey and part != "holdout" else {}
                )
            stores = []
            for number, block in enumerate(blocks):
                made = side("train", np.diag(S)[block], None if rows is None else rows[block])
                made |= queries if number == 0 else {}
                stores.append(write(folder / name / str(number), "features", features=made))
            return stores

        features = network("final", asked)
        earlier = [
            store
            for number, state in enumerate(states)
            for store in network(f"state{number + 1}", state)
        ]
        repeated = []
        if repeat is not None:
            queries = {}
            for part, size in sizes.items():
                queries |= side(part, repeat[OF[part].start :][: min(size, 2)])
            repeated = [
                write(
                    folder / "repeat" / "0",
                    "features",
                    features=side("train", np.diag(S)[:15]) | queries,
                )
            ]
        names = [(subset, seed) for seed in range(len(losses)) for subset in range(SUBSETS)]
        names = [names[place] for place in rng(5).permutation(len(names))]
        retrained = []
        for number in range(0, len(names), per_job):
            subset, seed = np.array(names[number : number + per_job]).T
            each = {f"{part}/loss": losses[seed, subset][:, of] for part, of in at.items()}
            each |= {
                f"{part}/shift": -losses[seed, subset][:, of] for part, of in at.items()
            }  # the order turned round
            retrained.append(
                write(
                    folder / "retrain" / str(number),
                    "retrain",
                    losses={"subset": subset, "seed": seed, **each},
                )
            )
        with artifacts.step(
            {"step": "data/classifier"}, folder / "classifier", {}, ("afterimage.seeds",)
        ) as step:
            about = classifier.Description("labels", [0, 1], 1, [2], 3, [0.5], [0.3])
            classifier.save(step.folder, classifier.Network(about), about)

        parser = argparse.ArgumentParser()
        scores.arguments(parser)
        given = {
            "train": [inputs / "train.npz"],
            "members": [inputs / "members.parquet"],
            "queries": [inputs],
        }
        given |= {
            "features": features,
            "states": earlier,
            "repeat": repeated,
            "retrain": retrained,
            "classifier": [folder / "classifier"],
        }
        given |= {"config": [tmp_path / f"{out}.json"], "out": [tmp_path / out]}
        return parser.parse_args(
            [text for name, paths in given.items() for text in (f"--{name}", *map(str, paths))]
        )

    return make


def scored(args: argparse.Namespace) -> SimpleNamespace:
    """Return the tables of the store, those of LDS for the loss, ``lds`` and ``copies`` by
    attributor and set, and the scores."""
    scores.run(args)
    run = artifacts.check_store(args.out)
    tables = {
        name: pd.read_csv(args.out / f"{name}.csv") for name in ("lds", "regularisers", "copies")
    }
    for name in ("lds", "regularisers"):
        tables[name] = (
            tables[name][tables[name]["target"] == "loss"]
            .drop(columns="target")
            .reset_index(drop=True)
        )
    rows = {(row["attributor"], row["queries"]): row for row in tables["lds"].to_dict("records")}
    first, kept = (
        pd.read_parquet(args.out / "first.parquet"),
        load_file(args.out / "scores.safetensors"),
    )
    return SimpleNamespace(run=run, rows=rows, first=first, scores=kept, **tables)


def test_scores_that_made_the_losses_predict_them_without_an_error(study):
    """DAS known answer 12, through all files. The tables have the rows and columns that are
    promised, in their order."""
    args = study()
    found = scored(args)
    assert found.lds.columns.tolist() == COLUMNS
    assert list(found.rows) == [(name, part) for name in ("gradient_dot", "trak") for part in SETS]
    for (name, part), row in found.rows.items():
        assert (row["lds"], row["low"], row["high"], row["oracle"]) == pytest.approx(
            (1, 1, 1, 1)
        ), (name, part)
        assert row["undefined"] == 0
        assert (row["regulariser"], row["oracle_regulariser"]) == (
            (LARGE, LARGE) if name == "trak" else (1, 1)
        )
        assert row["seconds"] >= 0
    assert found.scores.keys() == {f"{name}/{part}" for name, part in found.rows}
    for part, of in OF.items():
        assert found.scores[f"gradient_dot/{part}"] == pytest.approx(W[of], rel=1e-5)
        assert np.corrcoef(found.scores[f"trak/{part}"].ravel(), W[of].ravel())[
            0, 1
        ] == pytest.approx(1)
    metrics = [json.loads(line) for line in (args.out / "metrics.jsonl").read_text().splitlines()]
    assert {
        row["name"]: row["value"] for row in metrics if row["name"].startswith("lds/")
    } == pytest.approx({f"lds/{part}/{name}": 1 for name, part in found.rows})
    assert found.run["facts"] == {
        "training_images": N,
        "reported_subsets": SUBSETS // 2,
        "queries": SIZES,
    }


def test_differences_are_those_of_the_table_of_scores(study):
    """Every pair once for each set and target, in the order of the attributors."""
    args = study(losses=noisy(), attributors=("gradient_dot", "pixel_l2", "trak"))
    scores.run(args)
    table = pd.read_csv(args.out / "lds.csv").set_index(["attributor", "queries", "target"])["lds"]
    found = pd.read_csv(args.out / "differences.csv")
    assert found.columns.tolist() == [*differences.COLUMNS, "queries", "target"]
    pairs = [("gradient_dot", "pixel_l2"), ("gradient_dot", "trak"), ("pixel_l2", "trak")]
    for (queries, target), rows in found.groupby(["queries", "target"]):
        assert list(zip(rows["attributor"], rows["other"], strict=True)) == pairs
        for name, other, difference in rows.iloc[:, :3].itertuples(index=False):
            expected = table[name, queries, target] - table[other, queries, target]
            assert difference == pytest.approx(expected, abs=1e-12)
    assert len(found) == len(pairs) * len(SETS) * 2


def test_units_are_those_of_the_table_of_scores(study):
    """A t-test of what the subsets say gives the interval of each score, and of each difference."""
    args = study(losses=noisy(), attributors=("gradient_dot", "pixel_l2", "trak"))
    scores.run(args)
    for table, units, keys, column in (
        ("lds", "units", ["attributor"], "lds"),
        ("differences", "paired", ["attributor", "other"], "difference"),
    ):
        keys = [*keys, "queries", "target"]
        rows = pd.read_csv(args.out / f"{table}.csv").set_index(keys)
        groups = pd.read_parquet(args.out / f"{units}.parquet").groupby(keys)
        assert set(groups.groups) == set(rows.index)
        for key, some in groups:
            assert some["subset"].tolist() == list(range(SUBSETS - SUBSETS // 2))
            usual = ttest_1samp(some[column], 0).confidence_interval(0.95)
            ends = (usual.low, usual.high)
            if column == "lds":
                ends = np.clip(ends, -1, 1)
            assert rows.loc[key, ["low", "high"]].tolist() == pytest.approx(ends), key
    best = pd.read_parquet(args.out / "units.parquet")
    assert best.groupby(["queries", "target", "subset"])["ceiling"].nunique().eq(1).all()


def test_replicates_have_their_own_subsets_and_control(study):
    """Scores that predict without an error on the subsets of another replicate do so no longer."""
    args = study(attributors=("gradient_dot", "shuffled"))
    first = scored(args)
    resolved = json.loads(args.config.read_text())
    args.config.write_text(json.dumps(resolved | {"replicate": 1}))
    args.out = args.out.with_name("other")
    second = scored(args)
    assert first.rows["gradient_dot", "generated"]["lds"] == pytest.approx(1)
    assert second.rows["gradient_dot", "generated"]["lds"] < 0.9
    assert (second.scores["shuffled/holdout"] != first.scores["shuffled/holdout"]).any()


def test_the_shift_is_a_target_of_its_own(study):
    """Where shifts order the networks the other way round, what predicts the loss without an error
    is always wrong."""
    args = study(losses=noisy())
    found = scored(args)
    table = pd.read_csv(args.out / "lds.csv")
    shift = table[table["target"] == "shift"].set_index(["attributor", "queries"])
    loss = table[table["target"] == "loss"].set_index(["attributor", "queries"])
    assert shift.loc["gradient_dot", "lds"].tolist() == pytest.approx(
        (-loss.loc["gradient_dot", "lds"]).tolist()
    )
    assert shift["ceiling"].notna().all()
    metrics = [json.loads(line) for line in (args.out / "metrics.jsonl").read_text().splitlines()]
    named = {row["name"]: row["value"] for row in metrics}
    for part in SETS:
        assert named[f"lds_shift/{part}/trak"] == pytest.approx(shift.loc[("trak", part), "lds"])
        assert named[f"lds/{part}/trak"] == pytest.approx(found.rows["trak", part]["lds"])


def test_the_regulariser_is_chosen_on_the_first_half_and_reported_on_the_second(study):
    """DAS known answer 15. Networks of the first half weigh images by w / s^2, trak without a
    regulariser; the others by w."""
    losses = additive(W / S**2)
    losses[:, SECOND] = additive()[:, SECOND]
    found = scored(study(losses=losses))
    small, large = W / S**2, W
    for part, of in OF.items():
        row, table = found.rows["trak", part], found.regularisers
        reported = correlation(small[of], losses[0][:, of])
        assert (row["regulariser"], row["oracle_regulariser"]) == (SMALL, LARGE)
        assert (row["lds"], row["oracle"]) == pytest.approx((reported.mean(), 1))
        assert row["lds"] < 0.99
        table = table[(table["attributor"] == "trak") & (table["queries"] == part)].set_index(
            ["half", "regulariser"]
        )["lds"]
        assert table.index.tolist() == [
            (half, at) for half in ("first", "second") for at in (SMALL, 1.0, LARGE)
        ]
        first = correlation(large[of], losses[0][:, of], slice(0, SUBSETS // 2)).mean()
        expected = {
            ("first", SMALL): 1,
            ("first", LARGE): first,
            ("second", SMALL): reported.mean(),
            ("second", LARGE): 1,
        }
        assert {key: table[key] for key in expected} == pytest.approx(expected)
    plain = found.regularisers[found.regularisers["attributor"] == "gradient_dot"]
    assert plain[["half", "regulariser"]].to_numpy().tolist() == [["first", 1], ["second", 1]] * 3


def test_repeatability_is_the_agreement_of_both_draws_for_the_images_that_both_have(study):
    """Of the first 2 queries of each set and the first 15 images; the other draw of a query's
    features has the opposite order for one set, and other noise for the others."""
    other = W + rng(8).normal(size=W.shape)
    other[OF["generated"]] = -W[OF["generated"]]
    names = ("gradient_dot", "trak", "pixel_l2", "tracin", "shuffled")
    args = study(attributors=names, repeat=other / S)
    scores.run(args)
    table = pd.read_csv(args.out / "lds.csv").set_index(["attributor", "queries", "target"])
    for part, of in OF.items():
        pairs = list(zip(W[of][:2, :15], other[of][:2, :15], strict=True))
        expected = np.mean([spearmanr(a, b).statistic for a, b in pairs])
        for target in ("loss", "shift"):
            found = table["repeatability"].xs((part, target), level=(1, 2))
            assert found[["gradient_dot", "trak"]].tolist() == pytest.approx([expected] * 2)
            assert found[["pixel_l2", "tracin", "shuffled"]].isna().all()
    assert table.loc[("trak", "generated", "loss"), "repeatability"] == pytest.approx(-1)


def test_a_repeat_of_another_network_is_refused(study):
    args = study(repeat=W / S)
    for store in args.repeat:
        record = json.loads((store / "run.json").read_text())
        record["inputs"]["model"]["sha256"] = "other"
        (store / "run.json").write_text(json.dumps(record))
    with pytest.raises(ArtifactError, match=r"repeat/0 does not match .*: model was"):
        scores.run(args)


def test_shuffled_scores_are_those_of_trak_for_other_images_and_predict_nothing(study):
    """0 on average, with a standard deviation of 1 / sqrt(M - 1) per query."""
    found = scored(study(attributors=("trak", "shuffled")))
    order = seeds.numpy_rng(SEED, "attribution", "shuffled").permutation(N)
    for part, of in OF.items():
        row, weights = found.rows["shuffled", part], found.scores[f"shuffled/{part}"]
        lam = row["regulariser"] * np.square(S).mean()
        assert weights == pytest.approx((W[of] / (np.square(S) + lam))[:, order], rel=1e-4)
        assert row["lds"] == pytest.approx(correlation(weights, additive()[0][:, of]).mean())
    average = np.average(
        [found.rows["shuffled", part]["lds"] for part in SETS], weights=[*SIZES.values()]
    )
    assert abs(average) < 3 / np.sqrt((SUBSETS // 2 - 1) * len(W))


def noisy() -> np.ndarray:
    """Losses under two trainings, of which the noise is that of the seed; of the extracted queries
    they say the opposite."""
    losses = additive(repeats=2) + rng(6).normal(size=(2, SUBSETS, 9))
    losses[1][:, OF["extracted"]] = -losses[0][:, OF["extracted"]] * 0.9
    return losses


def test_with_several_seeds_a_ceiling_stands_beside_each_score(study):
    """DAS known answer 13: of the half that is reported on, by the formula of Spearman and Brown;
    none where seeds contradict."""
    losses = noisy()
    found = scored(study(losses=losses, attributors=("gradient_dot",)))
    assert found.lds.columns.tolist() == [
        *COLUMNS,
        "ceiling",
        "ceiling_low",
        "ceiling_high",
        "between_seeds",
        "of_ceiling",
    ]
    for part, of in OF.items():
        row, one, other = (
            found.rows["gradient_dot", part],
            losses[0][SECOND, of],
            losses[1][SECOND, of],
        )
        between = np.mean([spearmanr(a, b).statistic for a, b in zip(one.T, other.T, strict=True)])
        assert row["lds"] == pytest.approx(correlation(W[of], losses.mean(axis=0)[:, of]).mean())
        assert row["between_seeds"] == pytest.approx(between)
        if part == "extracted":
            assert (row["between_seeds"], row["ceiling"]) == pytest.approx((-1, 0))
            assert np.isnan(row["of_ceiling"])
        else:
            assert 0 < between < 1
            assert row["ceiling"] == pytest.approx(np.sqrt(2 * between / (1 + between)))
            assert row["of_ceiling"] == pytest.approx(row["lds"] / row["ceiling"])
            assert row["ceiling_low"] <= row["ceiling"] <= row["ceiling_high"]


def test_one_seed_has_no_ceiling_and_seeds_that_agree_one_of_1(study):
    assert "ceiling" not in scored(study("one", attributors=("gradient_dot",))).lds
    found = scored(
        study("two", losses=additive(repeats=2), attributors=("gradient_dot", "shuffled"))
    ).lds
    assert found["ceiling"].tolist() == pytest.approx([1] * 6)
    assert found["of_ceiling"].tolist() == pytest.approx(found["lds"].tolist())


def test_queries_that_order_nothing_are_counted_and_left_out(study):
    """Losses that are all the same, and gradients of 0; a set of nothing else has no score."""
    losses, asked = additive(W * np.array([1, -1] * 10)), W / S
    losses[:, :, 0], asked[1] = 0.7, 0
    losses[:, :, OF["extracted"]] = 0.7
    found = scored(study(losses=losses, asked=asked, attributors=("gradient_dot",)))
    rows = {part: found.rows["gradient_dot", part] for part in SETS}
    assert [row["undefined"] for row in rows.values()] == [2, 0, 2]
    assert rows["holdout"]["lds"] == pytest.approx(correlation(W[2:4], losses[0][:, 2:4]).mean())
    assert abs(rows["holdout"]["lds"]) < 1
    assert np.isnan([rows["extracted"][name] for name in ("lds", "low", "high", "oracle")]).all()


def test_copies_are_found_by_scores_that_rank_them_first(study):
    """DAS known answer 16. Query 0 shows the image that is there three times, query 1 the one that
    is there twice."""
    weights = W.copy()
    weights[7, :3], weights[8, 3:5] = [8, 9, 7], [9, -9]
    args = study(
        asked=weights / S, losses=additive(weights), attributors=("gradient_dot", "pixel_l2")
    )
    found = scored(args)
    assert found.copies.columns.tolist() == [
        "query",
        "source",
        "copies",
        "recall",
        "chance",
        "attributor",
    ]
    table = found.copies.set_index(["attributor", "query"])
    assert table.loc["gradient_dot"].to_numpy().tolist() == [[50, 3, 1, 3 / N], [51, 2, 0.5, 2 / N]]
    nearest = MEMBERS.pixels.reshape(N, -1).astype(float)
    for query, (shown, copies) in enumerate(((0, range(3)), (3, range(3, 5)))):
        order = np.argsort(np.square(nearest - nearest[shown]).sum(axis=1))
        assert (
            table.loc[("pixel_l2", query), "recall"]
            == np.isin(order[: len(copies)], copies).mean()
            >= 1 / len(copies)
        )
    metrics = [json.loads(line) for line in (args.out / "metrics.jsonl").read_text().splitlines()]
    assert {row["name"]: row["value"] for row in metrics}["copies_first/gradient_dot"] == 0.75


def test_the_first_images_of_each_query_are_named_best_first(study):
    found = scored(study(attributors=("gradient_dot", "pixel_l2")))
    assert found.first.columns.tolist() == ["query", "rank", "id", "score", "attributor", "queries"]
    assert len(found.first) == 2 * 9 * 16
    tables = dict(iter(found.first.groupby(["attributor", "queries", "query"])))
    for part, of in OF.items():
        for query, weights in enumerate(W[of]):
            mine, order = tables["gradient_dot", part, query], np.argsort(-weights)[:16]
            assert mine["rank"].tolist() == list(range(16))
            assert mine["id"].tolist() == MEMBERS.ids[order].tolist()
            assert mine["score"].to_numpy() == pytest.approx(weights[order], rel=1e-5)
    shown = [tables["pixel_l2", "extracted", query].iloc[0] for query in range(2)]
    assert [(row["id"], row["score"]) for row in shown] == [
        (MEMBERS.ids[0], 0),
        (MEMBERS.ids[3], 0),
    ]


def test_equal_scores_keep_the_order_of_the_training_images():
    table = top_images(np.array([[1.0, 3, 2, 3]]), np.array([40, 30, 20, 10]))
    assert table["id"].tolist() == [30, 10, 20, 40]


def test_low_leverages_tell_copies(study):
    """DAS known answer 16: copies share their rows, and so the leverage of one image; unless the
    regulariser lets lengths decide.

    Of an image there m times with two rows of length 2 it is 8 / (4 m + lambda), of a single one
    with rows of length 1 2 / (1 + lambda). At a lambda of 35 / 17 that of the three copies is
    smaller, that of the two is not.
    """
    rows = np.eye(2 * 17, dtype=np.float32).reshape(17, 2, -1)[SOURCES - 50]
    rows[:5] *= 2
    args = study(rows=rows, attributors=("gradient_dot",))
    scores.run(args)
    table = pd.read_csv(args.out / "leverage.csv")
    assert table["regulariser"].tolist() == [SMALL, 1.0, LARGE]
    assert table["auc"].tolist() == pytest.approx([1, 3 / 5, 0])


@pytest.mark.parametrize("sources", [np.arange(N), np.arange(N) // 2])
def test_leverages_are_compared_only_where_there_are_copies_and_single_images(sources, study):
    args = study(sources=sources, attributors=("gradient_dot",))
    scores.run(args)
    assert pd.read_csv(args.out / "leverage.csv").empty


def test_features_without_rows_have_no_leverages(study):
    args = study(rows=np.zeros((N, 0, N), np.float32), attributors=("gradient_dot",))
    assert scored(args).rows["gradient_dot", "holdout"]["lds"] == pytest.approx(1)
    assert pd.read_csv(args.out / "leverage.csv").empty


def test_without_extracted_generations_their_tables_are_empty(study):
    found = scored(study(sizes=SIZES | {"extracted": 0}))
    assert list(found.rows) == [
        (name, part) for name in ("gradient_dot", "trak") for part in ("holdout", "generated")
    ]
    assert found.lds["lds"].tolist() == pytest.approx([1] * 4)
    assert found.copies.columns.tolist() == [
        "query",
        "source",
        "copies",
        "recall",
        "chance",
        "attributor",
    ]
    assert len(found.copies) == 0
    assert (
        set(found.first["queries"])
        == set(found.regularisers["queries"])
        == {"holdout", "generated"}
    )


def test_what_is_learned_from_retraining_comes_from_the_first_half(study):
    """And is the mean over the seeds."""
    losses = noisy()
    before = scored(study("before", losses=losses, attributors=("empirical_influence",)))
    learned = losses.mean(axis=0)[: SUBSETS // 2]
    seen = MASKS[: SUBSETS // 2]
    for part, of in OF.items():
        for i in range(N):
            with_it, without = learned[seen[:, i]][:, of], learned[~seen[:, i]][:, of]
            known = len(with_it) and len(without)
            expected = (
                without.mean(axis=0) - with_it.mean(axis=0)
                if known
                else np.zeros(of.stop - of.start)
            )
            assert before.scores[f"empirical_influence/{part}"][:, i] == pytest.approx(
                expected, rel=1e-4, abs=1e-6
            )
    later = losses.copy()
    later[:, SECOND] = rng(7).normal(size=later[:, SECOND].shape)
    after = scored(study("after", losses=later, attributors=("empirical_influence",)))
    assert all(np.array_equal(values, after.scores[name]) for name, values in before.scores.items())
    assert not np.allclose(before.lds["lds"], after.lds["lds"])


def test_earlier_states_are_averaged_with_the_last_one(study):
    """Each state's training blocks are put together."""
    states = tuple(rng(number).normal(size=W.shape) / S for number in (11, 12))
    found = scored(study(states=states, attributors=("tracin",)))
    expected = (states[0] * S + states[1] * S + W) / 3
    for part, of in OF.items():
        assert found.scores[f"tracin/{part}"] == pytest.approx(expected[of], rel=1e-4, abs=1e-6)


def test_held_out_images_have_no_journey(study):
    """All images score 0 for them, which orders nothing."""
    found = scored(study(attributors=("journey_trak",), journey=True))
    assert [found.rows["journey_trak", part]["undefined"] for part in SETS] == [4, 0, 0]
    assert np.isnan(found.rows["journey_trak", "holdout"]["lds"])
    assert not found.scores["journey_trak/holdout"].any()
    assert [found.rows["journey_trak", part]["lds"] for part in SETS[1:]] == pytest.approx([1, 1])


def test_the_recorded_code_is_what_the_workflow_asks_for(study, params):
    """Attributors are found by name: to change one must make the scores old."""
    found = scored(study())
    (job,) = (job for job in jobs.jobs(config.parse(params)) if job.step == scores.STEP)
    entries = modules(config.parse(params), job)
    assert found.run["code_sha256"] == provenance.fingerprint(*entries)
    assert {config.ATTRIBUTORS[name] for name in ("gradient_dot", "trak")} <= set(
        provenance.modules_of(*entries)
    )


# ---- what is refused -----------------------------------------------------------------------------


def test_networks_are_put_in_their_order(study):
    losses = noisy()
    args = study(losses=losses, per_job=7)
    found = read_retraining_effects(args.retrain, SUBSETS, 2)
    for part, of in OF.items():
        np.testing.assert_array_equal(found[f"{part}/loss"], losses[:, :, of])
        np.testing.assert_array_equal(found[f"{part}/shift"], -losses[:, :, of])


def test_networks_that_are_missing_or_there_twice_are_refused(study):
    args = study(losses=noisy(), per_job=7)
    for stores in (args.retrain[1:], [*args.retrain, args.retrain[0]]):
        args.retrain, whole = stores, args.retrain
        with pytest.raises(ArtifactError, match="are not 10 subsets x 2 seeds, each once"):
            scores.run(args)
        args.retrain = whole
    assert not args.out.exists()


def test_networks_retrained_for_other_queries_are_refused(study):
    args = study()
    run = args.retrain[1] / "run.json"
    record = json.loads(run.read_text())
    record["inputs"]["holdout"]["sha256"] = "other"
    run.write_text(json.dumps(record))
    with pytest.raises(
        ArtifactError, match=f"{args.retrain[1]} does not match {args.retrain[0]}: holdout was"
    ):
        scores.run(args)


def test_losses_and_features_that_changed_since_they_were_written_are_refused(study):
    args = study()
    for file in (args.retrain[1] / "losses.npz", args.features[1] / "features.safetensors"):
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        with pytest.raises(ArtifactError, match=f"{file.name} is not the file"):
            scores.run(args)
        file.write_bytes(content)


def test_a_training_block_that_is_missing_is_refused(study):
    args = study()
    args.features = args.features[:-1]
    with pytest.raises(ArtifactError, match="loss has values for 12 images, but there are 20"):
        scores.run(args)


def test_scores_that_are_no_numbers_are_refused_by_name(study):
    asked = W / S
    asked[0, 0] = np.nan
    with pytest.raises(
        ArtifactError,
        match=r"attributor gradient_dot gives scores that are NaN or infinite \(regulariser 1\)",
    ):
        scores.run(study(asked=asked, attributors=("pixel_l2", "gradient_dot")))
