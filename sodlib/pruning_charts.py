"""The figures of page 03: what pruning leaves, and what it takes away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .channels import ChannelPlan
from .charts import DECAY_COLORS, bare
from .plots import COLORS, FULL_WIDTH


def decay_weights(lines: Mapping[str, pd.DataFrame], where: str) -> Figure:
    """Max F-measure of the pruned network against its MACC, a line a decay through its weights lambda in their order
    (paper, Figure 13). The tables have the columns weight, macc_g, max_f, low, high. `where`: set and images."""
    figure, axis = plt.subplots(figsize=(FULL_WIDTH * 0.72, 4.0))
    for place, (decay, table) in enumerate(lines.items()):
        errors = np.abs(table[["low", "high"]].to_numpy() - table[["max_f"]].to_numpy()).T
        axis.errorbar(
            table["macc_g"], table["max_f"], errors, fmt="o-", ms=5, capsize=2.5, color=DECAY_COLORS[decay], label=decay
        )
        # At the ends of the intervals, above the first line and below the second, and where two points of a line are
        # next to each other, apart.
        end, away, side = ("high", 4, "bottom") if place == 0 else ("low", -4, "top")
        for weight, x, y in table[["weight", "macc_g", end]].to_numpy():
            neighbours = [other for other in table["macc_g"] if 0 < abs(other - x) < 0.004]
            apart = 5 * np.sign(x - neighbours[0]) if neighbours else 0
            beside = {
                "xytext": (apart, away),
                "textcoords": "offset points",
                "ha": "center",
                "va": side,
                "rotation": 90,
            }
            axis.annotate(f"{weight:g}", (x, y), fontsize=8, color=DECAY_COLORS[decay], **beside)
    axis.margins(y=0.15)
    axis.set(xlabel="MACC after pruning (G), 224 × 224", ylabel=f"max F ({where})")
    axis.legend(title="weight decay (λ at the points)", loc="best")
    return figure


def thresholds(table: pd.DataFrame, where: str) -> Figure:
    """Parameters and max F-measure at every threshold, in the paper and here (Table 10).

    `table` has the columns threshold (words, in the order to draw), paper_k, ours_k, paper_f, ours_f, low and high.
    `where`: set and images.
    """
    figure, axes = plt.subplots(1, 3, figsize=(FULL_WIDTH, 3.2))
    places = np.arange(len(table))
    panels = (
        ("k", ("paper", "ours"), "parameters (K)"),
        ("f", ("paper",), "max F, paper (ECSSD)"),
        ("f", ("ours",), f"max F, ours ({where})"),
    )
    axes[2].fill_between(places, table["low"], table["high"], color=COLORS["ours"], alpha=0.2, lw=0)
    for axis, (column, sides, title) in zip(axes, panels, strict=True):
        for side in sides:
            axis.plot(places, table[f"{side}_{column}"], "o-", ms=4, color=COLORS[side], label=side)
        axis.set(title=title, xlabel="threshold on |γ|", ylim=(0 if column == "k" else None, None))
        axis.set_xticks(places, table["threshold"], rotation=60, ha="right", rotation_mode="anchor")
    axes[0].legend()
    return figure


def channels_by_block(plans: Mapping[str, Sequence[ChannelPlan]]) -> Figure:
    """Channels of every ILBlock at high and at low resolution, a bar a label: the mean over its plans (paper, Figure
    10)."""
    colors = {label: DECAY_COLORS.get(label.partition(" ")[0], COLORS["faint"]) for label in plans}
    names = [block.name for block in next(iter(plans.values()))[0].block_plans()]
    figure, axes = plt.subplots(2, 1, figsize=(FULL_WIDTH, 4.4), sharex=True)
    width = 0.8 / len(plans)
    for scale, axis in enumerate(axes):
        for position, (label, several) in enumerate(plans.items()):
            counts = np.mean([[(*split, 0)[scale] for split in plan.blocks] for plan in several], 0)
            offset = (position - (len(plans) - 1) / 2) * width
            axis.bar(np.arange(len(names)) + offset, counts, width, label=label, color=colors[label], lw=0)
        axis.set(title=("high resolution", "low resolution")[scale], ylabel="channels")
        axis.grid(axis="x", visible=False)
    axes[1].set_xticks(range(len(names)), [name.removeprefix("stage") for name in names])
    axes[1].set_xlabel("ILBlock (stage.position); the last of stages 2 to 4 has one scale")
    axes[0].legend(ncols=len(plans), loc="upper left")
    return figure


def steps_lost(lost: pd.DataFrame, step: str, where: str) -> Figure:
    """What pruning changes of max F against what one step of it does, a point a network: `lost` has the column
    "pruned over whole" and one for the step, by width and seed (`pruned_claims.steps_lost`). `where`: set, images."""
    figure, axis = plt.subplots(figsize=(FULL_WIDTH * 0.5, 4.0))
    widths = lost.index.unique("width")
    for width, color in zip(widths, plt.colormaps["viridis"](np.linspace(0, 0.9, len(widths))), strict=True):
        networks = lost.xs(width, level="width")
        axis.plot(networks[step], networks["pruned over whole"], "o", ms=6, color=color, label=f"×{width:g}")
    ends = [min(lost.min()) - 0.002, max(0, max(lost.max())) + 0.002]
    axis.plot(ends, ends, "--", color=COLORS["threshold"], lw=1.2, zorder=0)
    axis.set(xlim=ends, ylim=ends, aspect="equal", xlabel=f"{step}: change of max F")
    axis.set_ylabel(f"pruned over whole, max F\n({where})")
    axis.legend(title="CSNet")
    return figure


def position_maps(changes: Mapping[str, np.ndarray], where: str) -> Figure:
    """What redundant channels add to the saliency map, `[S, S]` and a panel a network: the mean over the images of
    `where`."""
    limit = max(float(np.abs(change).max()) for change in changes.values())
    figure, axes = plt.subplots(1, len(changes), figsize=(FULL_WIDTH, FULL_WIDTH / (len(changes) + 0.6) + 0.6))
    for axis, (name, change) in zip(np.atleast_1d(axes), changes.items(), strict=True):
        shown = axis.imshow(change, cmap="PuOr_r", vmin=-limit, vmax=limit)
        axis.set_title(name)
        bare(axis)
    figure.colorbar(shown, ax=axes, shrink=0.75, label="added to the map")
    figure.supxlabel(f"mean of {where}", fontsize="medium")
    return figure
