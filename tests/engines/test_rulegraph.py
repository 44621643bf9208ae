"""The picture of the rules is drawn from the workflow and is what the workflow says now."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from afterimage.engines import rulegraph

DOT = """digraph snakemake_dag {
    0[label = "all", color = "0.1"];
    1[label = "fit"];
    2[label = "split"];
    3[label = "draw"];
    1 -> 0
    2 -> 1
    1 -> 3
    2 -> 3
}
"""


def test_gathering_rules_and_detours_are_left_out():
    graph = rulegraph.parse(DOT)
    assert set(graph) == {"split", "fit", "draw"}
    assert set(graph.edges) == {("split", "fit"), ("fit", "draw")}


def test_arrows_back_to_an_earlier_rule_are_left_out():
    graph = rulegraph.parse(DOT.replace("1 -> 0", "1 -> 0\n    1 -> 1\n    3 -> 1"))
    assert set(graph.edges) == {("split", "fit"), ("fit", "draw")}


def test_text_without_a_graph_is_refused():
    with pytest.raises(SystemExit, match="no rule graph"):
        rulegraph.parse("Building DAG of jobs...")


def test_same_graph_gives_the_same_bytes(tmp_path):
    for name in ("a.svg", "b.svg"):
        rulegraph.draw(rulegraph.parse(DOT), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_picture_in_the_docs_shows_the_rules_of_today(root, tmp_path):
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [str(snakemake), "--snakefile", str(root / "Snakefile"), "all", "--rulegraph", "dot"]
    (tmp_path / "params.yaml").write_text((root / "params.yaml").read_text())
    dot = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    drawn = set(
        re.findall(r"<text[^>]*>(\w+)</text>", (root / "docs" / "rulegraph.svg").read_text())
    )
    assert drawn == set(rulegraph.parse(dot)), "run: make docs"
