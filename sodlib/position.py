"""What redundant channels still hand on: where in the image one is. (Not in the paper.)

Scales gamma of zero make a channel of an ILBlock equal for all images: what is left of it are the shifts beta of its
batch norms. It need not be even over the image. A 3x3 convolution pads with zeros, so that a constant comes out of it
different at the border; and as nothing else varies in this channel, the batch norm after it scales that difference up.
Two such convolutions make a map of the position, of which on small images most is border. Pruning removes it. New
batch norm statistics make up for a constant, not for a map.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .csnet import CSNet
from .octconv import MultiScale
from .pruning import PerChannel
from .severing import FADED


@torch.no_grad()
def even_out(model: CSNet, kept: PerChannel, images: Tensor) -> CSNet:
    """A copy whose ILBlocks hand on a constant for every channel that is not kept: its mean over these images, `[B, 3,
    S, S]`, and over the positions. After `recalibrate`, that is the pruned network, where the fusion loses nothing and
    a 1x1 convolution follows: behind a stage's last block a 3x3 one does, which makes a new border of a constant."""
    even = copy.deepcopy(model)
    with _outputs(model) as outputs:
        model.eval()(images)
    for (name, block), masks in zip(even.blocks.items(), kept.blocks, strict=True):
        last = block.conv3x3_2
        for j, (x, mask) in enumerate(zip(outputs[name], masks, strict=True)):
            if x is not None:
                removed = ~mask
                last.bns[str(j)].weight[removed] = 0
                last.bns[str(j)].bias[removed] = x.mean((0, 2, 3))[removed]
                last.prelus[str(j)].weight[removed] = 1
    return even.eval()


@torch.no_grad()
def told_by_redundant(model: CSNet, kept: PerChannel, images: Tensor) -> tuple[dict[str, float], Tensor]:
    """What the channels of the ILBlocks that are not kept hand on of `images`, `[B, 3, S, S]`: how many there are, of
    how many the output differs between images and between positions (by a standard deviation above FADED, of which the
    next batch norm's epsilon leaves something), and the mean change of the saliency maps, in 0..1, where they are
    evened out; and what they add to the maps, the mean over the images `[S, S]`."""
    with _outputs(model) as outputs:
        maps = model.eval()(images).sigmoid()
    found = {"redundant channels": 0, "differ between images": 0, "differ between positions": 0}
    for name, masks in zip(model.blocks, kept.blocks, strict=True):
        for x, mask in zip(outputs[name], masks, strict=True):
            if x is not None and not mask.all():
                removed = x[:, ~mask]
                found["redundant channels"] += removed.shape[1]
                found["differ between images"] += int((removed.std(0, correction=0).amax((1, 2)) > FADED).sum())
                positions = removed.mean(0).flatten(1).std(1, correction=0)
                found["differ between positions"] += int((positions > FADED).sum())
    added = maps - even_out(model, kept, images)(images).sigmoid()
    return found | {"change of the maps": float(added.abs().mean())}, added.mean((0, 1))


@contextmanager
def _outputs(model: CSNet) -> Iterator[dict[str, MultiScale]]:
    """What every block has handed on, by its name, after a forward pass inside."""
    found: dict[str, MultiScale] = {}
    with ExitStack() as stack:
        for name, block in model.blocks.items():
            # (A hook that returns None changes nothing.)
            hook = block.register_forward_hook(lambda *call, name=name: found.__setitem__(name, call[-1]))
            stack.callback(hook.remove)
        yield found
