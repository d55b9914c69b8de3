"""How long CSNet takes on the processor, for page 07: every part goes into `results/runtime/`.

    python benchmarks/runtime.py [--released FOLDER] [--data ROOT] [--rounds 50] [--only PART ...]

FOLDER holds csnet-L-x2.npz (or random weights stand in: time does not depend on them) and the channel plans
csnet-L-x1.channels.json and csnet-L-x2.channels.json. Everything of one part is timed in turns in one process.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import sodlib
from sodlib import data, metrics, runtime, timing
from sodlib.channels import ChannelPlan
from sodlib.compiled import CompiledCSNet
from sodlib.folding import fold
from sodlib.gallery import PHOTOS
from sodlib.images import to_input
from sodlib.plain import plain
from sodlib.quantisation import quantised
from sodlib.timing import called, copied

PARTS = ("engines", "table8", "layers", "roofline", "memory", "folder", "scaling", "precision")


SIZES, BATCHES = (96, 160, 224, 320, 448, 608, 768), (1, 2, 4, 8, 16)


def networks(folder: Path) -> dict[str, sodlib.csnet]:
    plans = {f"CSNet×{width}-L": ChannelPlan.from_json(folder / f"csnet-L-x{width}.channels.json") for width in (1, 2)}
    found = {"CSNet×1": timing.built()} | {name: timing.built(plan) for name, plan in plans.items()}
    if (released := folder / "csnet-L-x2.npz").exists():
        archive = np.load(released)
        tensors = {name.removeprefix("sd/"): archive[name] for name in archive if name.startswith("sd/")}
        found["CSNet×2-L"] = sodlib.load_released(tensors, folder / "csnet-L-x2.channels.json")
    return found


def calibration(count: int = 64) -> list[torch.Tensor]:
    images = data.find_set("cutouts/train").images[:count]
    return [to_input(data.read_image(path), 224)[None] for path in images]


def photographs(root: Path | None, count: int = 50) -> tuple[str, torch.Tensor]:
    """Of the benchmark where it is at hand, else the embedded ones; and their name."""
    embedded = [*sorted(PHOTOS.glob("*.jpg")), *data.find_set("cutouts/test").images]
    name, paths = ("ECSSD", data.find_set("ECSSD", root).images) if root else ("embedded", embedded)
    return name, torch.stack([to_input(data.read_image(path), 224) for path in paths[:count]])


def forms(model: sodlib.csnet, content: bytes) -> dict[str, torch.nn.Module]:
    """What runs one network in float32, by name; the engines take torch's number of threads as it is now."""
    return {
        "plain eager": plain(copied(model)),
        "eager, channels last": copied(model).to(memory_format=torch.channels_last),
        "folded torch": runtime.optimise(model, "torch"),
        "ONNX Runtime": runtime.OnnxRuntime(fold(model), content),
        "OpenVINO": runtime.OpenVino(fold(model), content=content),
        "compiled C": CompiledCSNet(fold(model)),
    }


def further(model: sodlib.csnet, content: bytes) -> dict[str, torch.nn.Module]:
    """torch.compile, and half and 8-bit precision."""
    small = quantised(fold(model), calibration())
    return {
        "torch.compile": runtime.optimise(model, "torch.compile"),
        "folded torch, bfloat16": Half(fold(model).to(torch.bfloat16, memory_format=torch.channels_last)),
        "OpenVINO, bfloat16": runtime.OpenVino(fold(model), "bf16", content),
        "ONNX Runtime, int8": runtime.OnnxRuntime(fold(model), small),
        "OpenVINO, int8": runtime.OpenVino(fold(model), content=small),
    }


class Half(torch.nn.Module):
    """A bfloat16 network behind float32 input and output."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.input_size = network, network.input_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network(images.bfloat16().contiguous(memory_format=torch.channels_last)).float()


def engines(models: dict, rounds: int, root: Path | None) -> dict:
    """Every engine and network; what is done is written at once. torch.compile and other precisions: the larger one at
    batch 1 alone."""
    source, checked = photographs(root)
    content = {name: runtime.onnx_content(fold(models[name])) for name in ("CSNet×2-L", "CSNet×1-L")}
    part: dict = {"size": 224, "photographs": len(checked), "of": source, "networks": {name: {} for name in content}}
    for batch, count, many in ((1, 1, rounds), (16, 2, max(2, rounds // 10))):
        for name in content:
            model = models[name]
            with timing.threads(count), torch.inference_mode():
                every = forms(model, content[name])
                if batch == 1 and name == "CSNet×2-L":
                    every |= further(model, content[name])
                images = torch.randn(batch, 3, 224, 224)
                runs = {form: called(one, images) for form, one in every.items()}
                rows = timing.summary(timing.interleaved(runs, many), "plain eager")
                # Random weights amplify rounding more than any engine differs.
                if batch == 1 and name == "CSNet×2-L":
                    expected = torch.cat([model(image[None]) for image in checked])
                    for form, one in every.items():
                        logits = torch.cat([one(image[None]) for image in checked])
                        rows[form]["difference"] = (logits - expected).abs().max().item()
                part["networks"][name][f"batch {batch}, {count} thread{'s' if count > 1 else ''}"] = rows
            print(name, batch, {form: round(row["speedup"], 2) for form, row in rows.items()}, flush=True)
            timing.write("engines", part)
    return part


def precision(models: dict, root: Path) -> dict:
    """Max F and MAE of every precision on ECSSD, by the released protocol."""
    model, images = models["CSNet×2-L"], data.find_set("ECSSD", root)
    content, small = runtime.onnx_content(fold(model)), quantised(fold(model), calibration())
    every = {
        "float32, compiled C": CompiledCSNet(fold(model)),
        "int8, ONNX Runtime": runtime.OnnxRuntime(fold(model), small),
        "int8, OpenVINO": runtime.OpenVino(fold(model), content=small),
        "bfloat16, OpenVINO": runtime.OpenVino(fold(model), "bf16", content),
        "bfloat16, folded torch": Half(fold(model).to(torch.bfloat16, memory_format=torch.channels_last)),
    }
    rows = {}
    for name, one in every.items():
        score = metrics.evaluate(one, images)
        rows[name] = {"max_f": float(score["max_f"]), "mae": float(score["mae"]), "images": score["images"]}
        print(name, rows[name], flush=True)
        timing.write("precision", {"set": "ECSSD", "rows": rows})
    return {"set": "ECSSD", "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--released", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "golden")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    models, rounds = networks(arguments.released), arguments.rounds
    large = models["CSNet×2-L"]
    parts = {
        "engines": lambda: engines(models, rounds, arguments.data),
        "table8": lambda: timing.table_8(models, max(2, rounds // 2)),
        "layers": lambda: timing.layers(large, max(2, rounds // 2)),
        "roofline": lambda: timing.roofline(large, max(2, rounds // 2)),
        "memory": timing.memory,
        "folder": lambda: timing.folder(large, data.find_set("cutouts/test").images[:24], max(2, rounds // 10)),
        "scaling": lambda: timing.scaling(large, max(2, rounds // 10), SIZES, BATCHES),
        "precision": lambda: precision(models, arguments.data),
    }
    for part in arguments.only:
        if part == "precision" and not arguments.data:
            continue
        timing.write(part, parts[part]())
        print(part, "done", flush=True)


if __name__ == "__main__":
    main()
