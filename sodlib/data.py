"""Saliency sets on disk: which image belongs to which mask, the splits of DUTS-TR, and how files are read.

A set is a folder of photographs and a folder of ground truth masks with the same file stems, laid out as
`sodlib.layouts` knows. Nothing is decoded until `read_image`, `read_mask` or `read_pair` asks for it.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sodlib import labels
from sodlib.errors import SodlibError
from sodlib.layouts import find_files, holds_set, subfolders

# The name each set goes by here -> other names of its folder, compared without case and "-", "_", " ", ".".
BENCHMARKS: dict[str, tuple[str, ...]] = {
    "DUTS-TR": ("dutstr", "dutstrain"),
    "DUTS-TE": ("dutste", "dutstest"),
    "ECSSD": ("ecssd",),
    "PASCAL-S": ("pascals",),
    "DUT-OMRON": ("dutomron", "duto", "omron"),
    "HKU-IS": ("hkuis", "hku"),
    "SOD": ("sod",),
}
#: Images of the whole benchmarks. A folder may hold a part of one.
WHOLE = {"DUTS-TR": 10_553, "DUTS-TE": 5019, "ECSSD": 1000, "PASCAL-S": 850, "DUT-OMRON": 5168, "HKU-IS": 4447,
         "SOD": 300}  # fmt: skip
EMBEDDED_SETS = ("cutouts/train", "cutouts/validation", "cutouts/test")
_EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "data"

# One image of DUTS-TR in 21 is kept for validation: 503 of its 10,553. Two of them are copies of training
# images under another name (DUTS-TR holds 11 such copies); the split goes by names alone, so they stay.
_VALIDATION_ONE_IN = 21


@dataclass(frozen=True)
class SaliencySet:
    """Pairs of photograph and ground truth mask: `images[i]` belongs to `masks[i]`, sorted by file stem."""

    name: str
    images: tuple[Path, ...]
    masks: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def stems(self) -> tuple[str, ...]:
        """File names without folder and extension, one a pair."""
        return tuple(path.stem for path in self.images)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits of SHA-256 over every pair's stem, image size and mask size in bytes.

        Another choice of images or another encoding of them changes it. Where the files lie does not, and
        neither do pixels changed within a file that keeps its length.
        """
        pairs = zip(self.images, self.masks, strict=True)
        return fingerprint((image.stem, (image, mask)) for image, mask in pairs)

    def subset(self, chosen: Iterable[int] | Iterable[str], name: str) -> "SaliencySet":
        """The chosen pairs as a set of their own, again sorted by stem; a choice made twice counts once.

        `chosen` holds indices (0 to `len(self) - 1`) or file stems.
        Raises SodlibError for an index or a stem that this set does not have.
        """
        position = {stem: index for index, stem in enumerate(self.stems)}
        indices = set()
        for choice in chosen:
            index = position.get(choice, -1) if isinstance(choice, str) else int(choice)
            if not 0 <= index < len(self):
                raise SodlibError(f"{self.name} has no image {choice!r}: it holds {len(self)} images.")
            indices.add(index)
        kept = sorted(indices)
        return SaliencySet(name, tuple(self.images[i] for i in kept), tuple(self.masks[i] for i in kept))


def fingerprint(items: Iterable[tuple[str, tuple[Path, ...]]]) -> str:
    """12 hexadecimal digits of SHA-256 over the names of these items and the sizes of each one's files."""
    digest = hashlib.sha256()
    for name, files in items:
        sizes = " ".join(str(path.stat().st_size) for path in files)
        digest.update(os.fsencode(name) + b"\0" + sizes.encode() + b"\n")
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class SetFiles:
    """The files in the folders of a set, paired or not."""

    name: str
    folder: Path
    images: tuple[Path, ...]
    masks: tuple[Path, ...]


def data_root(root: str | Path | None = None) -> Path | None:
    """The folder that holds the benchmark sets: the argument, else the variable SODLIB_DATA, else None.

    Raises SodlibError where the folder so named does not exist.
    """
    named, origin = (root, "the data root") if root else (os.environ.get("SODLIB_DATA"), "SODLIB_DATA")
    if not named:
        return None
    folder = Path(os.path.expanduser(named))
    if not folder.is_dir():
        raise SodlibError(f"There is no folder {folder} ({origin}): create it, or name the one that holds the sets.")
    return folder


def find_set(name: str | Path, root: str | Path | None = None) -> SaliencySet:
    """The pairs of the set called `name`, one of:

    - a benchmark below the data root: DUTS-TR, DUTS-TE, ECSSD, PASCAL-S, DUT-OMRON, HKU-IS, SOD, or any other
      folder there;
    - a part of DUTS-TR: `DUTS-TR/train`, `DUTS-TR/validation` (see `is_validation`), and
      `DUTS-TR/train-2000`, the 2,000 images of `DUTS-TR/train` whose stems have the smallest SHA-256 (any
      other number likewise);
    - a part of any benchmark: `ECSSD/250`, the 250 images whose stems have the smallest SHA-256;
    - the embedded set, which needs no root: `cutouts/train`, `cutouts/validation`, `cutouts/test`;
    - a part of DUTS-TR or of a split of the embedded set by its labels: `DUTS-TR/without-vertebrate` and what else
      `labels.part` knows;
    - a path to a folder that holds images and masks.

    Masks without an image are left aside. Raises SodlibError where the root or the set is missing, where
    there are no images, where an image has no mask, and where two files share a stem.
    """
    files = list_files(name, root)
    images, masks = by_stem(files.images), by_stem(files.masks)
    unpaired = sorted(images.keys() - masks.keys())
    if unpaired:
        raise SodlibError(
            f"{images[unpaired[0]]} has no mask ({len(unpaired)} of {len(images)} images of {files.name} "
            f"have none): add the masks or remove the images; `sodlib data check {files.name}` lists them."
        )
    stems = sorted(images)
    return SaliencySet(files.name, tuple(images[s] for s in stems), tuple(masks[s] for s in stems))


def list_files(name: str | Path, root: str | Path | None = None) -> SetFiles:
    """The image and mask files of the set called `name` (see `find_set`), whether or not they pair.

    Raises SodlibError where the root or the set is missing and where it holds no images.
    """
    shown, folder, choose = _resolve(str(name), root)
    images, masks = find_files(folder)
    if choose:
        chosen = choose({path.stem for path in images})
        images = tuple(path for path in images if path.stem in chosen)
        masks = tuple(path for path in masks if path.stem in chosen)
    if not images:
        raise SodlibError(f"{shown} holds no images in {folder}: put .jpg, .png, .webp or .bmp files there.")
    return SetFiles(shown, folder, images, masks)


def available_sets(root: str | Path | None = None) -> list[str]:
    """The names of the sets that lie below the data root; none where no root is given.

    Raises SodlibError where the root does not exist.
    """
    base = data_root(root)
    folders = subfolders(base) if base else []
    return [benchmark_name(folder.name) or folder.name for folder in folders if holds_set(folder)]


def is_validation(stem: str) -> bool:
    """Whether the image of DUTS-TR of this stem is kept for validation (one in 21, by SHA-256)."""
    return _stem_hash(stem) % _VALIDATION_ONE_IN == 0


def benchmark_name(name: str) -> str | None:
    """The name in `BENCHMARKS` that `name` stands for ("duts_te" stands for "DUTS-TE"), or None."""
    plain = _plain(name)
    return next((known for known, names in BENCHMARKS.items() if plain in names), None)


def read_image(path: str | Path, upright: bool = False) -> np.ndarray:
    """The photograph as uint8 RGB `[H, W, 3]`: grey repeated, alpha dropped, 16 bits cut to their upper 8.

    Masks belong to the pixels as stored, so in a data set the camera's orientation tag (EXIF) is left alone.
    A person's own photograph is looked at upright: `upright=True` applies the tag.
    Raises SodlibError naming the file where it is missing, truncated or no image.
    """
    return _decode(path, lambda image: to_rgb(image, upright))


def to_rgb(image: Image.Image, upright: bool = False) -> np.ndarray:
    """A picture as `read_image` returns it. Raises ValueError for 32-bit grey."""
    return np.array(_to_rgb(ImageOps.exif_transpose(image) if upright else image))


def read_mask(path: str | Path) -> np.ndarray:
    """The ground truth as uint8 grey `[H, W]`: 1-bit masks become 0 and 255, colours become their luminance.

    Grey levels are kept, since the loss uses them and a score has its own threshold.
    Raises SodlibError naming the file where it is missing, truncated or no image.
    """
    return _decode(path, _to_grey)


def read_pair(saliency_set: SaliencySet, index: int) -> tuple[np.ndarray, np.ndarray]:
    """Image uint8 `[H, W, 3]` and mask uint8 `[H, W]` of one pair.

    Raises SodlibError where a file cannot be read, and where the two differ in size.
    """
    image_path, mask_path = saliency_set.images[index], saliency_set.masks[index]
    image, mask = read_image(image_path), read_mask(mask_path)
    if image.shape[:2] != mask.shape:
        raise SodlibError(
            f"{image_path} is {image.shape[1]} x {image.shape[0]} pixels, but its mask {mask_path} is "
            f"{mask.shape[1]} x {mask.shape[0]}: replace the one that is wrong."
        )
    return image, mask


def _resolve(name: str, root: str | Path | None) -> tuple[str, Path, Callable[[set[str]], set[str]] | None]:
    """The set's name as shown, its folder, and what chooses its stems where it is a part of that folder."""
    # A shell completes the name of a folder with a slash.
    name = name.rstrip("/") or name
    if not name.strip():
        raise SodlibError("The name of the set is empty: name a set such as ECSSD, or a folder.")
    if name in EMBEDDED_SETS:
        folder = _EMBEDDED_ROOT / name
        if not folder.is_dir():
            raise SodlibError(f"The embedded set is not at {folder}: install sodlib from a clone (pip install -e .).")
        return name, folder, None
    base, _, part = name.rpartition("/")
    known = benchmark_name(base)
    if labels.PART.fullmatch(part) and (base in EMBEDDED_SETS or known == "DUTS-TR"):
        shown, folder, _ = _resolve(base, root)
        return f"{shown}/{part}", folder, lambda stems: labels.part(stems, part, shown)
    parts = r"([1-9]\d*)|validation|train(-[1-9]\d*)?" if known == "DUTS-TR" else r"[1-9]\d*"
    if known and re.fullmatch(parts, part):
        return f"{known}/{part}", _below_root(known, root), lambda stems: _part(stems, part, known)
    path = Path(os.path.expanduser(name))
    is_path = path.is_absolute() or len(path.parts) != 1 or path.parts[0] == ".." or name.startswith("./")
    if is_path and path.is_dir():
        return name, path, None
    if path.is_absolute():
        raise SodlibError(f"There is no folder {path}: name a set or a folder that holds images and masks.")
    shown = benchmark_name(name) or name
    return shown, _below_root(shown, root), None


def _below_root(name: str, root: str | Path | None) -> Path:
    base = data_root(root)
    fetch = f", or get it with `sodlib data fetch {name}`" if name in BENCHMARKS else ""
    if base is None:
        if name not in BENCHMARKS and (folder := Path(name)).is_dir():
            return folder
        raise SodlibError(f"No data root is given for {name}: name it with --data or SODLIB_DATA{fetch}.")
    if (folder := base / name).is_dir():
        return folder
    there = subfolders(base)
    names = {_plain(name), *BENCHMARKS.get(name, ())}
    for folder in there:
        if _plain(folder.name) in names:
            return folder
    if name not in BENCHMARKS and (folder := Path(name)).is_dir():
        return folder
    listed = ", ".join(folder.name for folder in there) or "no folders"
    raise SodlibError(f"There is no set {name} in {base} (there: {listed}): name one of these{fetch}.")


def by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their name without the suffix. Raises SodlibError where two share it."""
    found: dict[str, Path] = {}
    for path in paths:
        if (other := found.setdefault(path.stem, path)) != path:
            raise SodlibError(f"{other} and {path.name} share the name {path.stem}: keep one of the two.")
    return found


def _part(stems: set[str], part: str, benchmark: str) -> set[str]:
    """The stems of one part: "<number>", or for DUTS-TR also "validation", "train", "train-<number>"."""
    kind, _, number = ("", "", part) if part.isdigit() else part.partition("-")
    if kind:
        stems = {stem for stem in stems if is_validation(stem) == (kind == "validation")}
    if not number:
        return stems
    if int(number) > len(stems):
        raise SodlibError(f"{benchmark}/{part} asks for more than the {len(stems)} images there: name fewer.")
    return set(sorted(stems, key=_stem_hash)[: int(number)])


def _stem_hash(stem: str) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(stem)).digest())


def _plain(name: str) -> str:
    return re.sub(r"[-_ .]", "", name).lower()


def _decode(path: str | Path, convert: Callable[[Image.Image], Image.Image | np.ndarray]) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.array(convert(image))
    except FileNotFoundError as error:
        raise SodlibError(f"There is no file {path}: check the name.") from error
    # Decoders answer damaged bytes with nearly any exception: OSError, SyntaxError, ValueError, struct.error.
    except Exception as error:
        raise SodlibError(f"{path} cannot be read as an image ({error}): replace the file.") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("F", "I"):  # nothing says what white is
        raise ValueError("32-bit grey without a scale; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _upper_byte(image).convert("RGB")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _to_grey(image: Image.Image) -> Image.Image:
    return (_to_rgb(image) if image.mode.startswith(("I", "F", "P")) else image).convert("L")


def _upper_byte(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit by its upper byte, as Pillow does for 16-bit colour."""
    return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
