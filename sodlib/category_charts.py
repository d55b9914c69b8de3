"""The figures of page 04 that show categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .plots import COLORS, FULL_WIDTH
from .sensitivity import Sensitivity


def category_counts(counts: pd.DataFrame) -> Figure:
    """Images of every category (rows) in some sets (columns), a panel a set, the most frequent above (paper, Figures 6
    and 7)."""
    figure, axes = plt.subplots(1, counts.shape[1], figsize=(FULL_WIDTH, 0.8 + 0.24 * len(counts)), sharey=True)
    places = np.arange(len(counts))[::-1]
    for axis, (name, column) in zip(np.atleast_1d(axes), counts.items(), strict=True):
        bars = axis.barh(places, column, color=COLORS["ours"])
        axis.bar_label(bars, [f"{count:,}" if count else "–" for count in column], padding=3, fontsize=8)
        axis.set(title=f"{name}, n = {column.sum():,}", xlabel="images", xlim=(0, 1.18 * column.max()))
        axis.grid(axis="y", visible=False)
    np.atleast_1d(axes)[0].set_yticks(places, counts.index)
    return figure


def left_out(panels: Mapping[str, Sensitivity], control: bool = False) -> Figure:
    """Relative change of max F in percent, a panel each: rows are the category that a network was trained without,
    columns the test images' (paper, Figure 8). One colour scale for all; a frame marks a category left out itself.
    `control`: the networks have seen every category, and as many images fewer as this one has."""
    first = next(iter(panels.values()))
    height = 1.4 + 0.3 * len(first.rows)
    figure, axes = plt.subplots(len(panels), 1, figsize=(FULL_WIDTH, height * len(panels)))
    limit = max(float(np.abs(panel.change).max()) for panel in panels.values())
    for axis, (title, panel) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        shown = axis.imshow(panel.change, cmap="PuOr", vmin=-limit, vmax=limit, aspect="auto")
        for row, name in enumerate(panel.rows):
            for column, tested in enumerate(panel.columns):
                value = panel.change[row, column]
                color = "white" if abs(value) > 0.6 * limit else COLORS["text"]
                axis.text(column, row, f"{value:+.1f}", ha="center", va="center", fontsize=7.5, color=color)
                if name == tested and not control:
                    frame = Rectangle(
                        (column - 0.5, row - 0.5), 1, 1, fill=False, lw=1.8, ec=COLORS["text"], clip_on=False
                    )
                    axis.add_patch(frame)
        columns = [f"{name}\n{count}" for name, count in zip(panel.columns, panel.images, strict=True)]
        axis.set_xticks(range(len(columns)), columns, rotation=45, ha="right", fontsize=8)
        axis.set_yticks(range(len(panel.rows)), panel.rows, fontsize=8)
        rows = "as many images fewer as of" if control else "trained without"
        axis.set(title=title, ylabel=rows, xlabel="test images of category, and how many")
        axis.grid(visible=False)
        figure.colorbar(shown, ax=axis, label="change of max F (%)", fraction=0.03, pad=0.01)
    return figure


def examples(pictures: Sequence[tuple[str, np.ndarray]], columns: int = 6) -> Figure:
    """Photographs with their titles, in rows."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(FULL_WIDTH, 1.45 * rows), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, (title, photograph) in zip(axes.flat, pictures, strict=False):
        axis.imshow(photograph)
        axis.set_title(title, fontsize=9)
    return figure
