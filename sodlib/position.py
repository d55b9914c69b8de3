"""What a channel of scale zero still hands on: where the border of the image is. (Not in the paper.)

A scale gamma of zero leaves a channel its shift beta: it is the same for every image. But it is not even over the
image. The 3x3 convolutions pad with zeros, so that a constant comes out of them different at the border, and as nothing
else varies in this channel, the batch norm after them scales that difference up. What is handed on is a map of the
position. Pruning removes it, and statistics that are estimated anew make up for a constant, not for a map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .csnet import CSNet
from .octconv import MultiScale
from .pruning import PerChannel
from .severing import FADED


@contextmanager
def evened(model: CSNet, kept: PerChannel) -> Iterator[None]:
    """While it lasts, every channel of an ILBlock that is not kept hands on its mean over the image, not its map."""
    with _behind_blocks(model, kept, lambda x, mask: torch.where(mask, x, x.mean((2, 3), keepdim=True))):
        yield


@torch.no_grad()
def told_by_redundant(model: CSNet, kept: PerChannel, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """What the channels of the ILBlocks that are not kept hand on of `images`, `[B, 3, S, S]`: how many there are, of
    how many the output differs between images and between positions (a standard deviation above FADED), how far the
    saliency maps move, in 0..1, where they are `evened`; and what they add to the maps, the mean over the images
    `[S, S]`."""
    model.eval()
    found = {"redundant channels": 0, "differ between images": 0, "differ between positions": 0}

    def look(x: Tensor, mask: Tensor) -> Tensor:
        removed = x[:, ~mask.flatten()]
        found["redundant channels"] += removed.shape[1]
        found["differ between images"] += int((removed.std(0).amax((1, 2)) > FADED).sum())
        found["differ between positions"] += int((removed.mean(0).std((1, 2)) > FADED).sum())
        return x

    with _behind_blocks(model, kept, look):
        maps = model(images).sigmoid()
    with evened(model, kept):
        added = maps - model(images).sigmoid()
    return found | {"maps move by": float(added.abs().mean())}, added.mean((0, 1))


@contextmanager
def _behind_blocks(model: CSNet, kept: PerChannel, change: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """While it lasts, every scale that a block hands on becomes `change` of it and of its mask `[1, C, 1, 1]`."""

    def changed(masks: tuple[Tensor, ...], scales: MultiScale) -> MultiScale:
        pairs = zip(scales, masks, strict=True)
        return [x if x is None or mask.all() else change(x, mask[None, :, None, None]) for x, mask in pairs]

    with ExitStack() as stack:
        for block, masks in zip(model.blocks.values(), kept.blocks, strict=True):
            hook = block.register_forward_hook(lambda _block, _inputs, scales, masks=masks: changed(masks, scales))
            stack.callback(hook.remove)
        yield
