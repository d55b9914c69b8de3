"""Training beyond the paper: other weights for the same network, without a parameter more. (Not in the paper.)"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .errors import SodlibError

#: The share of a schedule in which the learning rate rises, and that over which weights are averaged at its end.
WARM_UP, WINDOW = 1 / 20, 1 / 20
#: What the teacher's saliency map weighs in the target, beside the mask.
TEACHING = 0.5


@dataclass(frozen=True)
class Way:
    """What a training does beyond the released recipe.

    `cosine`: the learning rate rises for a twentieth of the steps and then falls as half a cosine; `averaged`: the
    result is an exponential mean of the weights over about the last twentieth; `augmented`: "stronger" of
    `pixels.AUGMENTATIONS`; `overlap`: the loss is BCE and soft IoU (`overlap_loss`); `distilled`: half of the target
    is the saliency map of a larger trained network.
    """

    cosine: bool = False
    averaged: bool = False
    augmented: bool = False
    overlap: bool = False
    distilled: bool = False


RELEASED = Way()
#: Each by itself, and all of them.
WAYS = {
    "": RELEASED,
    "cosine": Way(cosine=True),
    "averaged": Way(averaged=True),
    "augmented": Way(augmented=True),
    "overlap": Way(overlap=True),
    "distilled": Way(distilled=True),
    "together": Way(cosine=True, averaged=True, augmented=True, overlap=True, distilled=True),
}


def way_named(name: str) -> Way:
    """The way of this name. Raises SodlibError for another."""
    if name not in WAYS:
        raise SodlibError(f"unknown way of training {name!r}; choose one of {', '.join(filter(None, WAYS))}")
    return WAYS[name]


def cosine_rate(step: int, steps: int, base: float) -> float:
    """From near zero up to the base rate, and down to zero at the last of the steps."""
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return base * (step + 1) / rise
    return base * (1 + math.cos(math.pi * (step - rise) / (steps - rise))) / 2


def overlap_loss(logits: Tensor, masks: Tensor) -> Tensor:
    """BCE and 1 - soft IoU, each a mean over the images `[B, 1, S, S]`."""
    found = torch.sigmoid(logits)
    both = (found * masks).sum((1, 2, 3))
    either = (found + masks).sum((1, 2, 3)) - both
    return F.binary_cross_entropy_with_logits(logits, masks) + (1 - both / either.clamp_min(1e-6)).mean()


def mean_of(model: nn.Module, steps: int) -> AveragedModel:
    """The exponential mean of a network's weights and batch norm statistics; `update_parameters` after every step."""
    decay = max(0.0, 1 - 1 / max(1.0, WINDOW * steps))
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


@torch.no_grad()
def taught(teacher: nn.Module, images: Tensor, masks: Tensor) -> Tensor:
    """Targets `[B, 1, S, S]` between the masks and the saliency maps of a teacher in evaluation mode."""
    return torch.lerp(masks, torch.sigmoid(teacher(images)), TEACHING)
