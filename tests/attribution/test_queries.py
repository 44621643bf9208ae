"""``afterimage attribution queries``: what is drawn, what is taken first, and whose origin is
known."""

import argparse
import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from afterimage import artifacts, config, seeds
from afterimage.artifacts import ArtifactError
from afterimage.attribution import queries
from afterimage.diffusion.texts import Texts
from afterimage.images import Images, load_images
from afterimage.plan.resolved import resolve

HOLDOUT = Images.of(
    np.arange(12, dtype=np.uint8).repeat(16).reshape(12, 4, 4, 1),
    np.arange(12) * 2 + 40,
    np.arange(12) % 5,
)
SAMPLES = Images.of(
    np.arange(10, dtype=np.uint8).repeat(16).reshape(10, 4, 4, 1) + 100,
    np.arange(10) + 7,
    np.arange(10) % 3,
)


def found(rows: list[tuple[int, int | None, float, bool]]) -> pd.DataFrame:
    """Return ``images.parquet`` of an attack: source, best sample (None: nearest to no generation),
    its l2, extracted."""
    sources, samples, distances, extracted = map(list, zip(*rows, strict=True))
    return pd.DataFrame(
        {
            "source": sources,
            "best_sample": pd.array(samples, "Int64"),
            "best_l2": distances,
            "extracted_training_calibrated": extracted,
            "extracted_training_fixed": True,
            "extracted_candidate_calibrated": np.isin(sources, [31]),
        }
    )


FOUND = found(
    [
        (30, 9, 0.3, True),
        (31, 12, 0.1, True),
        (32, None, np.nan, False),
        (33, 16, 0.2, True),
        (34, 8, 0.05, False),
    ]
)


@pytest.fixture
def command(params, tmp_path):
    """Return a function that writes the inputs and gives the arguments."""

    def make(
        out: str = "out",
        table: pd.DataFrame = FOUND,
        anchor: str = "training",
        seed: int = 5,
        replicate: int = 0,
        **asked,
    ):
        params.update(
            seed=seed,
            attribution={"arm": "baseline", "queries": {"holdout": 5, "generated": 4} | asked},
        )
        resolved = resolve(config.parse(params), "attribution/queries", None, replicate)
        (tmp_path / f"{out}.json").write_text(json.dumps(resolved))
        inputs = {"step": "attack/extraction", "settings": {"anchor": anchor}}
        with artifacts.step(inputs, tmp_path / "inputs", {}, ("afterimage.seeds",)) as step:
            HOLDOUT.save(step.folder / "holdout.npz")
            SAMPLES.save(step.folder / "samples.npz")
            table.to_parquet(step.folder / "images.parquet")
        given = {
            "holdout": tmp_path / "inputs" / "holdout.npz",
            "samples": tmp_path / "inputs" / "samples.npz",
        }
        given |= {
            "extraction": tmp_path / "inputs",
            "config": tmp_path / f"{out}.json",
            "out": tmp_path / out,
        }
        parser = argparse.ArgumentParser()
        queries.arguments(parser)
        return parser.parse_args(
            [text for name, path in given.items() for text in (f"--{name}", str(path))]
        )

    return make


def drawn(args: argparse.Namespace) -> dict[str, Images]:
    queries.run(args)
    return {name: load_images(args.out / f"{name}.npz") for name in queries.SETS}


def same(one: Images, other: Images) -> bool:
    return all(np.array_equal(values, vars(other)[name]) for name, values in vars(one).items())


def test_held_out_images_are_drawn_once_each_and_by_the_seed(command):
    one = drawn(command("one"))["holdout"]
    rows = (one.ids - 40) // 2
    assert len(set(rows)) == 5
    assert (np.diff(rows) > 0).all()
    assert same(one, HOLDOUT.take(rows))
    assert same(one, drawn(command("again"))["holdout"])
    assert set(one.ids) < set(drawn(command("more", holdout=8))["holdout"].ids)
    others = [drawn(command(f"seed{seed}", seed=seed))["holdout"].ids for seed in range(6, 10)]
    assert len({tuple(ids) for ids in [one.ids, *others]}) == 5


def test_replicates_draw_their_own_held_out_images(command):
    """The first draws what the study's seed says."""
    held = [drawn(command(f"rep{k}", replicate=k))["holdout"].ids for k in range(4)]
    assert len({tuple(ids) for ids in held}) == 4
    rows = seeds.numpy_rng(5, "attribution", "queries").permutation(len(HOLDOUT))[:5]
    assert held[0].tolist() == HOLDOUT.ids[np.sort(rows)].tolist()


def test_generations_are_the_first_of_the_sample(command):
    args = command()
    assert same(drawn(args)["generated"], SAMPLES.take(np.arange(4)))
    run = artifacts.check_store(args.out)
    assert set(run["outputs"]) == {"holdout.npz", "generated.npz", "extracted.npz"}
    assert run["facts"] == {"holdout": 5, "generated": 4, "extracted": 3}


@pytest.mark.parametrize(
    ("count", "anchor", "ids", "sources"),
    [
        (32, "training", [12, 16, 9], [31, 33, 30]),
        (2, "training", [12, 16], [31, 33]),
        (0, "training", [], []),
        (32, "candidate", [12], [31]),
    ],
)
def test_extracted_generations_come_nearest_first_with_the_image_that_they_show(
    count, anchor, ids, sources, command
):
    """By the attack's own anchor and its calibrated threshold; a nearer generation that extracts
    nothing is left out."""
    found = drawn(command(extracted=count, anchor=anchor))["extracted"]
    assert found.ids.tolist() == ids
    assert found.sources.tolist() == sources
    rows = np.array(ids, int) - 7
    assert np.array_equal(found.pixels, SAMPLES.pixels[rows])
    assert np.array_equal(found.labels, SAMPLES.labels[rows])


def test_an_attack_that_finds_nothing_leaves_an_empty_set(command):
    nothing = found([(30, 9, 0.3, False), (32, None, np.nan, False)])
    extracted = drawn(command(table=nothing))["extracted"]
    assert extracted.pixels.shape == (0, 4, 4, 1)
    assert extracted.sources.shape == (0,)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(7, 16), st.sampled_from([0.1, 0.2, 0.3, 0.4]), st.booleans()),
        min_size=1,
        max_size=8,
    ),
    st.integers(0, 6),
)
def test_a_generation_that_shows_two_images_counts_once_as_the_nearer_one(rows, count):
    table = found([(place, *row) for place, row in enumerate(rows)])
    expected: dict[int, int] = {}
    for source in sorted(range(len(rows)), key=lambda source: rows[source][1]):
        if rows[source][2]:
            expected.setdefault(rows[source][0], source)
    chosen = queries.extracted_queries(SAMPLES, table, "training", count)
    assert dict(zip(chosen.ids.tolist(), chosen.sources.tolist(), strict=True)) == dict(
        [*expected.items()][:count]
    )
    assert chosen.ids.tolist() == [*expected][:count]


@pytest.mark.parametrize("name", ["holdout.npz", "samples.npz", "images.parquet"])
def test_inputs_that_changed_since_they_were_written_are_refused(name, command, tmp_path):
    args = command()
    with (tmp_path / "inputs" / name).open("ab") as stream:
        stream.write(b" ")
    with pytest.raises(ArtifactError, match=f"{name} is not the file"):
        queries.run(args)
    assert not args.out.exists()


def test_captions_of_generations_are_prompts_and_those_of_images_are_looked_up():
    """Ids of generations count up like those of images: looked up as images, they would be given
    the captions of others."""
    row = {"a digit, even": 0, "a digit, odd": 1}
    texts = Texts(row, torch.zeros(2, 3, 4), torch.zeros(3, 4), row_of_image={0: 1, 1: 1})
    pixels = np.zeros((2, 4, 4, 1), np.uint8)
    images = Images.of(pixels, captions=np.array(["the digit three", "the digit five"]))
    generations = Images.of(pixels, captions=np.array(["a digit, odd", "a digit, even"]))
    for name, shown, rows in (
        ("train", images, [1, 1]),
        ("holdout", images, [1, 1]),
        ("generated", generations, [1, 0]),
        ("extracted", generations, [1, 0]),
    ):
        assert queries.texts_for(name, texts).rows_of(shown).tolist() == rows
    assert queries.texts_for("generated", None) is None
