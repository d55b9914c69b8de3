"""CSF: the cross-stage fusion on top of a large classification network. (Paper, section 6.3 and Table 7.)

Against the fusion of CSNet, features may have any size, so that resizing to the size of the target scale takes the
place of pooling and of upsampling by a factor; group norm takes the place of batch norm; weights count once.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .channels import DILATIONS, Split, by_dilation
from .csnet import CSNet
from .errors import SodlibError
from .octconv import GOctConv

#: Groups of every group norm.
GROUPS = 32
#: The most channels of a scale of the fusion.
MOST_CHANNELS = 512


def fusion_channels(backbone: Split) -> Split:
    """Channels of the fusion under a backbone whose stages end with so many: half of them in whole groups, at most
    MOST_CHANNELS. That gives the published 128, 256, 512, 512 for ResNet-50 and Res2Net-50."""
    return tuple(min(MOST_CHANNELS, -(-channels // (2 * GROUPS)) * GROUPS) for channels in backbone)


class ResizingGOctConv(GOctConv):
    """The 1x1 gOctConv on scales of any sizes, finest first: output scale j has the size of input scale j, and what
    comes from other scales is resized bilinearly, the finer before its convolution, the coarser after."""

    def __init__(self, inputs: Split, outputs: Split) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, scales: list[Tensor]) -> list[Tensor]:
        sizes = [x.shape[-2:] for x in scales[: len(self.outputs)]]
        blocks = self.blocks()
        return [
            torch.stack([self._resized(x, blocks[i][j], i - j, size) for i, x in enumerate(scales)]).sum(0)
            for j, size in enumerate(sizes)
        ]

    def _resized(self, x: Tensor, weight: Tensor, coarser: int, size: torch.Size) -> Tensor:
        x = _resize(x, size) if coarser < 0 else x
        y = F.conv2d(x, weight)
        return _resize(y, size) if coarser > 0 else y


class GroupNormActivation(nn.Sequential):
    """Group norm, then PReLU with one slope a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.GroupNorm(GROUPS, channels), nn.PReLU(channels))


class DilatedGroup(nn.Module):
    """Parallel 3x3 convolutions with dilations 1, 2, 4, 8 and 16 on one scale, concatenated, normalised, activated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(channels, count, 3, padding=dilation, dilation=dilation, bias=False)
            for count, dilation in zip(by_dilation(channels), DILATIONS, strict=True)
        )
        self.activate = GroupNormActivation(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(torch.cat([conv(x) for conv in self.convs], 1))


class CSF(nn.Module):
    """A backbone and the cross-stage fusion of its features.

    `backbone` maps images `[B, 3, H, W]` to a list of features, finest first, with `channels`. Input and output as for
    CSNet, and H and W are free. Raises SodlibError for a backbone of one scale.
    """

    loss = staticmethod(CSNet.loss)

    def __init__(self, backbone: nn.Module, channels: Split, input_size: int = 224) -> None:
        super().__init__()
        if len(channels) < 2:
            raise SodlibError(f"a fusion needs features of several scales, not of {len(channels)}")
        self.backbone, self.input_size = backbone, input_size
        fused = fusion_channels(channels)
        self.fuse = ResizingGOctConv(channels, fused)
        self.fuse_activations = nn.ModuleList(map(GroupNormActivation, fused))
        self.dilated = nn.ModuleList(map(DilatedGroup, fused))
        self.merge = ResizingGOctConv(fused, (sum(fused),))
        self.merge_activation = GroupNormActivation(sum(fused))
        self.prediction = nn.Conv2d(sum(fused), 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        scales = self.fuse(list(self.backbone(images)))
        scales = [activate(x) for activate, x in zip(self.fuse_activations, scales, strict=True)]
        scales = [dilate(x) for dilate, x in zip(self.dilated, scales, strict=True)]
        merged = self.merge_activation(self.merge(scales)[0])
        return _resize(self.prediction(merged), images.shape[-2:])


def _resize(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
