"""Make `duts-tr.csv` and `classes.csv` from the names of DUTS-TR's images and WordNet's tree.

    python data/labels/make_labels.py DATA_ROOT [--wordnet /usr/share/wordnet/data.noun]

Names that begin with `n########` carry the WordNet id of the image's class. An image gets the category whose synset is
the nearest above its own; where the pictures show another thing than the synset's name says, `LOOKED_AT` decides.
Part: the validation split of DUTS-TR, and of the rest a fifth for tests; copies of a photograph are in the same part.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from sodlib.data import SaliencySet, find_set, is_validation

HERE = Path(__file__).resolve().parent
#: Category -> synsets of WordNet 3.0.
CATEGORIES = {
    "vertebrate": ("n01471682",),
    "invertebrate": ("n01905661",),
    "person": ("n00007846", "n03122748"),  # person; covering: the pictures of garments show who wears them
    "fruit": ("n13134947",),
    "vegetable": ("n07707451",),
    "food": ("n07555863", "n00021265"),
    # Before "container", which WordNet puts as near above wheeled vehicles: the first of equally near ones counts.
    "vehicle": ("n03100490", "n04524313", "n04576211"),  # conveyance, vehicle, wheeled vehicle
    "container": ("n03094503", "n04381994"),  # container, tableware
    "sports": ("n03414162", "n04285146", "n04019541"),  # game equipment, sports equipment, puck
    "device": ("n03183080", "n03278248"),  # device, electronic equipment
    "furniture": ("n03405265", "n03528263"),  # furnishing, home appliance
    "instrument": ("n03800933",),  # musical instrument
}
#: Synsets whose pictures show something else than the name: the drink "cup" shows cups, "court" shows players.
LOOKED_AT = {"n07930864": "container", "n03120491": "person"}
#: The ten classes of the classification set, as synsets with everything below them.
CLASSES = {
    "bird": "n01503061",
    "dog": "n02084071",
    "helmet": "n03513137",
    "orange": "n07747607",
    "bell pepper": "n07720875",
    "artichoke": "n07718747",
    "bus": "n02924116",
    "milk can": "n03764736",
    "golf ball": "n03445777",
    "remote control": "n04074963",
}
TRAIN, TEST = 644, 150
#: Two images are the same photograph where their grey 16 x 16 thumbnails correlate at least so well.
SAME = 0.995


def read_wordnet(path: Path) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Hypernyms and first word of every noun synset in `data.noun` (format: man 5 wndb)."""
    hypernyms, words = {}, {}
    for line in path.read_text().splitlines():
        if line.startswith(" "):
            continue
        fields = line.partition("|")[0].split()
        synset, pointers = f"n{fields[0]}", 4 + 2 * int(fields[3], 16)
        entries = zip(*(fields[pointers + 1 + part :: 4] for part in range(3)), strict=False)
        words[synset] = fields[4]
        hypernyms[synset] = [f"n{target}" for kind, target, word in entries if kind in ("@", "@i") and word == "n"]
    return hypernyms, words


def distances(synset: str, hypernyms: dict[str, list[str]]) -> dict[str, int]:
    """Steps up the tree to everything above a synset."""
    steps, level = {synset: 0}, [synset]
    while level:
        level = [above for below in level for above in hypernyms.get(below, []) if above not in steps]
        steps |= dict.fromkeys(level, max(steps.values()) + 1)
    return steps


def category(synset: str, hypernyms: dict[str, list[str]]) -> str:
    """The category of a synset, "other" where none lies above it."""
    steps = distances(synset, hypernyms)
    near = {
        name: min(steps[top] for top in tops if top in steps) for name, tops in CATEGORIES.items() if {*tops} & {*steps}
    }
    return LOOKED_AT.get(synset) or min(near, key=near.__getitem__, default="other")


def number(stem: str) -> int:
    """A number that depends on the file's name alone."""
    return int.from_bytes(hashlib.sha256(stem.encode()).digest())


def same_photographs(images: SaliencySet) -> dict[str, str]:
    """Every stem's first copy in the set, mostly itself."""
    thumbnails = []
    for path in images.images:
        with Image.open(path) as image:
            grey = np.asarray(image.convert("L").resize((16, 16), Image.Resampling.BOX), float).ravel()
        thumbnails.append((grey - grey.mean()) / (np.linalg.norm(grey - grey.mean()) or 1))
    thumbnails = np.stack(thumbnails)
    first = {}
    for index, stem in enumerate(images.stems):
        copies = np.flatnonzero(thumbnails[: index + 1] @ thumbnails[index] >= SAME)
        first[stem] = first.get(images.stems[copies[0]], stem) if len(copies) else stem
    return first


def write(name: str, header: list[str], rows: list[list[str]]) -> None:
    with (HERE / name).open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description="Label DUTS-TR by the WordNet ids in its file names.")
    parser.add_argument("root", type=Path, help="the folder that holds DUTS-TR")
    parser.add_argument("--wordnet", type=Path, default=Path("/usr/share/wordnet/data.noun"))
    options = parser.parse_args()
    hypernyms, words = read_wordnet(options.wordnet)
    whole = find_set("DUTS-TR", options.root)
    labelled = whole.subset((stem for stem in whole.stems if stem.partition("_")[0] in hypernyms), "DUTS-TR, labelled")
    first = same_photographs(labelled)
    rows, by_class = [], {name: {"train": [], "validation": [], "test": []} for name in CLASSES}
    for stem in labelled.stems:
        synset = stem.partition("_")[0]
        part = "test" if number(first[stem]) % 5 == 0 else "train"
        if is_validation(stem) or is_validation(first[stem]):
            part = "validation"
        rows.append([stem, synset, words[synset], category(synset, hypernyms), part])
        for name, top in CLASSES.items():
            if top in distances(synset, hypernyms) and first[stem] == stem:
                by_class[name][part].append(stem)
    write("duts-tr.csv", ["image", "wnid", "name", "category", "part"], rows)
    chosen = [[stem, name, "validation"] for name, parts in by_class.items() for stem in parts["validation"]]
    for part, total in (("train", TRAIN), ("test", TEST)):
        for place, (name, parts) in enumerate(by_class.items()):
            count = total // len(CLASSES) + (place < total % len(CLASSES))
            stems = sorted(parts[part], key=number)
            if len(stems) < count:
                raise SystemExit(f"{name}: {len(stems)} images for {part}, {count} are needed")
            chosen += [[stem, name, part] for stem in stems[:count]]
    write("classes.csv", ["image", "class", "part"], sorted(chosen))
    copies = sum(first[stem] != stem for stem in first)
    print(f"{len(rows)} images labelled, {copies} of them copies; {len(chosen)} in {len(CLASSES)} classes")


if __name__ == "__main__":
    main()
