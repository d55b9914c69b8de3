"""The reference that looks at no photograph: the mean ground truth of the training images as everybody's saliency map.

Objects of the benchmarks lie near the centre, so it scores far above nothing. A network that is not better has
learned where objects usually lie, and nothing else.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .pixels import Pixels

#: Its name where a run names a network.
MEAN_MASK = "mean-mask"
#: Keeps the logit finite where no training image, or every one, is salient.
SMALLEST = 1e-6


class MeanMask(nn.Module):
    """Logits `[B, 1, H, W]` of one map for all inputs `[B, 3, H, W]`."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.input_size = mask.shape[-1]
        self.logits = nn.Parameter(torch.logit(mask, SMALLEST)[None, None], requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        size = images.shape[-2:]
        return F.interpolate(self.logits, size, mode="bilinear").expand(len(images), 1, *size)


def mean_mask(pixels: Pixels, size: int, batch: int = 64) -> MeanMask:
    """The mean of all masks of a set, each resized to a square of this side."""
    total = torch.zeros(size, size, device=pixels.device)
    for start in range(0, len(pixels), batch):
        _, masks = pixels.squares(range(start, min(start + batch, len(pixels))), size)
        total += masks.sum((0, 1))
    return MeanMask(total / len(pixels))
