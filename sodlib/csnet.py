"""CSNet: 18 ILBlocks and a cross-stage fusion, built from a channel plan. (Paper, section 4 and Figure 2.)

The module names follow the state dict of the released network, so that its checkpoints load as they are.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .channels import DILATIONS, BlockPlan, ChannelPlan, FusionPlan, Split, plan_channels
from .errors import SodlibError
from .octconv import DepthwiseUnit, MultiScale, OctaveUnit, ScaledConv2d, norm_activation

#: The coarsest scale inside the network has 1/16 of the input's side.
SIZE_MULTIPLE = 16


class ILBlock(nn.Module):
    """The in-stage multi-scale block: a gOctConv that mixes the scales, then two 3x3 convolutions that work
    within each. No residual, no expansion. (Paper, section 4.2.)

    `simplified` chooses depthwise 3x3 convolutions (CSNet, Extractor) or full OctConvs (Vanilla).
    The first unit keeps the released name `conv1x1` also where its kernel is 3x3.
    """

    def __init__(self, plan: BlockPlan, simplified: bool = True) -> None:
        super().__init__()
        self.conv1x1 = OctaveUnit(plan.inputs, plan.outputs, plan.kernel_size, plan.stride)
        self.conv3x3_1, self.conv3x3_2 = (
            DepthwiseUnit(plan.outputs) if simplified else OctaveUnit(plan.outputs, plan.outputs, 3) for _ in range(2)
        )

    def forward(self, scales: MultiScale) -> MultiScale:
        return self.conv3x3_2(self.conv3x3_1(self.conv1x1(scales)))


class DilatedConvs(nn.Module):
    """Parallel dense 3x3 convolutions with dilations 1, 2, 4, 8 and 16 on one scale, concatenated; then batch
    norm and PReLU. Each sees all input channels; a dilation without outputs is left out. (Paper, Table 1.)"""

    norm_activation = staticmethod(norm_activation)

    def __init__(self, inputs: int, outputs: Split) -> None:
        super().__init__()
        self.msconv = nn.ModuleDict(
            {
                str(index): ScaledConv2d(inputs, count, 3, padding=dilation, dilation=dilation)
                for index, (count, dilation) in enumerate(zip(outputs, DILATIONS, strict=True))
                if count
            }
        )
        self.bn = nn.BatchNorm2d(sum(outputs))
        self.prelu = nn.PReLU(sum(outputs))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([conv(x) for conv in self.msconv.values()], 1)
        return self.norm_activation(x, self.bn, self.prelu)


class MultiDilation(nn.Module):
    """`DilatedConvs` on every scale that keeps channels; the other scales are absent afterwards."""

    def __init__(self, inputs: Split, outputs: tuple[Split, ...]) -> None:
        super().__init__()
        self.inputs, self.outputs = tuple(inputs), tuple(sum(split) for split in outputs)
        self.convs = nn.ModuleDict(
            {
                str(j): DilatedConvs(count, split)
                for j, (count, split) in enumerate(zip(inputs, outputs, strict=True))
                if sum(split)
            }
        )

    def forward(self, scales: MultiScale) -> MultiScale:
        return [self.convs[str(j)](x) if str(j) in self.convs else None for j, x in enumerate(scales)]


class CrossStageFusion(nn.Module):
    """Mixes the outputs of several stages across scales, looks at each scale with five dilations, and merges
    all into the finest. (Paper, section 4.3.)"""

    def __init__(self, inputs: Split, plan: FusionPlan) -> None:
        super().__init__()
        self.fuse = OctaveUnit(inputs, plan.outputs, 1)
        self.ms = MultiDilation(plan.outputs, plan.dilated)
        self.fuse1x1 = OctaveUnit(plan.dilated_outputs, (plan.merged,), 1)

    def forward(self, scales: MultiScale) -> MultiScale:
        return self.fuse1x1(self.ms(self.fuse(scales)))


class CSNet(nn.Module):
    """Any network of one channel plan: CSNet, pruned or not, and the Extractor and Vanilla of Table 6.

    Input `[B, 3, H, W]`: RGB, normalised by the ImageNet mean and standard deviation. Output: logits
    `[B, 1, H, W]`; the saliency map is their sigmoid. H and W are free: other sizes than multiples of 16 are
    padded by repeating the last row and column, and the result is cropped.

    `input_size` is the side of the square images it is trained and tested on. Batches given to the forward
    pass may have any size; prediction and evaluation resize to this one.
    """

    def __init__(self, plan: ChannelPlan, input_size: int = 224) -> None:
        super().__init__()
        self.plan, self.input_size = plan, input_size
        stages: OrderedDict[str, list[ILBlock]] = OrderedDict()
        for block in plan.block_plans():
            stage = block.name.partition(".")[0]
            stages.setdefault(stage, []).append(ILBlock(block, simplified=plan.network != "vanilla"))
        for name, blocks in stages.items():
            self.add_module(name, nn.Sequential(*blocks))
        self.oct_fuse = CrossStageFusion(plan.fusion_inputs, plan.fusion) if plan.fusion else None
        self.cls_layer = nn.Conv2d(plan.fusion.merged if plan.fusion else plan.fusion_inputs[0], 1, 1)

    @property
    def blocks(self) -> dict[str, ILBlock]:
        """The 18 ILBlocks by name, the stem first."""
        return {name: module for name, module in self.named_modules() if isinstance(module, ILBlock)}

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        height, width = images.shape[-2:]
        size = [side + -side % SIZE_MULTIPLE for side in (height, width)]
        logits = F.interpolate(self.cls_layer(features[0]), size=size, mode="bilinear", align_corners=False)
        return logits[..., :height, :width]

    def features(self, images: Tensor) -> MultiScale:
        """What the last layer works on: the fusion's output, or that of stage 4 without one."""
        if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise SodlibError(f"the network takes images [B, 3, H, W], not a tensor {list(images.shape)}")
        scales: MultiScale = self.stage0([_pad_to_multiple(images)])
        ends: MultiScale = []
        for stage in range(1, len(self.plan.stages) + 1):
            scales = getattr(self, f"stage{stage}")(scales)
            if stage in self.plan.fused_stages:
                ends.append(scales[0])
        return ends if self.oct_fuse is None else self.oct_fuse(ends)

    def take_stages_of(self, network: CSNet) -> None:
        """Take over the weights of every stage; fusion and prediction stay as they are. Raises SodlibError for a
        network of another plan."""
        if network.plan != self.plan:
            raise SodlibError("the network has another channel plan; take the stages of one of the same plan")
        stages = {name: value for name, value in network.state_dict().items() if name.startswith("stage")}
        self.load_state_dict(stages, strict=False)

    def like(self, plan: ChannelPlan) -> CSNet:
        """A network of this kind from another plan, with random weights."""
        return CSNet(plan, self.input_size)

    @staticmethod
    def loss(logits: Tensor, masks: Tensor) -> Tensor:
        """Binary cross-entropy with masks in 0..1, mean over pixels and batch."""
        return F.binary_cross_entropy_with_logits(logits, masks)


def csnet(width: float = 1.0, split: str = "5/5", stages: str = "2-4") -> CSNet:
    """CSNet with fixed channels: `width` 1 to 100 (in the paper to 2), `split` C_H/C_L of the ILBlocks, `stages` that
    the fusion takes (paper, Tables 5, 6 and 11). Random weights. Raises SodlibError for an unknown name or another
    width."""
    return CSNet(plan_channels("csnet", width, split, stages))


def extractor(width: float = 1.0, split: str = "5/5") -> CSNet:
    """The ILBlocks alone with a 1x1 prediction layer on stage 4 (Table 6, Extractor). Raises as `csnet`."""
    return CSNet(plan_channels("extractor", width, split))


def vanilla(width: float = 1.0, split: str = "5/5") -> CSNet:
    """The Extractor with full OctConvs in place of the depthwise ones (Table 6, Vanilla). Raises as `csnet`."""
    return CSNet(plan_channels("vanilla", width, split))


def _pad_to_multiple(images: Tensor) -> Tensor:
    bottom, right = (-size % SIZE_MULTIPLE for size in images.shape[-2:])
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images
