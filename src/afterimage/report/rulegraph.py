"""``snakemake all --rulegraph dot | afterimage report rulegraph --out FILE``: draw the rule graph without graphviz.

Rules stand in layers by the longest path from a rule without inputs, so that every arrow points right.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import networkx


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, required=True, help="picture to write; the suffix chooses the format (svg, png, pdf)"
    )


def run(args: argparse.Namespace) -> None:
    graph = parse(sys.stdin.read())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(graph, args.out)


def parse(dot: str) -> networkx.DiGraph:
    """Read Snakemake's dot text; rules that only gather (``all`` and the phases) are left out.

    Raises:
        SystemExit: if the text holds no graph.
    """
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', dot, flags=re.MULTILINE))
    if not names:
        sys.exit("no rule graph on standard input; use: snakemake all --rulegraph dot | afterimage report rulegraph --out FILE")
    graph = networkx.DiGraph()
    graph.add_nodes_from(names.values())
    graph.add_edges_from((names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", dot, flags=re.MULTILINE))
    graph.remove_nodes_from({"default", "all", "data", "train", "sample", "attack", "report", "track"} & set(graph))
    return networkx.transitive_reduction(graph)


def draw(graph: networkx.DiGraph, path: Path) -> None:
    """Draw ``graph`` into ``path``; the same graph gives the same bytes."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "rulegraph"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    for layer, rules in enumerate(networkx.topological_generations(graph)):
        for rule in rules:
            graph.nodes[rule]["layer"] = layer
    ordered = networkx.DiGraph()
    ordered.add_nodes_from(sorted(graph.nodes(data=True)))
    ordered.add_edges_from(sorted(graph.edges))
    position = networkx.multipartite_layout(ordered, subset_key="layer")
    layers = 1 + max(layer for _, layer in ordered.nodes(data="layer"))
    figure, axis = plt.subplots(figsize=(1.35 * layers, 2.6))
    networkx.draw_networkx(
        ordered,
        position,
        ax=axis,
        arrows=True,
        node_size=2600,
        node_color="white",
        node_shape="s",
        linewidths=0,
        font_size=9,
        edge_color="0.5",
        bbox={"boxstyle": "round,pad=0.35", "facecolor": "#e8eef7", "edgecolor": "#4a6fa5"},
    )
    axis.axis("off")
    axis.margins(0.08)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None} if path.suffix in (".svg", ".pdf") else None)
    plt.close(figure)
