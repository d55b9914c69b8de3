"""What the project holds: the networks that ship with it and their records, and what all records cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from . import records
from .checkpoints import MODELS
from .description import CENTRE
from .evidence import Evidence
from .records import Record


def costs(every: Sequence[Record]) -> pd.DataFrame:
    """What these records took, by preset and hardware: how many, and hours of training and of scoring."""
    rows = [
        {
            # Tries for a preset have its name and their numbers.
            "preset": " ".join([(name := record.data["preset"]["name"]).partition("-")[0], *["tries"] * ("-" in name)]),
            "hardware": _machines(record.data["hardware"]),
            "runs": 1,
            "training (h)": record.data["seconds"] / 3600,
            "scoring (h)": record.data["evaluation_seconds"] / 3600,
        }
        for record in every
    ]
    return pd.DataFrame(rows).groupby(["preset", "hardware"], as_index=False).sum()


def trained(found: Mapping[str, Evidence]) -> dict[str, int]:
    """How many networks were trained for these items, by preset; prunings of one training count once."""
    presets = {
        record.key: record.data["preset"]["name"]
        for item in found.values()
        for run, several in item.records.items()
        if run.starts_others and run != CENTRE
        for record in several
    }
    return dict(Counter(presets.values()).most_common())


def _machines(hardware: str) -> str:
    """Without the numbers of cores; of a run that was stopped and went on elsewhere, all its machines."""
    return ", then ".join(machine.split(",")[0] for machine in hardware.split(", then "))


def shipped() -> dict[str, Record]:
    """The records of the networks that ship with the project, by name (`models/records.csv`)."""
    table = pd.read_csv(MODELS / "records.csv")
    found = {row.network: records.find(row.record, records.RESULTS) for row in table.itertuples()}
    return {name: record for name, record in found.items() if record}
