"""The training loop: the published recipe, whose amount of computing is free. (Paper, section 6.1.)"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import distributed
from .beyond import RELEASED, Way, cosine_rate, mean_of, overlap_loss, taught
from .csnet import CSNet
from .decay import DYNAMIC_WEIGHT, STANDARD_WEIGHT, gammas
from .engine import BETAS, Engine
from .errors import SodlibError
from .metrics import LEVELS, f_measure, score_batch
from .pixels import Pixels, Stream
from .progress import Observer, Silent
from .unfinished import Checkpoint, Paused

#: The learning rate falls to a tenth after these shares of the steps: epochs 200 and 250 of 300.
MILESTONES = (2 / 3, 5 / 6)
#: That of torch, which the release leaves as it is.
ADAM_EPSILON = 1e-8


@dataclass(frozen=True)
class Recipe:
    """All that decides a training besides the network and the images.

    `size`: side of the square inputs; `batch` images a step; `steps_per_epoch`: batches between two validations,
    by default those that the training images fill; `decay`, one of `decay.DECAYS`, with the weight of the standard
    and of the dynamic term; `augmentation`, one of `pixels.AUGMENTATIONS`; `first_step` and `last_step`: the part of
    the schedule that is run, by default all; `beta2` of Adam; `beyond`: what is not as released.
    """

    epochs: int
    size: int = 224
    batch: int = 24
    learning_rate: float = 1e-4
    steps_per_epoch: int | None = None
    decay: str = "dynamic"
    decay_weight: float = STANDARD_WEIGHT
    dynamic_weight: float = DYNAMIC_WEIGHT
    augmentation: str = "released"
    seed: int = 0
    first_step: int = 0
    last_step: int | None = None
    beta2: float = BETAS[1]
    beyond: Way = RELEASED


def seed_everything(seed: int) -> None:
    """Seed torch, which draws the initial weights. Crops, flips and order have generators of their own."""
    torch.manual_seed(seed)


def learning_rate_at(step: int, steps: int, base: float) -> float:
    """The base rate, a tenth and a hundredth of it after two thirds and five sixths of the steps."""
    return base * 0.1 ** sum(step >= milestone * steps for milestone in MILESTONES)


def redundant_scale(rate: float, steps: int, weight: float = STANDARD_WEIGHT, beta2: float = BETAS[1]) -> np.ndarray:
    """The path `[steps]` of |gamma| from 1 where no loss holds it: only the decay, through Adam, along the learning
    rate schedule.

    Adam divides by the gradient's own size, so that down to about the rate the path is the same whatever the weight.
    Then it swings around zero, the longer the heavier the decay, until Adam's epsilon is no longer small beside the
    gradient. Adam is written out in Python's own numbers: rounding alone moves the end of the path, from one processor
    to another too, and the whole schedule takes torch's most of a minute.
    """
    gamma, first, second, power1, power2 = 1.0, 0.0, 0.0, 1.0, 1.0
    path = np.empty(steps)
    for step in range(steps):
        gradient = weight * gamma
        first += (1 - BETAS[0]) * (gradient - first)
        second = beta2 * second + (1 - beta2) * gradient * gradient
        power1, power2 = power1 * BETAS[0], power2 * beta2
        moved = first / (1 - power1) / (math.sqrt(second / (1 - power2)) + ADAM_EPSILON)
        gamma -= learning_rate_at(step, steps, rate) * moved
        path[step] = abs(gamma)
    return path


def stays_below(path: np.ndarray, value: float) -> float:
    """After how many steps a path is below a value for good; NaN where it ends above."""
    above = np.flatnonzero(path >= value)
    steps = above[-1] + 1 if len(above) else 0
    return float(steps) if steps < len(path) else np.nan


def train(
    model: nn.Module,
    pixels: Pixels,
    validation: Pixels,
    recipe: Recipe,
    observer: Observer | None = None,
    *,
    name: str = "training",
    follow: Mapping[str, Pixels] | None = None,
    teacher: nn.Module | None = None,
    checkpoint: Checkpoint | None = None,
    deadline: float = math.inf,
) -> list[dict[str, Any]]:
    """Train the network in place; return one entry an epoch: loss, learning rate, validation scores, the MAE on each
    set of `follow`, and how many gammas the decay has brought below some thresholds.

    Loss: the network's own, or that of `recipe.beyond`. Optimiser: Adam with coupled decay. Validation: `validate`. A
    `teacher`, in evaluation mode, adds its maps to the targets (`beyond.taught`). Where `checkpoint` holds a state,
    the training goes on from it and ends with the same weights as without the stop; it writes one whenever one is due
    and at the end. At `deadline` (of `time.monotonic`) it writes one and raises Paused. Raises SodlibError where there
    are fewer images than one batch, a distilled training has no teacher, or the loss is no longer a number; the last
    checkpoint stays.

    Of the processes that `distributed.join` has brought together, the first one calls this, the others `assist`.
    """
    if recipe.beyond.distilled and teacher is None:
        raise SodlibError(f"{name}: a distilled training needs a teacher; give one, or train in another way")
    observer = observer or Silent()
    stream = _share(pixels, recipe)
    steps_per_epoch = recipe.steps_per_epoch or stream.per_pass
    steps = steps_per_epoch * recipe.epochs
    last = steps if recipe.last_step is None else recipe.last_step
    step, history, losses, before = recipe.first_step, [], [], 0.0
    state = checkpoint.read() if checkpoint else None
    if state:
        model.load_state_dict(state["model"])
    if distributed.joined():
        if teacher:
            raise SodlibError(f"{name}: a training with a teacher runs in one process; start it without torchrun")
        if not isinstance(model, CSNet):
            raise SodlibError(
                f"{name}: the batch norms of other networks than CSNet see their own part of a batch alone; train it "
                "in one process, without torchrun"
            )
        distributed.tell((name, copy.deepcopy(model).cpu(), recipe, state["optimizer"] if state else {}))
    mean = mean_of(model, steps) if recipe.beyond.averaged else None
    with _engine(model, recipe) as engine:
        if state:
            if mean:
                mean.load_state_dict(state["mean"])
            engine.restore(state["optimizer"])
            torch.set_rng_state(state["random"])
            step, history, before = state["step"], state["history"], state["seconds"]
            losses = list(state["losses"].to(engine.device))
            if "random on cuda" in state:
                torch.cuda.set_rng_state(state["random on cuda"])
        started = time.monotonic()

        def keep() -> None:
            _require_finite(losses, step, recipe)
            state = {
                "model": model.state_dict(),
                "optimizer": engine.state(),
                **({"mean": mean.state_dict()} if mean else {}),
                "random": torch.get_rng_state(),
                **({"random on cuda": torch.cuda.get_rng_state()} if engine.device.type == "cuda" else {}),
                "step": step,
                "history": history,
                "losses": torch.stack(losses).cpu() if losses else torch.zeros(0),
                "seconds": before + time.monotonic() - started,
            }
            checkpoint.write(state)

        observer.start(name, last - recipe.first_step, step - recipe.first_step)
        while step < last:
            rate = (cosine_rate if recipe.beyond.cosine else learning_rate_at)(step, steps, recipe.learning_rate)
            distributed.tell((step, rate))
            images, targets = stream.batch(step)
            if teacher:
                images, targets = (x.to(engine.device) for x in (images, targets))
                targets = taught(teacher, images, targets)
            losses.append(engine.step(images, targets, rate))
            if mean:
                mean.update_parameters(model)
            step += 1
            observer.step(step - recipe.first_step)
            if step % steps_per_epoch == 0 or step == last:
                _require_finite(losses, step, recipe)
                shown = mean.module if mean else model
                seconds, scoring = before + time.monotonic() - started, time.monotonic()
                scores = {
                    f"validation_{name}": value for name, value in validate(shown, validation, recipe.size).items()
                }
                for set_name, followed in (follow or {}).items():
                    scores[f"{set_name}_mae"] = validate(shown, followed, recipe.size)["mae"]
                entry = {
                    "epoch": -(-step // steps_per_epoch),
                    "steps": step,
                    "loss": float(torch.stack(losses).mean()),
                    "learning_rate": rate,
                    **scores,
                    **gamma_counts(shown),
                    "images_per_second": len(losses) * recipe.batch / seconds,
                    "seconds": seconds,
                    "scoring_seconds": time.monotonic() - scoring,
                }
                history.append(entry)
                observer.epoch(entry)
                losses, before, started = [], 0.0, time.monotonic()
            if checkpoint and (step == last or checkpoint.due()):
                keep()
            elif step < last and time.monotonic() > deadline:
                if checkpoint:
                    keep()
                distributed.tell(None)
                raise Paused
    distributed.tell(None)
    if mean:
        model.load_state_dict(mean.module.state_dict())
    model.eval()
    return history


def assist(model: nn.Module, pixels: Pixels, recipe: Recipe, optimizer: dict[str, dict[str, Tensor]]) -> None:
    """Take this process's part of every batch in the training of the first process, until it ends or pauses.

    `distributed.hear` gives the run's name, network, recipe and the optimiser's state (empty for a new training).
    """
    stream = _share(pixels, recipe)
    with _engine(model, recipe) as engine:
        engine.restore(optimizer)
        while order := distributed.hear():
            step, rate = order
            engine.step(*stream.batch(step), rate)


def _share(pixels: Pixels, recipe: Recipe) -> Stream:
    part = distributed.part()
    augmentation = "stronger" if recipe.beyond.augmented else recipe.augmentation
    return Stream(pixels, recipe.size, recipe.batch, recipe.seed, augmentation, part)


def _engine(model: nn.Module, recipe: Recipe) -> Engine:
    loss = overlap_loss if recipe.beyond.overlap else None
    return Engine(model, recipe.decay, recipe.decay_weight, recipe.dynamic_weight, beta2=recipe.beta2, loss=loss)


def _require_finite(losses: list[Tensor], step: int, recipe: Recipe) -> None:
    if losses and not torch.stack(losses).isfinite().all():
        raise SodlibError(
            f"the loss is not a number before step {step}; lower the learning rate {recipe.learning_rate:g}"
        )


@torch.inference_mode()
def validate(model: nn.Module, pixels: Pixels, size: int, batch: int = 32) -> dict[str, float]:
    """Loss, max F-measure and MAE by the released protocol on the resized squares, counted on the device: quicker
    than the scores at full size, which are taken once when the training is over. Of a classifier, loss and
    accuracy."""
    model.eval()
    device, parts = next(model.parameters()).device, []
    for start in range(0, len(pixels), batch):
        squares = pixels.squares(range(start, min(start + batch, len(pixels))), size)
        images, targets = (x.to(device) for x in squares)
        logits = model(images)
        if pixels.classes is not None:
            losses = F.cross_entropy(logits, targets, reduction="none")
            parts.append(torch.stack([losses, (logits.argmax(1) == targets).float()], 1))
            continue
        losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean((1, 2, 3))
        parts.append(torch.cat([losses[:, None], score_batch(torch.sigmoid(logits), targets)], 1))
    scores = torch.cat(parts).double().mean(0).cpu().numpy()
    if pixels.classes is not None:
        return {"loss": float(scores[0]), "accuracy": float(scores[1])}
    f = f_measure(*scores[2:].reshape(2, LEVELS))
    return {"loss": float(scores[0]), "max_f": float(f.max()), "mae": float(scores[1])}


def gamma_counts(model: nn.Module) -> dict[str, int]:
    """How many of the channels inside the ILBlocks have a gamma below 1e-2 and below 1e-20 in absolute value; of other
    networks nothing."""
    if not isinstance(model, CSNet):
        return {}
    values = torch.cat([gamma.detach().abs().flatten() for gamma in gammas(model).values()])
    return {"gammas_below_1e-2": int((values < 1e-2).sum()), "gammas_below_1e-20": int((values < 1e-20).sum())}
