"""The light-weight networks of Table 7 that were made for other tasks, from the package pytorchcv.

Adapted as the paper says: a 1x1 convolution with one output channel takes the place of the classifier, and its logits
are brought to the size of the image.
"""

from __future__ import annotations

import torch
from pytorchcv.model_provider import get_model
from torch import Tensor, nn
from torch.nn import functional as F

from .csnet import CSNet
from .errors import SodlibError

#: pytorchcv's names. The paper does not say which EfficientNet, ShuffleNetV2 or ESPNetv2 it took, and none of the
#: published sizes has its number of parameters; these come nearest without their classifier.
BASELINES = {
    "efficientnet": "efficientnet_b2",
    "shufflenetv2": "shufflenetv2_w2",
    "enet": "enet_cityscapes",
    "cgnet": "cgnet_cityscapes",
    "dabnet": "dabnet_cityscapes",
    "espnetv2": "espnetv2_w1",
    "bisenet": "bisenet_resnet18_celebamaskhq",
}


class Baseline(nn.Module):
    """A network of BASELINES with random weights. Input and output as for CSNet; BiSeNet takes images of `input_size`
    alone. Raises SodlibError for an unknown name, and for a size that the network cannot halve often enough."""

    loss = staticmethod(CSNet.loss)

    def __init__(self, name: str, input_size: int = 224) -> None:
        super().__init__()
        if name not in BASELINES:
            raise SodlibError(f"unknown network {name!r}; choose one of {', '.join(BASELINES)}")
        self.input_size = input_size
        size = (input_size, input_size)
        if name in ("efficientnet", "shufflenetv2", "espnetv2"):
            features = get_model(BASELINES[name]).features
            features.final_pool = nn.Identity()
            with torch.no_grad():
                channels = _plain(features.eval()(*_twice(name, torch.zeros(1, 3, *size)))).shape[1]
            self.network, self.prediction = features, nn.Conv2d(channels, 1, 1)
        else:
            options = {"aux": False} if name == "bisenet" else {}
            self.network, self.prediction = get_model(BASELINES[name], num_classes=1, in_size=size, **options), None
        self.name = name

    def forward(self, images: Tensor) -> Tensor:
        try:
            logits = _plain(self.network(*_twice(self.name, images)))
        except RuntimeError as error:
            if not any(side % 32 for side in images.shape[-2:]):
                raise
            raise SodlibError(f"{self.name} cannot take images of {images.shape[-1]} × {images.shape[-2]}: give sides "
                              "that are multiples of 32") from error  # fmt: skip
        if self.prediction is not None:
            logits = self.prediction(logits)
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def _twice(name: str, images: Tensor) -> tuple[Tensor, ...]:
    """ESPNetv2 mixes the image itself into its stages."""
    return (images, images) if name == "espnetv2" else (images,)


def _plain(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
