"""The check of a saliency set: every file is read; what is wrong or peculiar is counted and listed."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from sodlib.data import list_files, read_image, read_mask
from sodlib.errors import SodlibError

# What keeps a set from being used, and what is only worth knowing: benchmarks themselves hold such images.
FAULTS = ("images without mask", "two of a name", "unreadable files", "size mismatches")
REMARKS = ("masks without image", "same file", "same pixels", "empty masks", "full masks", "masks with greys")


@dataclass(frozen=True)
class Inspection:
    """What the check found.

    `counts`: one row a set, with the columns set, images, masks, pairs, then `FAULTS` and `REMARKS`.
    `problems`: one row a finding, with the columns set, file, problem. Masks with greys are only counted.
    """

    counts: pd.DataFrame
    problems: pd.DataFrame

    @property
    def usable(self) -> bool:
        """Whether every image can be read together with its mask: no count of `FAULTS` is above zero."""
        return not self.counts[list(FAULTS)].to_numpy().any()


@dataclass(frozen=True)
class _Image:
    """What is kept of a photograph once it was read."""

    size: tuple[int, int]
    file_hash: bytes
    pixel_hash: bytes


@dataclass(frozen=True)
class _Mask:
    size: tuple[int, int]
    largest: int
    smallest: int
    has_greys: bool


def inspect_sets(names: Iterable[str], root: str | Path | None = None) -> Inspection:
    """The findings of `inspect_set` for several sets, below each other."""
    found = [inspect_set(name, root) for name in names]
    if not found:
        raise SodlibError("There is no set to check: name one, or name the data root with --data or SODLIB_DATA.")
    return Inspection(
        pd.concat([one.counts for one in found], ignore_index=True),
        pd.concat([one.problems for one in found], ignore_index=True),
    )


def inspect_set(name: str, root: str | Path | None = None) -> Inspection:
    """Read all files of a set (named as in `sodlib.data.find_set`) and report what is wrong or peculiar.

    - images without mask, masks without image, two files of one stem, unreadable files, sizes that differ in
      a pair;
    - images that repeat an earlier one: the same file, or other bytes that decode to the same pixels;
    - empty masks (no pixel above half), full masks (all pixels above half), masks with values other than 0
      and 255.

    Shows a progress bar on a terminal. Raises SodlibError where the set is missing or holds no images.
    """
    files = list_files(name, root)
    problems: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    image_of = _one_a_stem(files.images, problems["two of a name"])
    mask_of = _one_a_stem(files.masks, problems["two of a name"])
    problems["images without mask"] += [(image_of[s], "no mask") for s in sorted(image_of.keys() - mask_of.keys())]
    problems["masks without image"] += [(mask_of[s], "no image") for s in sorted(mask_of.keys() - image_of.keys())]

    paths = [*image_of.values(), *mask_of.values()]
    readers = [_read_image] * len(image_of) + [_read_mask] * len(mask_of)
    with ThreadPoolExecutor() as pool:
        reading = pool.map(lambda reader, path: reader(path), readers, paths)
        read = dict(zip(paths, tqdm(reading, files.name, len(paths), unit="file", disable=None), strict=True))

    problems["unreadable files"] += [(path, found) for path, found in read.items() if isinstance(found, str)]
    images = {path: found for path, found in read.items() if isinstance(found, _Image)}
    masks = {path: found for path, found in read.items() if isinstance(found, _Mask)}
    _compare_sizes(image_of, mask_of, images, masks, problems)
    _find_duplicates(images, problems)
    _judge_masks(masks, problems)

    counts = {
        "set": files.name,
        "images": len(files.images),
        "masks": len(files.masks),
        "pairs": len(image_of.keys() & mask_of.keys()),
        **{kind: len(problems[kind]) for kind in FAULTS + REMARKS},
        "masks with greys": sum(mask.has_greys for mask in masks.values()),
    }
    rows = [(files.name, str(path), text) for kind in FAULTS + REMARKS for path, text in problems[kind]]
    return Inspection(pd.DataFrame([counts]), pd.DataFrame(rows, columns=["set", "file", "problem"], dtype=object))


def _one_a_stem(paths: tuple[Path, ...], repeated: list[tuple[Path, str]]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in paths:
        if (first := by_stem.setdefault(path.stem, path)) != path:
            repeated.append((path, f"the same name as {first.name}"))
    return by_stem


def _read_image(path: Path) -> _Image | str:
    try:
        pixels = read_image(path)
    except SodlibError as error:
        return str(error)
    pixel_hash = hashlib.sha256(b"%d %d" % pixels.shape[:2] + pixels.tobytes()).digest()
    return _Image(pixels.shape[:2], hashlib.sha256(path.read_bytes()).digest(), pixel_hash)


def _read_mask(path: Path) -> _Mask | str:
    try:
        grey = read_mask(path)
    except SodlibError as error:
        return str(error)
    return _Mask(grey.shape, int(grey.max()), int(grey.min()), bool(np.any((grey != 0) & (grey != 255))))


def _compare_sizes(
    image_of: dict[str, Path],
    mask_of: dict[str, Path],
    images: dict[Path, _Image],
    masks: dict[Path, _Mask],
    problems: dict[str, list[tuple[Path, str]]],
) -> None:
    for stem in sorted(image_of.keys() & mask_of.keys()):
        image, mask = images.get(image_of[stem]), masks.get(mask_of[stem])
        if image and mask and image.size != mask.size:
            (height, width), (mask_height, mask_width) = image.size, mask.size
            text = f"{width} x {height} pixels, its mask {mask_width} x {mask_height}"
            problems["size mismatches"].append((image_of[stem], text))


def _find_duplicates(images: dict[Path, _Image], problems: dict[str, list[tuple[Path, str]]]) -> None:
    first_of: dict[bytes, Path] = {}
    for path, image in images.items():
        first = first_of.setdefault(image.pixel_hash, path)
        if first == path:
            continue
        same = "file" if images[first].file_hash == image.file_hash else "pixels"
        problems[f"same {same}"].append((path, f"the same {same} as {first.name}"))


def _judge_masks(masks: dict[Path, _Mask], problems: dict[str, list[tuple[Path, str]]]) -> None:
    for path, mask in masks.items():
        if mask.largest < 128:
            problems["empty masks"].append((path, f"no pixel above half (largest value {mask.largest} of 255)"))
        elif mask.smallest >= 128:
            problems["full masks"].append((path, f"all pixels above half (smallest value {mask.smallest} of 255)"))
