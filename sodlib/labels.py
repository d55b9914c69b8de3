"""What an image shows: the category labels that ship with the project, and the parts of a set that follow from them.

`data/labels/` holds them: DUTS-TR by the WordNet ids in its file names, ECSSD by eye, the ten classes of the
classification set. The embedded cut-outs bring labels of their own; their categories stand in for those of DUTS-TR.
(Paper, section 5.1.1.)
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path

from .errors import SodlibError

_DATA = Path(__file__).resolve().parents[1] / "data"

#: The twelve categories of which one at a time is left out.
CATEGORIES = ("vertebrate", "invertebrate", "person", "fruit", "vegetable", "food", "vehicle", "container", "sports",
              "device", "furniture", "instrument")  # fmt: skip
#: Categories of ECSSD that no labelled image of DUTS-TR has.
UNSEEN = ("flower", "plant", "sign", "building", "sculpture", "geological")
_CUTOUTS = {
    "mammal": "vertebrate", "insect or reptile": "invertebrate", "leisure": "person", "fruit": "fruit",
    "vegetable": "vegetable", "sea animal": "food", "vehicle": "vehicle", "household": "container", "coin": "sports",
    "monument": "device", "bird": "furniture", "flower": "instrument",
}  # fmt: skip
#: ECSSD was labelled in words of its own.
_ECSSD = {"clothing": "person", "electronic": "device", "musical": "instrument"}
#: Parts of a labelled set by name, without the set.
PART = re.compile(rf"labelled(-test)?|(without|fewer)-({'|'.join(CATEGORIES)})|classes(-validation|-test)?")


@cache
def categories(set_name: str) -> dict[str, str]:
    """The category of every labelled image of a set or a part of it, by file stem. Raises SodlibError for a set
    without labels."""
    base = set_name.split("/")[0]
    if base == "DUTS-TR":
        return {row["image"]: row["category"] for row in _rows("labels/duts-tr.csv")}
    if base == "ECSSD":
        return {row["image"]: _ECSSD.get(row["category"], row["category"]) for row in _rows("labels/ecssd.csv")}
    if base == "cutouts":
        return {Path(row["file"]).stem: _CUTOUTS[row["category"]] for row in _rows("cutouts/labels.csv")}
    raise SodlibError(f"{set_name} has no category labels; sets with labels: DUTS-TR, ECSSD, cutouts/*")


def first_of_each(stems: Sequence[str], by_stem: Mapping[str, str]) -> dict[str, int]:
    """The index of the first image of every label, the labels in alphabetical order."""
    first: dict[str, int] = {}
    for index, stem in enumerate(stems):
        first.setdefault(by_stem[stem], index)
    return dict(sorted(first.items()))


def words(set_name: str) -> dict[str, str]:
    """What an image shows, for its title: the category, of the cut-outs in words of their own."""
    if set_name.startswith("cutouts"):
        return {Path(row["file"]).stem: row["category"] for row in _rows("cutouts/labels.csv")}
    return categories(set_name)


@cache
def classes(set_name: str) -> dict[str, str]:
    """The class of every image of the classification set that is cut out of a set, by file stem: ten classes.
    Raises SodlibError for a set without."""
    if set_name.startswith("DUTS-TR"):
        return {row["image"]: row["class"] for row in _rows("labels/classes.csv")}
    if set_name.startswith("cutouts/"):
        return {stem: category for stem, category in categories("cutouts").items() if category in CATEGORIES[:10]}
    raise SodlibError(f"{set_name} has no classes; sets with classes: DUTS-TR, cutouts/*")


def class_names(set_name: str) -> tuple[str, ...]:
    """The ten classes in the order of a classifier's outputs."""
    return tuple(sorted(set(classes(set_name).values())))


def set_name(benchmark: str, part_name: str) -> str:
    """The full name of a part, of "DUTS-TR" or of "cutouts", whose splits are folders."""
    if benchmark != "cutouts":
        return f"{benchmark}/{part_name}"
    split = next((split for split in ("test", "validation") if part_name.endswith(f"-{split}")), "train")
    return f"cutouts/{split}/{part_name.removesuffix(f'-{split}')}"


def part(stems: Collection[str], name: str, set_name: str) -> set[str]:
    """The stems of a part of a labelled set:

    - "labelled": the labelled images, and of DUTS-TR those for training alone; "labelled-test": those for tests;
    - "without-<category>": "labelled" less a category; "fewer-<category>": "labelled" less as many images of any
      category, by hash;
    - "classes", "classes-validation", "classes-test": the classification set.
    """
    kind, _, rest = name.partition("-")
    parts = _parts(set_name)
    if kind == "classes":
        return {stem for stem in classes(set_name) if stem in stems and parts[stem] == (rest or "train")}
    by_stem = categories(set_name)
    chosen = {stem for stem in by_stem if stem in stems and parts[stem] == ("test" if rest == "test" else "train")}
    if kind == "labelled":
        return chosen
    removed = {stem for stem in chosen if by_stem[stem] == rest}
    if kind == "fewer":
        ordered = sorted(chosen, key=lambda stem: hashlib.sha256(f"{rest} {stem}".encode()).digest())
        removed = set(ordered[: len(removed)])
    return chosen - removed


@cache
def _parts(set_name: str) -> dict[str, str]:
    if set_name.startswith("DUTS-TR"):
        return {row["image"]: row["part"] for row in _rows("labels/duts-tr.csv")}
    # A split of the cut-outs is all of one part already.
    return dict.fromkeys(categories(set_name), "train")


@cache
def _rows(file: str) -> list[dict[str, str]]:
    with (_DATA / file).open(newline="") as lines:
        return list(csv.DictReader(lines))


def agreement() -> tuple[float, float]:
    """How well the two passes over ECSSD agree: the share of equal labels, and Cohen's kappa."""
    rows = _rows("labels/ecssd.csv")
    first, second = ([row[name] for row in rows] for name in ("first", "second"))
    share = sum(map(str.__eq__, first, second)) / len(rows)
    counts = Counter(first), Counter(second)
    chance = sum(counts[0][label] * counts[1][label] for label in counts[0]) / len(rows) ** 2
    return share, (share - chance) / (1 - chance)
