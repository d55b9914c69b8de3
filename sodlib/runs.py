"""How a run of the study becomes a record: training or pruning, scores on the test sets, one folder."""

from __future__ import annotations

import fcntl
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from . import distributed, labels, records
from .channels import ChannelPlan, plan_channels
from .classifier import Classifier
from .csnet import CSNet
from .data import SaliencySet
from .errors import SodlibError
from .mean_mask import MEAN_MASK, MeanMask, mean_mask
from .pixels import Pixels, Stream, open_pixels
from .presets import Preset, preset_named
from .progress import Observer, Silent
from .pruning import keep, prune, recalibrate
from .records import Record
from .roles import Roles, opened, roles_of
from .scoring import classified, describe, scored
from .study import Run
from .training import Recipe, assist, seed_everything, train, validate
from .unfinished import Checkpoint, Paused

#: Images of the validation split on which the channels' deviation is taken (Figure 4).
DEVIATION_IMAGES = 16


@dataclass(frozen=True)
class Surroundings:
    """Where runs are made and who watches.

    `place`: the folder of the records; `root`: the data root; `others`: further folders whose records count;
    `deadline`, of `time.monotonic`: the run stops there with a checkpoint and raises Paused; `saved` is called with
    every checkpoint's file.
    """

    place: Path
    root: Path | None = None
    others: Sequence[Path] = ()
    observer: Observer = field(default_factory=Silent)
    deadline: float = math.inf
    saved: Callable[[Path], None] = lambda _: None


def checkpoint_file(place: Path, key: str) -> Path:
    """Where the checkpoint of a run lies until its record is written."""
    return place / ".unfinished" / f"{key}.pt"


@contextmanager
def claim(place: Path, key: str, wait: bool = True) -> Iterator[bool]:
    """Be the only process that makes this run below `place`; without `wait`, whether that succeeded.

    The claim ends with the process, however it ends. Its empty file stays: deleting it would let two processes hold
    the same claim.
    """
    path = checkpoint_file(place, key).with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise SodlibError(f"{path.parent}: cannot be written ({error.strerror}); name another --results") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def obtain(run: Run, preset: str, where: Surroundings, weights: bool = False) -> Record:
    """The record of a run: found, else made now and written, with weights, to `where.place`. `weights`: a record
    without the network does not count.

    Making it is to train, or to prune what was trained, and to score on the preset's test sets and every other
    benchmark that is present. Raises SodlibError where data is missing, memory ends or the loss is no longer a number,
    and Paused at the deadline; then no record is written and the last checkpoint stays.

    Of the processes that `torchrun` has started, the first one makes the record and returns; the others, which only
    need the training images, take part in the trainings and end here, with exit code 0. Recalibration and scores are
    the work of the first one alone. Afterwards it has no others any more.
    """
    distributed.join()
    if distributed.joined() and (run.images or run.classification):
        raise SodlibError(f"{run.key(preset)} is trained on labelled images, in one process; start it without torchrun")
    if distributed.part()[0] > 0:
        _assist(preset_named(preset), where)
        distributed.leave()
        raise SystemExit
    try:
        record = _obtain(run, preset, where, weights)
    except Paused:
        distributed.dismiss()
        raise
    distributed.dismiss()
    return record


def _assist(settings: Preset, where: Surroundings) -> None:
    while training := distributed.hear():
        model, recipe, optimizer = training
        with _memory_named(f"process {distributed.part()[0]}"):
            pixels = _near(open_pixels(settings.load(settings.train, where.root)), _device())
            assist(model.to(_device()), pixels, recipe, optimizer)


def _obtain(run: Run, preset: str, where: Surroundings, weights: bool) -> Record:
    key = run.key(preset)

    def found() -> Record | None:
        record = records.find(key, where.place, *where.others)
        return record if record and (record.has_weights or not weights) else None

    if record := found():
        return record
    settings = preset_named(preset)
    # An unknown network is refused before a folder is made for it.
    if run.network != MEAN_MASK:
        plan_channels(run.network, run.width, run.split, run.stages)
    roles = roles_of(run, settings, where.root)
    sets = {name: settings.load(name, where.root) for name in roles.names}
    parent = _obtain(run.parent, preset, where, weights=True) if run.has_parent else None
    with claim(where.place, key):
        # Another process may have made it while this one waited.
        if record := found():
            return record
        try:
            with _memory_named(key):
                return _make(run, parent, settings, roles, sets, where)
        finally:
            where.observer.close()


def _make(
    run: Run,
    parent: Record | None,
    settings: Preset,
    roles: Roles,
    sets: dict[str, SaliencySet],
    where: Surroundings,
) -> Record:
    key, device = run.key(settings.name), _device()
    circumstances = records.circumstances()
    if distributed.joined():
        # Its speed tells nothing about runs in one process.
        circumstances["hardware"] += f", {distributed.part()[1]} processes"
    checkpoint = Checkpoint(checkpoint_file(where.place, key), saved=where.saved)
    pixels = {name: _near(opened(sets[name], run, where.root), device) for name in roles.names[: -len(roles.tests)]}
    making = _Making(run, settings, roles, pixels, checkpoint, where)
    network = parent and parent.model()
    if run.network == MEAN_MASK:
        model, history = making.averaged()
    else:
        model, history = making.pruned(network) if run.pruning else making.trained(network)
    started = time.monotonic()
    first = range(min(DEVIATION_IMAGES, len(sets[roles.validation])))
    described, arrays = describe(model, pixels[roles.validation].squares(first, settings.size)[0])
    scores = {}
    for name in roles.tests:
        if run.classification:
            scores[name], of_images = classified(model, name, _near(opened(sets[name], run, where.root), device))
        else:
            scores[name], of_images = scored(model, sets[name])
        arrays |= of_images
    data = {
        "key": key,
        **run.description(settings.name),
        "history": history,
        "scores": scores,
        **described,
        "images": {name: len(saliency_set) for name, saliency_set in sets.items()},
        "fingerprints": {name: saliency_set.fingerprint for name, saliency_set in sets.items()},
        "seconds": sum(entry["seconds"] + entry.get("scoring_seconds", 0) for entry in history),
        "evaluation_seconds": time.monotonic() - started,
        **circumstances,
    }
    record = records.write(where.place, key, data, arrays, model if isinstance(model, CSNet) else None)
    checkpoint.remove()
    return record


@dataclass(frozen=True)
class _Making:
    """What training and pruning share."""

    run: Run
    settings: Preset
    roles: Roles
    pixels: dict[str, Pixels]
    checkpoint: Checkpoint
    where: Surroundings

    def averaged(self) -> tuple[MeanMask, list[dict[str, Any]]]:
        started = time.monotonic()
        model = mean_mask(self.pixels[self.roles.train], self.settings.size)
        return model, [{"seconds": time.monotonic() - started, **self._validated(model)}]

    def _validated(self, model: torch.nn.Module) -> dict[str, float]:
        scores = validate(model, self.pixels[self.roles.validation], self.settings.size)
        return {f"validation_{name}": value for name, value in scores.items()}

    def trained(self, network: CSNet | None) -> tuple[CSNet, list[dict[str, Any]]]:
        run, settings = self.run, self.settings
        seed_everything(run.seed)
        plan = plan_channels(run.network, run.width, run.split, run.stages)
        model = self._classifier(plan, network) if run.classification else CSNet(plan, settings.size)
        recipe = self._recipe()
        if run.recipe == "written":
            recipe = replace(recipe, last_step=self._steps() - settings.after_steps)
        return self._train(model, recipe)

    def _classifier(self, plan: ChannelPlan, network: CSNet | None) -> Classifier:
        how, train = self.run.classification, self.roles.train
        model = Classifier(plan, len(labels.class_names(train)), self.settings.size).to(_device())
        if network is not None:
            model.take_features_of(network)
        elif how.tuned != "all":
            stream = self._stream()
            recalibrate(model, (stream.batch(step)[0] for step in range(self.settings.after_steps)))
        model.tune(how.tuned)
        return model

    def pruned(self, model: CSNet) -> tuple[CSNet, list[dict[str, Any]]]:
        pruning = self.run.pruning
        model = prune(
            model,
            keep(
                model,
                pruning.criterion,
                threshold=self.settings.redundant if pruning.redundant else pruning.threshold,
                parameters=pruning.parameters,
                ranking=pruning.ranking,
            ),
        )
        if pruning.afterwards == "recalibrated":
            return self._recalibrated(model.to(_device()))
        # The forward passes of fine-tuning estimate the batch norm statistics as well, from a first batch on.
        recalibrate(model, [self._stream().batch(0)[0]])
        recipe, after = self._recipe(), self.settings.after_steps
        if self.run.recipe == "written":
            recipe = replace(recipe, first_step=self._steps() - after)
        else:
            recipe = replace(recipe, epochs=1, steps_per_epoch=after, learning_rate=recipe.learning_rate / 10)
        return self._train(model, recipe)

    def _train(self, model: CSNet, recipe: Recipe) -> tuple[CSNet, list[dict[str, Any]]]:
        settings = self.settings
        history = train(
            model.to(_device()),
            self.pixels[self.roles.train],
            self.pixels[self.roles.validation],
            recipe,
            self.where.observer,
            name=self.run.key(settings.name),
            follow={self.roles.follow: self.pixels[self.roles.follow]} if self.roles.follow else None,
            checkpoint=self.checkpoint,
            deadline=self.where.deadline,
        )
        return model, history

    def _recalibrated(self, model: CSNet) -> tuple[CSNet, list[dict[str, Any]]]:
        settings, checkpoint, observer = self.settings, self.checkpoint, self.where.observer
        stream = self._stream()
        state = checkpoint.read() or {"step": 0, "seconds": 0.0}
        if state["step"]:
            model.load_state_dict(state["model"])
        first, steps, started = state["step"], settings.after_steps, time.monotonic()
        observer.start(self.run.key(settings.name), steps, first)

        def images() -> Iterator[torch.Tensor]:
            for step in range(first, steps):
                yield stream.batch(step)[0]
                observer.step(step + 1)
                paused = time.monotonic() > self.where.deadline and step + 1 < steps
                if paused or checkpoint.due():
                    seconds = state["seconds"] + time.monotonic() - started
                    checkpoint.write({"model": model.state_dict(), "step": step + 1, "seconds": seconds})
                if paused:
                    raise Paused

        if first < steps:
            recalibrate(model.to(memory_format=torch.channels_last), images(), reset=first == 0)
        entry = {"seconds": state["seconds"] + time.monotonic() - started, **self._validated(model)}
        observer.epoch(entry)
        return model.eval(), [entry]

    def _stream(self) -> Stream:
        settings, recipe = self.settings, self._recipe()
        return Stream(self.pixels[self.roles.train], settings.size, settings.batch, recipe.seed, recipe.augmentation)

    def _recipe(self) -> Recipe:
        run, settings = self.run, self.settings
        return Recipe(
            epochs=settings.epochs,
            size=settings.size,
            batch=settings.batch,
            learning_rate=settings.learning_rate,
            steps_per_epoch=settings.steps_per_epoch,
            decay=run.decay,
            decay_weight=run.decay_weight,
            dynamic_weight=run.dynamic_weight,
            augmentation=run.recipe,
            seed=run.seed,
            beta2=settings.beta2,
        )

    def _steps(self) -> int:
        settings = self.settings
        return settings.epochs * (settings.steps_per_epoch or len(self.pixels[self.roles.train]) // settings.batch)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _near(pixels: Pixels, device: torch.device) -> Pixels:
    """The pixels in the device's memory where they leave half of it free."""
    if device.type == "cuda" and pixels.words.nbytes < torch.cuda.mem_get_info(device)[0] / 2:
        return pixels.to(device)
    return pixels


@contextmanager
def _memory_named(who: str) -> Iterator[None]:
    """Say in one sentence where memory ran out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise SodlibError(f"{who}: memory ran out; run fewer --jobs at once or a smaller network") from error


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or bool(
        re.search("allocate memory|not enough memory|out of memory", str(error))
    )
