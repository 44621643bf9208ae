"""``snakemake all --rulegraph dot | afterimage report rulegraph --out FILE``: draw the rule graph
without graphviz.

Rules are placed in layers by the longest path from a rule without inputs, so that every arrow
points right.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import networkx


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="picture to write; the suffix chooses the format (svg, png, pdf)",
    )


def run(args: argparse.Namespace) -> None:
    graph = parse(sys.stdin.read())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    draw(graph, args.out)


def parse(dot: str) -> networkx.DiGraph:
    """Read Snakemake's dot text, without rules that only collect files (``all`` and the phases).

    Arrows that lead back to an earlier rule are dropped too: an arm that starts from another, or
    that forgets the extracted images of an attack.

    Raises:
        SystemExit: if the text contains no graph.
    """
    names = dict(re.findall(r'^\s*(\d+)\[label = "(\w+)"', dot, flags=re.MULTILINE))
    if not names:
        sys.exit(
            "no rule graph on standard input; use: snakemake all --rulegraph dot | afterimage "
            "report rulegraph --out FILE"
        )
    graph = networkx.DiGraph()
    graph.add_nodes_from(names.values())
    graph.add_edges_from(
        (names[a], names[b]) for a, b in re.findall(r"^\s*(\d+) -> (\d+)", dot, flags=re.MULTILINE)
    )
    graph.remove_nodes_from(
        {"default", "all", "data", "train", "sample", "attack", "report", "track"} & set(graph)
    )
    graph.remove_edges_from(list(networkx.selfloop_edges(graph)))
    first = [rule for rule, inputs in graph.in_degree() if not inputs]
    while not networkx.is_directed_acyclic_graph(graph):
        *_, back = networkx.find_cycle(graph, first)
        graph.remove_edge(*back)
    return networkx.transitive_reduction(graph)


def draw(graph: networkx.DiGraph, path: Path) -> None:
    """Draw ``graph`` to ``path``; the same graph gives the same bytes."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "rulegraph"
    matplotlib.rcParams["svg.fonttype"] = "none"
    from matplotlib import pyplot as plt

    # Place the rules in layers.
    layer_of = {
        rule: layer
        for layer, rules in enumerate(networkx.topological_generations(graph))
        for rule in rules
    }
    reach = {rule: max((layer_of[after] for after in graph[rule]), default=0) for rule in graph}
    layers: dict[int, list[str]] = {}
    # Long arrows at the top, out of the way of the others.
    for rule in sorted(graph, key=lambda rule: (reach[rule], rule)):
        layers.setdefault(layer_of[rule], []).append(rule)

    # Draw boxes, then arrows between them.
    position = networkx.multipartite_layout(graph, subset_key=layers)
    figure, axis = plt.subplots(figsize=(1.45 * len(layers), 2.6))
    axis.set(xlim=(-1.08, 1.08), ylim=(-1, 1))
    height = max(abs(y) for _, y in position.values()) or 1
    box = {"boxstyle": "round,pad=0.4", "facecolor": "#e8eef7", "edgecolor": "#4a6fa5"}
    width = max(abs(x) for x, _ in position.values())
    labels = {
        rule: axis.text(
            x / width,
            0.75 * y / height,
            rule,
            ha="center",
            va="center",
            fontsize=10,
            bbox=box,
            zorder=2,
        )
        for rule, (x, y) in sorted(position.items())
    }
    figure.canvas.draw()  # sets the sizes of the boxes
    for before, after in sorted(graph.edges):
        clip = {"patchA": labels[before].get_bbox_patch(), "patchB": labels[after].get_bbox_patch()}
        line = {
            "arrowstyle": "-|>",
            "color": "0.5",
            "shrinkA": 0,
            "shrinkB": 0,
            "mutation_scale": 12,
            **clip,
        }
        ends = (labels[after].get_position(), labels[before].get_position())
        axis.annotate("", *ends, arrowprops=line, zorder=3)
    axis.axis("off")
    figure.savefig(
        path,
        bbox_inches="tight",
        metadata={"Date": None} if path.suffix in (".svg", ".pdf") else None,
    )
    plt.close(figure)
