"""The training loop: the published recipe, whose amount of computing is free. (Paper, section 6.1.)"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .csnet import CSNet
from .data import SaliencySet, read_pair
from .decay import DYNAMIC_WEIGHT, STANDARD_WEIGHT, DynamicWeightDecay, gammas, parameter_groups
from .errors import SodlibError
from .images import augment, to_input, to_target
from .metrics import f_measure, score
from .prediction import quantise

Pair = tuple[np.ndarray, np.ndarray]
Progress = Callable[[dict[str, Any]], None]

BETAS = (0.9, 0.99)
#: The learning rate falls to a tenth after these shares of the steps: epochs 200 and 250 of 300.
MILESTONES = (2 / 3, 5 / 6)


@dataclass(frozen=True)
class Recipe:
    """All that decides a training besides the network and the images.

    `size`: side of the square inputs; `batch` images a step; `steps_per_epoch`: batches between two validations,
    by default those that the training images fill; `decay`, one of `decay.DECAYS`, with the weight of the standard
    and of the dynamic term.
    """

    epochs: int
    size: int = 224
    batch: int = 24
    learning_rate: float = 1e-4
    steps_per_epoch: int | None = None
    decay: str = "dynamic"
    decay_weight: float = STANDARD_WEIGHT
    dynamic_weight: float = DYNAMIC_WEIGHT
    seed: int = 0


def seed_everything(seed: int) -> None:
    """Seed torch, which draws the initial weights. Crops, flips and order have a generator of their own."""
    torch.manual_seed(seed)


def read_pairs(saliency_set: SaliencySet) -> list[Pair]:
    """All photographs and masks of a set, decoded, as uint8."""
    return [read_pair(saliency_set, index) for index in range(len(saliency_set))]


def batches(pairs: Sequence[Pair], size: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """All pairs in order, as they are: inputs `[B, 3, size, size]` and targets `[B, 1, size, size]`."""
    for start in range(0, len(pairs), batch):
        yield _stack(pairs[start : start + batch], size)


def training_batches(
    pairs: Sequence[Pair], size: int, batch: int, random: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled and augmented batches without end; what does not fill a batch is dropped from each pass.

    Raises SodlibError where there are fewer images than one batch.
    """
    if len(pairs) < batch:
        raise SodlibError(f"{len(pairs)} training images do not fill a batch of {batch}; lower the batch size")
    while True:
        order = random.permutation(len(pairs))
        for start in range(0, len(order) - batch + 1, batch):
            yield _stack([augment(*pairs[index], random) for index in order[start : start + batch]], size)


def _stack(pairs: Sequence[Pair], size: int) -> tuple[Tensor, Tensor]:
    images = torch.stack([to_input(image, size) for image, _ in pairs])
    return images, torch.stack([to_target(mask, size) for _, mask in pairs])


def learning_rate_at(step: int, steps: int, base: float) -> float:
    """The base rate, a tenth and a hundredth of it after two thirds and five sixths of the steps."""
    return base * 0.1 ** sum(step >= milestone * steps for milestone in MILESTONES)


def redundant_scale(
    rate: float, steps: int, weight: float = STANDARD_WEIGHT, schedule: int | None = None
) -> np.ndarray:
    """The path `[steps]` of a gamma of 1 that no loss holds: only decay, through Adam, along the learning rate
    schedule of `schedule` steps (default: `steps`). Redundant channels follow it whatever the weight, since Adam
    divides by the gradient's own size."""
    gamma = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.Adam([gamma], lr=rate, betas=BETAS, weight_decay=weight)
    path = np.empty(steps)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate_at(step, schedule or steps, rate)
        gamma.grad = torch.zeros(1)
        optimizer.step()
        path[step] = gamma.item()
    return path


def train(
    model: CSNet,
    pairs: Sequence[Pair],
    validation: Sequence[Pair],
    recipe: Recipe,
    progress: Progress = lambda _: None,
) -> list[dict[str, Any]]:
    """Train the network in place; return one entry an epoch: loss, learning rate, validation scores, and how
    many gammas dynamic or standard decay has brought below some thresholds.

    Loss: binary cross-entropy with logits, mean over pixels and batch. Optimiser: Adam with coupled decay.
    Validation: max F-measure and MAE at the input size, on squares. `progress` gets every entry as it is made.
    Raises SodlibError where there are fewer images than one batch or the loss is no longer a number.
    """
    steps_per_epoch = recipe.steps_per_epoch or len(pairs) // recipe.batch
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last)
    stream = training_batches(pairs, recipe.size, recipe.batch, np.random.default_rng(recipe.seed))
    optimizer = torch.optim.Adam(
        parameter_groups(model, recipe.decay, recipe.decay_weight), lr=recipe.learning_rate, betas=BETAS
    )
    steps, step, history = steps_per_epoch * recipe.epochs, 0, []
    standard = recipe.decay == "standard"
    with nullcontext() if standard else DynamicWeightDecay(model, recipe.decay, recipe.dynamic_weight) as dynamic:
        for epoch in range(1, recipe.epochs + 1):
            started, losses = time.perf_counter(), []
            model.train()
            for images, targets in islice(stream, steps_per_epoch):
                rate = learning_rate_at(step, steps, recipe.learning_rate)
                for group in optimizer.param_groups:
                    group["lr"] = rate
                images = images.to(device).contiguous(memory_format=torch.channels_last)
                loss = F.binary_cross_entropy_with_logits(model(images), targets.to(device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if recipe.decay == "dynamic":
                    dynamic.add_gradients()
                optimizer.step()
                if recipe.decay == "dynamic-written":
                    dynamic.shrink(rate)
                losses.append(loss.detach())
                step += 1
            mean_loss = float(torch.stack(losses).mean())
            if not math.isfinite(mean_loss):
                raise SodlibError(f"the loss is not a number in epoch {epoch}; lower the learning rate {rate:g}")
            seconds = time.perf_counter() - started
            entry = {
                "epoch": epoch,
                "steps": step,
                "loss": mean_loss,
                "learning_rate": rate,
                **{f"validation_{name}": value for name, value in validate(model, validation, recipe.size).items()},
                **gamma_counts(model),
                "images_per_second": steps_per_epoch * recipe.batch / seconds,
                "seconds": seconds,
            }
            history.append(entry)
            progress(entry)
    model.eval()
    return history


def validate(model: CSNet, pairs: Sequence[Pair], size: int) -> dict[str, float]:
    """Loss, max F-measure and MAE on the resized squares: quicker than the scores at full size, which are
    taken once when the training is over."""
    model.eval()
    device = next(model.parameters()).device
    losses, scores = [], []
    with torch.inference_mode():
        for images, targets in batches(pairs, size, 16):
            logits = model(images.to(device).contiguous(memory_format=torch.channels_last)).cpu()
            losses += F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2, 3)).tolist()
            for map_, target in zip(torch.sigmoid(logits), targets, strict=True):
                scores.append(score(quantise(map_[0].numpy()), quantise(target[0].numpy())))
    precision, recall, error = (np.stack(part) for part in zip(*scores, strict=True))
    f = f_measure(precision.mean(0), recall.mean(0))
    return {"loss": float(np.mean(losses)), "max_f": float(f.max()), "mae": float(error.mean())}


def gamma_counts(model: CSNet) -> dict[str, int]:
    """How many of the channels inside the ILBlocks have a gamma below 1e-2 and below 1e-20 in absolute value."""
    values = torch.cat([gamma.detach().abs().flatten() for gamma in gammas(model).values()])
    return {"gammas_below_1e-2": int((values < 1e-2).sum()), "gammas_below_1e-20": int((values < 1e-20).sum())}
