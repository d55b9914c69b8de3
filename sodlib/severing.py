"""Which layers of a network still hand something on, and which its weight decay has severed. (Not in the paper.)

ILBlocks have no shortcut around them. Where all scales gamma of one layer come near zero, nothing of the photograph
passes it, and no gradient comes back: it stays so. Cross-stage fusion hands the stages before it on; a network without
fusion would be cut in two.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .csnet import CSNet
from .octconv import MultiScale
from .records import Record

#: A layer whose largest |gamma| is below counts as severed: what it hands on has a variance of 1e-10 or less, to which
#: the next batch norm adds its epsilon of 1e-5 (1e-9 behind the factor 100), so that next to nothing of it is left.
FADED = 1e-5


def largest_scales(record: Record) -> dict[str, float]:
    """The largest |gamma| of every layer inside the ILBlocks, over channels and resolutions, by name
    ("stage3.0.conv1x1"), in order. Empty for a network without ILBlocks."""
    return {layer: float(values.max()) for layer, values in record.scales_by_layer.items()}


def severed_layers(record: Record) -> list[str]:
    """The names of the layers that are severed, in order."""
    return [layer for layer, scale in largest_scales(record).items() if scale < FADED]


def severed(records: Sequence[Record]) -> float:
    """How many layers are severed, mean over the records. NaN without a record or without ILBlocks."""
    if not records or not largest_scales(records[0]):
        return float("nan")
    return float(np.mean([len(severed_layers(record)) for record in records]))


@torch.no_grad()
def reliance(model: CSNet, images: Tensor) -> dict[str, float]:
    """How far the saliency maps of `images`, `[B, 3, S, S]`, come from what each stage sees of them: the mean absolute
    change of the maps, in 0..1, where all images get the stage's mean output over them, by stage ("stage1" on). Later
    stages follow from it, so a stage's share holds theirs."""
    model.eval()
    maps = model(images).sigmoid()

    def averaged(_module: object, _inputs: object, scales: MultiScale) -> MultiScale:
        return [x if x is None else x.mean(0, keepdim=True).expand_as(x) for x in scales]

    changes = {}
    for number in range(1, len(model.plan.stages) + 1):
        hook = getattr(model, f"stage{number}").register_forward_hook(averaged)
        try:
            changes[f"stage{number}"] = float((model(images).sigmoid() - maps).abs().mean())
        finally:
            hook.remove()
    return changes
