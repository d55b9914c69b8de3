"""Whether the records of a folder can be trusted together: whole, of one data set each, and still declared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

import numpy as np

from .description import Run
from .errors import SodlibError
from .presets import PRESETS
from .published import FOLDER
from .records import Record
from .study import Declared

#: What `record.json` must hold.
REQUIRED = ("key", "run", "preset", "history", "scores", "parameters", "macs", "images", "fingerprints", "seconds",
            "evaluation_seconds", "hardware", "threads", "versions", "commit")  # fmt: skip


def check_records(place: Path, declared: Collection[Declared], root: Path | None = None) -> list[tuple[str, str]]:
    """(key, problem) for every problem of the records below `place`.

    A set's fingerprint is compared with the set below the data root, or without one with that of the most records.
    Pruning leaves the scales gamma that it keeps as they are, so that those of its record are among the parent's.
    Raises SodlibError where there is no such folder.
    """
    if not place.is_dir():
        raise SodlibError(f"{place}: there is no such folder of records")
    keys = {entry.run.key(preset) for entry in declared for preset in PRESETS}
    folders = sorted(path for path in place.iterdir() if path.is_dir())
    problems, whole = [], {}
    for folder in folders:
        if folder.name in ("tables", "runtime", FOLDER, ".unfinished"):
            continue
        if folder.name.startswith("."):
            problems.append((folder.name, "was left half written; delete it"))
        elif incomplete := next(_incomplete(Record(folder)), None):
            problems.append((folder.name, f"is incomplete ({incomplete}); delete it and run again"))
        else:
            whole[folder.name] = Record(folder)
            if folder.name not in keys:
                problems.append((folder.name, "is no longer declared; delete it, or declare its run in study.py"))
    seen: dict[str, Counter[str]] = {}
    for record in whole.values():
        for name, fingerprint in record.data["fingerprints"].items():
            seen.setdefault(_at(record, name), Counter())[fingerprint] += 1
    present = cache(_present)
    for key, record in whole.items():
        for name, fingerprint in record.data["fingerprints"].items():
            there = present(record.data["preset"]["name"], name, root)
            expected = there or seen[_at(record, name)].most_common(1)[0][0]
            if fingerprint != expected:
                problems.append((key, f"was made with another {name} ({fingerprint}, not {expected}); run it again"))
        run = Run.described(record.data["run"])
        parent = whole.get(run.parent.key(record.data["preset"]["name"])) if run.pruning else None
        if parent and run.pruning.afterwards == "recalibrated" and not np.isin(record.scales(), parent.scales()).all():
            problems.append((key, "was pruned of another training than the one recorded; run it again"))
    return problems


def _at(record: Record, name: str) -> str:
    """A set at a preset's size."""
    return f"{name} {record.data['preset']['images']}"


def _present(preset: str, name: str, root: Path | None) -> str | None:
    """The fingerprint of the set below the data root, where it is there."""
    try:
        return PRESETS[preset].load(name, root).fingerprint
    except SodlibError:
        return None


def _incomplete(record: Record) -> Iterator[str]:
    try:
        yield from (f"no {name}" for name in REQUIRED if name not in record.data)
        if record.data["key"] != record.key:
            yield f"it says that its key is {record.data['key']}"
        if Run.described(record.data["run"]).key(record.data["preset"]["name"]) != record.key:
            yield "its name does not follow from its description"
        if not Run.described(record.data["run"]).is_pretraining:
            yield from (f"no curves on {name}" for name in record.data["scores"] if not _has_curves(record, name))
    except SodlibError as error:
        yield str(error)
    except (OSError, ValueError, KeyError, EOFError) as error:
        yield f"{type(error).__name__}: {error}"


def _has_curves(record: Record, name: str) -> bool:
    if {f"logits/{name}", f"energy/{name}"} & set(record.arrays):
        return True
    return all(any(array.startswith(f"{kind}/{name}/") for array in record.arrays) for kind in ("curve", "images"))
