"""Records of runs: `results/<key>/`, from which every number of a notebook comes.

A record holds `record.json` (description, history, scores, counts, what made it), `arrays.npz` (curves and
snapshots, small) and, where a notebook shows the network, `weights.safetensors`. It is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .checkpoints import load, save
from .curves import unpack
from .errors import SodlibError
from .metrics import bootstrap, interval

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "results"


@dataclass(frozen=True)
class Record:
    """One finished run, read from its folder."""

    folder: Path

    @property
    def key(self) -> str:
        return self.folder.name

    @cached_property
    def data(self) -> dict[str, Any]:
        """The content of `record.json`. Raises SodlibError where it is missing or damaged."""
        path = self.folder / "record.json"
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise SodlibError(f"{path}: not a readable record ({error}); delete the folder and run again") from error
        if not isinstance(data, dict) or not isinstance(data.get("scores"), dict):
            raise SodlibError(f"{path}: not a whole record (no scores); delete the folder and run again")
        return data

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """The content of `arrays.npz`. Raises SodlibError where it is missing or damaged."""
        path = self.folder / "arrays.npz"
        try:
            with np.load(path) as arrays:
                return dict(arrays)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise SodlibError(f"{path}: not readable ({error}); delete the folder and run again") from error

    @cached_property
    def scales_by_layer(self) -> dict[str, np.ndarray]:
        """|gamma| of the channels of every layer inside the ILBlocks ("stage3.0.conv1x1"), its resolutions one after
        the other, in order. Empty for a network without ILBlocks."""
        layers: dict[str, list[np.ndarray]] = {}
        for name, values in self.arrays.items():
            if name.startswith("gamma/"):
                layers.setdefault(name.removeprefix("gamma/").partition(".bns.")[0], []).append(np.abs(values))
        return {layer: np.concatenate(values) for layer, values in layers.items()}

    def scales(self, layers: str = "") -> np.ndarray:
        """|gamma| of all channels inside the ILBlocks, or of those layers whose name begins so ("stage3.")."""
        return np.concatenate([values for name, values in self.scales_by_layer.items() if name.startswith(layers)])

    def by_image(self, test_set: str, protocol: str = "released") -> dict[str, Any]:
        """Precision and recall at some thresholds and MAE of every image of a test set, for `metrics.bootstrap` and
        `metrics.paired`. Raises SodlibError where the run was not scored on the set."""
        prefix = f"images/{test_set}/"
        return unpack({k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}, protocol)

    @property
    def has_weights(self) -> bool:
        return (self.folder / "weights.safetensors").exists()

    def model(self) -> nn.Module:
        """The trained network. Raises SodlibError where the record came without weights."""
        if not self.has_weights:
            raise SodlibError(f"record {self.key} holds no weights; run it again with `sodlib study run`")
        return load(self.folder / "weights.safetensors")


def find(key: str, *places: Path) -> Record | None:
    """The record of this key in the first of the folders that has it."""
    for place in places:
        if (place / key / "record.json").exists():
            return Record(place / key)
    return None


def every(place: Path) -> list[Record]:
    """All records below a folder, by name; not those that are being written."""
    return [Record(path.parent) for path in sorted(place.glob("[!.]*/record.json"))]


def write(
    place: Path,
    key: str,
    data: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    model: nn.Module | None = None,
) -> Record:
    """Write a record beside its place, then move it there; an older record of the key gives way."""
    beside = place / f".{key}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{key}.", dir=place))
        (beside / "record.json").write_text(json.dumps(data, indent=1) + "\n")
        np.savez_compressed(beside / "arrays.npz", **arrays)
        if model is not None:
            save(model, beside / "weights.safetensors")
        beside.chmod(0o755)
        with tempfile.TemporaryDirectory(prefix=f".{key}.", dir=place) as away:
            if (place / key).exists():
                os.replace(place / key, Path(away) / key)
            os.replace(beside, place / key)
    except OSError as error:
        raise SodlibError(f"{place / key}: the record cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return Record(place / key)


def summarise(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scores of one set by several protocols as plain numbers, with 95 % bootstrap intervals over the images
    (10,000 resamples)."""
    summary = {}
    for protocol, result in scores.items():
        draws = bootstrap(result)
        summary[protocol] = {
            "images": result["images"],
            "max_f": result["max_f"],
            "max_f_interval": interval(draws["max_f"]),
            "mae": result["mae"],
            "mae_interval": interval(draws["mae"]),
        }
    return summary


def circumstances() -> dict[str, Any]:
    """Hardware, library versions and commit of this moment, for a record."""
    return {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "pillow")},
        },
        "commit": _commit(),
    }


def hardware() -> str:
    """The GPU's name, else the processor's and its number of cores."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    name = cpu("model name") or platform.processor() or platform.machine()
    return f"{name}, {cores()} core{'' if cores() == 1 else 's'}"


def cpu(*fields: str) -> str:
    """What the system says of the first processor in the first of these fields that it has; "" where it says none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(fields)), "")


def _commit() -> str | None:
    """The commit of the checkout, marked where files of the package differ from it; None outside of one."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", "sodlib")
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
