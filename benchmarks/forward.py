"""Forward pass against a plain transcription of the specification, one thread, 224 x 224, as ratios in one run.

    python benchmarks/forward.py [--released CHECKPOINT CHANNELS]

The plain one runs a module for every step and a convolution for every pair of scales, on tensors as torch lays them
out. Ours is timed as `predict` runs it, channels last, and once more in the plain one's layout. Rounds alternate, so
that a drift of the machine's speed hits all; the median of the ratios counts. At least 1.0 is asked for.
"""

import argparse
import statistics
import time

import torch
from torch import nn

import sodlib
from sodlib.checkpoints import read_checkpoint
from sodlib.plain import plain


def seconds(model: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    model(images)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--released", nargs=2, metavar=("CHECKPOINT", "CHANNELS"))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    builders = {"CSNet-x1": sodlib.csnet}
    if arguments.released:
        checkpoint, channels = arguments.released
        builders["released"] = lambda: sodlib.load_released(read_checkpoint(checkpoint), channels)
    images = torch.randn(1, 3, 224, 224)
    for name, build in builders.items():
        torch.manual_seed(0)
        ours = build().eval()
        torch.manual_seed(0)
        other = plain(build().eval())
        layouts = {"as predict runs it": torch.channels_last, "in the plain layout": torch.contiguous_format}
        ratios = {layout: [] for layout in layouts}
        with torch.inference_mode():
            for _ in range(arguments.rounds + 2):
                slow = seconds(other, images)
                for layout, memory_format in layouts.items():
                    ratios[layout].append(slow / seconds(ours, images.contiguous(memory_format=memory_format)))
        print(f"{name}: time of the plain one over ours, {arguments.rounds} rounds")
        for layout, values in ratios.items():
            values = values[2:]
            print(f"  {layout:20s} {statistics.median(values):.2f}  (from {min(values):.2f} to {max(values):.2f})")


if __name__ == "__main__":
    main()
