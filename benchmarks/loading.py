"""Loading of training images against the training step, on one thread: decode, augment and resize, step.

python benchmarks/loading.py [--data ROOT --set DUTS-TR/train] [--size 224] [--batch 24]
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch.nn import functional as F

import sodlib
from sodlib.data import find_set
from sodlib.decay import DynamicWeightDecay, parameter_groups
from sodlib.training import BETAS, read_pairs, training_batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--set", default="cutouts/train")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = find_set(arguments.set, arguments.data).subset(range(2 * arguments.batch), "part")
    model = sodlib.csnet().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(parameter_groups(model, "dynamic"), lr=1e-4, betas=BETAS)
    decay = DynamicWeightDecay(model)

    start = time.perf_counter()
    pairs = read_pairs(dataset)
    decode = (time.perf_counter() - start) / 2
    stream = training_batches(pairs, arguments.size, arguments.batch, np.random.default_rng(0))
    prepares, steps = [], []
    for _ in range(arguments.rounds + 1):
        start = time.perf_counter()
        images, targets = next(stream)
        ready = time.perf_counter()
        loss = F.binary_cross_entropy_with_logits(model(images.contiguous(memory_format=torch.channels_last)), targets)
        optimizer.zero_grad()
        loss.backward()
        decay.add_gradients()
        optimizer.step()
        steps.append(time.perf_counter() - ready)
        prepares.append(ready - start)
    step = statistics.median(steps[1:])
    print(
        f"{arguments.set}, batches of {arguments.batch} at {arguments.size}, one thread; "
        f"as shares of the step ({step:.2f} s)"
    )
    print(f"  decode (once, kept in memory)  {decode / step:.3f}")
    print(f"  augment, resize, normalise     {statistics.median(prepares[1:]) / step:.3f}")


if __name__ == "__main__":
    main()
