"""What a notebook page needs from its surroundings: its runs, and where its figures and tables go."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import labels, networks, plots, records, runs, study
from .data import data_root, find_set, read_image, read_pair
from .description import Run
from .evidence import MEASURES, Evidence
from .files import written_whole
from .gallery import PHOTOS
from .presets import preset_named
from .progress import observer
from .records import REPOSITORY, RESULTS, Record
from .seeds import POPULATIONS, SeedVariance, population, seed_variances
from .study import MIDDLE

#: Of the networks by name those that are trained at smoke.
TRIED_AT_SMOKE = ("enet", MIDDLE)


@cache
def _committed_variances(preset: str) -> dict[tuple[str, str, str], SeedVariance]:
    """`seed_variances` of the networks that have records with all seeds; by test set, measure and
    `seeds.population`."""
    known = {}
    wanted = [entry.run for entry in study.STUDY if replace(entry.run, pruning=None) in study.TRAININGS]
    for of in POPULATIONS:
        alike = [run for run in wanted if population(run) == of]
        several = ([records.find(replace(run, seed=seed).key(preset), RESULTS) for seed in study.SEEDS]
                   for run in alike)  # fmt: skip
        found = seed_variances([of_seeds for of_seeds in several if all(of_seeds)], MEASURES)
        known |= {(*name, of): one for name, one in found.items()}
    return known


def _counted_clips(svg: str) -> str:
    """The names of clip paths as numbers: matplotlib derives them from addresses in memory."""
    names: dict[str, str] = {}
    return re.sub(r"\bp[0-9a-f]{10}\b", lambda found: names.setdefault(found[0], f"clip{len(names)}"), svg)


def _skipped(run: Run, preset: str) -> bool:
    """At smoke, which asks whether everything runs, most networks by name stay out, and second learning rates."""
    others = run.network in networks.NAMES and run.network not in TRIED_AT_SMOKE
    return preset == "smoke" and (others or run.learning_rate is not None)


class Page:
    """One notebook's surroundings, made from its parameters.

    `preset`: "" shows the committed records, else the preset whose records are shown or made. `data`: the root
    of the benchmark sets; "" leaves them out, so that only the embedded photographs are shown. `output`: the
    folder for figures, tables and new records; "" is the repository itself. `fresh`: make every run anew.
    `live`: draw loss and validation while a run is made.
    """

    def __init__(
        self, preset: str = "", data: str = "", output: str = "", fresh: bool = False, live: bool = False
    ) -> None:
        if preset:
            preset_named(preset)
        self.preset, self.fresh, self.live = preset, fresh, live
        self.data = data_root(data) if data else None
        if (preset or data or fresh) and not output:
            output = str(REPOSITORY / "build" / (preset or ("smoke" if fresh else "evidence")))
        self._write_below(Path(output) if output else REPOSITORY)
        plots.use_style()

    def _write_below(self, output: Path) -> None:
        self.output, self.figures = output, output / "figures"
        self.tables = output / ("results/tables" if output == REPOSITORY else "tables")

    def evidence(self, *items: str) -> dict[str, Evidence]:
        """The records of each of these tables and figures ("Table 6"), by item.

        An item has one preset. Unless the page was told which, it is the best at which all the item's runs are recorded
        with seed 0, else the one with the most, and what is missing stays empty. Further seeds count where all its
        runs have them. A page that was told a preset makes what is missing, with seed 0; one without any record of an
        item does so at smoke on the embedded photographs, and below build/smoke rather than in the repository, so that
        evidence stays.
        """
        return {item: self._evidence(item, self._preset(item)) for item in items}

    def repeated(self, item: str) -> Evidence | None:
        """The committed records of an item at the best preset at which all its runs have all their seeds, where
        `evidence` shows a better one with fewer seeds; else None."""
        every = [run for seed in study.seeds_of(item) for run in study.runs_of(item, seed)]
        preset = None if self.preset or self.fresh else study.best_preset(every)
        if preset in (None, self._preset(item)) or not all(study.is_recorded(run, preset) for run in every):
            return None
        return self._evidence(item, preset)

    def _preset(self, item: str) -> str | None:
        """The preset that an item is shown from; None where it has to be made."""
        return self.preset or (None if self.fresh else study.best_preset(study.runs_of(item)))

    def _evidence(self, item: str, preset: str | None) -> Evidence:
        wanted = study.runs_of(item)
        made = bool(self.preset) or preset is None
        committed = () if self.fresh else (RESULTS,)
        if preset is None:
            preset = "smoke"
            if self.output == REPOSITORY:
                self._write_below(REPOSITORY / "build" / "smoke")
        where = runs.Surroundings(self.output / "results", self.data, committed, observer(self.live))
        seeds = [0]
        if not self.fresh:
            seeds += [
                seed
                for seed in study.seeds_of(item)[1:]
                if all(study.is_recorded(run, preset) for run in (*wanted, *study.runs_of(item, seed)))
            ]
        shown = {run for run in wanted if study.is_recorded(run, preset) or (made and not _skipped(run, preset))}
        found = {
            run: tuple(runs.obtain(replace(run, seed=seed), preset, where) for seed in seeds) if run in shown else ()
            for run in wanted
        }
        return Evidence(item, preset_named(preset), tuple(seeds), found, self._seed_variances(preset))

    def recorded(self, wanted: Iterable[Run], preset: str) -> list[Record]:
        """The records of these runs that are there at a preset, in order; nothing is made."""
        places = (self.output / "results",) if self.fresh else (self.output / "results", RESULTS)
        return [record for run in wanted if (record := records.find(run.key(preset), *places))]

    def _seed_variances(self, preset: str) -> dict[tuple[str, str, str], SeedVariance]:
        """What seeds do at a preset, from its committed records."""
        return {} if self.fresh else _committed_variances(preset)

    def figure(self, figure: Figure, name: str, item: Evidence | str = "") -> None:
        """Show the figure and write it as `<name>.png` and `<name>.svg`; equal figures give equal files. In its corner
        stand preset and seeds of the `item` that it is drawn from, or words that say where it is from."""
        if item:
            figure.supxlabel(
                item if isinstance(item, str) else item.origin, x=0.995, ha="right", fontsize="x-small", color="0.4"
            )
        for suffix, options in ((".png", {"dpi": 160}), (".svg", {"metadata": {"Date": None}})):
            with written_whole(self.figures / f"{name}{suffix}") as beside:
                figure.savefig(beside, format=suffix[1:], **options)
                if suffix == ".svg":
                    beside.write_text(_counted_clips(beside.read_text(encoding="utf-8")), encoding="utf-8")
        plt.show()

    def table(self, table: pd.DataFrame, name: str, index: bool = True) -> None:
        """Write the table as `<name>.csv`, headers of several levels joined by a space, to six digits: the last ones
        depend on the number of threads that summed them."""
        flat = table.infer_objects()  # or numbers beside words would keep all their digits
        if isinstance(flat.columns, pd.MultiIndex):
            flat.columns = [" ".join(str(part) for part in column if str(part)) for column in flat.columns]
        with written_whole(self.tables / f"{name}.csv") as beside:
            flat.to_csv(beside, index=index, lineterminator="\n", float_format="%.6g")

    def photographs(self, count: int = 6) -> list[tuple[str, np.ndarray, np.ndarray | None]]:
        """Photographs to show, as (name, uint8 `[H, W, 3]`, ground truth uint8 `[H, W]` or None).

        The first images of ECSSD where the page has a data root; else whole photographs under a free licence,
        which have no ground truth, and after them test images of the embedded set, which have.
        """
        if self.data:
            ecssd = find_set("ECSSD", self.data)
            step = len(ecssd) // count
            return [(ecssd.stems[i * step], *read_pair(ecssd, i * step)) for i in range(count)]
        whole = sorted(PHOTOS.glob("*.jpg"))[: (count + 1) // 2]
        cutouts = find_set("cutouts/test")
        step = len(cutouts) // (count // 2)
        return [(path.stem, read_image(path), None) for path in whole] + [
            (cutouts.stems[i * step], *read_pair(cutouts, i * step)) for i in range(count // 2)
        ]

    def examples(self, part: str) -> list[tuple[str, np.ndarray]]:
        """One photograph of every category ("labelled") or class ("classes"), as (title, uint8 `[H, W, 3]`): the first
        test image by file name, of DUTS-TR where the page has a data root, else of the embedded set."""
        images = find_set(labels.set_name("DUTS-TR" if self.data else "cutouts", f"{part}-test"), self.data)
        by_stem = (labels.classes if part == "classes" else labels.categories)(images.name)
        titles = labels.words(images.name) if not self.data else by_stem
        first = labels.first_of_each(images.stems, by_stem)
        return [
            (titles[images.stems[index]], read_pair(images, index)[0])
            for name, index in first.items()
            if name != "other"
        ]

    def versions(self) -> str:
        """One line on the software and hardware that this page was executed with."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
        return f"Python {platform.python_version()}, torch {torch.__version__}, {device}"
