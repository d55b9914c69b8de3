"""What the features and the batch norm scales of a trained network look like (paper, Figures 4 and 5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .csnet import CSNet
from .decay import block_units, gammas
from .octconv import MultiScale

#: Images of the validation split on which the deviation of a recorded network's channels is taken.
DEVIATION_IMAGES = 16


def gamma_vectors(model: CSNet) -> dict[str, np.ndarray]:
    """The batch norm scales inside the ILBlocks by name, `[C]` each."""
    return {name: gamma.detach().cpu().numpy().copy() for name, gamma in gammas(model).items()}


def channel_deviation(model: CSNet, inputs: Tensor) -> np.ndarray:
    """How unevenly a layer's channels respond, `[54]`: one value for each of the three units of the 18 ILBlocks.

    Of the feature after batch norm and activation, the spatial mean of every channel is taken; the value is the
    standard deviation of these means over the channels of all scales, averaged over the input images
    `[B, 3, H, W]`. The paper's Figure 4 plots an "average channel-wise standard deviation of the outputs" without
    a formula; this is our reading.
    """
    values: list[float] = []

    def watch(module: nn.Module, _: Any, scales: MultiScale) -> None:
        means = torch.cat([x.mean((2, 3)) for x in scales if x is not None], 1)
        values.append(float(means.std(1, correction=0).mean()))

    hooks = [unit.register_forward_hook(watch) for _, unit in block_units(model)]
    model.eval()
    with torch.inference_mode():
        model(inputs.to(next(model.parameters()).device))
    for hook in hooks:
        hook.remove()
    return np.array(values)
