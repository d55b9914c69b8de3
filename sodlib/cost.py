"""Parameters and multiply-accumulates: true ones, and the paper's own count, which it calls MACC."""

from __future__ import annotations

import copy
from collections import Counter
from functools import cache
from itertools import accumulate

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .channels import ChannelPlan, Split
from .classifier import Classifier
from .csnet import CSNet
from .errors import SodlibError
from .u2net import U2NetP

# What the paper's MACC adds to convolutions, per element.
BATCH_NORM, PRELU, UPSAMPLING, AVERAGE_POOLING = 4, 3, 9, 5

#: Kinds of work in the paper's MACC, in the order in which figures and tables show them.
MACC_KINDS = ("convolution", "batch norm", "PReLU", "upsampling", "average pooling", "max pooling")


def count_parameters(model: nn.Module) -> int:
    """All learnable values: convolutions, batch norm scale and shift, PReLU slopes, the prediction layer's
    bias. Running statistics are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def parameters_by_part(model: CSNet) -> dict[str, int]:
    """`count_parameters` of every part: stage0 to stage4, fuse, ms, fuse1x1, cls_layer."""
    parts: dict[str, nn.Module] = {}
    for name, part in model.named_children():
        parts |= dict(part.named_children()) if name == "oct_fuse" else {name: part}
    return {name: count_parameters(part) for name, part in parts.items()}


def count_macs(model: nn.Module, size: int = 224) -> dict[str, int | None]:
    """Multiply-accumulates of one `size` x `size` image.

    "conv": those of the convolutions and linear layers, counted by running the network on shapes alone.
    "paper": the MACC of the paper's tables, see `paper_macc`; None for a network without a channel plan.
    Raises SodlibError where the size is not positive, and for a network that cannot run on shapes, such as compiled C.
    """
    if size < 1:
        raise SodlibError(f"an image of {size} x {size} has no pixels; give a positive size")
    if isinstance(model, U2NetP):
        return {"conv": model.macs, "paper": None}
    if not isinstance(model, CSNet):
        return {"conv": _counted(copy.deepcopy(model).to("meta"), size), "paper": None}
    classes = model.classes if isinstance(model, Classifier) else 0
    return {
        "conv": _convolutions(model.plan, size, classes),
        "paper": paper_macc(model.plan, -(-size // 16) * 16, classes),
    }


@cache
def _convolutions(plan: ChannelPlan, size: int, classes: int) -> int:
    with torch.device("meta"):
        return _counted(Classifier(plan, classes) if classes else CSNet(plan), size)


def _counted(shapes_only: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes_only.eval()(torch.empty(1, 3, size, size, device="meta"))
    return counter.get_total_flops() // 2


def paper_macc(plan: ChannelPlan, size: int = 224, classes: int = 0) -> int:
    """MACC as the paper counts it, for one image of `size` x `size` (a multiple of 16); with `classes`, that of the
    classifier.

    Beside the convolutions (and the last bias) it counts 4 per batch norm element, 3 per PReLU element, 9 per
    element of every upsampling inside a gOctConv, the convolution's kernel area per max-pooled element, and 5
    per input element of the average pooling. Not counted: the final upsampling, the sigmoid, additions.
    It cuts where it should round when it splits a gOctConv's channels, and it pools for empty scales too;
    both are kept here, since without them CSNet-x1-L, x2-L and x2 miss the paper's count.
    """
    return sum(kinds.total() for kinds in macc_by_part(plan, size, classes).values())


def macc_by_part(plan: ChannelPlan, size: int = 224, classes: int = 0) -> dict[str, Counter[str]]:
    """The terms of `paper_macc`: for stage0 to stage4, fuse, ms, fuse1x1 and cls_layer the count of each of
    MACC_KINDS."""
    side, stage_sides = size, {}
    parts: dict[str, Counter[str]] = {}
    for block in plan.block_plans():
        stage = block.name.partition(".")[0]
        work = _octave(block.inputs, block.outputs, block.kernel_size, block.stride, side)
        side //= block.stride
        for _ in range(2):
            if plan.network == "vanilla":
                work += _octave(block.outputs, block.outputs, 3, 1, side)
            else:
                work["convolution"] += _elements(block.outputs, side) * 9
        for _ in range(3):
            work += _normalised(block.outputs, side)
        parts[stage] = parts.get(stage, Counter()) + work
        stage_sides[int(stage.removeprefix("stage"))] = side
    side = stage_sides[plan.fused_stages[0]]
    if fusion := plan.fusion:
        fused, dilated, merged = fusion.outputs, fusion.dilated_outputs, (fusion.merged,)
        dense = tuple(9 * before * after for before, after in zip(fused, dilated, strict=True))
        parts["fuse"] = _octave(plan.fusion_inputs, fused, 1, 1, side) + _normalised(fused, side)
        parts["ms"] = Counter(convolution=_elements(dense, side)) + _normalised(dilated, side)
        if classes:
            merged = (*(0 for _ in dilated[1:]), fusion.merged)
        parts["fuse1x1"] = _octave(dilated, merged, 1, 1, side) + _normalised(merged, side)
    last = plan.fusion.merged if plan.fusion else plan.fusion_inputs[0]
    parts["cls_layer"] = Counter(convolution=(last + 1) * (classes or side**2))
    return parts


def _elements(channels: Split, side: int) -> int:
    """Elements of a multi-scale value whose finest scale has this side."""
    return sum(count * (side >> j) ** 2 for j, count in enumerate(channels))


def _normalised(channels: Split, side: int) -> Counter[str]:
    elements = _elements(channels, side)
    return Counter({"batch norm": BATCH_NORM * elements, "PReLU": PRELU * elements})


def _octave(inputs: Split, outputs: Split, kernel_size: int, stride: int, side: int) -> Counter[str]:
    area = kernel_size**2
    if len(inputs) == len(outputs) == 1:
        return Counter(convolution=area * inputs[0] * outputs[0] * (side // stride) ** 2)
    work: Counter[str] = Counter()
    if stride == 2:
        work["average pooling"] = AVERAGE_POOLING * _elements(inputs, side)
    side //= stride
    columns, rows = _cut(inputs), _cut(outputs)
    for i, column in enumerate(columns):
        for j, row in enumerate(rows):
            coarser = (side >> max(i, j)) ** 2
            work["convolution"] += area * column * row * coarser
            if i < j:
                work["max pooling"] += area * column * coarser
            elif i > j and column:
                work["upsampling"] += UPSAMPLING * row * (side >> j) ** 2
    return work


def _cut(channels: Split) -> list[int]:
    """Channels per scale as the paper's counter sees them: each boundary is the total times a running sum of
    fractions, cut to an integer, so that rounding may lose one channel to the next scale."""
    total = sum(channels)
    ends = [int(total * fraction) for fraction in accumulate(count / total for count in channels)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
