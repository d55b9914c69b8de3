"""Pruning under one's hands: a threshold, and what it leaves of a network, shown together."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import ipywidgets
import numpy as np
from IPython.display import display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from .cost import count_parameters, paper_macc
from .csnet import CSNet
from .plots import COLORS, FULL_WIDTH, SALIENCY
from .prediction import predict
from .pruning import keep_above, prune, recalibrate, scores


class Explorer:
    """Prunes a trained network by any threshold on gamma and shows channels, parameters, MACC and a saliency map.

    `photographs`: (name, uint8 `[H, W, 3]`); `inputs` `[B, 3, S, S]`: the images whose batch norm statistics a pruned
    network takes, all in one pass, so that a new threshold answers within a second or two.
    """

    def __init__(self, model: CSNet, photographs: Sequence[tuple[str, np.ndarray]], inputs: Tensor) -> None:
        self.model, self.inputs = model, inputs
        self.photographs = dict(photographs)
        self.scores = scores(model)
        self.pruned = lru_cache(64)(self._pruned)
        # Both networks take their statistics from the same images, so that only the channels differ.
        self.whole = self.pruned(0.0)

    def figure(self, threshold: float, photograph: str | None = None) -> Figure:
        """Channels of every ILBlock before and after, the photograph, and its saliency maps before and after."""
        image = self.photographs[photograph or next(iter(self.photographs))]
        smaller = self.pruned(threshold)
        figure = plt.figure(figsize=(FULL_WIDTH, 4.6))
        above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
        names = [block.name.removeprefix("stage") for block in self.model.plan.block_plans()]
        for scale, axis in enumerate(above.subplots(1, 2, sharey=True)):
            for network, color, label in ((self.whole, "faint", "before"), (smaller, "after pruning", "after")):
                counts = [(*split, 0)[scale] for split in network.plan.blocks]
                axis.bar(range(len(names)), counts, color=COLORS[color], label=label, lw=0)
            axis.set(title=("high resolution", "low resolution")[scale], xlabel="ILBlock (stage.position)")
            axis.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
            axis.grid(axis="x", visible=False)
        above.axes[0].set_ylabel("channels")
        above.axes[0].legend(loc="upper left")
        pictures = (("photograph", image), ("map before", self.whole), ("map after", smaller))
        for (title, shown), axis in zip(pictures, below.subplots(1, 3), strict=True):
            axis.imshow(shown if shown is image else predict(shown, image), **({} if shown is image else SALIENCY))
            axis.set(title=title, xticks=[], yticks=[])
            axis.grid(False)
        before, after = (
            (count_parameters(network), paper_macc(network.plan) / 1e9) for network in (self.whole, smaller)
        )
        figure.suptitle(
            f"Channels with |γ| ≥ {threshold:.2g}: {after[0]:,} of {before[0]:,} parameters "
            f"({1 - after[0] / before[0]:.0%} removed), MACC {after[1]:.2f} of {before[1]:.2f} G",
            fontsize=11,
        )
        return figure

    def widget(self, threshold: float) -> ipywidgets.Widget:
        """A slider for the threshold and a menu of the photographs above the figure, which follows them."""
        controls = {
            "threshold": ipywidgets.FloatLogSlider(
                threshold,
                min=-9,
                max=0,
                step=0.25,
                description="threshold",
                continuous_update=False,
                readout_format=".2g",
            ),
            "photograph": ipywidgets.Dropdown(options=list(self.photographs), description="photograph"),
        }
        return ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(self._show, controls)])

    def _show(self, threshold: float, photograph: str) -> None:
        figure = self.figure(threshold, photograph)
        display(figure)
        plt.close(figure)

    def _pruned(self, threshold: float) -> CSNet:
        smaller = prune(self.model, keep_above(self.scores, threshold))
        recalibrate(smaller, [self.inputs])
        return smaller
