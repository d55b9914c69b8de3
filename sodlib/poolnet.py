"""PoolNet on ResNet-50, for its running time beside that of CSNet (Table 8): forward pass, random weights.

Built from its paper (Liu et al., CVPR 2019): a U-shaped decoder, a pyramid pooling module on the deepest features whose
result guides every step of it, and feature aggregation modules that pool at several rates between the steps.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet50

#: Channels of the backbone's five features, finest first, and what each is brought to.
FEATURES, DECODED = (64, 256, 512, 1024, 2048), (128, 256, 256, 512, 512)
#: Sides of the pyramid's pooled maps, and rates at which the aggregation modules pool.
PYRAMID, RATES = (1, 3, 5), (2, 4, 8)


def _conv(inputs: int, outputs: int, kernel_size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2, bias=False)


class PyramidPooling(nn.Module):
    """The deepest features with what they are in 1, 3 x 3 and 5 x 5 regions."""

    def __init__(self, inputs: int, channels: int) -> None:
        super().__init__()
        self.reduce = _conv(inputs, channels, 1)
        self.levels = nn.ModuleList(_conv(channels, channels, 1) for _ in PYRAMID)
        self.merge = _conv(channels * (1 + len(PYRAMID)), channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        levels = [
            _resize(F.relu(level(F.adaptive_avg_pool2d(x, side))), x)
            for level, side in zip(self.levels, PYRAMID, strict=True)
        ]
        return F.relu(self.merge(torch.cat([x, *levels], 1)))


class FeatureAggregation(nn.Module):
    """The features and what is left of them at three pooling rates, summed; then, but for the last one, brought to the
    size of the next finer features and added to these and to the guidance."""

    def __init__(self, channels: int, outputs: int, is_last: bool) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_conv(channels, channels) for _ in RATES)
        self.merge = _conv(channels, outputs)
        self.combine = None if is_last else _conv(outputs, outputs)

    def forward(self, x: Tensor, finer: Tensor | None = None, guidance: Tensor | None = None) -> Tensor:
        levels = [_resize(level(F.avg_pool2d(x, rate)), x) for level, rate in zip(self.levels, RATES, strict=True)]
        merged = F.relu(torch.stack([x, *levels]).sum(0))
        if self.combine is None:
            return self.merge(merged)
        merged = self.merge(_resize(merged, finer))
        return self.combine(merged + finer + _resize(guidance, finer))


class PoolNet(nn.Module):
    """Input and output as for CSNet, of sides of at least 128. Of four poolings of the backbone the last is replaced by
    dilation."""

    def __init__(self, input_size: int = 224) -> None:
        super().__init__()
        self.input_size = input_size
        self.backbone = resnet50(replace_stride_with_dilation=(False, False, True))
        self.backbone.fc = nn.Identity()
        self.pyramid = PyramidPooling(FEATURES[-1], DECODED[-1])
        self.convert = nn.ModuleList(_conv(*channels, 1) for channels in zip(FEATURES, DECODED, strict=True))
        coarse_to_fine = DECODED[::-1]
        steps = [*zip(coarse_to_fine, (*coarse_to_fine[1:], coarse_to_fine[-1]), strict=True)]
        self.guide = nn.ModuleList(_conv(DECODED[-1], outputs) for _, outputs in steps[:-1])
        self.steps = nn.ModuleList(
            FeatureAggregation(*channels, is_last=place == len(steps) - 1) for place, channels in enumerate(steps)
        )
        self.prediction = nn.Conv2d(DECODED[0], 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features = self._features(images)
        guidance = self.pyramid(features[-1])
        converted = [F.relu(convert(x)) for convert, x in zip(self.convert, features, strict=True)][::-1]
        x = converted[0]
        for step, finer, guide in zip(self.steps, converted[1:], self.guide, strict=False):
            x = step(x, finer, F.relu(guide(guidance)))
        return _resize(self.prediction(self.steps[-1](x)), images)

    def _features(self, images: Tensor) -> list[Tensor]:
        net = self.backbone
        x = net.relu(net.bn1(net.conv1(images)))
        features, x = [x], net.maxpool(x)
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = layer(x)
            features.append(x)
        return features


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
