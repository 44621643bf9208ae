"""The documented costs of the GPU studies are those of the committed table, and the table those of
the simulation."""

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def cluster(script):
    return script("cluster")


@pytest.fixture(scope="module")
def table(root):
    return pd.read_csv(root / "docs" / "cluster.csv")


def test_the_page_shows_the_table(shown, cluster, table):
    assert shown("cluster.md", "cluster") == cluster["markdown"](table)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["iet-cifar10, 2 replicates", "erasediff-cifar10"])
def test_the_table_is_what_the_simulation_gives(cluster, table, name):
    committed = table.set_index("study").loc[name].to_dict()
    simulated = cluster["row"](name)
    assert {key: simulated[key] for key in ("jobs", "width", "longest_job")} == {
        key: committed[key] for key in ("jobs", "width", "longest_job")
    }
    for key in ("gpu_hours", "on_8", "on_32", "on_128", "chain_hours"):
        assert simulated[key] == pytest.approx(committed[key], abs=0.11)
