"""Running time on one GPU: latency at batch 1 with CUDA graphs, throughput at the best batch; 224 x 224.

    python benchmarks/runtime_gpu.py OUTPUT.json [--channels FOLDER] [--rounds 100]

FOLDER holds the channel plans csnet-L-x1.channels.json and csnet-L-x2.channels.json; without it, CSNet-x1 alone is
measured. Weights are random: time does not depend on them. Needs torch alone. On an H100 the first five rows took 42
seconds, some seven of them measuring and the rest the start and the first calls; --seconds says when to stop.

The JSON: "hardware", "torch", "cuda", "rounds" and "rows". A row has "network", "form" (eager: the network as it is
trained; optimised: `sodlib.folding.fold`; compiled: that through torch.compile), "precision" (tf32: float32 whose
products take numbers rounded to 10 bits, torch's default for convolutions; bfloat16), "measure" (latency:
milliseconds an image at batch 1; throughput: images a second), "batch", "median", "low" and "high" (quartiles),
"difference" (largest, of the logits, from the eager network in float32) and "seconds", or "error" where it has none.
"""

import argparse
import copy
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

import sodlib
from sodlib.channels import ChannelPlan
from sodlib.csnet import CSNet
from sodlib.folding import fold

SIZE = 224
BATCHES = (32, 128, 256)
PRECISIONS = {"tf32": torch.float32, "bfloat16": torch.bfloat16}
MEASURES = ("latency", "throughput")
NO_TIME = "TimeoutError: no time was left"


def networks(folder: Path | None) -> dict[str, CSNet]:
    """Networks with random weights whose features neither vanish nor overflow."""
    found = {"CSNet-x1": sodlib.csnet()}
    for name in ("csnet-L-x1", "csnet-L-x2") if folder else ():
        found[name] = CSNet(ChannelPlan.from_json(folder / f"{name}.channels.json"))
    for model in found.values():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None
        model.cuda().train()
        with torch.no_grad():
            model(torch.randn(4, 3, SIZE, SIZE, device="cuda"))
        model.eval()
    return found


def timed(model: nn.Module, images: torch.Tensor, rounds: int, graph: bool) -> list[float]:
    """Milliseconds of every round."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(4):
            model(images)
    torch.cuda.synchronize()

    def run() -> None:
        model(images)

    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            model(images)
        run = captured.replay
    times = []
    for _ in range(rounds + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return times[3:]


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {"low": low, "median": median, "high": high}


def as_run(model: CSNet, form: str, dtype: torch.dtype) -> nn.Module:
    """The network in this form and precision, channels last."""
    network = copy.deepcopy(model) if form == "eager" else fold(model)
    network = network.to(dtype=dtype, memory_format=torch.channels_last)
    return torch.compile(network, dynamic=False) if form == "compiled" else network


def latency(run: nn.Module, image: torch.Tensor, rounds: int) -> dict:
    return {"batch": 1} | quartiles(timed(run, image, rounds, graph=True))


def throughput(run: nn.Module, image: torch.Tensor, rounds: int, batches: tuple[int, ...]) -> dict:
    """Images a second at the best of these batches."""
    best: dict = {}
    for batch in batches:
        images = image.expand(batch, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        rates = quartiles([1e3 * batch / value for value in timed(run, images, max(10, rounds // 5), graph=False)])
        if not best or rates["median"] > best["median"]:
            best = {"batch": batch} | rates
    return best


def measured(model: CSNet, form: str, precision: str, measure: str, rounds: int) -> dict:
    """The numbers of one row; where it fails an "error" instead, so that it does not cost the others."""
    row, start = {}, time.monotonic()
    image, dtype = torch.randn(1, 3, SIZE, SIZE, device="cuda"), PRECISIONS[precision]
    try:
        if form == "compiled":
            torch._dynamo.reset()
        allow_tf32(False)
        expected = model(image)
        allow_tf32(precision == "tf32")
        run = as_run(model, form, dtype)
        single = image.to(dtype=dtype, memory_format=torch.channels_last)
        row["difference"] = (run(single).float() - expected).abs().max().item()
        # Each batch would be compiled anew: the compiled network is given one.
        batches = (128,) if form == "compiled" else BATCHES
        row |= latency(run, single, rounds) if measure == "latency" else throughput(run, single, rounds, batches)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
    return row | {"seconds": time.monotonic() - start}


def allow_tf32(allowed: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--channels", type=Path)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60, help="start no further row after so long")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    start = time.monotonic()
    record = {
        "hardware": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "rounds": arguments.rounds,
        "rows": [],
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    # What is most asked for comes first, and what takes minutes to compile last.
    rows = itertools.product(("optimised", "eager", "compiled"), MEASURES, PRECISIONS)
    with torch.inference_mode():
        built = networks(arguments.channels)
        for (form, measure, precision), (name, model) in itertools.product(rows, built.items()):
            row = {"network": name, "form": form, "precision": precision, "measure": measure}
            late = time.monotonic() - start > arguments.seconds
            found = {"error": NO_TIME} if late else measured(model, form, precision, measure, arguments.rounds)
            record["rows"].append(row | found)
            arguments.output.write_text(json.dumps(record, indent=1) + "\n")
    for row in record["rows"]:
        print(row)
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
