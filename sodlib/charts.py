"""The figures that show measurements: curves, distributions, galleries. (Diagrams of the network are elsewhere.)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .channels import ChannelPlan
from .plots import COLORS, FULL_WIDTH, SALIENCY

DECAY_COLORS = {
    "standard": COLORS["standard decay"],
    "dynamic": COLORS["dynamic decay"],
    "dynamic-written": COLORS["fused"],
}


def learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Figure:
    """Training loss, validation MAE and validation max F-measure over the steps, a line a decay."""
    panels = {"loss": "training loss (BCE)", "validation_mae": "validation MAE", "validation_max_f": "validation max F"}
    figure, axes = plt.subplots(1, len(panels), figsize=(FULL_WIDTH, 3.0))
    for axis, (column, title) in zip(axes, panels.items(), strict=True):
        for decay, history in histories.items():
            steps = [entry["steps"] for entry in history]
            axis.plot(steps, [entry[column] for entry in history], "o-", ms=4, color=DECAY_COLORS[decay], label=decay)
        axis.set(title=title, xlabel="optimiser steps", xlim=(0, None))
    axes[0].legend(title="weight decay")
    return figure


def gamma_distribution(vectors: Mapping[str, Mapping[str, np.ndarray]], smallest: float = 1e-5) -> Figure:
    """Histogram of |gamma| inside the ILBlocks on a logarithmic axis, a panel a decay (paper, Figure 5)."""
    edges = np.logspace(np.log10(smallest), 0.5, 56)
    figure, axes = plt.subplots(len(vectors), 1, figsize=(FULL_WIDTH, 1.6 * len(vectors)), sharex=True, sharey=True)
    for axis, (decay, by_name) in zip(np.atleast_1d(axes), vectors.items(), strict=True):
        values = np.abs(np.concatenate(list(by_name.values())))
        axis.hist(values.clip(edges[0], edges[-1]), edges, color=DECAY_COLORS[decay])
        axis.set(xscale="log", ylabel="channels", title=f"{decay} decay, n = {len(values):,}")
    np.atleast_1d(axes)[-1].set_xlabel(f"|gamma| (all below {smallest:g} in the first bar)")
    return figure


def deviation_by_layer(deviations: Mapping[str, np.ndarray], names: Sequence[str]) -> Figure:
    """Spread of the channels' responses over the layers, a line a decay (paper, Figure 4)."""
    figure, axis = plt.subplots(figsize=(FULL_WIDTH, 3.2))
    for decay, values in deviations.items():
        axis.plot(range(len(values)), values, "o-", ms=3, lw=1.2, color=DECAY_COLORS[decay], label=decay)
    starts = list(range(0, len(names), 3))
    axis.set_xticks(starts, [names[index].rpartition(".")[0] for index in starts], rotation=60, ha="right")
    axis.set(xlabel="ILBlock (three layers each)", ylabel="deviation over channels", ylim=(0, None))
    axis.legend(title="weight decay")
    return figure


def pruning_trade_off(rows: pd.DataFrame, chosen: Mapping[str, str]) -> Figure:
    """Validation max F-measure against parameters, a line a decay; the chosen networks ringed.

    `rows` has the columns decay, kept, parameters, validation max F.
    """
    figure, axis = plt.subplots(figsize=(FULL_WIDTH * 0.66, 3.6))
    for decay, group in rows.groupby("decay", sort=False):
        group = group.sort_values("parameters")
        axis.plot(group["parameters"] / 1000, group["validation max F"], "o-", color=DECAY_COLORS[decay], label=decay)
        best = group[group["kept"] == chosen[decay]]
        axis.plot(best["parameters"] / 1000, best["validation max F"], "o", ms=13, mfc="none", mec=COLORS["text"])
    axis.set(xlabel="parameters after pruning (K)", ylabel="validation max F")
    axis.legend(title="weight decay")
    return figure


def channels_by_block(plans: Mapping[str, ChannelPlan]) -> Figure:
    """Channels of every ILBlock at high and at low resolution, a bar a plan (paper, Figure 10)."""
    colors = {label: DECAY_COLORS.get(label.partition(" ")[0], COLORS["faint"]) for label in plans}
    names = [block.name for block in next(iter(plans.values())).block_plans()]
    figure, axes = plt.subplots(2, 1, figsize=(FULL_WIDTH, 4.4), sharex=True)
    width = 0.8 / len(plans)
    for scale, axis in enumerate(axes):
        for position, (label, plan) in enumerate(plans.items()):
            counts = [split[scale] if scale < len(split) else 0 for split in plan.blocks]
            offset = (position - (len(plans) - 1) / 2) * width
            axis.bar(np.arange(len(names)) + offset, counts, width, label=label, color=colors[label])
        axis.set(title=("high resolution", "low resolution")[scale], ylabel="channels")
        axis.grid(axis="x", visible=False)
    axes[1].set_xticks(range(len(names)), [name.removeprefix("stage") for name in names])
    axes[1].set_xlabel("ILBlock (stage.position); the last of stages 2 to 4 has one scale")
    axes[0].legend(ncols=len(plans))
    return figure


def gallery(
    photographs: Sequence[tuple[str, np.ndarray, np.ndarray | None]], maps: Mapping[str, Sequence[np.ndarray]]
) -> Figure:
    """A column a photograph: itself, its ground truth where there is one, and every network's saliency map."""
    titles = ["photograph", "ground truth", *maps]
    figure, axes = plt.subplots(len(titles), len(photographs), figsize=(FULL_WIDTH, 1.25 * len(titles)), squeeze=False)
    for column, (_, photograph, truth) in enumerate(photographs):
        shown = [photograph, truth, *(results[column] for results in maps.values())]
        for row, picture in enumerate(shown):
            axis = axes[row, column]
            axis.set(xticks=[], yticks=[])
            axis.grid(False)
            for spine in axis.spines.values():
                spine.set_visible(False)
            if picture is None:
                axis.text(0.5, 0.5, "none", ha="center", va="center", color=COLORS["paper"], transform=axis.transAxes)
            elif picture.ndim == 3:
                axis.imshow(picture)
            else:
                axis.imshow(picture / (255 if picture.dtype == np.uint8 else 1), **SALIENCY)
            if column == 0:
                axis.set_ylabel(titles[row], rotation=0, ha="right", va="center")
    return figure
