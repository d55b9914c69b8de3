"""The figures that show measurements: curves, distributions, galleries. (Diagrams of the network are elsewhere.)"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .evidence import Estimate
from .plots import COLORS, FULL_WIDTH, SALIENCY

DECAY_COLORS = {
    "standard": COLORS["standard decay"],
    "dynamic": COLORS["dynamic decay"],
    "dynamic-written": COLORS["fused"],
}


def learning_curves(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    test_set: str | None,
    compared: str = "weight decay",
) -> Figure:
    """Training loss, validation max F-measure, the MAE of Figure 14 on `test_set` or, where no test set was followed,
    on the validation split, and the scales near zero over the steps: a colour for each of what is `compared`, a thin
    line a seed, a thick one their mean. What has no history is left out."""
    histories = {name: by_seed for name, by_seed in histories.items() if by_seed}
    panels = {
        "loss": "training loss (BCE)",
        "validation_max_f": "max F, validation",
        f"{test_set or 'validation'}_mae": f"MAE, {test_set or 'validation'}",
        "gammas_below_1e-2": "scales with |γ| < 0.01",
    }
    colors = dict(zip(histories, plt.colormaps["viridis"](np.linspace(0, 0.85, len(histories))), strict=True))
    colors |= {name: DECAY_COLORS[name] for name in histories if name in DECAY_COLORS}
    figure, axes = plt.subplots(2, 2, figsize=(FULL_WIDTH, 5.4))
    for axis, (column, title) in zip(axes.flat, panels.items(), strict=True):
        for name, by_seed in histories.items():
            steps = [entry["steps"] for entry in by_seed[0]]
            values = np.array([[entry[column] for entry in history] for history in by_seed])
            if len(values) > 1:
                axis.plot(steps, values.T, lw=0.7, alpha=0.6, color=colors[name])
            axis.plot(steps, values.mean(0), "o-", ms=4, lw=2, color=colors[name], label=name)
        axis.set(title=title, xlabel="optimiser steps", xlim=(0, None))
    axes.flat[0].legend(title=compared)
    return figure


def gamma_distribution(values: Mapping[str, np.ndarray], redundant: float) -> Figure:
    """Histogram of |gamma| inside the ILBlocks on a logarithmic axis, a panel a network, whose name begins with that of
    its decay, with the value below which a channel counts as redundant (paper, Figure 5). What has no scales is left
    out."""
    values = {name: vector for name, vector in values.items() if len(vector)}
    smallest = min(float(vector[vector > 0].min()) for vector in values.values())
    edges = np.logspace(max(np.floor(np.log10(min(smallest, redundant))), -32), 0.5, 71)
    figure, axes = plt.subplots(len(values), 1, figsize=(FULL_WIDTH, 1.6 * len(values)), sharex=True)
    for axis, (name, vector) in zip(np.atleast_1d(axes), values.items(), strict=True):
        axis.hist(vector.clip(edges[0], edges[-1]), edges, color=DECAY_COLORS[name.split()[0]])
        axis.axvline(redundant, color=COLORS["threshold"], lw=1.4, ls="--")
        share = (vector < redundant).mean()
        axis.set(xscale="log", ylabel="channels", title=f"{name}: {share:.0%} of {len(vector):,} are redundant")
    smaller = any((vector < edges[0]).any() for vector in values.values())
    first = f"; the first bar: all below {edges[1]:.0e}" if smaller else ""
    np.atleast_1d(axes)[-1].set_xlabel(f"|γ| (dashed: what counts as redundant{first})")
    return figure


def largest_scales(panels: Mapping[str, Mapping[str, Mapping[str, float]]], severed: float) -> Figure:
    """The largest |gamma| of every layer (columns) of some networks (rows), a panel a group of them with its title; a
    cross where it is below `severed`."""
    networks = {title: list(rows.values()) for title, rows in panels.items()}
    layers = list(networks[next(iter(networks))][0])
    heights = [len(rows) for rows in networks.values()]
    figure, axes = plt.subplots(
        len(panels),
        1,
        figsize=(FULL_WIDTH, 1.1 + 0.23 * sum(heights) + 0.3 * len(panels)),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
    )
    for axis, (title, rows) in zip(axes.flat, panels.items(), strict=True):
        values = np.array([list(row.values()) for row in rows.values()])
        image = axis.imshow(np.log10(values.clip(1e-10)), cmap="magma", vmin=-10, vmax=0, aspect="auto")
        rows_cut, columns_cut = np.nonzero(values < severed)
        axis.plot(columns_cut, rows_cut, "x", ms=4, mew=1, color="white")
        axis.set_yticks(range(len(rows)), rows, fontsize=8)
        axis.set_title(title, fontsize=9)
        axis.grid(visible=False)
        for place, (before, after) in enumerate(pairwise(layers)):
            if before.partition(".")[0] != after.partition(".")[0]:
                axis.axvline(place + 0.5, color="white", lw=1.4)
    stages = [layer.partition(".")[0] for layer in layers]
    middles = {stage: np.flatnonzero(np.array(stages) == stage).mean() for stage in dict.fromkeys(stages)}
    axes.flat[-1].set_xticks(list(middles.values()), ["stem" if stage == "stage0" else stage for stage in middles])
    axes.flat[-1].set_xlabel(f"layers in order, three an ILBlock (crosses: below {severed:g})")
    figure.colorbar(image, ax=axes, label="log$_{10}$ of the largest |γ| (−10: or less)", fraction=0.03, pad=0.015)
    # The layout's last digits differ from one execution to another, and the SVG names its clips by them.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        axis.set_position([round(value, 4) for value in axis.get_position().bounds])
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


def beside_paper(
    table: pd.DataFrame, estimates: Sequence[Estimate], where: str, mean_mask: Estimate | None = None
) -> Figure:
    """Max F-measure of the same rows in the paper and here, each on its own scale, ours with 95 % intervals.

    `table` comes from `Evidence.table` with the printed rows; its index labels the rows. `where`: set and images.
    `mean_mask`: what one map for all photographs scores, as a dashed line.
    """
    labels = [" ".join(map(str, name)) if isinstance(name, tuple) else str(name) for name in table.index]
    places = np.arange(len(labels))[::-1]
    figure, (left, right) = plt.subplots(1, 2, figsize=(FULL_WIDTH, 0.9 + 0.24 * len(labels)), sharey=True)
    left.plot(table["max_f", "paper"], places, "D", ms=6, color=COLORS["paper"])
    _intervals(right, estimates, places, COLORS["ours"])
    left.set_yticks(places, labels)
    left.set(title="paper", xlabel="max F (ECSSD, n = 1,000)", ylim=(-0.6, len(labels) - 0.4))
    title = "ours, with 95 % intervals"
    if mean_mask is not None:
        right.axvline(mean_mask.value, color=COLORS["threshold"], lw=1.4, ls="--")
        title += " (dashed: the mean mask)"
    right.set(title=title, xlabel=f"max F ({where})")
    for axis in (left, right):
        axis.locator_params(axis="x", nbins=6)
    return figure


def _intervals(
    axis: Axes, estimates: Sequence[Estimate], places: np.ndarray, color: str, label: str | None = None
) -> None:
    values = np.array([[estimate.value, estimate.low, estimate.high] for estimate in estimates])
    errors = np.abs(values[:, 1:] - values[:, :1]).T
    axis.errorbar(values[:, 0], places, xerr=errors, fmt="o", ms=5, lw=1.4, capsize=2.5, color=color, label=label)


def differences(rows: Mapping[str, Estimate], measured: str) -> Figure:
    """Differences by name, with their 95 % intervals; a dashed line at none. `measured`: measure, set and images."""
    places = np.arange(len(rows))[::-1]
    figure, axis = plt.subplots(figsize=(FULL_WIDTH * 0.72, 0.9 + 0.3 * len(rows)))
    _intervals(axis, list(rows.values()), places, COLORS["ours"])
    axis.axvline(0, color=COLORS["threshold"], lw=1.4, ls="--")
    axis.set_yticks(places, list(rows))
    axis.set(xlabel=measured, ylim=(-0.6, len(rows) - 0.4))
    return figure


def sizes_and_scores(lines: Mapping[str, Sequence[tuple[float, Estimate]]], where: str) -> Figure:
    """Max F-measure with 95 % intervals against parameters in thousands, a line a decay; on the right the part near the
    best alone. `where`: set and images."""
    figure, axes = plt.subplots(1, 2, figsize=(FULL_WIDTH, 3.6))
    for position, (decay, points) in enumerate(lines.items()):
        # The sizes are equal; beside each other the intervals can be read.
        sizes = np.array([size for size, _ in points]) + 2.2 * (position - (len(lines) - 1) / 2)
        values = np.array([[estimate.value, estimate.low, estimate.high] for _, estimate in points])
        errors = np.abs(values[:, 1:] - values[:, :1]).T
        for axis in axes:
            axis.errorbar(sizes, values[:, 0], errors, fmt="o-", capsize=2.5, color=DECAY_COLORS[decay], label=decay)
    best = max(estimate.high for points in lines.values() for _, estimate in points)
    axes[0].set(xlabel="parameters (K); equal sizes side by side", ylabel=f"max F ({where})")
    axes[1].set(xlabel="parameters (K)", title="near the best", ylim=(best - 0.06, best + 0.005))
    axes[0].legend(title="weight decay", loc="lower right")
    return figure


def bare(axis: Axes) -> None:
    """Leave the picture alone, and its labels."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    for spine in axis.spines.values():
        spine.set_visible(False)


def gallery(
    photographs: Sequence[tuple[str, np.ndarray, np.ndarray | None]], maps: Mapping[str, Sequence[np.ndarray]]
) -> Figure:
    """A column a photograph: itself, its ground truth where there is one, and every network's saliency map."""
    titles = ["photograph", "ground truth", *maps]
    height = min(1.25, 0.85 * FULL_WIDTH / len(photographs)) * len(titles)
    figure, axes = plt.subplots(len(titles), len(photographs), figsize=(FULL_WIDTH, height), squeeze=False)
    for column, (_, photograph, truth) in enumerate(photographs):
        shown = [photograph, truth, *(results[column] for results in maps.values())]
        for row, picture in enumerate(shown):
            axis = axes[row, column]
            bare(axis)
            if picture is None:
                axis.text(0.5, 0.5, "none", ha="center", va="center", color=COLORS["paper"], transform=axis.transAxes)
            else:  # with a frame, so that a white map is seen on white paper
                axis.spines[:].set(visible=True, color=COLORS["faint"], lw=0.5)
                levels = 255 if picture.dtype == np.uint8 else 1
                axis.imshow(picture) if picture.ndim == 3 else axis.imshow(picture / levels, **SALIENCY)
            if column == 0:
                axis.set_ylabel(textwrap.fill(titles[row], 18), rotation=0, ha="right", va="center")
    return figure


def accuracies(rows: Sequence[tuple[str, float, Estimate, Sequence[float]]], chance: float, where: str) -> Figure:
    """Accuracy of classifiers, a row each: name, the paper's (NaN for none), the mean over the seeds with its interval,
    and every seed as a small dot. A dashed line stands at chance (paper, Table 3)."""
    figure, axis = plt.subplots(figsize=(FULL_WIDTH, 1.0 + 0.34 * len(rows)))
    names, printed, ours, by_seed = zip(*reversed(rows), strict=True)
    places = np.arange(len(rows))
    for place, seeds in enumerate(by_seed):
        axis.plot(list(seeds), [place] * len(seeds), "o", ms=3, color=COLORS["ours"], alpha=0.5)
    _intervals(axis, ours, places, COLORS["ours"], "here, 95 %")
    axis.plot(printed, places, "D", ms=6, color=COLORS["paper"], label="paper")
    axis.axvline(chance, color=COLORS["threshold"], ls="--", lw=1.4, label="chance")
    axis.set_yticks(places, names)
    axis.set(xlabel=f"top-1 accuracy ({where})", xlim=(0, 1))
    axis.legend(loc="lower right")
    return figure


def looks(photographs: Sequence[tuple[str, np.ndarray]], maps: Mapping[str, Sequence[np.ndarray]]) -> Figure:
    """A row a photograph with its title, a column a kind of activation map, over the photograph in grey (paper, Figure
    9)."""
    columns = 1 + len(maps)
    heights = [min(1.0, photograph.shape[0] / photograph.shape[1]) for _, photograph in photographs]
    height = 0.65 + 1.45 * sum(heights)
    # Placed by hand: the layout engine's last bits differ from run to run, and with them the SVG.
    figure, axes = plt.subplots(
        len(heights),
        columns,
        figsize=(FULL_WIDTH, height),
        squeeze=False,
        height_ratios=heights,
        layout="none",
        gridspec_kw={"wspace": 0.06, "hspace": 0.06},
    )
    figure.subplots_adjust(0.22, 0.25 / height, 0.99, 1 - 0.45 / height)
    for row, (title, photograph) in enumerate(photographs):
        axes[row, 0].imshow(photograph)
        axes[row, 0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for axis, of_photographs in zip(axes[row, 1:], maps.values(), strict=True):
            axis.imshow(photograph.mean(2), cmap="gray", vmin=-120, vmax=300)
            axis.imshow(of_photographs[row], cmap="inferno", vmin=0, vmax=1, alpha=0.65)
    for axis in axes.flat:
        bare(axis)
    for axis, name in zip(axes[0], ["photograph", *maps], strict=True):
        axis.set_title(name, fontsize=9)
    return figure


def localised(panels: Mapping[str, Sequence[tuple[str, Estimate]]], references: Mapping[str, float], n: str) -> Figure:
    """A panel a measure of how well activation maps find the object, a row a classifier and kind of map, with its
    interval. A dashed line: what a map scores that knows nothing. `n`: set and images."""
    rows = max(map(len, panels.values()))
    figure, axes = plt.subplots(1, len(panels), figsize=(FULL_WIDTH, 1.1 + 0.34 * rows), sharey=True)
    for axis, (title, measured) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        names, ours = zip(*reversed(measured), strict=True)
        places = np.arange(len(names))
        _intervals(axis, ours, places, COLORS["ours"])
        if title in references:
            axis.axvline(references[title], color=COLORS["threshold"], ls="--", lw=1.4)
        axis.set(title=title, xlabel=n, xlim=(0, 1))
        axis.set_yticks(places, names)
    return figure
