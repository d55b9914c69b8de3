"""How the short presets were found: what was tried for a budget of images, and what the validation split said."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from . import records
from .description import Run
from .evidence import Evidence
from .presets import FIRST_FAST, PRESETS, PUBLISHED_RATE, PUBLISHED_STEPS, TRIED, Preset
from .severing import severed
from .training import redundant_scale

#: The two rates of `fast`. The first stays a preset of its own, since its networks are scored.
RATES = (FIRST_FAST, PRESETS["fast"])


def tried(place: Path = records.RESULTS) -> pd.DataFrame:
    """One row a try, csnet-x1 with dynamic decay and seed 0, by preset: batch, learning rate, beta2 of Adam, epochs,
    and from its record the steps, their product with the rate over the published one, where a scale that no loss holds
    ends by that schedule, validation max F-measure and MAE, gammas below 1e-2 and 1e-20, severed layers, images a
    second of the whole training and the hardware. A try without a record has empty cells. "kept as" names the preset
    that has its numbers."""
    rows = []
    for preset in TRIED:
        row = {
            "tried for": preset.name.partition("-")[0],
            "batch": preset.batch,
            "learning rate": preset.learning_rate,
            "beta2": preset.beta2,
            "epochs": preset.epochs,
        }
        if record := records.find(Run().key(preset.name), place):
            last = record.data["history"][-1]
            row |= {
                "steps": last["steps"],
                "rate x steps, published = 1": last["steps"]
                * preset.learning_rate
                / (PUBLISHED_STEPS * PUBLISHED_RATE),
                "redundant scale ends at": redundant_scale(preset.learning_rate, last["steps"], beta2=preset.beta2)[-1],
                "validation max F": last["validation_max_f"],
                "validation MAE": last["validation_mae"],
                "gammas below 1e-2": last["gammas_below_1e-2"],
                "gammas below 1e-20": last["gammas_below_1e-20"],
                "severed layers": severed([record]),
                "images/s": last["steps"] * preset.batch / sum(entry["seconds"] for entry in record.data["history"]),
                "hardware": record.data["hardware"],
            }
        kept = [name for name in ("brief", "lite", "fast") if _same(PRESETS[name], preset)]
        rows.append(row | {"kept as": "".join(kept)})
    return pd.DataFrame(rows)


def tried_histories(budget: str, place: Path = records.RESULTS) -> dict[str, list[list[dict[str, Any]]]]:
    """The histories of the recorded tries for a preset with the released beta2, by learning rate."""
    found = {
        preset.learning_rate: records.find(Run().key(preset.name), place)
        for preset in TRIED
        if preset.name.partition("-")[0] == budget and preset.beta2 == Preset.beta2
    }
    return {f"{rate:g}": [record.data["history"]] for rate, record in sorted(found.items()) if record}


def at_rates(runs: Iterable[Run], presets: Sequence[Preset] = RATES, place: Path = records.RESULTS) -> Evidence:
    """The records of these runs at both rates of `fast` or at one, each run named with its learning rate."""
    found = {
        replace(run, learning_rate=preset.learning_rate): records.find(run.key(preset.name), place)
        for run in runs
        for preset in presets
    }
    return Evidence(
        "Learning rate", presets[-1], (0,), {run: (record,) if record else () for run, record in found.items()}
    )


def _same(first: Preset, second: Preset) -> bool:
    decisive = ("train", "size", "batch", "learning_rate", "epochs", "beta2")
    return all(getattr(first, name) == getattr(second, name) for name in decisive)
