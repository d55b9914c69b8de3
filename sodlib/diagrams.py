"""Figure 2 of the paper, and where the work of a network goes: drawn from a model, not by hand."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from .channels import ChannelPlan, Split
from .cost import MACC_KINDS, macc_by_part
from .csnet import CSNet, ILBlock
from .exchange import (
    SMALL,
    STEP,
    Exchange,
    draw_arrow,
    draw_chain,
    exchange,
    path_color,
    path_legend,
    scale_side,
)
from .octconv import GOctConv, OctaveUnit
from .plots import COLORS, FULL_WIDTH, PALETTE

HIGH, LOW, FUSED = COLORS["high resolution"], COLORS["low resolution"], COLORS["fused"]
LOW_TEXT = "#8A5F00"  # the colour of the low resolution, dark enough to read
GAP = 0.6  # between two stages, in blocks


def draw_pipeline(model: CSNet, size: int = 224) -> Figure:
    """Figure 2: every ILBlock of the extractor with its channels, one ILBlock from the inside, and the way
    from the stages to the map. `size` is the side of the input in pixels. A pruned model shows its own
    channels, and an Extractor or Vanilla network that it has no fusion.
    """
    figure = plt.figure(figsize=(FULL_WIDTH, 5.6))
    above, below = figure.subfigures(2, 1, height_ratios=(1.3, 1))
    _draw_extractor(above.subplots(), model.plan, size)
    inside, fusion = below.subplots(1, 2, width_ratios=(1, 1.57))
    _draw_block(inside, *_typical_block(model))
    _draw_fusion(fusion, model, size)
    below.legend(handles=path_legend(), loc="outside lower center", ncols=3, fontsize=SMALL)
    return figure


def _draw_extractor(axis: Axes, plan: ChannelPlan, size: int) -> None:
    """The blocks in order, a band for each stage, and what leaves for the fusion."""
    blocks = list(plan.block_plans())
    unit = 1 / max(max(block.outputs) for block in blocks)
    depth = unit * max(sum(block.outputs[1:]) for block in blocks)
    fused = {plan.stage_ends[stage - 1] for stage in plan.fused_stages}
    purpose = "to the fusion" if plan.fusion else "to the prediction"
    centre = {"ha": "center", "va": "center", "fontsize": SMALL}
    right = centre | {"ha": "right"}
    resolutions = [("high resolution", 1.56, HIGH)] + [("low resolution", -depth - 0.2, LOW_TEXT)] * (depth > 0)

    place, side = 0.0, size
    for index, block in enumerate(blocks):
        side //= block.stride
        stage, _, position = block.name.removeprefix("stage").partition(".")
        if position == "0":
            count = plan.stages[int(stage) - 1] if stage != "0" else 1
            place, middle = place + GAP, place + GAP + (count - 1) / 2
            axis.axvspan(place - 0.5, place + count - 0.5, color="#F4F4F4", zorder=0)
            title = f"stage {stage}\n{count} block{'s' if count > 1 else ''}"
            axis.text(middle, 1.78, title, **centre | {"fontsize": SMALL + 1})
            for j, (_, height, color) in enumerate(resolutions):
                axis.text(middle, height, f"{side >> j}²", color=color, **centre)
        _draw_bars(axis, place, [count * unit for count in block.outputs], block.outputs)
        if index in fused:
            top = block.outputs[0] * unit + 0.17
            draw_arrow(axis, (place, top), (place, top + 0.24), FUSED, 2)
            axis.text(place - 0.2, top + 0.12, purpose, color=FUSED, **right)
        place += 1
    draw_arrow(axis, (-1.1, 0), (place + GAP, 0), COLORS["text"])
    axis.text(-1.2, 0, f"RGB image\n3 channels\n{size}²", **right)
    for name, height, color in resolutions:
        axis.text(-1.2, height, name, color=color, **right)
    axis.set_title("(a) Extractor: output channels of every block", pad=6)
    axis.set(xlim=(-3.6, place + GAP), ylim=(-depth - 0.3, 2.0))
    axis.axis("off")


def _draw_bars(axis: Axes, place: float, heights: Sequence[float], channels: Split) -> None:
    """A bar up for the high resolution of a block and a bar down for its low one, each with its channels."""
    ways = ((1, HIGH, "bottom"), (-1, LOW, "top"))
    for height, count, (sign, color, align) in zip(heights, channels, ways, strict=False):
        if count:
            axis.bar(place, sign * height, 0.66, color=color, zorder=2)
            axis.text(place, sign * (height + 0.02), count, ha="center", va=align, fontsize=SMALL)


def _typical_block(model: CSNet) -> tuple[str, ILBlock]:
    """The first block with a 1x1 convolution from two scales to two scales, else the first of stage 1."""
    for plan in model.plan.block_plans():
        if plan.kernel_size == 1 and all(len(s) == 2 and all(s) for s in (plan.inputs, plan.outputs)):
            return plan.name, model.blocks[plan.name]
    return "stage1.0", model.blocks["stage1.0"]


def _draw_block(axis: Axes, name: str, block: ILBlock) -> None:
    units = [block.conv1x1, block.conv3x3_1, block.conv3x3_2]
    layers = [exchange(unit) for unit in units]
    draw_chain(axis, layers, max(len(layer.outputs) for layer in layers))
    heads = [
        f"depthwise\n{_kernel(next(iter(unit.convs.values())))}" if layer.depthwise else _name(unit)
        for unit, layer in zip(units, layers, strict=True)
    ]
    _head(axis, heads)
    note = f"{name.replace('stage', 'stage ').replace('.', ', block ')}; BN and PReLU after every step"
    axis.text(1.5 * STEP, len(layers[0].outputs) - 0.4, note, ha="center", va="top", fontsize=SMALL)
    axis.set_title("(b) Inside one ILBlock", pad=26)


def _draw_fusion(axis: Axes, model: CSNet, size: int) -> None:
    plan, fusion = model.plan, model.oct_fuse
    side = size // 2 ** (plan.fused_stages[0] - 1)
    layers = [Exchange((model.cls_layer.in_channels,), (1,), ((0, 0),))]
    heads = [f"conv\n{_kernel(model.cls_layer)}", f"upsampling\n× {size // side}" if side < size else ""]
    if fusion is not None:
        layers = [exchange(part) for part in (fusion.fuse, fusion.ms, fusion.fuse1x1)] + layers
        heads = [_name(fusion.fuse), "dilated\n3 × 3", _name(fusion.fuse1x1), *heads]
        for scale, split in enumerate(plan.fusion.dilated):
            below = scale + scale_side(scale) / 2 + 0.05
            text = "+".join(map(str, split))
            right = 2 * STEP + scale_side(scale) / 2
            axis.text(right, below, text, ha="right", va="top", fontsize=SMALL, color=COLORS["paper"])
    names = [f"stage {stage}\n{side >> j}²" for j, stage in enumerate(plan.fused_stages)]
    draw_chain(axis, layers, max(3, len(names)), names)
    end = len(layers) * STEP
    draw_arrow(axis, (end + scale_side(0) / 2 + 0.05, 0), (end + STEP - 0.05, 0), path_color(int(side < size), 0))
    axis.text(end + STEP, 0, f"saliency\nmap\n{size}²", va="center", fontsize=SMALL)
    axis.set_xlim(-1.4, end + STEP + 1.2)
    _head(axis, heads)
    axis.set_title("(c) Cross-stage fusion" if fusion else "(c) Prediction, without a fusion", pad=26)


def _head(axis: Axes, names: list[str]) -> None:
    """What each step is, above the arrows of it."""
    for column, name in enumerate(names):
        axis.text((column + 0.5) * STEP, -0.5, name, ha="center", va="bottom", fontsize=SMALL)


def _name(unit: OctaveUnit) -> str:
    conv = unit.conv
    octave = "conv"
    if isinstance(conv, GOctConv):
        octave = "OctConv" if len(conv.inputs) == len(conv.outputs) == 2 else "gOctConv"
    return f"{octave}\n{_kernel(conv)}"


def _kernel(conv: nn.Module) -> str:
    size = conv.kernel_size if isinstance(conv.kernel_size, int) else conv.kernel_size[0]
    return f"{size} × {size}"


def draw_macc(plan: ChannelPlan, size: int = 224) -> Figure:
    """Where the work of a network goes by the paper's count, in 10^6 for one image of `size` x `size`: by
    part, the kinds of work stacked, and by kind."""
    parts = macc_by_part(plan, size)
    kinds = {kind: sum(part[kind] for part in parts.values()) for kind in MACC_KINDS}
    total = sum(kinds.values())
    figure, (by_part, by_kind) = plt.subplots(1, 2, figsize=(FULL_WIDTH, 3.4), width_ratios=(1.5, 1))
    start = dict.fromkeys(parts, 0.0)
    for kind, color in zip(MACC_KINDS, PALETTE, strict=False):
        widths = [part[kind] / 1e6 for part in parts.values()]
        by_part.barh(list(parts), widths, left=list(start.values()), color=color, label=kind, linewidth=0)
        start = {part: start[part] + width for part, width in zip(parts, widths, strict=True)}
        by_kind.barh([kind], [kinds[kind] / 1e6], color=color, linewidth=0)
    for part, end in start.items():
        by_part.text(end, part, f" {end:.1f}", va="center", fontsize=SMALL)
    for kind, count in kinds.items():
        by_kind.text(count / 1e6, kind, f" {count / 1e6:.1f} ({count / total:.1%})", va="center", fontsize=SMALL)
    for axis, title in ((by_part, "By part"), (by_kind, f"By kind, total {total / 1e6:.1f}")):
        axis.set(title=title, xlabel=f"MACC (10⁶) at {size} × {size}")
        axis.grid(False, axis="y")
        axis.invert_yaxis()
        axis.margins(x=0.12)
    by_kind.margins(x=0.48)
    by_part.legend(loc="lower right")
    return figure
