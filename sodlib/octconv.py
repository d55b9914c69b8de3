"""gOctConv and the layers around it, on multi-scale values.

A multi-scale value is a list of tensors `[B, C_i, H / 2^i, W / 2^i]`, finest first. `None` is an absent scale:
it has no channels but keeps its index. Every layer here maps one multi-scale value to another.
(Paper, section 3.1 and Figure 3.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .channels import Split

MultiScale = list[Tensor | None]

#: Factor on the stored weight of every depthwise, dilated and single-scale convolution; the gOctConvs proper and the
#: prediction layer have none. The paper does not mention it. A batch norm follows, so it is the same as an epsilon of
#: 1e-9 in that norm instead of 1e-5: weights that the decay has made small are still normalised. (Page 09 checks it.)
WEIGHT_FACTOR = 100.0


class ScaledConv2d(nn.Conv2d):
    """A convolution without bias whose effective weight is 100 times the stored one.

    Weight decay and initialisation see the stored weight.
    """

    def __init__(self, inputs: int, outputs: int, kernel_size: int, **options: int) -> None:
        super().__init__(inputs, outputs, kernel_size, bias=False, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight * WEIGHT_FACTOR, None)


def upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=False)


def upsampled_sum(total: Tensor | None, x: Tensor, factor: int) -> Tensor:
    """A map and a coarser one, which is upsampled bilinearly; the latter alone where there is no sum yet."""
    y = upsample(x, factor)
    return y if total is None else total + y


class GOctConv(nn.Module):
    """The generalised octave convolution: any scales in, any scales out, no bias.

    One weight `[sum(outputs), sum(inputs), k, k]` holds a block for every pair of scales: rows are output
    channels by scale, columns input channels by scale. Output scale j is the sum over input scales i of

    - i = j: convolution;
    - i > j (coarser input): convolution at the low resolution, then bilinear upsampling by 2^(i-j);
    - i < j (finer input): max pooling by 2^(j-i), then convolution.

    With stride 2, every input is first average-pooled 2x2; the convolutions keep stride 1.
    """

    #: A training may put faster ones on the module.
    average_pool = staticmethod(F.avg_pool2d)
    max_pool = staticmethod(F.max_pool2d)
    upsampled_sum = staticmethod(upsampled_sum)

    def __init__(self, inputs: Split, outputs: Split, kernel_size: int, stride: int = 1) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.kernel_size, self.stride = kernel_size, stride
        self.weight = nn.Parameter(torch.empty(sum(outputs), sum(inputs), kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def extra_repr(self) -> str:
        return f"{self.inputs} -> {self.outputs}, kernel_size={self.kernel_size}, stride={self.stride}"

    def forward(self, scales: MultiScale) -> MultiScale:
        if self.stride == 2:
            scales = [None if x is None else self.average_pool(x, 2) for x in scales]
        blocks = self.blocks()
        result: MultiScale = [None] * len(self.outputs)
        for i, x in enumerate(scales):
            for j, count in enumerate(self.outputs):
                if x is not None and count:
                    result[j] = self._added(result[j], x, blocks[i][j], i - j)
        return result

    def blocks(self) -> list[tuple[Tensor, ...]]:
        """The weights `[i][j]` from input scale i to output scale j."""
        return [columns.split(self.outputs) for columns in self.weight.split(self.inputs, 1)]

    def _added(self, total: Tensor | None, x: Tensor, weight: Tensor, coarser: int) -> Tensor:
        """The sum so far of an output scale and what an input scale that is so much coarser adds to it."""
        x = self.max_pool(x, 2**-coarser) if coarser < 0 else x
        y = F.conv2d(x, weight, padding=self.kernel_size // 2)
        if coarser > 0:
            return self.upsampled_sum(total, y, 2**coarser)
        return y if total is None else total + y


class SingleScaleConv(ScaledConv2d):
    """What a gOctConv becomes with one scale in and one scale out: an ordinary x100 convolution with real
    stride."""

    def __init__(self, inputs: Split, outputs: Split, kernel_size: int, stride: int = 1) -> None:
        super().__init__(inputs[0], outputs[0], kernel_size, stride=stride, padding=kernel_size // 2)

    def forward(self, scales: MultiScale) -> MultiScale:
        return [super().forward(scales[0])]


def octave_convolution(inputs: Split, outputs: Split, kernel_size: int, stride: int = 1) -> nn.Module:
    """A gOctConv between two splits, or its single-scale special case."""
    single = len(inputs) == len(outputs) == 1
    return (SingleScaleConv if single else GOctConv)(inputs, outputs, kernel_size, stride)


def norm_activation(x: Tensor, norm: nn.BatchNorm2d, activation: nn.PReLU) -> Tensor:
    """Batch norm, then PReLU with one slope a channel: what follows every convolution."""
    return activation(norm(x))


class NormActivation(nn.Module):
    """`norm_activation` with layers of its own for every scale."""

    bns: nn.ModuleDict
    prelus: nn.ModuleDict
    #: A training may put a faster one on the module.
    norm_activation = staticmethod(norm_activation)

    def __init__(self, channels: Split) -> None:
        super().__init__()
        present = [(str(j), count) for j, count in enumerate(channels) if count]
        self.bns = nn.ModuleDict({j: nn.BatchNorm2d(count) for j, count in present})
        self.prelus = nn.ModuleDict({j: nn.PReLU(count) for j, count in present})

    def activate(self, scales: MultiScale) -> MultiScale:
        """Normalise and activate every scale that is present."""
        return [
            None if x is None else self.norm_activation(x, self.bns[str(j)], self.prelus[str(j)])
            for j, x in enumerate(scales)
        ]


class OctaveUnit(NormActivation):
    """gOctConv, batch norm, PReLU."""

    def __init__(self, inputs: Split, outputs: Split, kernel_size: int, stride: int = 1) -> None:
        super().__init__(outputs)
        self.conv = octave_convolution(inputs, outputs, kernel_size, stride)

    def forward(self, scales: MultiScale) -> MultiScale:
        return self.activate(self.conv(scales))


class DepthwiseUnit(NormActivation):
    """The simplified gOctConv (paper, section 4.2): a depthwise 3x3 in every scale, no exchange between
    scales; then batch norm and PReLU."""

    def __init__(self, channels: Split) -> None:
        super().__init__(channels)
        self.channels = tuple(channels)
        self.convs = nn.ModuleDict(
            {
                str(j): ScaledConv2d(count, count, 3, padding=1, groups=count)
                for j, count in enumerate(channels)
                if count
            }
        )

    def forward(self, scales: MultiScale) -> MultiScale:
        return self.activate([None if x is None else self.convs[str(j)](x) for j, x in enumerate(scales)])
