"""The arms of ``snakemake loyal_selection``, which choose skips for blocks and a switch timestep
(LoyalDiffusion, Li et al. 2024).

The paper's two versions state different criteria: the skips least essential for quality, or those
most sensitive to replication; the timesteps where copying is decided, or where quality suffers
least. Both curves are measured here, and the choice is by replication among the candidates that
cost little quality.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from afterimage.config.arm import Arm, Variant
from afterimage.config.base import Block, Name


class LoyalSelection(Block):
    """Arms derived from a trained arm, all with the same budget: by skip group, and by switch
    timestep."""

    base: Name
    """Arm whose averaged weights they all start from (same replicate): a single network without
    blocks."""
    updates: Annotated[int, Field(ge=2)]
    """Updates of each derived arm, over all its networks."""
    variant: Variant = "trained_random"
    """Kind of their blocks."""
    groups: list[Annotated[int, Field(ge=0)]] | None = None
    """Groups with blocks when timesteps are compared. Null: the two deepest levels, as
    published."""
    switch_timesteps: list[Annotated[int, Field(ge=1)]] = []
    """Values of tau to compare, from 1 to T - 1."""
    by: Literal["R", "similarity", "flagged_generations"] = "R"
    """Measure of copying used for the ranking: the replication score (as published), which is near
    1 if most generations are copies; the mean similarity; or the share of generations that
    extraction flags at its fixed alpha."""
    largest_cost: Annotated[float, Field(ge=0)] = 0.1
    """Largest relative increase of the Fréchet distance that a choice may cost."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Maximum number of chosen groups."""


class Cell(Block):
    """One derived arm."""

    arrangement: Literal["none", "groups", "whole", "split", "tail", "front"]
    """none: no blocks, the control. groups: blocks in one group. whole: blocks in the groups used
    for comparing timesteps, at all timesteps. tail: the same at t >= tau, in a separate network.
    front: mirrored, at t < tau. split: two such networks without blocks."""
    groups: list[int] = []
    """Groups with blocks."""
    switch_timestep: int | None = None
    """tau, for the last three."""


CONTROL, WHOLE = "select_none", "select_whole"


def plan(selection: LoyalSelection, levels: int) -> dict[str, Cell]:
    """Return name -> cell of all derived arms, for a network with ``levels`` levels."""
    groups = (
        [group for group in (levels - 1, levels) if group]
        if selection.groups is None
        else selection.groups
    )
    cells = {CONTROL: Cell(arrangement="none")}
    cells |= {
        f"select_g{group}": Cell(arrangement="groups", groups=[group])
        for group in range(levels + 1)
    }
    cells[WHOLE] = Cell(arrangement="whole", groups=groups)
    for tau in selection.switch_timesteps:
        cells[f"select_t{tau}_split"] = Cell(arrangement="split", switch_timestep=tau)
        cells[f"select_t{tau}_tail"] = Cell(arrangement="tail", switch_timestep=tau, groups=groups)
        cells[f"select_t{tau}_front"] = Cell(
            arrangement="front", switch_timestep=tau, groups=groups
        )
    return cells


def settings_of(cell: Cell, selection: LoyalSelection, base: Arm) -> dict[str, Any]:
    """Return the settings of a derived arm: those of its base, except for network, timesteps and
    budget."""
    train = {key: value for key, value in base.train.items() if key not in ("updates", "epochs")}
    settings: dict[str, Any] = {
        "method": "baseline" if cell.switch_timestep is None else "loyal",
        "base": selection.base,
        "data": base.data,
        "dedup": base.dedup,
        "without": base.without,
        "train": train | {"updates": selection.updates},
    }
    if cell.groups:
        settings["rau_net"] = {"groups": cell.groups, "variant": selection.variant}
    if cell.switch_timestep is not None:
        settings["switch_timestep"] = cell.switch_timestep
        settings["budget"] = "matched_total"
        settings["blocks_in"] = "front" if cell.arrangement == "front" else "tail"
    return settings
