"""Pruning: from scores of channels to a smaller plan, and what happens to the network afterwards.

    smaller = prune(model, keep_above(scores(model, "gamma"), 1e-20))
    recalibrate(smaller, batches)

In an ILBlock the channels of the first unit decide; both 3x3 convolutions follow it. (Paper, Algorithm 1 and
section 6.3; Tables 9 and 10.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from .channels import ChannelPlan, FusionPlan
from .cost import count_parameters
from .csnet import CSNet, DilatedConvs
from .errors import SodlibError
from .kernels import replaced, stand_ins
from .octconv import DepthwiseUnit, OctaveUnit

CRITERIA = ("gamma", "l1", "geometric-median")
RANKINGS = ("layer", "network")


@dataclass(frozen=True)
class PerChannel:
    """One vector a scale for every layer that is free to choose its channels: a score or a yes/no.

    An absent scale has an empty vector. `fuse`, `dilated` and `merged` belong to the cross-stage fusion and are
    empty without one.
    """

    blocks: tuple[tuple[Tensor, ...], ...]
    fuse: tuple[Tensor, ...] = ()
    dilated: tuple[Tensor, ...] = ()
    merged: tuple[Tensor, ...] = ()

    def __iter__(self) -> Iterator[Tensor]:
        for layer in (*self.blocks, self.fuse, self.dilated, self.merged):
            yield from layer

    def map(self, function: Callable[[Tensor], Tensor]) -> PerChannel:
        """The function applied to every vector that is not empty."""

        def each(vectors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(function(vector) if len(vector) else vector.bool() for vector in vectors)

        return PerChannel(
            tuple(each(block) for block in self.blocks), each(self.fuse), each(self.dilated), each(self.merged)
        )


def scores(model: CSNet, criterion: str = "gamma") -> PerChannel:
    """How much every channel counts.

    "gamma": the absolute batch norm scale; "l1": the L1 norm of the channel's filter; "geometric-median": the
    sum of distances from its filter to the others of its layer and scale, small where a filter can be replaced
    by the rest. Raises SodlibError for an unknown criterion.
    """
    if criterion not in CRITERIA:
        raise SodlibError(f"unknown criterion {criterion!r}; choose one of {', '.join(CRITERIA)}")

    def judge(norm: nn.BatchNorm2d, filters: Tensor) -> Tensor:
        if criterion == "gamma":
            return norm.weight.detach().abs()
        flat = filters.detach().flatten(1)
        # In float32 cdist rounds so coarsely that it depends on the machine which of two alike filters goes.
        return flat.abs().sum(1) if criterion == "l1" else torch.cdist(flat.double(), flat.double()).sum(1)

    def of_unit(unit: OctaveUnit, channels: tuple[int, ...]) -> tuple[Tensor, ...]:
        filters = unit.conv.weight.split(list(channels))
        return tuple(
            judge(unit.bns[str(j)], filters[j]) if count else torch.zeros(0) for j, count in enumerate(channels)
        )

    blocks = tuple(
        of_unit(block.conv1x1, split) for block, split in zip(model.blocks.values(), model.plan.blocks, strict=True)
    )
    plan = model.plan.fusion
    if plan is None:
        return PerChannel(blocks)
    fusion = model.oct_fuse
    dilated = []
    for j, count in enumerate(plan.dilated_outputs):
        if not count:
            dilated.append(torch.zeros(0))
            continue
        convs = fusion.ms.convs[str(j)]
        filters = torch.cat([conv.weight for conv in convs.msconv.values()])
        dilated.append(judge(convs.bn, filters))
    return PerChannel(
        blocks, of_unit(fusion.fuse, plan.outputs), tuple(dilated), of_unit(fusion.fuse1x1, (plan.merged,))
    )


def keep_above(channel_scores: PerChannel, threshold: float) -> PerChannel:
    """Keep the channels whose score reaches one threshold for the whole network (the paper's method). A layer in which
    none does keeps its best one; the release has no such rule and computes NaN there."""
    # In float32 a threshold such as 1e-40 would be flushed to zero (`sodlib.__init__`), which every channel reaches.
    kept = channel_scores.map(lambda score: score.double() >= threshold)
    fuse = _or_best(kept.fuse, channel_scores.fuse)
    # A dilated convolution lives only on a scale that the layer before it keeps.
    there = [slice(None) if mask.any() else slice(0) for mask in fuse]
    reached = tuple(mask[part] for mask, part in zip(kept.dilated, there, strict=True))
    dilated = _or_best(reached, tuple(score[part] for score, part in zip(channel_scores.dilated, there, strict=True)))
    return PerChannel(
        tuple(map(_or_best, kept.blocks, channel_scores.blocks)),
        fuse,
        tuple(mask if len(mask) else old for mask, old in zip(dilated, kept.dilated, strict=True)),
        _or_best(kept.merged, channel_scores.merged),
    )


def _or_best(masks: tuple[Tensor, ...], channel_scores: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    if not masks or any(mask.any() for mask in masks):
        return masks
    every = torch.cat(channel_scores)
    best = torch.arange(len(every), device=every.device) == every.argmax()
    return best.split([len(score) for score in channel_scores])


def keep_share(channel_scores: PerChannel, share: float) -> PerChannel:
    """Keep the same share of the channels of every layer and scale, at least one: those with the highest
    scores (the fixed ratio of Table 10). Raises SodlibError where the share is not in 0..1."""
    if not 0 < share <= 1:
        raise SodlibError(f"the share of channels to keep is {share}; give a number above 0 and at most 1")

    def best(score: Tensor) -> Tensor:
        keep = torch.zeros_like(score, dtype=torch.bool)
        keep[score.argsort(descending=True, stable=True)[: max(1, round(share * len(score)))]] = True
        return keep

    return channel_scores.map(best)


def keep(
    model: CSNet,
    criterion: str = "gamma",
    *,
    threshold: float | None = None,
    share: float | None = None,
    parameters: int | None = None,
    ranking: str = "layer",
) -> PerChannel:
    """What to keep by a criterion: channels that reach a threshold, a share of every layer, or what brings the network
    nearest to a number of parameters. `ranking` says which: by "layer", the same share of every layer (the fixed
    ratios of Table 10, the sizes of Table 9); over the "network", one threshold. Raises SodlibError where not just one
    of the three is given or it is out of range, the ranking is neither, or the network has no ILBlocks."""
    if not isinstance(model, CSNet):
        raise SodlibError("only networks of ILBlocks can be pruned: a CSNet, an Extractor, a Vanilla")
    if ranking not in RANKINGS:
        raise SodlibError(f"unknown ranking {ranking!r}; choose one of {', '.join(RANKINGS)}")
    if sum(choice is not None for choice in (threshold, share, parameters)) != 1:
        raise SodlibError("give one of: a threshold, a share of the channels to keep, a number of parameters")
    if threshold is not None and not math.isfinite(threshold):
        raise SodlibError(f"the threshold {threshold} is no number that a score could reach; give a finite one")
    if parameters is not None and parameters < 1:
        raise SodlibError(f"{parameters} parameters are no network; give a number above 0")
    channel_scores = scores(model, criterion)
    if threshold is not None:
        return keep_above(channel_scores, threshold)
    if share is not None:
        return keep_share(channel_scores, share)
    ordered = torch.cat([vector for vector in channel_scores if len(vector)]).sort().values
    low, high, sizes = 0.0, 1.0, {}
    for _ in range(12):
        middle = (low + high) / 2
        if ranking == "layer":
            kept = keep_share(channel_scores, middle)
        else:
            kept = keep_above(channel_scores, float(ordered[int((1 - middle) * len(ordered))]))
        size = count_parameters(model.like(pruned_plan(model.plan, kept)))
        sizes[abs(size - parameters)] = kept
        low, high = (middle, high) if size < parameters else (low, middle)
    return sizes[min(sizes)]


def pruned_plan(plan: ChannelPlan, kept: PerChannel) -> ChannelPlan:
    """The plan that is left. Raises SodlibError naming a layer that would lose all its channels."""
    for block, masks in zip(plan.block_plans(), kept.blocks, strict=True):
        _require_some(masks, block.name)
    blocks = tuple(tuple(int(mask.sum()) for mask in masks) for masks in kept.blocks)
    if plan.fusion is None:
        return ChannelPlan(plan.network, blocks, None, plan.stages)
    dilated = tuple(
        tuple(int(part.sum()) for part in mask.split(list(split))) if len(mask) else (0,) * len(split)
        for mask, split in zip(_reachable(kept), plan.fusion.dilated, strict=True)
    )
    outputs = tuple(int(mask.sum()) for mask in kept.fuse)
    fusion = FusionPlan(outputs, dilated, int(kept.merged[0].sum()))
    for masks, name in ((kept.fuse, "fuse"), (_reachable(kept), "ms"), (kept.merged, "fuse1x1")):
        _require_some(masks, f"oct_fuse.{name}")
    return ChannelPlan(plan.network, blocks, fusion, plan.stages)


@torch.no_grad()
def prune(model: CSNet, kept: PerChannel) -> CSNet:
    """The network of the kept channels, with their weights, in evaluation mode.

    As in the release, running statistics are not carried over and the shift of a removed channel is dropped, so
    the result predicts nothing useful before `recalibrate` or training. Raises SodlibError where a layer would
    be left without channels.
    """
    smaller = model.like(pruned_plan(model.plan, kept))
    inputs: tuple[Tensor, ...] = (torch.ones(3, dtype=torch.bool),)
    for old, new, masks in zip(model.blocks.values(), smaller.blocks.values(), kept.blocks, strict=True):
        _copy_octave(old.conv1x1, new.conv1x1, inputs, masks)
        for unit in ("conv3x3_1", "conv3x3_2"):
            copy = _copy_depthwise if isinstance(getattr(old, unit), DepthwiseUnit) else _copy_octave
            copy(getattr(old, unit), getattr(new, unit), masks, masks)
        inputs = masks
    ends = model.plan.stage_ends
    inputs = tuple(kept.blocks[ends[stage - 1]][0] for stage in model.plan.fused_stages)
    if model.oct_fuse is not None:
        dilated = _reachable(kept)
        _copy_octave(model.oct_fuse.fuse, smaller.oct_fuse.fuse, inputs, kept.fuse)
        for scale, new in smaller.oct_fuse.ms.convs.items():
            j = int(scale)
            _copy_dilated(model.oct_fuse.ms.convs[scale], new, kept.fuse[j], dilated[j], model.plan.fusion.dilated[j])
        _copy_octave(model.oct_fuse.fuse1x1, smaller.oct_fuse.fuse1x1, dilated, kept.merged)
        inputs = kept.merged
    smaller.cls_layer.weight.copy_(model.cls_layer.weight[:, inputs[0]])
    smaller.cls_layer.bias.copy_(model.cls_layer.bias)
    return smaller.eval()


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor], reset: bool = True) -> None:
    """Estimate the batch norms' running statistics anew from network inputs `[B, 3, H, W]`; no weight moves.

    This is all that the released "fine-tuning" does: forward passes in training mode, momentum 0.1. The release starts
    from mean 0 and variance 1 and forgets them in its 8,780 batches; here the first batch's own statistics are the
    start, since after 50 batches 0.005 of that variance would be left and drown the weak channels of a pruned network.
    `reset=False` goes on with the statistics as they are. The network is left in evaluation mode. On the processor the
    `kernels.stand_ins` are in place meanwhile, which equal torch's own parts up to rounding.
    """
    batches = iter(batches)
    first = next(batches, None)
    if first is None:
        raise SodlibError("recalibration needs at least one batch of images")
    norms = {module: module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    for norm in norms if reset else ():
        norm.reset_running_stats()
        norm.momentum = 1.0
    device = next(model.parameters()).device
    model.train()
    try:
        # On CUDA their compilation would take longer than they save.
        with replaced(model, stand_ins(device) if device.type == "cpu" else {}):
            for images in chain([first], batches):
                model(images.to(device))
                for norm, momentum in norms.items():
                    norm.momentum = momentum
    finally:
        for norm, momentum in norms.items():
            norm.momentum = momentum
        model.eval()


def _require_some(masks: tuple[Tensor, ...], name: str) -> None:
    if not sum(int(mask.sum()) for mask in masks):
        raise SodlibError(f"this pruning leaves no channel in {name}; keep more, for example by a lower threshold")


def _reachable(kept: PerChannel) -> tuple[Tensor, ...]:
    """The dilated convolutions' masks, emptied on scales of which the layer before keeps nothing."""
    return tuple(
        mask if len(mask) == 0 or before.any() else torch.zeros_like(mask)
        for before, mask in zip(kept.fuse, kept.dilated, strict=True)
    )


def _copy_norm(old: nn.BatchNorm2d, new: nn.BatchNorm2d, rows: Tensor) -> None:
    new.weight.copy_(old.weight[rows])
    new.bias.copy_(old.bias[rows])


def _copy_activations(old: nn.Module, new: nn.Module, masks: tuple[Tensor, ...]) -> None:
    for scale in new.bns:
        _copy_norm(old.bns[scale], new.bns[scale], masks[int(scale)])
        new.prelus[scale].weight.copy_(old.prelus[scale].weight[masks[int(scale)]])


def _copy_octave(old: OctaveUnit, new: OctaveUnit, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    new.conv.weight.copy_(old.conv.weight[torch.cat(outputs).bool()][:, torch.cat(inputs).bool()])
    _copy_activations(old, new, outputs)


def _copy_depthwise(old: DepthwiseUnit, new: DepthwiseUnit, _: tuple[Tensor, ...], outputs: tuple[Tensor, ...]) -> None:
    for scale, conv in new.convs.items():
        conv.weight.copy_(old.convs[scale].weight[outputs[int(scale)]])
    _copy_activations(old, new, outputs)


def _copy_dilated(
    old: DilatedConvs, new: DilatedConvs, inputs: Tensor, outputs: Tensor, split: tuple[int, ...]
) -> None:
    for index, rows in enumerate(outputs.split(list(split))):
        if str(index) in new.msconv:
            new.msconv[str(index)].weight.copy_(old.msconv[str(index)].weight[rows][:, inputs])
    _copy_norm(old.bn, new.bn, outputs)
    new.prelu.weight.copy_(old.prelu.weight[outputs])
