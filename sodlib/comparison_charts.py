"""The figures that compare networks: how fast they converge, and what they score for their size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Bbox

from .plots import COLORS, FULL_WIDTH, PALETTE

#: The same start has the same colour in every panel.
_STARTS = {"from scratch": COLORS["paper"], "ImageNet": COLORS["ours"]}

#: Where the label of a point may stand, in points across and up.
_BESIDE = tuple(
    (across, up) for up in (3, -3, 8, -8, 14, -14, 20, -20) for across in (5, -5, 0) if across or abs(up) > 3
)


def convergence(panels: Mapping[str, Mapping[str, np.ndarray]], measured: str) -> Figure:
    """A measure over the epochs, a panel a network, a colour a start: a thin line a seed `[seeds, epochs]`, a thick one
    their mean (paper, Figure 11)."""
    figure, axes = plt.subplots(1, len(panels), figsize=(FULL_WIDTH, 3.4), sharey=True)
    others = iter(PALETTE)
    for axis, (title, starts) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for start, by_seed in starts.items():
            color = _STARTS.get(start) or next(others)
            epochs = np.arange(1, by_seed.shape[1] + 1)
            if len(by_seed) > 1:
                axis.plot(epochs, by_seed.T, lw=0.7, alpha=0.6, color=color)
            axis.plot(epochs, by_seed.mean(0), "o-", ms=4, lw=2, color=color, label=start)
        axis.set(title=title, xlabel="epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(title="start")
    np.atleast_1d(axes)[0].set_ylabel(measured)
    return figure


def epochs_to(by_seed: np.ndarray, level: float) -> float:
    """After how many epochs the mean of `[seeds, epochs]` is at a level or below; NaN where it never is."""
    below = np.flatnonzero(by_seed.mean(0) <= level)
    return float(below[0] + 1) if len(below) else np.nan


def pareto(sizes: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The indices of those that no other beats with as few parameters or fewer, the smallest first."""
    order = sorted(range(len(sizes)), key=lambda index: (sizes[index], -scores[index]))
    front: list[int] = []
    for index in order:
        if not front or scores[index] > scores[front[-1]]:
            front.append(index)
    return front


def sizes_and_scores(panels: Mapping[str, Mapping[str, pd.DataFrame]], mean_mask: float | None = None) -> Figure:
    """Max F-measure against parameters, a panel a kind of evidence, a colour and a mark a layer, with the Pareto front
    of each panel's first layers (paper, Figure 1). Numbers of one layer come from one evaluator.

    A layer has the columns parameters_k and max_f, with low and high where there are intervals; its index names the
    points. Without a score a network is a name on the axis. `mean_mask`: a dashed line in the last panel.
    """
    figure, axes = plt.subplots(len(panels), 1, figsize=(FULL_WIDTH, 4.8 * len(panels)))
    for axis, (title, layers) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for (name, layer), color, mark in zip(layers.items(), PALETTE, "os^Dv", strict=False):
            _layer(axis, layer, name, color, mark)
        axis.set(xscale="log", xlabel="parameters (K)", ylabel="max F", title=title)
        axis.margins(x=0.08, y=0.12)
        if mean_mask is not None and axis is np.atleast_1d(axes)[-1]:
            axis.axhline(mean_mask, color=COLORS["threshold"], lw=1.4, ls="--", label="the mean mask")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    figure.draw_without_rendering()
    for axis in np.atleast_1d(axes):
        _part_labels(axis)
    return figure


def _part_labels(axis: Axes) -> None:
    """Move each label to the first place beside its point where it covers no other label, no point, interval or front,
    and stays inside the axes; to the least covered one where there is none."""
    labels = sorted((text for text in axis.texts if not text.get_rotation()), key=lambda text: -text.xy[1])
    points = axis.transData.transform([text.xy for text in labels]) if labels else []
    # Wider than a point, or a label might seem to be that of the one it ends at.
    taken = [Bbox.from_extents(x - 9, y - 4, x + 9, y + 4) for x, y in points]
    for line in axis.lines:
        if line.get_linestyle() == ":":
            corners = axis.transData.transform(line.get_xydata())
            for start, end in pairwise(corners):
                steps = np.linspace(start, end, 2 + int(np.hypot(*(end - start)) / 6))
                taken += [Bbox.from_extents(x - 1, y - 1, x + 1, y + 1) for x, y in steps]
    for container in axis.containers:  # the intervals
        for ends in container.lines[2][0].get_segments():
            (x, low), (_, high) = axis.transData.transform(ends)
            taken.append(Bbox.from_extents(x - 3, low, x + 3, high))
    for own, text in zip(points, labels, strict=True):
        others = [box for box in taken if not box.contains(*own)]
        places = []
        for place in _BESIDE:
            box = _put(text, place)
            outside = box.x0 < axis.bbox.x0 or box.x1 > axis.bbox.x1
            places.append((1000 * outside + sum(box.overlaps(other) for other in others), place))
        taken.append(_put(text, min(places, key=lambda one: one[0])[1]))


def _put(text: Annotation, place: tuple[int, int]) -> Bbox:
    """Put a label there, from its point, and say what it covers."""
    across, up = place
    text.set(ha="left" if across > 0 else "right" if across < 0 else "center", va="bottom" if up > 0 else "top")
    text.xyann = place
    text.update_positions(text.figure.canvas.get_renderer())
    return Text.get_window_extent(text)  # without the line to its point


def _layer(axis: Axes, layer: pd.DataFrame, name: str, color: str, mark: str) -> None:
    scored = layer.dropna(subset=["parameters_k", "max_f"])
    x, y = scored["parameters_k"].to_numpy(), scored["max_f"].to_numpy()
    if "low" in scored and len(scored):
        errors = np.abs(scored[["low", "high"]].to_numpy() - y[:, None]).T
        axis.errorbar(x, y, errors, fmt="none", lw=1, capsize=2, color=color)
    axis.plot(x, y, mark, ms=5, color=color, label=name, ls="none")
    front = pareto(x, y)
    axis.plot(x[front], y[front], lw=0.9, ls=":", color=color)
    for label, across, up in zip(scored.index, x, y, strict=True):
        leader = {"arrowstyle": "-", "lw": 0.5, "color": color, "alpha": 0.6, "shrinkA": 0, "shrinkB": 2}
        axis.annotate(label, (across, up), xytext=(4, 3), textcoords="offset points", fontsize=7.5, color=color,
                      arrowprops=leader)  # fmt: skip
    unscored = layer[layer["max_f"].isna()]["parameters_k"].dropna().sort_values()
    for label, across in unscored.items():
        # Beside its neighbour's.
        near = [np.sign(across - other) for other in unscored if 0 < abs(np.log(across / other)) < np.log(1.3)]
        side = {-1: "right", 0: "center", 1: "left"}[near[0] if near else 0]
        axis.annotate(label, (across, 0), xycoords=("data", "axes fraction"), xytext=(0, 4), fontsize=7.5, color=color,
                      textcoords="offset points", rotation=90, ha=side, va="bottom")  # fmt: skip
