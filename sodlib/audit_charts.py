"""The figures of page 09."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from .evidence import Estimate
from .plots import COLORS, FULL_WIDTH, PALETTE


def kinds_of_work(table: pd.DataFrame) -> Figure:
    """A bar a network of `audit.kinds_of_work`: the paper's MACC by kind of operation, with the convolutions' share."""
    figure, axis = plt.subplots(figsize=(FULL_WIDTH, 1.2 + 0.3 * len(table)))
    kinds = table.drop(columns="macc_g")
    start = np.zeros(len(table))
    for kind, color in zip(kinds, PALETTE, strict=False):
        axis.barh(table.index, kinds[kind], left=start, color=color, label=kind, lw=0)
        start += kinds[kind].to_numpy()
    for place, (whole, share) in enumerate(zip(start, kinds["convolution"] / start, strict=True)):
        axis.text(whole, place, f" {whole:.2f}, {share:.0%} convolutions", va="center", fontsize=8)
    axis.set(xlabel="MACC (10⁹) for one image of 224 × 224", xlim=(0, 1.22 * start.max()))
    axis.invert_yaxis()
    axis.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=kinds.shape[1])
    return figure


def epochs_chosen(
    chosen: pd.DataFrame, names: tuple[str, str], gains: Mapping[str, tuple[str, str, Estimate]]
) -> Figure:
    """How many trainings of `audit.epochs_chosen` have their best epoch where, by the test set and by the validation
    split (`names`); and, a panel a score, what each training gains by its own choice (dots) and the mean with its
    interval. `gains`: by title the score, over what ("other" or "last"), and the estimate."""
    figure, axes = plt.subplots(1, 1 + len(gains), figsize=(FULL_WIDTH, 3.2), width_ratios=(1.6, *[1] * len(gains)))
    epochs = np.arange(1, chosen["epochs"].max() + 1)
    columns = ("epoch by test", "epoch by validation")
    for side, (column, name, color) in enumerate(zip(columns, names, (COLORS["ours"], COLORS["paper"]), strict=True)):
        counts = [int((chosen[column] == epoch).sum()) for epoch in epochs]
        axes[0].bar(epochs + 0.4 * side - 0.2, counts, 0.4, color=color, label=name, lw=0)
    axes[0].set(title="best epoch", xlabel="epoch", ylabel=f"trainings, of {len(chosen)}", xticks=epochs)
    axes[0].grid(visible=False, axis="x")
    axes[0].legend(title="smallest MAE on", loc="upper left")
    for axis, (title, (score, over, estimate)) in zip(axes[1:], gains.items(), strict=True):
        values = chosen[f"{score}, own"] - chosen[f"{score}, {over}"]
        beside = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
        axis.plot(beside, values, "o", ms=3, alpha=0.5, color=COLORS["paper"])
        ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
        axis.errorbar([0.45], [estimate.value], ends, fmt="o", ms=6, capsize=4, color=COLORS["ours"])
        axis.axhline(0, lw=0.8, color=COLORS["text"])
        axis.set(title=title, xticks=[], xlim=(-0.4, 0.65))
    return figure
