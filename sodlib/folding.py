"""The same network for use alone: fewer, larger steps, from the weights of a trained CSNet.

The factor 100 and batch norm become part of the convolutions; PReLU stays as it is. At every resolution one convolution
takes all that is there: the scale itself and the pooled finer ones. What a scale gives to finer ones is one convolution
at its own, low resolution, and is brought to the finer ones afterwards.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .csnet import SIZE_MULTIPLE, CSNet, DilatedConvs
from .errors import SodlibError
from .octconv import WEIGHT_FACTOR, DepthwiseUnit, GOctConv, MultiScale, NormActivation, OctaveUnit, upsample


class FoldedConv(nn.Conv2d):
    """A convolution with bias that keeps height and width, and the PReLU after it, if any."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, slopes: Tensor | None = None, dilation: int = 1, groups: int = 1
    ) -> None:
        outputs, inputs, kernel_size = weight.shape[:3]
        padding = dilation * (kernel_size // 2)
        super().__init__(inputs * groups, outputs, kernel_size, 1, padding, dilation, groups, bias is not None)
        self.weight.data = weight.detach().clone()
        if bias is not None:
            self.bias.data = bias.detach().clone()
        self.slopes = None if slopes is None else nn.Parameter(slopes.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return x if self.slopes is None else F.prelu(x, self.slopes)


class FoldedOctave(nn.Module):
    """gOctConv, batch norm and PReLU. `own[j]` makes output scale j from the scales up to j, the finer ones pooled to
    its resolution; `coarse[i]` makes what scale i adds to the finer outputs, one after the other."""

    def __init__(self, unit: OctaveUnit) -> None:
        super().__init__()
        conv: GOctConv = unit.conv
        self.stride, blocks = conv.stride, conv.blocks()
        self.inputs = [j for j, count in enumerate(conv.inputs) if count]
        self.outputs = [j for j, count in enumerate(conv.outputs) if count]
        self.scales, self.counts = len(conv.outputs), conv.outputs
        self.own, self.coarse, self.slopes = nn.ModuleDict(), nn.ModuleDict(), nn.ParameterDict()
        factors = {j: _scale_and_shift(unit, j) for j in self.outputs}
        for j, (scale, shift) in factors.items():
            self.slopes[str(j)] = nn.Parameter(unit.prelus[str(j)].weight.detach().clone())
            finer = [i for i in self.inputs if i <= j]
            if finer:
                weight = torch.cat([blocks[i][j] for i in finer], 1)
                # Where nothing is added later, PReLU can be part of the convolution.
                alone = max(self.inputs) <= j
                self.own[str(j)] = FoldedConv(
                    weight * scale[:, None, None, None], shift, self.slopes[str(j)] if alone else None
                )
        for i in self.inputs:
            finer = [j for j in self.outputs if j < i]
            if finer:
                weight = torch.cat([blocks[i][j] * factors[j][0][:, None, None, None] for j in finer])
                # A scale with no input of its own has its bias from the first that it is made of.
                bias = torch.cat([self._bias(i, j, factors[j][1]) for j in finer])
                self.coarse[str(i)] = FoldedConv(weight, bias if bias.any() else None)

    def _bias(self, i: int, j: int, shift: Tensor) -> Tensor:
        first = str(j) not in self.own and i == min(k for k in self.inputs if k > j)
        return shift if first else torch.zeros_like(shift)

    def forward(self, scales: MultiScale) -> MultiScale:
        if self.stride == 2:
            scales = [None if x is None else F.avg_pool2d(x, 2) for x in scales]
        added: dict[int, Tensor] = {}
        for i in self.inputs:
            if str(i) in self.coarse:
                finer = [j for j in self.outputs if j < i]
                terms = self.coarse[str(i)](scales[i]).split([self.counts[j] for j in finer], 1)
                for j, term in zip(finer, terms, strict=True):
                    term = upsample(term, 2 ** (i - j))
                    added[j] = added[j] + term if j in added else term
        result: MultiScale = [None] * self.scales
        for j in self.outputs:
            total = added.get(j)
            if str(j) in self.own:
                finer = [i for i in self.inputs if i <= j]
                parts = [scales[i] if i == j else F.max_pool2d(scales[i], 2 ** (j - i)) for i in finer]
                own = self.own[str(j)](parts[0] if len(parts) == 1 else torch.cat(parts, 1))
                if total is None:
                    result[j] = own
                    continue
                total = own + total
            result[j] = F.prelu(total, self.slopes[str(j)])
        return result


class FoldedScales(nn.Module):
    """One layer on every scale that is present: depthwise convolutions, the dilated ones of the fusion, or what a
    gOctConv becomes with one scale in and one out."""

    def __init__(self, convs: dict[int, nn.Module], scales: int, depthwise: bool = False) -> None:
        super().__init__()
        self.scales, self.depthwise = scales, depthwise
        self.convs = nn.ModuleDict({str(j): conv for j, conv in convs.items()})

    def forward(self, scales: MultiScale) -> MultiScale:
        return [self.convs[str(j)](scales[j]) if str(j) in self.convs else None for j in range(self.scales)]


class FoldedDilated(nn.Module):
    """The parallel dilated convolutions of one scale, their outputs side by side, and PReLU."""

    def __init__(self, layer: DilatedConvs) -> None:
        super().__init__()
        scale, shift = _of_batch_norm(layer.bn)
        counts = [conv.out_channels for conv in layer.msconv.values()]
        parts = zip(layer.msconv.values(), *(v.split(counts) for v in (scale, shift)), strict=True)
        self.convs = nn.ModuleList(
            FoldedConv(_effective(conv) * scale[:, None, None, None], shift, None, conv.dilation[0])
            for conv, scale, shift in parts
        )
        self.slopes = nn.Parameter(layer.prelu.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(torch.cat([conv(x) for conv in self.convs], 1), self.slopes)


class FoldedCSNet(nn.Module):
    """A CSNet in evaluation mode, of any channel plan, folded. Input and output as for CSNet."""

    def __init__(self, model: CSNet) -> None:
        super().__init__()
        self.plan, self.input_size = model.plan, model.input_size
        stages = []
        for stage in range(len(self.plan.stages) + 1):
            blocks = getattr(model, f"stage{stage}")
            stages.append(nn.Sequential(*(_folded(u) for b in blocks for u in (b.conv1x1, b.conv3x3_1, b.conv3x3_2))))
        self.stages = nn.ModuleList(stages)
        self.fusion = None
        if fusion := model.oct_fuse:
            dilated = {int(j): FoldedDilated(layer) for j, layer in fusion.ms.convs.items()}
            middle = FoldedScales(dilated, len(self.plan.fusion.outputs))
            self.fusion = nn.Sequential(_folded(fusion.fuse), middle, _folded(fusion.fuse1x1))
        self.last = FoldedConv(model.cls_layer.weight, model.cls_layer.bias)

    def padded(self, images: Tensor) -> Tensor:
        """The images with sides that are multiples of 16."""
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise SodlibError(f"the network takes images [B, 3, H, W], not a tensor {list(images.shape)}")
        return _repeat_border(_repeat_border(images, 2), 3)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        scales: MultiScale = self.stages[0]([self.padded(images)])
        ends: MultiScale = []
        for stage, blocks in enumerate(self.stages[1:], start=1):
            scales = blocks(scales)
            if stage in self.plan.fused_stages:
                ends.append(scales[0])
        features = ends if self.fusion is None else self.fusion(ends)
        # The finest scale that is left, and with it the logits, is a power of two coarser than the image.
        factor = 2 ** (self.plan.fused_stages[0] - 1)
        return upsample(self.last(features[0]), factor)[..., :height, :width]


def fold(model: CSNet) -> FoldedCSNet:
    """The folded network, in evaluation mode, on the device and of the precision of `model`."""
    with torch.no_grad():
        return FoldedCSNet(model).eval()


def _repeat_border(images: Tensor, dimension: int) -> Tensor:
    """The last row or column repeated up to a multiple of 16; by indices, which can be exported for any size."""
    size = images.shape[dimension]
    wanted = (size + SIZE_MULTIPLE - 1) // SIZE_MULTIPLE * SIZE_MULTIPLE
    indices = torch.arange(wanted, device=images.device).clamp(max=size - 1)
    return images.index_select(dimension, indices)


def _effective(conv: nn.Conv2d) -> Tensor:
    return conv.weight * WEIGHT_FACTOR


def _of_batch_norm(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Batch norm in evaluation mode as a scale and a shift, found in double precision."""
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    shift = norm.bias.double() - norm.running_mean.double() * scale
    return scale.to(norm.weight.dtype), shift.to(norm.weight.dtype)


def _scale_and_shift(unit: NormActivation, j: int) -> tuple[Tensor, Tensor]:
    return _of_batch_norm(unit.bns[str(j)])


def _folded(unit: nn.Module) -> nn.Module:
    if isinstance(unit, DepthwiseUnit):
        convs = {}
        for j, conv in unit.convs.items():
            scale, shift = _scale_and_shift(unit, int(j))
            convs[int(j)] = FoldedConv(
                _effective(conv) * scale[:, None, None, None], shift, unit.prelus[j].weight, groups=len(scale)
            )
        return FoldedScales(convs, max(convs) + 1, depthwise=True)
    if isinstance(unit.conv, GOctConv):
        return FoldedOctave(unit)
    scale, shift = _scale_and_shift(unit, 0)
    folded = FoldedConv(_effective(unit.conv) * scale[:, None, None, None], shift, unit.prelus["0"].weight)
    folded.stride = unit.conv.stride
    return FoldedScales({0: folded}, 1)
