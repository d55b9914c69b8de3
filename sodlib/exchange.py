"""Figure 3 of the paper: which scales a layer reads and writes, taken from the layer itself and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from torch import nn

from .channels import Split
from .csnet import MultiDilation
from .errors import SodlibError
from .octconv import DepthwiseUnit, GOctConv, OctaveUnit, SingleScaleConv
from .plots import COLORS, FULL_WIDTH

SMALL = 8  # points; nothing in a figure is smaller
STEP = 1.9  # from one column of scales to the next, in rows
SAME, COARSER, FINER = COLORS["paper"], COLORS["low resolution"], COLORS["high resolution"]


@dataclass(frozen=True)
class Exchange:
    """Channels of a layer per scale, finest first, and its paths: pairs (input scale, output scale)."""

    inputs: Split
    outputs: Split
    paths: tuple[tuple[int, int], ...]
    depthwise: bool = False


def exchange(layer: nn.Module) -> Exchange:
    """What a layer exchanges between scales. Raises SodlibError for a layer that knows no scales."""
    if isinstance(layer, OctaveUnit):
        layer = layer.conv
    if isinstance(layer, GOctConv):
        paths = [
            (i, j) for i, before in enumerate(layer.inputs) for j, after in enumerate(layer.outputs) if before and after
        ]
        return Exchange(layer.inputs, layer.outputs, tuple(paths))
    if isinstance(layer, SingleScaleConv):
        return Exchange((layer.in_channels,), (layer.out_channels,), ((0, 0),))
    if isinstance(layer, DepthwiseUnit):
        return Exchange(layer.channels, layer.channels, _within(layer.channels), True)
    if isinstance(layer, MultiDilation):
        return Exchange(layer.inputs, layer.outputs, _within(layer.outputs))
    raise SodlibError(f"a {type(layer).__name__} works on no scales; give a layer of a CSNet that does")


def _within(channels: Split) -> tuple[tuple[int, int], ...]:
    """The paths of a layer that keeps to each scale."""
    return tuple((j, j) for j, count in enumerate(channels) if count)


def draw_convolutions(layers: Mapping[str, nn.Module]) -> Figure:
    """Figure 3: for each title a layer, as its scales in, its scales out and the paths between them; below,
    the blocks of its weight (columns: input channels, rows: output channels, each by scale)."""
    exchanges = [exchange(layer) for layer in layers.values()]
    figure, axes = plt.subplots(2, len(layers), figsize=(FULL_WIDTH, 4.3), height_ratios=(1, 1), squeeze=False)
    rows = max(len(split) for one in exchanges for split in (one.inputs, one.outputs))
    for column, (title, one) in enumerate(zip(layers, exchanges, strict=True)):
        draw_chain(axes[0, column], [one], rows)
        axes[0, column].set_title(title, fontsize=9.5)
        _draw_weight(axes[1, column], one)
    figure.legend(handles=path_legend(), loc="outside lower center", ncols=3, fontsize=SMALL)
    return figure


def path_legend() -> list[Line2D]:
    """Legend entries for the three kinds of path."""
    kinds = {
        "same scale: convolution": SAME,
        "to a coarser scale: max pooling, then convolution": COARSER,
        "to a finer scale: convolution, then bilinear upsampling": FINER,
    }
    return [Line2D([], [], color=color, linewidth=2, label=kind) for kind, color in kinds.items()]


def draw_chain(axis: Axes, layers: Sequence[Exchange], rows: int, names: Sequence[str] = ()) -> None:
    """Layers one after the other: a column of squares for each multi-scale value, an arrow for each path.

    The squares hold channels and shrink with the scale; a dotted one is absent. `rows` is the number of
    scales to leave room for. `names` label the scales on the left; without them "1", "1/2", "1/4"... label
    both ends.
    """
    relative = ["1", *(f"1/{2**j}" for j in range(1, rows))]
    sides = [scale_side(j) for j in range(rows)]
    values = [layers[0].inputs, *(layer.outputs for layer in layers)]
    for column, split in enumerate(values):
        for j, count in enumerate(split):
            _draw_scale(axis, column * STEP, j, sides[j], count)
    for column, layer in enumerate(layers):
        for i, j in layer.paths:
            start, end = column * STEP + sides[i] / 2, (column + 1) * STEP - sides[j] / 2
            draw_arrow(axis, (start + 0.05, i), (end - 0.05, j), path_color(i, j))
    style = {"va": "center", "fontsize": SMALL, "color": COLORS["paper"]}
    for j, name in enumerate((names or relative)[: len(values[0])]):
        axis.text(-0.45, j, name, ha="right", **style)
    for j, name in enumerate([] if names else relative[: len(values[-1])]):
        axis.text(len(layers) * STEP + 0.45, j, name, ha="left", **style)
    axis.set(xlim=(-1.0, len(layers) * STEP + 1.0), ylim=(rows - 0.5, -0.5), aspect="equal", anchor="N")
    axis.axis("off")


def scale_side(j: int) -> float:
    """The side of the square of scale j, in rows."""
    return 0.66 * 0.88**j


def path_color(i: int, j: int) -> str:
    """The colour of the path from input scale i to output scale j."""
    return SAME if i == j else COARSER if i < j else FINER


def draw_arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], color: str, width: float = 1.3
) -> None:
    """An arrow between two points of the axis."""
    style = {"arrowstyle": "-|>", "color": color, "linewidth": width, "mutation_scale": 8}
    axis.annotate("", xy=end, xytext=start, arrowprops=style | {"shrinkA": 0, "shrinkB": 0})


def _draw_scale(axis: Axes, x: float, y: float, side: float, count: int) -> None:
    face, line = ("#F2F2F2", "-") if count else ("none", ":")
    corner = (x - side / 2, y - side / 2)
    axis.add_patch(Rectangle(corner, side, side, facecolor=face, edgecolor=SAME, linestyle=line, linewidth=1))
    axis.text(x, y, str(count or ""), ha="center", va="center", fontsize=SMALL)


def _draw_weight(axis: Axes, one: Exchange) -> None:
    """A block for every path; of a depthwise layer, which has one weight a channel, the diagonal."""
    columns, rows = np.cumsum([0, *one.inputs]), np.cumsum([0, *one.outputs])
    for i, j in one.paths:
        corner = (columns[i], rows[j])
        if one.depthwise:
            axis.plot(columns[i : i + 2], rows[j : j + 2], color=SAME, linewidth=2, solid_capstyle="butt")
        else:
            block = Rectangle(corner, one.inputs[i], one.outputs[j], facecolor=path_color(i, j))
            block.set(edgecolor="white", linewidth=1, alpha=0.8)
            axis.add_patch(block)
    axis.set(xlim=(0, columns[-1]), ylim=(rows[-1], 0), box_aspect=1, anchor="N")
    axis.set_xticks(np.unique(columns), np.unique(columns))
    axis.set_yticks(np.unique(rows), np.unique(rows))
    axis.tick_params(labelsize=SMALL, length=0, pad=3)
    axis.grid(False)
    axis.set_xlabel("input channels", fontsize=SMALL)
    axis.set_ylabel("output channels", fontsize=SMALL)
    axis.spines[:].set(visible=True, color=COLORS["faint"])
