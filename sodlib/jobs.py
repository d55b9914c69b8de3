"""The queue of runs: which comes next, several at once, within the given minutes, and what it will cost."""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Protocol

import torch

from . import labels, networks, records
from .channels import plan_channels
from .cost import count_macs, paper_macc
from .description import Run
from .errors import SodlibError
from .mean_mask import MEAN_MASK
from .presets import PRESETS, Preset, preset_named
from .progress import duration
from .records import REPOSITORY, Record
from .runs import checkpoint_file, claim
from .study import Declared, is_recorded

#: Exit code of a worker that stopped with a checkpoint; 0 is recorded, 2 a mistake that it told in one sentence.
PAUSED = 75
#: No run is started with less time than this left, in seconds.
SHORTEST = 20
#: DUTS-TR without its validation split, for an estimate where the set is not at hand.
TRAINING_IMAGES = {"DUTS-TR/train": 10_050, "DUTS-TR/train-2000": 2000}


def units(run: Run, preset: Preset) -> float:
    """How much work a run is, in the paper's MACC: three forward passes for a training step, one for a step of
    recalibration (of the network before pruning, since what is left is not known beforehand). NaN for a network whose
    package is not installed."""
    if run.network == MEAN_MASK or run.activation_map or (run.classification and run.classification.tuned == "probe"):
        return 0.0
    preset = run.settings(preset.name)
    steps_per_epoch = preset.steps_per_epoch or _images(run, preset) // preset.batch
    steps = preset.after_steps if run.pruning else preset.epochs * steps_per_epoch
    only_forward = run.pruning and run.pruning.afterwards != "finetuned"
    passes = 1 if only_forward or (run.classification and run.classification.tuned == "linear") else 3
    if run.network in networks.NAMES:
        return steps * preset.batch * passes * _macs(run.network, preset.size)
    plan = plan_channels(run.network, run.width, run.split, run.stages)
    return steps * preset.batch * passes * paper_macc(plan, -(-preset.size // 16) * 16)


@cache
def _images(run: Run, preset: Preset) -> int:
    """The training images of a run, by the labels where it takes only those of some."""
    part = run.classification.images if run.classification else run.images
    return len(labels.part(labels.categories("DUTS-TR"), part, "DUTS-TR")) if part else TRAINING_IMAGES[preset.train]


@cache
def _macs(name: str, size: int) -> float:
    try:
        with torch.device("meta"):
            return count_macs(networks.build(name, size), size)["conv"]
    except SodlibError:  # its package is not installed
        return math.nan


def rates(found: Iterable[Record], hardware: str) -> dict[tuple[bool, str], float]:
    """Seconds a unit by kind (pruned or not) and preset, the median over the records made on this hardware at a preset
    that still exists. Records that cannot be read tell nothing (`study check` names them)."""
    samples: dict[tuple[bool, str], list[float]] = {}
    for record in found:
        try:
            data = record.data
            if data.get("hardware") != hardware or not (preset := PRESETS.get(data["preset"]["name"])):
                continue
            run, seconds = Run.described(data["run"]), data["seconds"] + data["evaluation_seconds"]
        except (SodlibError, KeyError, TypeError, AttributeError):
            continue
        if (work := units(run, preset)) > 0:
            samples.setdefault((run.pruning is not None, preset.name), []).append(seconds / work)
    return {kind: statistics.median(values) for kind, values in samples.items()}


def estimate(run: Run, preset: Preset, known: dict[tuple[bool, str], float]) -> float:
    """The seconds that a run will take, from the records of this hardware: of the same preset, else of another; NaN
    without any, and where the network cannot be built here."""
    pruned = run.pruning is not None
    rate = known.get((pruned, preset.name)) or max(
        (value for (kind, _), value in known.items() if kind == pruned), default=math.nan
    )
    return units(run, preset) * rate


def pending(declared: Collection[Declared], preset: str, place: Path) -> list[Run]:
    """The runs without a record, and the trainings that they start from, in the order in which they are worked: those
    that most tables and figures wait for first, seed by seed, the cheaper of two; what starts from a training right
    after it."""
    missing = [entry for entry in declared if not is_recorded(entry.run, preset, place)]
    waiting: dict[Run, set[str]] = {}
    for entry in missing:
        run = entry.run
        waiting.setdefault(run, set()).update(entry.feeds)
        while run.has_parent and not is_recorded(run.parent, preset, place, weights=True):
            run = run.parent
            waiting.setdefault(run, set()).update(entry.feeds)

    def rank(training: Run) -> tuple[int, int, float, str]:
        items = set().union(*(feeds for run, feeds in waiting.items() if run.chain[0] == training))
        work = units(training, preset_named(preset))
        return training.seed, -len(items), math.inf if math.isnan(work) else work, training.key(preset)

    ranks = {training: rank(training) for training in {run.chain[0] for run in waiting}}
    return sorted(waiting, key=lambda run: (ranks[run.chain[0]], len(run.chain), run.key(preset)))


class Workers(Protocol):
    """Whoever makes runs for the queue."""

    def free(self) -> bool:
        """Whether one more run can be started now."""

    def start(self, run: Run, seconds: float) -> None:
        """Begin to make a run that must stop after so many seconds."""

    def wait(self) -> list[tuple[Run, int]]:
        """The runs that have ended since, with their exit codes; after a short while also none."""

    def stop(self) -> None:
        """End what still runs; checkpoints stay."""


class LocalWorkers:
    """Processes on this machine, one a run, `count` at once: they share its cores, and each takes the GPU that fewest
    are on. A run that crashes takes no other with it."""

    def __init__(self, preset: str, place: Path, root: Path | None, count: int = 1) -> None:
        self.preset, self.place, self.root, self.count = preset, place, root, count
        self.running: dict[subprocess.Popen[bytes], tuple[Run, str]] = {}
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        self.gpus = given.split(",") if given else [str(index) for index in range(torch.cuda.device_count())]

    def free(self) -> bool:
        return len(self.running) < self.count

    def start(self, run: Run, seconds: float) -> None:
        command = [sys.executable, "-m", "sodlib", "study", "one", run.key(self.preset), "--preset", self.preset]
        command += ["--results", str(self.place), *(["--data", str(self.root)] if self.root else [])]
        command += ["--minutes", str(seconds / 60)] if math.isfinite(seconds) else []
        command += ["--several"] if self.count > 1 else []
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [environment.get("PYTHONPATH")])])
        environment["OMP_NUM_THREADS"] = str(max(1, records.cores() // self.count))
        on = Counter(gpu for _, gpu in self.running.values())
        gpu = min(self.gpus, key=lambda one: on[one], default="")
        if gpu:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        # The worker ends when its standard input does: with this process, however that ends.
        self.running[subprocess.Popen(command, env=environment, stdin=subprocess.PIPE)] = run, gpu

    def wait(self) -> list[tuple[Run, int]]:
        ended = [process for process in self.running if process.poll() is not None]
        if not ended:
            time.sleep(0.1)
        return [(self.running.pop(process)[0], process.returncode) for process in ended]

    def stop(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()
        self.running.clear()


@dataclass
class Outcome:
    """What became of the runs of one call."""

    recorded: list[Run] = field(default_factory=list)
    paused: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)
    left: list[Run] = field(default_factory=list)


def work(
    declared: Sequence[Declared],
    preset: str,
    place: Path,
    workers: Workers,
    minutes: float | None = None,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Make the declared runs that have no record, within so many minutes; what is under way then stops with a
    checkpoint, from which the next call goes on. A run that fails does not keep others from being made."""
    deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
    outcome, queue = Outcome(), pending(declared, preset, place)
    known = rates(records.every(place), records.hardware())
    total, active = len(queue), set()

    def ready(run: Run) -> bool:
        return not run.has_parent or (
            run.parent not in {*queue, *active} and is_recorded(run.parent, preset, place, weights=True)
        )

    def elsewhere(run: Run) -> bool:
        with claim(place, run.key(preset), wait=False) as ours:
            return not ours

    try:
        while queue or active:
            for run in [run for run in queue if run.parent in {*outcome.failed, *outcome.paused}]:
                queue.remove(run)
                if run.parent in outcome.failed:
                    outcome.failed[run] = "its training failed"
                else:
                    outcome.left.append(run)
            left = deadline - time.monotonic()
            while workers.free() and left > SHORTEST and (run := next(filter(ready, queue), None)):
                queue.remove(run)
                if is_recorded(run, preset, place, weights=run.starts_others):
                    total -= 1
                    continue
                if elsewhere(run):
                    say(f"{run.key(preset)} is being made by another process")
                    outcome.left.append(run)
                    continue
                active.add(run)
                workers.start(run, left)
            if left <= SHORTEST:
                outcome.left += queue
                queue.clear()
            if not active and queue and not any(map(ready, queue)):
                # What they wait for is being made by another process.
                outcome.left += queue
                queue.clear()
            for run, code in workers.wait() if active else ():
                active.discard(run)
                _note(outcome, run, code)
                if code == 0:
                    rest = sum(estimate(run, preset_named(preset), known) for run in [*queue, *active])
                    time_left = "" if math.isnan(rest) or not rest else f", about {duration(rest)} of work left"
                    say(f"{len(outcome.recorded)} of {total} runs recorded{time_left}")
            if time.monotonic() > deadline + SHORTEST:
                outcome.paused += active
                break
    finally:
        workers.stop()
    return outcome


def _note(outcome: Outcome, run: Run, code: int) -> None:
    if code == 0:
        outcome.recorded.append(run)
    elif code == PAUSED:
        outcome.paused.append(run)
    elif code < 0:
        reason = "; perhaps memory ran out, run fewer --jobs at once" if code == -9 else ""
        outcome.failed[run] = f"its process was ended by signal {-code}{reason}"
    else:
        outcome.failed[run] = "see its message above"


def named(key: str, preset: str, declared: Sequence[Declared]) -> Run:
    """The declared run of this key. Raises SodlibError for another."""
    for entry in declared:
        if key == entry.run.key(preset):
            return entry.run
    raise SodlibError(f"no declared run has the key {key!r} at {preset}; `sodlib study list` shows them")


def has_checkpoint(run: Run, preset: str, place: Path) -> bool:
    """Whether the run is under way."""
    return checkpoint_file(place, run.key(preset)).exists()
