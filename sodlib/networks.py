"""Networks by name beside those of a channel plan: large and light-weight ones, for comparison."""

from __future__ import annotations

from torch import nn

from .errors import SodlibError

#: "csf-" and a backbone, or one of the baselines. (Named here, since their packages take long to import.)
NAMES = ("csf-resnet50", "csf-res2net50", "csf-efficientnet-lite0", "efficientnet", "shufflenetv2", "enet", "cgnet",
         "dabnet", "espnetv2", "bisenet")  # fmt: skip


def build(name: str, input_size: int = 224, pretrained: bool = False) -> nn.Module:
    """The network of this name with random weights, or with its backbone's `pretrained` on ImageNet. It has its `name`,
    its `input_size` and its `loss`.

    Raises SodlibError for an unknown name, and where there are no such weights or the package that holds the network is
    not installed.
    """
    if name not in NAMES:
        raise SodlibError(f"unknown network {name!r}; choose one of csnet, extractor, vanilla, {', '.join(NAMES)}")
    if pretrained and not name.startswith("csf-"):
        raise SodlibError(f"there are no ImageNet weights for {name} here; choose a network whose name has csf")
    try:
        if name.startswith("csf-"):
            from .backbones import csf

            network = csf(name.removeprefix("csf-"), pretrained, input_size)
        else:
            from .baselines import Baseline

            network = Baseline(name, input_size)
    except ImportError as error:
        raise SodlibError(f"{name}: networks by others need {error.name} (pip install {error.name})") from error
    network.name = name
    return network
