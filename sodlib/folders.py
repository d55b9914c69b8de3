"""Classification sets: photographs in one folder a class, as torchvision's ImageFolder and ImageNet have them.

Nothing is kept decoded: a set may be far larger than a disk could hold that way, and a batch is decoded by threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import data_root, fingerprint, read_image
from .errors import SodlibError
from .pixels import Pixels


@dataclass(frozen=True)
class ClassFolder:
    """Photographs and their classes: `classes[i]` is the index in `class_names` of what `images[i]` shows."""

    name: str
    images: tuple[Path, ...]
    classes: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        """As that of a `SaliencySet`, over images and classes."""
        names = zip(self.images, self.classes, strict=True)
        return fingerprint((f"{self.class_names[index]}/{path.stem}", (path,)) for path, index in names)

    def subset(self, chosen: Iterable[int], name: str) -> ClassFolder:
        """The photographs of these indices, of the same classes."""
        kept = sorted(set(chosen))
        return ClassFolder(name, *(tuple(part[i] for i in kept) for part in (self.images, self.classes)),
                           self.class_names)  # fmt: skip


def find_folder(name: str, root: str | Path | None) -> ClassFolder:
    """The photographs below `<data root>/<name>/<class>/`, such as those of "imagenette/train".

    Raises SodlibError where there is no such folder, or a class without photographs in it.
    """
    # Of all commands this one alone needs torchvision, which a machine for trainings may lack.
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise SodlibError(f"{name}: a folder of classes needs torchvision (pip install torchvision)") from error
    base = data_root(root)
    if base is None:
        raise SodlibError(f"No data root is given for {name}: name it with --data or SODLIB_DATA.")
    try:
        found = ImageFolder(base / name)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise SodlibError(
            f"{base / name} holds no photographs in one folder a class: put them there, as ImageNet has them."
        ) from error
    paths, classes = zip(*found.samples, strict=True)
    return ClassFolder(name, tuple(map(Path, paths)), classes, tuple(found.classes))


class FolderPixels:
    """The pixels of a `ClassFolder`, for all that takes `Pixels`: each batch is decoded when it is asked for."""

    def __init__(self, folder: ClassFolder, device: torch.device | None = None) -> None:
        self.folder, self.device = folder, device or torch.device("cpu")
        self.classes = torch.tensor(folder.classes, device=self.device)

    def __len__(self) -> int:
        return len(self.folder)

    def near(self, device: torch.device) -> FolderPixels:
        return FolderPixels(self.folder, device)

    def sides_of(self, indices: np.ndarray) -> np.ndarray:
        """Height and width `[B, 2]` of these images, of which only the first bytes are read."""
        return np.array([_sides(self.folder.images[index]) for index in indices])

    def cut(self, indices: np.ndarray, size: int, crops: np.ndarray, flips: np.ndarray) -> tuple[Tensor, Tensor]:
        """As `Pixels.cut`: network inputs and classes."""
        return self._decoded(indices).cut(np.arange(len(indices)), size, crops, flips)

    def squares(self, indices: Sequence[int] | np.ndarray, size: int) -> tuple[Tensor, Tensor]:
        """As `Pixels.squares`: network inputs and classes."""
        return self._decoded(indices).squares(range(len(indices)), size)

    def _decoded(self, indices: Sequence[int] | np.ndarray) -> Pixels:
        with ThreadPoolExecutor() as pool:
            photographs = list(pool.map(read_image, [self.folder.images[index] for index in indices]))
        opaque = [np.pad(photograph, ((0, 0), (0, 0), (0, 1))).reshape(-1, 4) for photograph in photographs]
        sides = np.array([photograph.shape[:2] for photograph in photographs])
        starts = np.concatenate([[0], np.cumsum(sides.prod(1))[:-1]])
        words = torch.from_numpy(np.concatenate(opaque)).view(torch.int32).flatten()
        return Pixels(words.to(self.device), sides, starts, self.classes[torch.as_tensor(np.asarray(indices))])


def _sides(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception as error:  # as of `data.read_image`
        raise SodlibError(f"{path} cannot be read as an image ({error}): replace the file.") from error
