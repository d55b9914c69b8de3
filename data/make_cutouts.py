"""Rebuilds the embedded data set `data/cutouts`: photographic cut-outs in photographic scenes, with masks.

The sources come from Debian packages; `objects.csv` and `backgrounds.csv` name the files and their SHA-256.
Every image has its own random stream, `SeedSequence([SEED, split, number])`: any one can be made alone.
With the versions of numpy and Pillow in `RECORDED` the set comes out byte for byte.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import os
import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from compositing import SCALE, Random, blend, expose, fit, lay, scene, shadow
from PIL import Image, ImageChops

SEED = 2021
RECORDED = {"numpy": "2.3.4", "Pillow": "13.0.0"}
COUNTS = {"train": 600, "validation": 150, "test": 150}
AREA = (0.035, 0.55)  # accepted share of the image covered by the mask
HERE = Path(__file__).resolve().parent
STAMPS = Path("/usr/share/tuxpaint/stamps")
BACKGROUNDS = Path("/usr/share")


@dataclass(frozen=True)
class Cutout:
    """One row of objects.csv: a photograph with alpha, `file` relative to the folder of stamps."""

    file: str
    category: str
    setting: str
    split: str
    sha256: str


@dataclass(frozen=True)
class Background:
    """One row of backgrounds.csv: a photograph or photographic texture, `file` relative to /usr/share."""

    name: str
    split: str
    use: str
    package: str
    file: str
    member: str
    left: float
    top: float
    right: float
    bottom: float
    licence: str
    author: str
    sha256: str


def read_objects(path: Path) -> list[Cutout]:
    """The chosen stamps."""
    with path.open(newline="", encoding="utf-8") as lines:
        return [Cutout(**row) for row in csv.DictReader(lines)]


def read_backgrounds(path: Path) -> list[Background]:
    """The chosen backgrounds; left, top, right, bottom (0 to 1) bound the used part of the photograph."""
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    edges = ("left", "top", "right", "bottom")
    return [Background(**{**row, **{edge: float(row[edge]) for edge in edges}}) for row in rows]


class Sources:
    """Reads and checks the source files, and keeps them decoded."""

    def __init__(self, lists: Path, stamps: Path, backgrounds: list[Path]) -> None:
        self.stamps, self.folders = stamps, backgrounds
        self.objects = read_objects(lists / "objects.csv")
        self.backgrounds = read_backgrounds(lists / "backgrounds.csv")
        self._decoded: dict[str, Image.Image] = {}

    def missing(self) -> list[str]:
        """Debian packages with a file that is not where it was looked for."""
        names = set() if (self.stamps / self.objects[0].file).is_file() else {"tuxpaint-stamps-default"}
        return sorted(names | {item.package for item in self.backgrounds if self._locate(item) is None})

    def of_category(self, split: str, category: str) -> list[Cutout]:
        """Stamps of a category in a split."""
        return [item for item in self.objects if item.split == split and item.category == category]

    def of_use(self, split: str, *uses: str) -> list[Background]:
        """Backgrounds of a split for any of the uses."""
        return [item for item in self.backgrounds if item.split == split and item.use in uses]

    def cutout(self, item: Cutout) -> Image.Image:
        """The stamp, RGBA, cropped to its opaque part."""
        if item.file not in self._decoded:
            path = self.stamps / item.file
            if not path.is_file():
                raise SystemExit(f"{path} is missing: install the Debian package tuxpaint-stamps-default.")
            image = self._decode(path.read_bytes(), item.file, item.sha256).convert("RGBA")
            # Drops the faint fringe of the old background that many stamps carry.
            alpha = image.getchannel("A").point([max(0, min(255, (a - 40) * 255 // 190)) for a in range(256)])
            image.putalpha(alpha)
            self._decoded[item.file] = image.crop(alpha.getbbox())
        return self._decoded[item.file]

    def background(self, item: Background) -> Image.Image:
        """The used part of the photograph, RGB, long side at most 1200."""
        if item.name not in self._decoded:
            path = self._locate(item)
            if path is None:
                raise SystemExit(f"{item.file} is missing: install the Debian package {item.package}.")
            image = self._decode(self._bytes(path, item.member), item.file, item.sha256).convert("RGB")
            width, height = image.size
            box = (item.left * width, item.top * height, item.right * width, item.bottom * height)
            image = image.crop(tuple(int(edge) for edge in box))
            image.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
            self._decoded[item.name] = image
        return self._decoded[item.name]

    def _locate(self, item: Background) -> Path | None:
        return next((path for folder in self.folders if (path := folder / item.file).is_file()), None)

    @staticmethod
    def _bytes(path: Path, member: str) -> bytes:
        try:
            return zipfile.ZipFile(path).read(member) if member else path.read_bytes()
        except (KeyError, zipfile.BadZipFile):
            return b""  # fails the check of the hash, which says what to do

    @staticmethod
    def _decode(data: bytes, name: str, sha256: str) -> Image.Image:
        if hashlib.sha256(data).hexdigest() != sha256:
            raise SystemExit(f"{name} differs from the file the set was made from: use Debian 12's package.")
        return Image.open(io.BytesIO(data))


Composite = tuple[Image.Image, Image.Image, list[Cutout], list[str]]


def pick(rng: Random, items: list[Any]) -> Any:
    """One item, all equally likely."""
    return items[int(rng.integers(len(items)))]


def choose(rng: Random, sources: Sources, split: str, number: int) -> list[Cutout]:
    """The object (one time in six, two) of image `number`; categories and their objects take turns."""
    categories = sorted({item.category for item in sources.objects})
    group = sources.of_category(split, categories[number % len(categories)])
    first = group[number // len(categories) % len(group)]
    alike = [item for item in group if item.setting == first.setting and item.file != first.file]
    return [first, pick(rng, alike)] if alike and rng.random() < 1 / 6 else [first]


def make(sources: Sources, split: str, number: int) -> Composite:
    """Image `number` of a split: the image, its mask (mode 1), its objects, the names of its backgrounds."""
    rng = np.random.default_rng(np.random.SeedSequence([SEED, list(COUNTS).index(split), number]))
    objects = choose(rng, sources, split, number)
    setting = objects[0].setting
    names: list[str] = []

    def photo(*uses: str) -> Image.Image:
        item = pick(rng, sources.of_use(split, *uses))
        names.append(item.name)
        return sources.background(item)

    while True:
        names.clear()
        canvas, line = scene(rng, photo, setting)
        size = canvas.size
        covered = Image.new("L", size)
        draw = rng.random()
        share = (0.06 + 0.42 * draw * float(np.sqrt(draw))) / len(objects)
        apart = True
        for item in objects:
            layer = lay(rng, fit(rng, sources.cutout(item), setting, size, share), setting, size, line)
            alpha = layer.getchannel("A")
            hidden = np.count_nonzero(np.asarray(ImageChops.darker(alpha, covered)) > 127)
            apart &= hidden < 0.12 * np.count_nonzero(np.asarray(alpha) > 127)
            shade = None if setting in {"flying", "swimming"} else shadow(rng, alpha, line)
            canvas = blend(rng, canvas, layer, shade)
            covered = ImageChops.lighter(covered, alpha)
        mask = covered.resize((size[0] // SCALE, size[1] // SCALE), Image.Resampling.BOX)
        mask = mask.point(lambda value: 255 * (value > 127)).convert("1")
        if apart and AREA[0] < np.asarray(mask).mean() < AREA[1]:
            return expose(rng, canvas), mask, objects, names


def versions() -> dict[str, str]:
    """The versions that decide the bytes."""
    return {"numpy": np.__version__, "Pillow": PIL.__version__}


def save(folder: Path, stem: str, image: Image.Image, mask: Image.Image) -> None:
    """One pair: images/STEM.webp and masks/STEM.png below `folder`."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    image.save(folder / "images" / f"{stem}.webp", quality=80, method=6)
    mask.save(folder / "masks" / f"{stem}.png", optimize=True)


def write(sources: Sources, out: Path, counts: dict[str, int]) -> None:
    """Writes images (WebP), masks (1-bit PNG) and labels.csv below `out`."""
    rows = []
    for split, count in counts.items():
        for number in range(count):
            image, mask, objects, names = make(sources, split, number)
            stem = f"{split}_{number:04d}"
            save(out / split, stem, image, mask)
            files = " ".join(item.file for item in objects)
            rows.append([f"{split}/images/{stem}.webp", split, objects[0].category, files, " ".join(names)])
        print(f"{split}: {count} images")
    with (out / "labels.csv").open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["file", "split", "category", "objects", "background"])
        writer.writerows(rows)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--stamps", type=Path, default=STAMPS, help="stamps of tuxpaint-stamps-default (%(default)s)")
    add("--backgrounds", type=Path, nargs="+", default=[BACKGROUNDS], metavar="DIR",
        help="usr/share of the system, or of each unpacked package (/usr/share)")  # fmt: skip
    add("--out", type=Path, default=HERE / "cutouts",
        help="where train, validation, test and labels.csv are replaced (%(default)s)")  # fmt: skip
    options = parser.parse_args()
    sources = Sources(HERE / "cutouts", options.stamps, options.backgrounds)
    if packages := sources.missing():
        sys.exit(f"Source files are missing: install or unpack the Debian 12 packages {' '.join(packages)}.")
    if versions() != RECORDED:
        print(f"Note: the bytes may differ, since they were recorded with {RECORDED}.", file=sys.stderr)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".cutouts-", dir=options.out) as beside:
        write(sources, Path(beside), COUNTS)
        for made in sorted(Path(beside).iterdir()):
            if made.is_dir():
                shutil.rmtree(options.out / made.name, ignore_errors=True)
            os.replace(made, options.out / made.name)


if __name__ == "__main__":
    main()
