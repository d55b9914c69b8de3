"""The commands `sodlib study ...`: the declared runs, listed, made and checked."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from torch import distributed

from . import cluster, integrity, jobs, presets, records, runs, study
from . import data as sets
from .activation_maps import METHODS
from .errors import SodlibError
from .pixels import open_pixels
from .presets import PRESETS, preset_named
from .progress import Lines, duration, observer
from .severing import severed_layers
from .unfinished import Paused

app = typer.Typer(no_args_is_help=True, help="The declared runs of all tables and figures.")

PresetName = StrEnum("PresetName", {name: name for name in PRESETS})


def _found(root: Path | None) -> Path | None:
    """Refuse a folder that is not there, also where no set of it would be read."""
    return sets.data_root(root) if root else None


# Not bound to SODLIB_DATA by typer: `sodlib.data` reads the variable, and `reproduce` must tell the two apart.
Root = Annotated[
    Path | None, typer.Option("--data", callback=_found, help="Folder that holds the benchmark sets [SODLIB_DATA].")
]
#: What help shows; presets that were tried to choose these from can be named too.
PRESETS_TO_CHOOSE = "|".join(name for name in PRESETS if "-" not in name)
Preset = Annotated[PresetName, typer.Option(metavar=PRESETS_TO_CHOOSE, help="How much computing the run gets.")]
Results = Annotated[Path, typer.Option(help="Folder of the records.")]
Minutes = Annotated[float | None, typer.Option(min=0, help="Stop in good order within so many minutes.")]
Table = Annotated[int | None, typer.Option(min=1, help="Only what this table of the paper needs.")]
Figure = Annotated[int | None, typer.Option(min=1, help="Only what this figure of the paper needs.")]
Only = Annotated[list[str] | None, typer.Option(help='An item, such as "table 6", or part of a key; may be repeated.')]


@app.command("list")
def study_list(
    preset: Preset = PresetName.brief,
    table: Table = None,
    figure: Figure = None,
    only: Only = None,
    results: Results = records.RESULTS,
) -> None:
    """The declared runs: which are recorded, what they feed, what the missing ones will take on this machine."""
    words = _words(table, figure, only)
    chosen, settings = study.choose(words, preset.value), preset_named(preset.value)
    known = jobs.rates(records.every(results), records.hardware())
    missing = {}
    for declared in chosen:
        run = declared.run
        if study.is_recorded(run, preset.value, results):
            state, time_needed = "done", ""
        else:
            missing[run] = jobs.estimate(run, settings, known)
            state = "started" if jobs.has_checkpoint(run, preset.value, results) else "missing"
            time_needed = _about(missing[run])
        typer.echo(f"{state:8} {time_needed:>12}  {run.key(preset.value)}  ({', '.join(declared.feeds)})")
    typer.echo(f"\n{'':12} recorded  missing          work left")
    asked = {item for word in words if (item := study.item_of(word))}
    for item, entries in study.by_item(chosen).items():
        if asked and item.lower() not in asked:
            continue
        left = [missing[entry.run] for entry in entries if entry.run in missing]
        typer.echo(f"{item:12} {len(entries) - len(left):8}  {len(left):7}  {_about(sum(left)) if left else '':>17}")
    time_left = f"; {_about(sum(missing.values()))} of work left on {records.hardware()}" if missing else ""
    typer.echo(f"{len(chosen) - len(missing)} of {len(chosen)} runs are recorded at {preset.value}{time_left}")


@app.command("run")
def study_run(
    preset: Preset = PresetName.brief,
    table: Table = None,
    figure: Figure = None,
    only: Only = None,
    minutes: Minutes = None,
    count: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Runs at once; 1 by default, with --ray what has room.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(help='Spread over a ray cluster: "auto", host:port of its head, or "local".')
    ] = None,
    data: Root = None,
    results: Results = records.RESULTS,
) -> None:
    """Make the declared runs that have no record yet; the next call goes on where this one stopped."""
    if distributed.is_torchelastic_launched():
        raise SodlibError("`study run` is a queue of single runs; start it without torchrun")
    chosen = study.choose(_words(table, figure, only), preset.value)
    if ray:
        workers: jobs.Workers = cluster.RayWorkers(preset.value, results, data, ray, count)
    else:
        if jobs.pending(chosen, preset.value, results):
            _prepare(preset_named(preset.value), data)
        workers = jobs.LocalWorkers(preset.value, results, data, count or 1)
    outcome = jobs.work(chosen, preset.value, results, workers, minutes, typer.echo)
    if outcome.paused or outcome.left:
        typer.echo(
            f"{len(outcome.paused)} runs stopped with a checkpoint, {len(outcome.left)} not begun; "
            "the same command goes on from here"
        )
    for run, reason in outcome.failed.items():
        typer.echo(f"failed: {run.key(preset.value)}: {reason}", err=True)
    if outcome.failed:
        raise SodlibError(f"{len(outcome.failed)} runs failed; their last checkpoints stay")


@app.command("one", hidden=True)
def study_one(
    key: str,
    preset: Preset = PresetName.brief,
    minutes: Minutes = None,
    several: bool = False,
    data: Root = None,
    results: Results = records.RESULTS,
) -> None:
    """Make one declared run: what a worker of `study run` does. It ends when its standard input does."""
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    run = jobs.named(key, preset.value, study.STUDY)
    seconds = math.inf if minutes is None else 60 * minutes
    if minutes is not None:
        # The training stops by itself between two steps; this is for all that is not training.
        signal.signal(signal.SIGALRM, _pause)
        signal.setitimer(signal.ITIMER_REAL, seconds)
    watching = Lines(named=True) if several else observer()
    where = runs.Surroundings(
        results, data, observer=watching, deadline=time.monotonic() + max(0, seconds - jobs.SHORTEST / 4)
    )
    try:
        show(runs.obtain(run, preset.value, where, weights=run.starts_others))
    except Paused:
        raise typer.Exit(jobs.PAUSED) from None
    except SodlibError as error:
        raise SodlibError(f"{key}: {error}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@app.command("check")
def study_check(data: Root = None, results: Results = records.RESULTS) -> None:
    """Find records that are incomplete, of other data than the rest, or no longer declared."""
    problems = integrity.check_records(results, study.STUDY, sets.data_root(data))
    for key, problem in problems:
        typer.echo(f"{key} {problem}")
    if problems:
        raise SodlibError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {results}")
    typer.echo(f"{len(records.every(results))} records, all whole, of the same data and declared")


def _words(table: int | None, figure: int | None, only: list[str] | None) -> list[str]:
    return [*(only or ()), *([f"table {table}"] if table else []), *([f"figure {figure}"] if figure else [])]


def _prepare(settings: presets.Preset, root: Path | None) -> None:
    """Tell of missing data once and not by every run, and decode what the workers will find."""
    for name in filter(None, (settings.train, settings.validation, settings.follow)):
        open_pixels(settings.load(name, root))
    for name in settings.tests:
        settings.load(name, root)


def _pause(*_: object) -> None:
    raise Paused


def _end_with_standard_input() -> None:
    while os.read(0, 1):
        pass
    os._exit(jobs.PAUSED)


def _about(seconds: float) -> str:
    return "?" if math.isnan(seconds) else f"about {duration(seconds)}"


#: What is told of a record's scores, by kind.
_TOLD = {
    "released": "max F {max_f:.4f}, MAE {mae:.4f}",
    "top1": "accuracy {accuracy:.3f}",
    **dict.fromkeys(METHODS, "{energy:.3f} of the map's energy and {pointing:.3f} of the maxima inside the object"),
}


def show(record: records.Record) -> None:
    """Print what a record says in a few lines."""
    typer.echo(f"{record.key}: {record.data['parameters']:,} parameters")
    if record.has_weights:
        typer.echo(f"  weights: {record.folder / 'weights.safetensors'}")
    if cut := severed_layers(record):
        typer.echo(f"  nothing passes {len(cut)} of its layers (severed, page 02); the first is {cut[0]}")
    for name, by_protocol in record.data["scores"].items():
        for kind in _TOLD.keys() & by_protocol.keys():
            typer.echo(f"  {name} ({by_protocol[kind]['images']} images): {_TOLD[kind].format(**by_protocol[kind])}")
