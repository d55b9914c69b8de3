"""The baseline of all timings: the paper's gOctConv as written, a step for every pair of scales."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from .octconv import GOctConv, MultiScale


class PlainGOctConv(nn.Module):
    """Section 3.1 of the paper pair by pair."""

    def __init__(self, layer: GOctConv) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, scales: MultiScale) -> MultiScale:
        layer = self.layer
        weights = [block.split(list(layer.inputs), 1) for block in layer.weight.split(list(layer.outputs), 0)]
        if layer.stride == 2:
            scales = [F.avg_pool2d(x, 2) if x is not None else None for x in scales]
        result: MultiScale = []
        for j, count in enumerate(layer.outputs):
            total = None
            for i, x in enumerate(scales):
                if x is None or not count:
                    continue
                x = F.max_pool2d(x, 2 ** (j - i)) if i < j else x
                term = F.conv2d(x, weights[j][i], padding=layer.kernel_size // 2)
                if i > j:
                    term = F.interpolate(term, scale_factor=2.0 ** (i - j), mode="bilinear", align_corners=False)
                total = term if total is None else total + term
            result.append(total)
        return result


def plain(model: nn.Module) -> nn.Module:
    """The same network with every gOctConv replaced by the plain one: the baseline, a module for every step."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GOctConv):
                setattr(module, name, PlainGOctConv(child))
    return model
