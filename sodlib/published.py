"""Networks with their authors' weights, scored by the protocol of this project: `results/published/<name>/`.

The weights themselves are not ours to publish; the scores and the maps of the embedded photographs are kept.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from torch import nn

from . import gallery, records
from .cost import count_macs, count_parameters
from .data import SaliencySet
from .errors import SodlibError
from .records import RESULTS, Record
from .runs import claim
from .scoring import scored

FOLDER = "published"


def measure(model: nn.Module, name: str, images: SaliencySet, place: Path = RESULTS) -> Record:
    """Score the network on a set and write that into the record of this name, beside the sets that it has already.
    Raises SodlibError for a name that is no plain one, or that of another network."""
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise SodlibError(f"{name!r} cannot name a record; give letters, digits, - and _, such as u2net-p")
    folder, started = place / FOLDER, time.monotonic()
    _before(folder, name, model)
    (scores, arrays), maps = scored(model, images), gallery.maps(model)
    # What another process has written of another set meanwhile stays.
    with claim(place, f"{FOLDER}-{name}"):
        before = _before(folder, name, model)
        data = before.data if before else {"scores": {}, "images": {}, "fingerprints": {}}
        data = {
            "key": name,
            "parameters": count_parameters(model),
            "macs": count_macs(model),
            "input_size": model.input_size,
            "scores": data["scores"] | {images.name: scores},
            "images": data["images"] | {images.name: len(images)},
            "fingerprints": data["fingerprints"] | {images.name: images.fingerprint},
            "evaluation_seconds": time.monotonic() - started,
            **records.circumstances(),
        }
        arrays = (before.arrays if before else {}) | arrays | {"maps": maps}
        return records.write(folder, name, data, arrays)


def _before(folder: Path, name: str, model: nn.Module) -> Record | None:
    """The record of this name, if there is one. Raises SodlibError for that of another network."""
    before = records.find(name, folder)
    if before and before.data["parameters"] != count_parameters(model):
        raise SodlibError(
            f"{before.folder} is of a network with {before.data['parameters']:,} parameters; give this one another "
            "name, or delete the folder"
        )
    return before


def every(place: Path = RESULTS) -> dict[str, Record]:
    """The records of such networks by name."""
    return {record.key: record for record in records.every(place / FOLDER)}
