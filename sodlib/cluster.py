"""The queue of runs on a cluster, by ray (the optional extra `cluster`): a run for every core or share of a GPU.

The nodes need torch and the data sets, but no checkout and no common files: the package travels with the queue, and an
actor on the queue's machine, the keeper, hands a node what a run begins with and takes what it makes.
"""

from __future__ import annotations

import math
import os
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import records
from .data import EMBEDDED_SETS, data_root
from .description import Run
from .errors import SodlibError
from .jobs import PAUSED, SHORTEST
from .presets import preset_named
from .progress import Lines
from .records import REPOSITORY, Record
from .runs import Surroundings, checkpoint_file, claim, obtain
from .study import is_recorded
from .unfinished import Checkpoint, Paused

#: The share of a GPU that a run gets where the cluster has GPUs: alone, so small a network leaves most of one idle.
GPU_SHARE = 1 / 4
#: How often a run is started again after its worker or its node was lost.
RETRIES = 3


class Keeper:
    """Reads and writes below `place` for nodes that cannot; ray makes it an actor on the queue's machine.

    It listens to the worker that began a run last: one that was given up for lost changes nothing any more.
    """

    def __init__(self, place: Path, commit: str | None) -> None:
        self.place, self.commit = place, commit
        self.turns: Counter[str] = Counter()
        self.lines: list[str] = []

    def begin(self, run: Run, preset: str, node: str, deadline: float) -> tuple[int, float, dict[str, bytes]]:
        """A worker begins the run: its turn, the seconds until `deadline` of this machine's clock, and the files to
        begin with by path below `place`, the checkpoint and the records of the run and its training."""
        key = run.key(preset)
        self.turns[key] += 1
        if self.turns[key] > 1:
            self.lines.append(f"{key}: begins again on {node}")
        folders = {self.place / key, self.place / run.parent.key(preset)}
        paths = [checkpoint_file(self.place, key), *(path for folder in folders for path in folder.glob("*"))]
        files = {str(path.relative_to(self.place)): path.read_bytes() for path in paths if path.is_file()}
        return self.turns[key], deadline - time.monotonic(), files

    def keep(self, key: str, turn: int, content: bytes) -> None:
        """Take a checkpoint. Raises SodlibError where it cannot be written."""
        if turn == self.turns[key]:
            Checkpoint(checkpoint_file(self.place, key)).put(content)

    def deliver(self, key: str, turn: int, files: dict[str, bytes]) -> None:
        """Take a record, whole or not at all. Raises SodlibError where it cannot be written."""
        if turn == self.turns[key]:
            with tempfile.TemporaryDirectory() as folder:
                record = Record(Path(folder))
                _unpack(files, record.folder)
                # The copy of the package that made it is no checkout: its commit is the queue's.
                data = {**record.data, "commit": self.commit}
                model = record.model() if record.has_weights else None
                records.write(self.place, key, data, record.arrays, model)
            Checkpoint(checkpoint_file(self.place, key)).remove()

    def say(self, line: str) -> None:
        """A line for whoever watches the queue."""
        self.lines.append(line)

    def said(self) -> list[str]:
        """The lines since the last call."""
        lines, self.lines = self.lines, []
        return lines


class _Told(Lines):
    """Lines that go to the keeper."""

    def __init__(self, keeper: Any) -> None:
        super().__init__(named=True)
        self._keeper = keeper

    def _write(self, line: str) -> None:
        self._keeper.say.remote(line)


def make(run: Run, preset: str, root: Path | None, deadline: float, keeper: Any) -> tuple[int, str]:
    """Make a run on a node, with the files of the keeper: an exit code as of `sodlib study one`, and the sentence
    that goes with a mistake. `root` counts where it exists on the node, else the node's own SODLIB_DATA."""
    key, node = run.key(preset), socket.gethostname()
    if root and not root.is_dir():
        if not os.environ.get("SODLIB_DATA"):
            return 2, f"{key}: {node} has no folder {root}; put the sets there or set SODLIB_DATA where ray is started"
        root = None
    import ray

    # ray has given the run one core, but told torch too late.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="sodlib-") as folder:
        place = Path(folder)
        turn, seconds, files = ray.get(keeper.begin.remote(run, preset, node, deadline))
        _unpack(files, place)
        weights = run.starts_others
        if is_recorded(run, preset, place, weights):
            # A worker was lost right after it delivered.
            return 0, ""
        where = Surroundings(
            place,
            root,
            observer=_Told(keeper),
            deadline=time.monotonic() + max(0, seconds - SHORTEST / 4),
            saved=lambda path: ray.get(keeper.keep.remote(key, turn, path.read_bytes())),
        )
        try:
            record = obtain(run, preset, where, weights=weights)
            made = {path.name: path.read_bytes() for path in record.folder.iterdir()}
            ray.get(keeper.deliver.remote(key, turn, made))
        except Paused:
            return PAUSED, ""
        except SodlibError as error:
            # What the keeper raises comes wrapped in its traceback.
            return 2, f"{key} on {node}: {getattr(error, 'cause', error)}"
    return 0, ""


class RayWorkers:
    """Every core of a ray cluster makes a run, or every share of a GPU where there are any; `count` at most.

    `address`: "auto" for the cluster that this machine belongs to, host:port of its head, or "local" to start one
    here. Records go to `place`, whichever node makes them. A run whose worker or node is lost goes on elsewhere from
    its last checkpoint. Raises SodlibError where ray is not installed, nothing answers, or the data root is missing.
    """

    def __init__(self, preset: str, place: Path, root: Path | None, address: str, count: int | None = None) -> None:
        self.preset, self.place, self.count = preset, place.resolve(), count
        found = None if _embedded(preset) else data_root(root)
        self.root = found and found.resolve()
        self.ray = ray = _connected(address)
        self.gpus = "GPU" in ray.cluster_resources()
        node = ray.get_runtime_context().get_node_id()
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
        keeper = ray.remote(Keeper).options(num_cpus=0, scheduling_strategy=here)
        self.keeper = keeper.remote(self.place, records.circumstances()["commit"])
        self.make = ray.remote(make).options(num_cpus=1, num_gpus=GPU_SHARE if self.gpus else 0, max_retries=RETRIES)
        self.running: dict[Any, tuple[Run, ExitStack]] = {}

    def free(self) -> bool:
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        shares = (node.get("GPU", 0) / GPU_SHARE if self.gpus else math.inf for node in nodes)
        room = sum(int(min(node.get("CPU", 0), share)) for node, share in zip(nodes, shares, strict=True))
        # A cluster that grows on demand must see some.
        return len(self.running) < min(max(room, 1), self.count or math.inf)

    def start(self, run: Run, seconds: float) -> None:
        claims = ExitStack()
        # For other queues; this one has just asked whether the run is free.
        claims.enter_context(claim(self.place, run.key(self.preset), wait=False))
        task = self.make.remote(run, self.preset, self.root, time.monotonic() + seconds, self.keeper)
        self.running[task] = run, claims

    def wait(self) -> list[tuple[Run, int]]:
        ended, _ = self.ray.wait(list(self.running), timeout=0.5)
        try:
            lines = self.ray.get(self.keeper.said.remote())
        except self.ray.exceptions.RayActorError as error:
            reason = str(error).partition("\n")[0]
            raise SodlibError(f"the keeper of the records was lost ({reason}); the same command goes on") from error
        for line in lines:
            print(line, flush=True)
        results = []
        for task in ended:
            run, claims = self.running.pop(task)
            claims.close()
            try:
                code, sentence = self.ray.get(task)
            except self.ray.exceptions.RayError as error:
                code, sentence = 1, f"{run.key(self.preset)}: {error}"
            if sentence:
                print(sentence, file=sys.stderr, flush=True)
            results.append((run, code))
        return results

    def stop(self) -> None:
        # Ends the workers of this queue and, with "local", the cluster.
        self.ray.shutdown()
        for _, claims in self.running.values():
            claims.close()
        self.running.clear()


def _connected(address: str) -> ModuleType:
    """ray, connected to the cluster, with this package for its nodes."""
    # A cluster that is started here reports nothing to its makers; one that does not answer is not asked for minutes.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address != "local":
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ModuleNotFoundError as error:
        raise SodlibError("ray is not installed; `pip install 'sodlib[cluster]'` installs it") from error
    try:
        if address not in ("auto", "local"):
            # ray itself tries for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, port), timeout=10).close()
        with tempfile.TemporaryDirectory() as folder:
            # With the labels, and the photographs that every network's maps are kept of.
            for part in ("sodlib", "data/cutouts", "data/photos", "data/labels"):
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(REPOSITORY / part, Path(folder) / part, ignore=ignored)
            options = {"include_dashboard": False} if address == "local" else {}
            options |= {"log_to_driver": False, "logging_level": "ERROR"}
            ray.init(address, runtime_env={"working_dir": folder}, **options)
    # ray answers with nearly any exception: ConnectionError, RuntimeError, ValueError, Exception.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise SodlibError(f"no cluster answers at --ray {address} ({reason}); `ray start` starts one") from error
    return ray


def _embedded(preset: str) -> bool:
    return preset_named(preset).train in EMBEDDED_SETS


def _unpack(files: dict[str, bytes], folder: Path) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
