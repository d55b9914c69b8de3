"""The study: presets, the declared runs with what they feed, and how a run becomes a record."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import records
from .channels import plan_channels
from .cost import count_macs, count_parameters
from .csnet import CSNet
from .data import SaliencySet, find_set
from .decay import DYNAMIC_WEIGHT, STANDARD_WEIGHT
from .errors import SodlibError
from .features import channel_deviation, gamma_vectors
from .images import to_input
from .metrics import evaluate_all
from .pruning import keep, prune, recalibrate, scores
from .records import Record
from .training import Progress, Recipe, read_pairs, seed_everything, train, training_batches, validate

#: Adam's steps times its rate in the published training: 1e-4 for 200 of 300 epochs of 439 steps, then a tenth, a
#: hundredth. A shorter schedule raises the rate so that this product stays, and redundant gammas reach zero.
PUBLISHED_STEPS, PUBLISHED_RATE = 300 * 439, 1e-4


@dataclass(frozen=True)
class Preset:
    """How much computing a run gets. `steps_per_epoch` caps an epoch; `after_steps` is the budget of
    recalibration or fine-tuning after pruning, in batches."""

    name: str
    train: str
    validation: str
    tests: tuple[str, ...]
    size: int
    batch: int
    epochs: int
    learning_rate: float
    after_steps: int
    steps_per_epoch: int | None = None
    images: int | None = None

    def load(self, name: str, root: Path | None) -> SaliencySet:
        """A set at this preset's size: only its first `images` where that is set."""
        saliency_set = find_set(name, root)
        count = len(saliency_set) if self.images is None else min(self.images, len(saliency_set))
        return saliency_set.subset(range(count), saliency_set.name)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("smoke", "cutouts/train", "cutouts/validation", ("cutouts/test",), 64, 4, 3, 9e-3, 6, 8, 32),
        Preset("lite", "DUTS-TR/train-2000", "DUTS-TR/validation", ("ECSSD",), 112, 8, 3, 3e-3, 100),
        Preset("fast", "DUTS-TR/train", "DUTS-TR/validation", ("ECSSD", "DUTS-TE"), 224, 24, 30, 1e-3, 439),
        Preset("paper", "DUTS-TR/train", "DUTS-TR/validation", ("ECSSD", "DUTS-TE"), 224, 24, 300, 1e-4, 8780),
    )
}
#: The presets whose records count as evidence, the best first.
EVIDENCE = ("paper", "fast", "lite")


@dataclass(frozen=True)
class Pruning:
    """How a trained network is pruned, and what follows: "recalibrated" (batch norm statistics only, as
    released) or "finetuned" (as written). Give `threshold`, or the `share` of channels to keep."""

    criterion: str = "gamma"
    threshold: float | None = None
    share: float | None = None
    afterwards: str = "recalibrated"

    @property
    def amount(self) -> str:
        """The threshold or the share in words."""
        return f"above {self.threshold:g}" if self.share is None else f"share {self.share:g}"


@dataclass(frozen=True)
class Run:
    """The frozen description of a run; with a preset it decides every number of the record."""

    network: str = "csnet"
    width: float = 1.0
    split: str = "5/5"
    stages: str = "2-4"
    decay: str = "dynamic"
    decay_weight: float = STANDARD_WEIGHT
    dynamic_weight: float = DYNAMIC_WEIGHT
    seed: int = 0
    pruning: Pruning | None = None

    def description(self, preset: str) -> dict[str, Any]:
        return {"run": asdict(self), "preset": asdict(preset_named(preset))}

    def key(self, preset: str) -> str:
        """A folder name that a person can read, ending in a hash of the whole description."""
        digest = hashlib.sha256(json.dumps(self.description(preset), sort_keys=True).encode()).hexdigest()[:6]
        parts = [f"{self.network}-x{self.width:g}-{self.split.replace('/', '-')}", self.decay, preset, f"s{self.seed}"]
        if self.pruning:
            parts.append(f"{self.pruning.criterion}-{self.pruning.amount.replace(' ', '-')}-{self.pruning.afterwards}")
        return "_".join([*parts, digest])

    @property
    def parent(self) -> Run:
        """The same run before pruning."""
        return replace(self, pruning=None)


@dataclass(frozen=True)
class Declared:
    """A run of the study and the notebook items that wait for it."""

    run: Run
    feeds: tuple[str, ...]


DECAYS_COMPARED = tuple(Run(decay=decay) for decay in ("standard", "dynamic", "dynamic-written"))
#: Tried for both decays; the notebook chooses among them by the validation split. A schedule that leaves every gamma
#: above the threshold makes that row the control: the same network, only recalibrated.
PRUNINGS = (Pruning(threshold=1e-2), Pruning(share=0.8), Pruning(share=0.6), Pruning(share=0.4))
PRUNED = tuple(replace(run, pruning=pruning) for run in DECAYS_COMPARED[:2] for pruning in PRUNINGS)
FINETUNED = Run(pruning=Pruning(share=0.6, afterwards="finetuned"))

STUDY: tuple[Declared, ...] = (
    *(Declared(run, ("Figure 4", "Figure 5", "Figure 14")) for run in DECAYS_COMPARED),
    *(Declared(run, ("Table 10", "Figure 10")) for run in PRUNED),
    Declared(FINETUNED, ("Algorithm 1",)),
)


def preset_named(name: str) -> Preset:
    """The preset of this name. Raises SodlibError for another."""
    if name not in PRESETS:
        raise SodlibError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def best_preset(runs: Sequence[Run], place: Path = records.RESULTS) -> str | None:
    """The best evidence preset at which all these runs have records, so that no table mixes two."""
    for preset in EVIDENCE:
        if all(records.find(run.key(preset), place) for run in runs):
            return preset
    return None


def obtain(
    run: Run,
    preset: str,
    place: Path,
    root: Path | None = None,
    others: Sequence[Path] = (),
    progress: Progress = print,
) -> Record:
    """The record of a run: found in `place` or `others`, else made now and written, with weights, to `place`.

    Making it is to train, or to prune what was trained, and to score on the preset's test sets. Raises SodlibError
    where the data is missing; then nothing is written.
    """
    if found := records.find(run.key(preset), place, *others):
        return found
    settings = preset_named(preset)
    sets = {name: settings.load(name, root) for name in (settings.train, settings.validation, *settings.tests)}
    started, circumstances = time.perf_counter(), records.circumstances()
    if run.pruning:
        parent = obtain(run.parent, preset, place, root, others, progress)
        model, history = _prune(run, parent.model(), settings, sets, progress)
    else:
        model, history = _train(run, settings, sets, progress)
    test_scores = {name: evaluate_all(model, sets[name]) for name in settings.tests}
    inputs = torch.stack(
        [to_input(image, settings.size) for image, _ in read_pairs(sets[settings.validation].subset(range(16), ""))]
    )
    arrays: dict[str, np.ndarray] = {f"gamma/{name}": vector for name, vector in gamma_vectors(model).items()}
    arrays["channel_deviation"] = channel_deviation(model, inputs).astype(np.float32)
    for name, by_protocol in test_scores.items():
        for protocol, result in by_protocol.items():
            for curve, values in result["curve"].items():
                arrays[f"curve/{name}/{protocol}/{curve}"] = values.astype(np.float32)
    data = {
        "key": run.key(preset),
        **run.description(preset),
        "history": history,
        "scores": {name: records.summarise(by_protocol) for name, by_protocol in test_scores.items()},
        "parameters": count_parameters(model),
        "macs": count_macs(model),
        "images": {name: len(saliency_set) for name, saliency_set in sets.items()},
        "fingerprints": {name: saliency_set.fingerprint for name, saliency_set in sets.items()},
        "seconds": time.perf_counter() - started,
        **circumstances,
    }
    return records.write(place, run.key(preset), data, arrays, model)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _recipe(run: Run, settings: Preset) -> Recipe:
    return Recipe(
        epochs=settings.epochs,
        size=settings.size,
        batch=settings.batch,
        learning_rate=settings.learning_rate,
        steps_per_epoch=settings.steps_per_epoch,
        decay=run.decay,
        decay_weight=run.decay_weight,
        dynamic_weight=run.dynamic_weight,
        seed=run.seed,
    )


def _train(
    run: Run, settings: Preset, sets: dict[str, SaliencySet], progress: Progress
) -> tuple[CSNet, list[dict[str, Any]]]:
    seed_everything(run.seed)
    model = CSNet(plan_channels(run.network, run.width, run.split, run.stages), settings.size).to(_device())
    pairs, validation = read_pairs(sets[settings.train]), read_pairs(sets[settings.validation])
    history = train(model, pairs, validation, _recipe(run, settings), progress)
    return model, history


def _prune(
    run: Run, model: CSNet, settings: Preset, sets: dict[str, SaliencySet], progress: Progress
) -> tuple[CSNet, list[dict[str, Any]]]:
    pruning = run.pruning
    model = prune(model, keep(scores(model, pruning.criterion), pruning.threshold, pruning.share)).to(_device())
    pairs, validation = read_pairs(sets[settings.train]), read_pairs(sets[settings.validation])
    if pruning.afterwards == "recalibrated":
        stream = training_batches(pairs, settings.size, settings.batch, np.random.default_rng(run.seed))
        recalibrate(model, (images for images, _ in islice(stream, settings.after_steps)))
        entry = {f"validation_{name}": value for name, value in validate(model, validation, settings.size).items()}
        progress(entry)
        return model, [entry]
    # The forward passes of fine-tuning estimate the batch norm statistics as well.
    recipe = replace(
        _recipe(run, settings),
        epochs=1,
        steps_per_epoch=settings.after_steps,
        learning_rate=settings.learning_rate / 10,
    )
    return model, train(model, pairs, validation, recipe, progress)
