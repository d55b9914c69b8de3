"""The training loop of `sodlib` against a plain one, data included, as ratios in one run.

    python benchmarks/training.py [--data ROOT --set DUTS-TR/train] [--size 112] [--batch 8] [--device cpu]
        [--steps 4] [--rounds 7]

The plain loop is what one writes first: torch's DataLoader decodes, augments and resizes image files without worker
processes, the network computes in float32 and torch's own layout, the optimiser is Adam as it comes. Ours is `Engine`
on `pixels.Stream`. Each runs in a process of its own and they take turns, `steps` steps a round, so that a drift of
the machine's speed hits all; the median of the rounds' ratios counts. At least 1.5 is asked for on two cores.

The distance to the machine: a step must move every feature map that an operation of the network puts out four times,
written and read once forward, its gradient once each backward (batch norm and PReLU are one operation; weights, which
are few, do not count). Bandwidth is that of copying 256 MiB, computing speed that of a large matrix product. A step
of 6 floating-point operations a multiply-add of the forward pass and this traffic takes at least the longer of both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset

import sodlib
from sodlib.data import SaliencySet, find_set, read_pair
from sodlib.decay import DYNAMIC_WEIGHT, STANDARD_WEIGHT, DynamicWeightDecay, parameter_groups
from sodlib.engine import BETAS, Engine
from sodlib.images import to_input, to_target
from sodlib.pixels import CROP_RANGE, Stream, open_pixels

RATE = 1e-4


class Files(Dataset):
    """Image files, decoded and augmented at every access."""

    def __init__(self, saliency_set: SaliencySet, size: int) -> None:
        self.set, self.size, self.random = saliency_set, size, np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.set)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        top, left = self.random.integers(0, CROP_RANGE, 2)
        bottom, right = self.random.integers(1, CROP_RANGE + 1, 2)
        flip = [(slice(None),), (slice(None, None, -1),), (slice(None), slice(None, None, -1)), (slice(None),)]
        image, mask = (
            pixels[top:-bottom, left:-right][flip[self.random.integers(4)]] for pixels in read_pair(self.set, index)
        )
        return to_input(image, self.size), to_target(mask, self.size)


def plain_steps(files: SaliencySet, size: int, batch: int, device: str) -> Iterator[float]:
    """A step a turn; gives the seconds that its data took."""
    torch.manual_seed(0)
    model = sodlib.csnet().to(device).train()
    optimizer = torch.optim.Adam(parameter_groups(model, "dynamic"), lr=RATE, betas=BETAS)
    loader = DataLoader(Files(files, size), batch, shuffle=True, drop_last=True)
    with DynamicWeightDecay(model) as decay:
        while True:
            batches = iter(loader)
            while True:
                start = time.perf_counter()
                pair = next(batches, None)
                if pair is None:
                    break
                images, targets = (tensor.to(device) for tensor in pair)
                seconds = time.perf_counter() - start
                loss = F.binary_cross_entropy_with_logits(model(images), targets)
                optimizer.zero_grad()
                loss.backward()
                decay.add_gradients()
                optimizer.step()
                yield seconds


def our_steps(files: SaliencySet, size: int, batch: int, device: str) -> Iterator[float]:
    """The same by `Engine` and `Stream`."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        stream = Stream(open_pixels(files, Path(folder)).to(torch.device(device)), size, batch, seed=0)
        with Engine(sodlib.csnet().to(device), "dynamic", STANDARD_WEIGHT, DYNAMIC_WEIGHT) as engine:
            step = 0
            while True:
                start = time.perf_counter()
                images, targets = stream.batch(step)
                seconds = time.perf_counter() - start
                engine.step(images, targets, RATE)
                step += 1
                yield seconds


def work(connection: Connection, kind: str, *arguments: Any) -> None:
    """A process that makes so many steps with so many threads whenever it is told to, and answers with the seconds of
    all and of the data alone; or, told 0 steps, with the bandwidth and the computing speed."""
    device = arguments[-1]
    steps = (plain_steps if kind == "plain" else our_steps)(*arguments)
    with closing(steps):
        for count, threads in iter(connection.recv, None):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            data = sum(next(steps) for _ in range(count))
            _wait(device)
            connection.send((time.perf_counter() - start, data) if count else machine(device))


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _fastest(function: Any, device: str) -> float:
    seconds = []
    for _ in range(8):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def machine(device: str) -> tuple[float, float]:
    """Bytes a second of a large copy, counted read and written, and operations a second of a matrix product."""
    source, side = torch.ones(2**26, device=device), 8192 if device == "cuda" else 2048
    target = torch.empty_like(source)
    bandwidth = 2 * 4 * source.numel() / _fastest(lambda: target.copy_(source), device)
    matrix = torch.randn(side, side, device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
    return bandwidth, 2 * side**3 / _fastest(lambda: matrix @ matrix, device)


class FeatureMaps(TorchDispatchMode):
    """Counts the numbers in the feature maps of one image that pass through memory."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        first = result[0] if isinstance(result, tuple) else result
        if isinstance(first, Tensor) and first.dim() == 4 and len(first) == 1 and not function.is_view:
            self.count += 0 if "batch_norm" in str(function) else first.numel()
        return result


def lower_bounds(size: int, batch: int, bytes_a_number: int) -> tuple[float, float]:
    """The bytes that a step moves and its floating-point operations, at least."""
    model = sodlib.csnet().train()
    with FeatureMaps() as maps:
        model(torch.randn(1, 3, size, size))
    return 4 * bytes_a_number * maps.count * batch, 6.0 * sodlib.count_macs(model, size)["conv"] * batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--set", default="cutouts/train")
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    files = find_set(options.set, options.data)
    files = files.subset(range(min(len(files), 40 * options.batch)), files.name)
    context, workers, processes = get_context("spawn"), {}, []
    cpu = options.device == "cpu"
    for name in ("plain", "ours", "ours too")[: 3 if cpu else 2]:
        workers[name], other = context.Pipe()
        arguments = (other, name.split()[0], files, options.size, options.batch, options.device)
        processes.append(context.Process(target=work, args=arguments, daemon=True))
        processes[-1].start()

    def run(names: tuple[str, ...], threads: int, steps: int) -> tuple[float, float]:
        """Images a second of these processes side by side, and the data's share of their time."""
        for name in names:
            workers[name].send((steps, threads))
        answers = [workers[name].recv() for name in names]
        rate = sum(steps * options.batch / seconds for seconds, _ in answers)
        return rate, statistics.mean(data / seconds for seconds, data in answers)

    for name in workers:
        run((name,), 1, 2)
    contests = {"one thread each": (("plain",), 1, ("ours",), 1)}
    if cpu:
        contests["two threads each"] = (("plain",), 2, ("ours",), 2)
        contests["plain with two threads, two of ours with one"] = (("plain",), 2, ("ours", "ours too"), 1)
    results: dict[str, list[tuple[float, ...]]] = {name: [] for name in contests}
    for _ in range(options.rounds):
        for name, (*plain, ours, threads) in contests.items():
            results[name].append((*run(*plain, options.steps), *run(ours, threads, options.steps)))

    print(f"{files.name}, batches of {options.batch} at {options.size}, {options.device}, images a second")
    for name, rounds in results.items():
        plain, plain_data, ours, our_data = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = sorted(fast / slow for slow, _, fast, _ in rounds)
        print(f"  {name if cpu else 'one process each':46s} plain {plain:7.1f}   ours {ours:7.1f}", end="   ")
        print(f"ratio {statistics.median(ratios):.2f} (from {ratios[0]:.2f} to {ratios[-1]:.2f})")
        print(f"  {'  share of the input pipeline':46s} plain {plain_data:6.1%}   ours {our_data:6.1%}")
    moved, operations = lower_bounds(options.size, options.batch, 4 if cpu else 2)
    workers["ours"].send((0, 1))
    bandwidth, speed = workers["ours"].recv()
    step = statistics.median(options.batch / ours for *_, ours, _ in results["one thread each"])
    print(f"  a step of ours {step:.4f} s; memory {moved / bandwidth:.4f} s ({moved / 1e6:.0f} MB", end=" ")
    print(
        f"at {bandwidth / 1e9:.1f} GB/s), computing {operations / speed:.4f} s ({operations / 1e9:.1f} GFLOP", end=" "
    )
    print(f"at {speed / 1e9:.0f} GFLOP/s): {max(moved / bandwidth, operations / speed) / step:.0%} of the possible")
    for name, process in zip(workers, processes, strict=True):
        workers[name].send(None)
        process.join()


if __name__ == "__main__":
    main()
