"""Where the time of an evaluation goes: forward pass, and all the rest, on one thread.

python benchmarks/evaluation.py --data ROOT [--set ECSSD] [--images 1000]
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

import sodlib
from sodlib.data import find_set, read_image, read_mask
from sodlib.images import resize, to_input
from sodlib.metrics import score
from sodlib.prediction import quantise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data")
    parser.add_argument("--set", default="ECSSD")
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dataset = find_set(arguments.set, arguments.data)
    dataset = dataset.subset(range(min(arguments.images, len(dataset))), dataset.name)
    model = sodlib.csnet().eval()
    spent = dict.fromkeys(("read", "input", "forward", "resize back", "score"), 0.0)

    def timed(what: str, function: Callable[..., Any], *values: Any) -> Any:
        start = time.perf_counter()
        result = function(*values)
        spent[what] += time.perf_counter() - start
        return result

    with torch.inference_mode():
        for image_path, mask_path in zip(dataset.images, dataset.masks, strict=True):
            image = timed("read", read_image, image_path)
            mask = timed("read", read_mask, mask_path)
            inputs = timed("input", to_input, image, 224)
            logits = timed("forward", model, inputs[None])
            probability = timed("resize back", lambda x, size: resize(x.sigmoid(), *size), logits[0, 0], mask.shape)
            timed("score", score, quantise(probability.nan_to_num().numpy()), mask)
    forward = spent["forward"]
    print(
        f"{dataset.name}, {len(dataset)} images, one thread; times as multiples of the forward pass ({forward:.1f} s)"
    )
    for what, value in spent.items():
        print(f"  {what:12s} {value / forward:6.3f}   {value:6.1f} s")
    print(f"  all but the forward pass {sum(spent.values()) - forward:.1f} s")


if __name__ == "__main__":
    main()
