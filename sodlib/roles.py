"""The images of a run: which sets it trains on, is watched by and is tested on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from . import labels
from .data import SaliencySet, find_set
from .description import Run
from .pixels import Pixels, open_pixels
from .presets import Preset


@dataclass(frozen=True)
class Roles:
    """Names of the sets that a run trains on, is watched by, and is tested on."""

    train: str
    validation: str
    follow: str | None
    tests: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return list(filter(None, (self.train, self.validation, self.follow, *self.tests)))


def roles_of(run: Run, settings: Preset, root: Path | None) -> Roles:
    """The sets of a run at a preset: those of the preset, or for runs on labelled images and for classifiers the parts
    of `labels.part`."""
    if run.classification:
        train, validation, test = map(settings.part, ("classes", "classes-validation", "classes-test"))
        return Roles(train, validation, None, (test,))
    tests = settings.test_sets(root)
    if run.images:
        tests = tuple(dict.fromkeys([*tests, settings.part("labelled-test")]))
        return Roles(settings.part(run.images), settings.validation, None, tests)
    return Roles(settings.train, settings.validation, settings.follow, tests)


def opened(images: SaliencySet, run: Run, root: Path | None) -> Pixels:
    """The pixels of a set, with classes for a classifier. The parts of the labelled images share one file."""
    base, _, part = images.name.rpartition("/")
    classes = None
    if run.classification:
        by_stem = labels.classes(base)
        classes = [labels.class_names(base).index(by_stem[stem]) for stem in images.stems]
    if not labels.PART.fullmatch(part) or part.endswith(("-test", "-validation")):
        pixels = open_pixels(images)
        return pixels if classes is None else pixels.choose(range(len(images)), classes)
    whole = find_set(f"{base}/labelled", root)
    position = {stem: index for index, stem in enumerate(whole.stems)}
    return open_pixels(whole).choose([position[stem] for stem in images.stems], classes)
