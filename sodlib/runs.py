"""How a run of the study becomes a record: training or pruning, scores on the test sets, one folder."""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from . import distributed, gallery, networks, records
from .channels import plan_channels
from .data import SaliencySet
from .description import Run
from .errors import SodlibError, memory_named
from .features import DEVIATION_IMAGES
from .making import Making
from .mean_mask import MEAN_MASK
from .presets import Preset
from .progress import Observer, Silent
from .records import Record
from .roles import Roles, opened, roles_of
from .scoring import classified, describe, localised, scored
from .training import assist
from .unfinished import Checkpoint, Paused


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
    if distributed.part()[0] > 0:
        _assist({one.key(preset): one for one in run.chain}, preset, where)
        distributed.leave()
        raise SystemExit
    try:
        record = _obtain(run, preset, where, weights)
    except Paused:
        distributed.dismiss()
        raise
    distributed.dismiss()
    return record


def _assist(chain: Mapping[str, Run], preset: str, where: Surroundings) -> None:
    while training := distributed.hear():
        key, model, recipe, optimizer = training
        run = chain[key]
        settings = run.settings(preset)
        roles = roles_of(run, settings, where.root)
        with memory_named(f"process {distributed.part()[0]}"):
            pixels = opened(settings.load(roles.train, where.root), run, roles, where.root).near(_device())
            assist(model.to(_device()), pixels, recipe, optimizer)


def _obtain(run: Run, preset: str, where: Surroundings, weights: bool) -> Record:
    key = run.key(preset)

    def found() -> Record | None:
        record = records.find(key, where.place, *where.others)
        return record if record and (record.has_weights or not weights) else None

    if record := found():
        return record
    settings = run.settings(preset)
    # An unknown network is refused before a folder is made for it.
    if run.pretraining and run.network in (*networks.NAMES, MEAN_MASK):
        raise SodlibError(f"{run.network} has no stages to train as a classifier first; leave out the pre-training")
    if run.network in networks.NAMES:
        if run.decay != "standard":
            raise SodlibError(f"{run.network} has no ILBlocks for {run.decay} decay; declare it with standard decay")
    elif run.network != MEAN_MASK:
        plan_channels(run.network, run.width, run.split, run.stages)
    roles = roles_of(run, settings, where.root)
    sets = {name: settings.load(name, where.root) for name in roles.names}
    parent = _obtain(run.parent, preset, where, weights=True) if run.has_parent else None
    with claim(where.place, key):
        # Another process may have made it while this one waited.
        if record := found():
            return record
        try:
            with memory_named(key):
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
    checkpoint = Checkpoint(checkpoint_file(where.place, key), where.saved, circumstances["hardware"])
    pixels = {name: opened(sets[name], run, roles, where.root).near(device) for name in roles.watched}
    making = Making(run, settings, roles, pixels, checkpoint, device, where.observer, where.deadline)
    model, history = making.made(parent and parent.model())
    started = time.monotonic()
    first = range(min(DEVIATION_IMAGES, len(sets[roles.validation])))
    described, arrays = describe(model, pixels[roles.validation].squares(first, settings.size)[0])
    scores = {}
    for name in roles.tests:
        if run.activation_map:
            images = opened(sets[name], run, roles, where.root)
            scores[name], of_images = localised(model, name, images, run.activation_map)
        elif run.classification:
            images = opened(sets[name], run, roles, where.root).near(device)
            scores[name], of_images = classified(model, name, images)
            if run.is_pretraining:  # the logits of ImageNet's images would be 100 MB
                of_images = {}
        else:
            scores[name], of_images = scored(model, sets[name])
        arrays |= of_images
    if not run.classification:
        arrays["maps"] = gallery.maps(model)
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
        "hardware": ", then ".join(checkpoint.made_on),
    }
    untrained = run.activation_map or run.network == MEAN_MASK
    record = records.write(where.place, key, data, arrays, None if untrained else model)
    checkpoint.remove()
    return record


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
