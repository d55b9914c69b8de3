"""How long networks take: measured in turns within one process, kept as records in `results/runtime/`, one file a part.

In turns, a drift of the machine's speed hits all alike; `speedup` is the median of the ratios within a round.
"""

from __future__ import annotations

import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import networks, runtime
from .channels import ChannelPlan
from .compiled import CompiledCSNet
from .cost import count_macs
from .csnet import CSNet, csnet
from .files import written_whole
from .folding import fold
from .plain import PlainGOctConv, plain
from .poolnet import PoolNet
from .prediction import predict, predict_files, quantise
from .program import DEPTHWISE
from .records import RESULTS, circumstances

FOLDER = "runtime"
#: The parts of page 07.
MEASURED = ("table8", "engines", "layers", "scaling", "roofline", "memory", "folder", "precision", "gpu")
#: Rows of Table 8 that are built here, by the paper's names, and where their layers come from.
TABLE_8 = {"PoolNet": PoolNet, "ENet": lambda: networks.build("enet"), "ESPNetv2": lambda: networks.build("espnetv2")}
#: Parts of a network in the order of the forward pass.
PARTS = ("stem, mixing", "stem, depthwise", "stage 1, mixing", "stage 1, depthwise", "stage 2, mixing",
         "stage 2, depthwise", "stage 3, mixing", "stage 3, depthwise", "stage 4, mixing", "stage 4, depthwise",
         "fusion, mixing", "fusion, dilated", "fusion, merging", "prediction")  # fmt: skip


def built(plan: ChannelPlan | None = None) -> CSNet:
    """A CSNet with random weights whose features neither vanish nor overflow; of width 1 without a plan."""
    torch.manual_seed(0)
    model = csnet() if plan is None else CSNet(plan)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(2, 3, 64, 64))
    return model.eval()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch's threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleaved(runs: Mapping[Any, Callable[[], Any]], rounds: int) -> dict[Any, list[float]]:
    """Seconds of every run in every round, in turns, after one round that does not count."""
    times: dict[Any, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                if number:
                    times[name].append(time.perf_counter() - start)
    return times


def summary(times: Mapping[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """Median, quartiles and least of every run in milliseconds, and how many times as fast as the reference it is, by
    the median over the rounds, with quartiles."""
    result = {}
    for name, values in times.items():
        ratios = np.array(times[reference]) / values
        low, median, high = 1e3 * np.quantile(values, [0.25, 0.5, 0.75])
        slow, ratio, fast = np.quantile(ratios, [0.25, 0.5, 0.75])
        result[name] = {"median_ms": median, "low_ms": low, "high_ms": high, "least_ms": 1e3 * min(values),
                        "speedup": ratio, "speedup_low": slow, "speedup_high": fast, "rounds": len(values)}  # fmt: skip
    return result


def table_8(models: Mapping[str, CSNet], rounds: int, size: int = 224) -> dict[str, Any]:
    """Table 8: every network that is built here, one thread, plain eager torch; and CSNet optimised."""
    everyone = {name: build().eval() for name, build in TABLE_8.items()} | dict(models)
    images = torch.randn(1, 3, size, size)
    with threads(1):
        runs = {name: called(plain(copied(model)), images) for name, model in everyone.items()}
        runs |= {f"{name}, optimised": called(runtime.optimise(model), images) for name, model in models.items()}
        rows = summary(interleaved(runs, rounds), next(iter(models)))
    for name, model in everyone.items():
        rows[name]["macs"] = count_macs(copied(model), size)["conv"]
    return {"size": size, "rows": rows}


def layers(model: CSNet, rounds: int, size: int = 224) -> dict[str, Any]:
    """Milliseconds of PARTS, plain eager and compiled, medians."""
    images = torch.randn(1, 3, size, size)
    slow, quick = plain(copied(model)), CompiledCSNet(fold(model))
    found: dict[str, list[Counter[str]]] = {"eager": [], "optimised": []}
    clock: Counter[str] = Counter()

    def watch(module: nn.Module, part: str) -> None:
        module.register_forward_pre_hook(lambda *_: clock.update({part: -time.perf_counter()}))
        module.register_forward_hook(lambda *_: clock.update({part: time.perf_counter()}))

    for name, block in slow.blocks.items():
        stage = _stage(name)
        watch(block.conv1x1, f"{stage}, mixing")
        for unit in (block.conv3x3_1, block.conv3x3_2):
            watch(unit, f"{stage}, depthwise")
    if slow.oct_fuse is not None:
        for unit, part in (("fuse", "mixing"), ("ms", "dilated"), ("fuse1x1", "merging")):
            watch(getattr(slow.oct_fuse, unit), f"fusion, {part}")
    with threads(1), torch.inference_mode():
        for number in range(rounds + 1):
            clock.clear()
            start = time.perf_counter()
            slow(images)
            clock["prediction"] = time.perf_counter() - start - sum(clock.values())
            steps = quick.seconds(images)
            if number:
                found["eager"].append(Counter(clock))
                found["optimised"].append(_by_part(steps))
    medians = {
        form: {part: 1e3 * statistics.median(each[part] for each in every) for part in PARTS}
        for form, every in found.items()
    }
    return {"size": size, "rounds": rounds, "ms": medians}


def scaling(model: CSNet, rounds: int, sizes: tuple[int, ...], batches: tuple[int, ...]) -> dict[str, Any]:
    """Milliseconds against the side of the image at batch 1, and against the batch at 224, one thread."""
    forms = {"plain eager": plain(copied(model)), "folded torch": runtime.optimise(model, "torch")}
    forms["compiled C"] = runtime.optimise(model, "c")
    shapes = {"size": [(1, side) for side in sizes], "batch": [(batch, min(224, sizes[-1])) for batch in batches]}
    result: dict[str, Any] = {"rounds": rounds}
    runs = {}
    for along, pairs in shapes.items():
        for batch, side in pairs:
            images = torch.randn(batch, 3, side, side)
            runs |= {
                (along, name, side if along == "size" else batch): called(form, images) for name, form in forms.items()
            }
    with threads(1):
        for (along, name, x), values in interleaved(runs, rounds).items():
            low, median, high = 1e3 * np.quantile(values, [0.25, 0.5, 0.75])
            point = {"x": x, "median_ms": median, "low_ms": low, "high_ms": high, "least_ms": 1e3 * min(values)}
            result.setdefault(along, {}).setdefault(name, []).append(point)
    return result


def roofline(model: CSNet, rounds: int, size: int = 224) -> dict[str, Any]:
    """What one core can do (products of matrices, a copy), and what the network asks for at least: its MACs, and the
    bytes that the layers read and write, each one once, in the plain network and in the compiled program."""
    a, b = torch.randn(2, 768, 768)
    block = torch.randn(16 << 20)
    target = torch.empty_like(block)
    with threads(1):
        times = interleaved({"product": lambda: a @ b, "copy": lambda: target.copy_(block)}, rounds)
    moved = 0

    def count(_: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal moved
        moved += sum(x.nbytes for x in _tensors(inputs)) + sum(x.nbytes for x in _tensors(output))

    slow = plain(copied(model))
    for module in slow.modules():
        if isinstance(module, PlainGOctConv) or not list(module.children()):
            module.register_forward_hook(count)
    with torch.inference_mode():
        slow(torch.randn(1, 3, size, size))
    return {
        "size": size,
        "macs": count_macs(model, size)["conv"],
        "bytes_plain": moved,
        "bytes_compiled": CompiledCSNet(fold(model)).bytes_moved(size, size),
        "macs_per_second": 768**3 / min(times["product"]),
        "bytes_per_second": 2 * block.nbytes / min(times["copy"]),
    }


def memory(rounds: int = 3) -> dict[str, Any]:
    """Peak resident megabytes of fresh processes (Linux only): with the library imported, with the shipped network
    loaded, after one prediction; medians."""
    program = r"""
import re, sys
from pathlib import Path
peaks = []
def peak():
    peaks.append(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
import numpy as np, sodlib
peak()
model = sodlib.load("csnet-x1-fast")
peak()
model = model if sys.argv[1] == "eager" else sodlib.optimise(model, sys.argv[1])
sodlib.predict(model, np.zeros((300, 400, 3), np.uint8), 224)
peak()
print(*peaks)
"""
    result = {}
    for engine in ("eager", "torch", "c"):
        command = [sys.executable, "-c", program, engine]
        found = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(rounds)]
        peaks = np.median([[float(number) for number in line.split()] for line in found], axis=0)
        result[engine] = dict(zip(("imported_mb", "loaded_mb", "predicted_mb"), peaks.tolist(), strict=True))
    return result


def folder(model: nn.Module, photographs: Sequence[Path], rounds: int) -> dict[str, Any]:
    """Photographs a second from files to files: one after the other, and in the pipeline of `sodlib predict`."""
    quick = runtime.optimise(model)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:

        def write_map(index: int, found: np.ndarray) -> None:
            Image.fromarray(found).save(Path(place) / f"{index}.png")

        def one_by_one(network: nn.Module) -> None:
            for index, path in enumerate(photographs):
                write_map(index, quantise(predict(network, path)))

        def pipeline() -> None:
            for _ in predict_files(quick, photographs, write_map):
                pass

        runs = {
            "one by one, eager": lambda: one_by_one(model),
            "one by one, compiled C": lambda: one_by_one(quick),
            "pipeline, compiled C": pipeline,
        }
        rates = {
            name: [len(photographs) / value for value in values] for name, values in interleaved(runs, rounds).items()
        }
    return {"photographs": len(photographs), "per_second": {n: statistics.median(v) for n, v in rates.items()}}


def shown(fresh: bool, place: Path) -> dict[str, dict[str, Any]]:
    """The parts of page 07: the committed records; or a few rounds on small images, made anew and written below
    `place`, of the parts that need no further package."""
    if not fresh:
        return {part: found for part in MEASURED if (found := read(part))}
    model, size, rounds = built(), 64, 2
    images = torch.randn(1, 3, size, size)
    forms = {"plain eager": plain(copied(model)), "folded torch": runtime.optimise(model, "torch")}
    forms["compiled C"] = CompiledCSNet(fold(model))
    rows = summary(interleaved({name: called(form, images) for name, form in forms.items()}, rounds), "plain eager")
    contents = {
        "engines": {"size": size, "photographs": 0, "of": "none", "networks": {"CSNet×1": {"batch 1": rows}}},
        "table8": table_8({"CSNet×1": model}, rounds, 128),
        "layers": layers(model, rounds, size),
        "roofline": roofline(model, rounds, size),
        "memory": memory(1),
        "scaling": scaling(model, rounds, (32, 48, 64), (1, 2)),
    }
    for part, content in contents.items():
        write(part, content, place)
    return {part: read(part, place) for part in contents}


def write(part: str, content: dict[str, Any], place: Path = RESULTS) -> None:
    """Keep a part with the circumstances of its measurement."""
    text = json.dumps(content | {"circumstances": circumstances()}, indent=1)
    with written_whole(place / FOLDER / f"{part}.json") as beside:
        beside.write_text(text + "\n")


def read(part: str, place: Path = RESULTS) -> dict[str, Any] | None:
    """A part's record, None where there is none."""
    path = place / FOLDER / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else None


def exponent(points: list[dict[str, float]]) -> float:
    """The slope of time over x in logarithms."""
    x, y = (np.log([point[name] for point in points]) for name in ("x", "median_ms"))
    return float(np.polyfit(x, y, 1)[0])


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).eval()


def called(model: nn.Module, images: Tensor) -> Callable[[], Any]:
    return lambda: model(images)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _stage(name: str) -> str:
    number = name.removeprefix("stage").partition(".")[0]
    return "stem" if number == "0" else f"stage {number}"


def _by_part(steps: list[tuple[str, int, float]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for layer, kind, seconds in steps:
        if layer.startswith("stage"):
            part = f"{_stage(layer)}, {'depthwise' if kind == DEPTHWISE else 'mixing'}"
        elif layer.startswith("fusion"):
            part = "fusion, " + ("mixing", "dilated", "merging")[int(layer[-1])]
        else:
            part = "prediction"
        found[part] += seconds
    return found
