"""The figures of running time: where it goes, and how it grows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .plots import COLORS, FULL_WIDTH, PALETTE
from .timing import exponent


def where_time_goes(milliseconds: Mapping[str, Mapping[str, float]]) -> Figure:
    """A panel a form of the network, a bar a part."""
    figure, axes = plt.subplots(1, len(milliseconds), figsize=(FULL_WIDTH, 4.2), sharey=True)
    colors = dict(zip(milliseconds, (COLORS["paper"], COLORS["ours"]), strict=True))
    for axis, (form, by_part) in zip(axes, milliseconds.items(), strict=True):
        total, places = sum(by_part.values()), np.arange(len(by_part))
        bars = axis.barh(places, list(by_part.values()), color=colors[form])
        axis.bar_label(bars, [f"{100 * value / total:.0f} %" for value in by_part.values()], padding=3, fontsize=8)
        axis.set(title=f"{form}: {total:.0f} ms", xlabel="milliseconds", yticks=places, yticklabels=list(by_part))
        axis.margins(x=0.14)
        axis.grid(visible=False, axis="y")
    axes[0].invert_yaxis()
    return figure


def growth(panels: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]) -> Figure:
    """Time against "size" or "batch", both axes logarithmic, with quartiles and the exponent over the pixels at
    either end."""
    figure, axes = plt.subplots(1, len(panels), figsize=(FULL_WIDTH, 3.8))
    labels = {"size": "side of the image (pixels)", "batch": "images in a batch"}
    for axis, (along, forms) in zip(axes, panels.items(), strict=True):
        for (name, points), color in zip(forms.items(), PALETTE, strict=False):
            x, middle, low, high = (
                np.array([point[key] for point in points]) for key in ("x", "median_ms", "low_ms", "high_ms")
            )
            ends = [exponent(pair) / (2 if along == "size" else 1) for pair in (points[:2], points[-2:])]
            axis.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
            axis.plot(x, middle, "o-", ms=4, color=color, label=f"{name}: exponent {ends[0]:.2f} to {ends[1]:.2f}")
        axis.set(xscale="log", yscale="log", xlabel=labels[along], ylabel="milliseconds")
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
        low, high = axis.get_ylim()
        axis.set_ylim(low, high * (high / low) ** 0.4)  # room for the legend
        axis.legend(loc="upper left", title="over the number of pixels" if along == "size" else "over the batch")
    return figure
