"""The images of a run: which sets it trains on, is watched by and is tested on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from . import labels
from .data import SaliencySet, find_set
from .description import PRETRAININGS, Run
from .errors import SodlibError
from .folders import ClassFolder, FolderPixels, find_folder
from .pixels import Pixels, open_pixels
from .presets import Preset


@dataclass(frozen=True)
class Roles:
    """Names of the sets that a run trains on, is watched by, and is tested on; of a classifier also of its classes."""

    train: str
    validation: str
    follow: str | None
    tests: tuple[str, ...]
    classes: tuple[str, ...] = ()

    @property
    def watched(self) -> list[str]:
        """Those that the training sees and is watched by."""
        return list(filter(None, (self.train, self.validation, self.follow)))

    @property
    def names(self) -> list[str]:
        return [*self.watched, *self.tests]


def roles_of(run: Run, settings: Preset, root: Path | None) -> Roles:
    """The sets of a run at a preset: those of the preset; for runs on labelled images and for classifiers the parts of
    `labels.part`, or the preset's folder of classes. (Nothing is chosen by the validation of a pre-training, which is
    its test.)"""
    if run.classification:
        return _of_classifier(run.classification.images, settings, root)
    tests = settings.test_sets(root)
    if run.images:
        tests = tuple(dict.fromkeys([*tests, settings.part("labelled-test")]))
        return Roles(settings.part(run.images), settings.validation, None, tests)
    return Roles(settings.train, settings.validation, settings.follow, tests)


def _of_classifier(images: str, settings: Preset, root: Path | None) -> Roles:
    if images not in ("classes", *PRETRAININGS):
        raise SodlibError(f"unknown images {images!r} for a classifier; choose one of {', '.join(PRETRAININGS)}")
    if images == "folder" and settings.pretraining:
        train, test = (f"{settings.pretraining}/{part}" for part in ("train", "val"))
        return Roles(train, test, None, (test,), find_folder(train, root).class_names)
    if images == "categories":
        train, test = map(settings.part, ("labelled", "labelled-test"))
        return Roles(train, test, None, (test,), tuple(sorted(set(labels.categories(train).values()))))
    train, validation, test = map(settings.part, ("classes", "classes-validation", "classes-test"))
    return Roles(train, validation, None, (test,), labels.class_names(train))


def opened(images: SaliencySet | ClassFolder, run: Run, roles: Roles, root: Path | None) -> Pixels | FolderPixels:
    """The pixels of a set, with classes for a classifier. The parts of the labelled images share one file."""
    if isinstance(images, ClassFolder):
        return FolderPixels(images)
    base, _, part = images.name.rpartition("/")
    classes = None
    if run.classification:
        by_stem = _labels(run.classification.images, base)
        classes = [roles.classes.index(by_stem[stem]) for stem in images.stems]
    if not labels.PART.fullmatch(part) or part.endswith(("-test", "-validation")):
        pixels = open_pixels(images)
        return pixels if classes is None else pixels.choose(range(len(images)), classes)
    whole = find_set(f"{base}/labelled", root)
    position = {stem: index for index, stem in enumerate(whole.stems)}
    return open_pixels(whole).choose([position[stem] for stem in images.stems], classes)


def _labels(images: str, base: str) -> Mapping[str, str]:
    return labels.categories(base) if images == "categories" else labels.classes(base)
