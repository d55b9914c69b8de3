"""Which folders below a set hold its images and its masks: the folder names of the public archives.

Names are compared without case. An archive may have been unpacked into a folder of its own name, one level
deeper.
"""

import os
from itertools import product
from pathlib import Path

from sodlib.errors import SodlibError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})

# Folder names below a set, images and masks, in the order they are tried. The archive of PASCAL-S holds
# several sets side by side, so its longer names come before the general ones.
_LAYOUTS = (
    ("datasets/imgs/pascal", "datasets/masks/pascal"),
    ("imgs/pascal", "masks/pascal"),
    ("duts-tr-image", "duts-tr-mask"),
    ("duts-te-image", "duts-te-mask"),
    ("dut-omron-image", "pixelwisegt-new-png"),
    *product(("images", "imgs", "image", "img"), ("masks", "gt", "mask", "ground_truth_mask")),
)

Files = tuple[Path, ...]


def find_files(folder: Path) -> tuple[Files, Files]:
    """The image files and the mask files of the set in `folder`, each sorted by name, whether or not they
    pair.

    Found are two folders (`images` and `masks`, `Imgs` and `GT`, and the names of the public archives), or
    one flat folder where .png masks lie beside other images of the same stem; in `folder` itself or in one
    folder inside it.
    Raises SodlibError where there is no such layout, where there are several, and where a folder cannot be
    listed.
    """
    try:
        return _at(folder) or _one_level_deeper(folder)
    except OSError as error:
        raise SodlibError(f"{error.filename} cannot be listed ({error.strerror}): check its permissions.") from error


def holds_set(folder: Path) -> bool:
    """Whether `find_files` finds images and masks in `folder`."""
    try:
        return all(find_files(folder))
    except SodlibError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """The folders inside, sorted; hidden ones and those that archives made on a Mac carry along left out."""
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__")))
    return [folder / name for name in names]


def _one_level_deeper(folder: Path) -> tuple[Files, Files]:
    children = subfolders(folder)
    found = [(child, files) for child in children if (files := _at(child))]
    if len(found) > 1:
        names = ", ".join(child.name for child, _ in found)
        raise SodlibError(f"{folder} holds several sets ({names}): name one of them.")
    if not found:
        there = ", ".join(child.name for child in children) or "no folders"
        raise SodlibError(
            f"{folder} holds no images with masks (there: {there}): put them in its folders images and masks."
        )
    return found[0][1]


def _at(folder: Path) -> tuple[Files, Files] | None:
    for images_name, masks_name in _LAYOUTS:
        images, masks = _descend(folder, images_name), _descend(folder, masks_name)
        if images and masks:
            return image_files(images), image_files(masks)
    files = image_files(folder)
    masks = tuple(path for path in files if path.suffix.lower() == ".png")
    images = tuple(path for path in files if path.suffix.lower() != ".png")
    if {path.stem for path in masks} & {path.stem for path in images}:
        return images, masks
    return None


def _descend(folder: Path, names: str) -> Path | None:
    """The folder at the relative path `names` (lower case, "/" between), whatever its case on disk."""
    for name in names.split("/"):
        step = next((child for child in subfolders(folder) if child.name.lower() == name), None)
        if step is None:
            return None
        folder = step
    return folder


def image_files(folder: Path) -> Files:
    """The images inside, sorted; hidden ones left out."""
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name
            for entry in entries
            if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.name.startswith(".")
        )
    return tuple(folder / name for name in names)
