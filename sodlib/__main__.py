"""The command `sodlib`, also `python -m sodlib`."""

from __future__ import annotations

import os
import sys
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from . import (
    archives,
    checkpoints,
    cost,
    inspection,
    metrics,
    prediction,
    pruning,
    published,
    records,
    runs,
    runtime,
    study_commands,
)
from . import data as sets
from .classifier import Classifier
from .decay import DECAYS
from .description import PRETRAININGS, Run
from .errors import SodlibError, memory_named
from .files import written_whole
from .layouts import image_files
from .pixels import Stream, open_pixels
from .progress import observer
from .study_commands import PRESETS_TO_CHOOSE, Preset, PresetName, Results, Root, show

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A reproduction study of CSNet, the salient object detector with 100K parameters.",
)
data_app = typer.Typer(no_args_is_help=True, help="Benchmark sets: download and check them.")
app.add_typer(study_commands.app, name="study")
app.add_typer(data_app, name="data")

DecayName = StrEnum("DecayName", {name: name for name in DECAYS})
PretrainingName = StrEnum("PretrainingName", {name: name for name in PRETRAININGS})
CriterionName = StrEnum("CriterionName", {name: name for name in pruning.CRITERIA})
ProtocolName = StrEnum("ProtocolName", {name: name for name in metrics.PROTOCOLS})

Model = Annotated[str, typer.Argument(help="A .safetensors file, or the name of a network that ships.")]


#: The shipped network that `predict` uses unless told otherwise.
DEFAULT_MODEL = "csnet-x1-l-overlap-fast"


@app.command()
def reproduce(
    only: Annotated[list[str] | None, typer.Argument(help="Notebooks by number or name; all by default.")] = None,
    preset: Annotated[
        PresetName | None, typer.Option(metavar=PRESETS_TO_CHOOSE, help="Make or show the runs of this preset.")
    ] = None,
    data: Root = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make every run anew, at smoke unless a preset is given.")
    ] = False,
) -> None:
    """Run the notebooks and write their figures and tables.

    Without options the committed pages are refreshed from the committed records. Anything else goes under build/.
    """
    from .reproduce import reproduce as run_all

    raise typer.Exit(run_all(preset.value if preset else None, data, fresh, only or ()))


@app.command()
def report() -> None:
    """Render the executed notebooks to one site under build/report that reads offline."""
    from .report import report as render

    typer.echo(f"{render()}: open it in a browser")


@app.command()
def train(
    preset: Preset = PresetName.brief,
    width: Annotated[float, typer.Option(help="Width factor k of CSNet-xk.")] = 1.0,
    split: Annotated[str, typer.Option(help="Split ratio of the ILBlocks.")] = "5/5",
    stages: Annotated[str, typer.Option(help="Stages that the fusion takes.")] = "2-4",
    network: Annotated[str, typer.Option(help="csnet, extractor or vanilla.")] = "csnet",
    decay: Annotated[DecayName, typer.Option(help="Weight decay.")] = DecayName.dynamic,
    pretraining: Annotated[
        PretrainingName | None, typer.Option(help="Start from a classifier of the preset's folder, or of categories.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)] = 0,
    data: Root = None,
    results: Results = records.RESULTS,
) -> None:
    """Train a network and write its record; a run that is already recorded is shown."""
    start = pretraining.value if pretraining else ""
    run = Run(network, width, split, stages, decay.value, seed=seed, pretraining=start)
    show(runs.obtain(run, preset.value, runs.Surroundings(results, data, observer=observer())))


@app.command()
def prune(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the smaller network goes (.safetensors).")],
    criterion: Annotated[CriterionName, typer.Option(help="What a channel's worth is.")] = CriterionName.gamma,
    threshold: Annotated[
        float | None, typer.Option(help="Keep channels that reach this score, such as 1e-3 of gamma.")
    ] = None,
    share: Annotated[float | None, typer.Option(help="Keep this share of every layer's channels.")] = None,
    parameters: Annotated[
        int | None,
        typer.Option(
            help="Come to this many parameters: with gamma by one threshold, else by the same share of every layer."
        ),
    ] = None,
    images: Annotated[
        str, typer.Option(help="Set whose images recalibrate batch norm: best the one that the network learned from.")
    ] = "cutouts/train",
    batches: Annotated[int, typer.Option(min=1, help="Batches of 8 for the recalibration.")] = 50,
    data: Root = None,
) -> None:
    """Prune a trained network, then estimate its batch norm statistics anew."""
    _named(output, ".safetensors")
    network = _saliency_network(model)
    # Of the other criteria one threshold says little: their scores differ in scale from layer to layer.
    ranking = "network" if criterion is CriterionName.gamma else "layer"
    kept = pruning.keep(
        network, criterion.value, threshold=threshold, share=share, parameters=parameters, ranking=ranking
    )
    smaller = pruning.prune(network, kept)
    stream = Stream(open_pixels(sets.find_set(images, data)), network.input_size, 8, seed=0)
    inputs = (x for x, _ in stream.batches(batches))
    pruning.recalibrate(smaller, tqdm(inputs, "recalibrating", batches, disable=None))
    checkpoints.save(smaller, output)
    before, after = cost.count_parameters(network), cost.count_parameters(smaller)
    typer.echo(f"{output}: {after:,} of {before:,} parameters, recalibrated on {batches} batches of {images}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="A network, or a folder of PNG maps.")],
    dataset: Annotated[str, typer.Argument(help="A set, such as ECSSD or cutouts/test, or a folder.")],
    protocol: Annotated[
        ProtocolName, typer.Option(help="The paper's protocol or PySODMetrics'.")
    ] = ProtocolName.released,
    size: Annotated[int | None, typer.Option(help="Input size; the network's own by default.")] = None,
    record: Annotated[
        str | None, typer.Option(help="Keep the scores under this name in results/published, for page 08.")
    ] = None,
    data: Root = None,
    results: Results = records.RESULTS,
) -> None:
    """Score a network or a folder of maps: max F-measure and MAE with 95 % bootstrap intervals."""
    folder = Path(model)
    maps = folder if folder.is_dir() else _saliency_network(model)
    chosen = sets.find_set(dataset, data)
    if record:
        if folder.is_dir() or size is not None or protocol is not ProtocolName.released:
            raise SodlibError(
                "a record is of a network at its own input size by both protocols; leave out --size and --protocol, "
                "and name no folder"
            )
        study_commands.show(published.measure(maps, record, chosen, results))
        return
    if folder.is_dir() and size is not None:
        raise SodlibError("maps that are there have no input size; leave out --size")
    with (
        memory_named(f"--size {size}" if size else model, "give a smaller --size"),
        tqdm(desc=chosen.name, total=len(chosen), unit="image", leave=False, disable=None) as bar,
    ):
        if isinstance(maps, nn.Module):

            def count(_: nn.Module, __: tuple[Tensor], logits: Tensor) -> None:
                bar.update(len(logits))

            maps.register_forward_hook(count)
        result = metrics.evaluate(maps, chosen, protocol.value, size)
    draws = metrics.bootstrap(result)
    typer.echo(f"{chosen.name}, {result['images']} images, protocol {protocol.value}")
    for name, label in (("max_f", "max F"), ("mae", "MAE  ")):
        low, high = metrics.interval(draws[name])
        typer.echo(f"  {label} {result[name]:.4f}  [{low:.4f}, {high:.4f}]")


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(help="A photograph, or a folder of photographs.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The map (.png), or a folder for maps.")] = None,
    model: Annotated[
        str, typer.Option(help="A .safetensors file, or the name of a network that ships.")
    ] = DEFAULT_MODEL,
    size: Annotated[int | None, typer.Option(help="Input size; the network's own by default.")] = None,
) -> None:
    """Write the saliency map of a photograph, or of all photographs in a folder, as 8-bit PNG."""
    network, source = _saliency_network(model), Path(os.path.abspath(source))
    if source.is_dir():
        photographs = image_files(source)
        if not photographs:
            raise SodlibError(f"{source} holds no photographs; give a folder of .jpg, .png, .webp or .bmp files")
        folder = output or source.with_name(source.name + "-maps")
        stems = Counter(photograph.stem for photograph in photographs)
        targets = [folder / f"{one.stem if stems[one.stem] == 1 else one.name}.png" for one in photographs]
        if twice := next((one for one, count in Counter(targets).items() if count > 1), None):
            raise SodlibError(f"two photographs of {source} would both become {twice.name}; rename one of them")
    else:
        photographs, name = [source], source.stem + "-map.png"
        into_folder = output and (output.is_dir() or not output.suffix)
        targets = [output / name if into_folder else output or source.with_name(name)]
        _named(targets[0], ".png")
    # Also where either is a link to the other.
    taken = {*photographs, *(photograph.resolve() for photograph in photographs)}
    if clash := next((one for one in targets if {Path(os.path.abspath(one)), one.resolve()} & taken), None):
        raise SodlibError(f"{clash} would be written over the photograph; name another place with --output")
    runner, engine, remarks = runtime.fastest(network, len(photographs))
    for remark in remarks:
        typer.echo(remark, err=True)
    written = prediction.predict_files(runner, photographs, lambda i, found: _write_map(found, targets[i]), size)
    watched = tqdm(written, total=len(photographs), disable=None if len(photographs) > 1 else True)
    with memory_named(f"--size {size}" if size else f"{source}", "give a smaller --size"):
        unread = [error for _, error in watched if error is not None]
    made = len(targets) - len(unread)
    if made:
        where = f"{targets[0]}" if len(targets) == 1 else f"{made} map{'' if made == 1 else 's'} in {targets[0].parent}"
        typer.echo(f"{where} (engine: {engine})")
    if len(unread) > 1:
        for error in unread:
            typer.echo(f"{error}", err=True)
        raise SodlibError(f"{len(unread)} of {len(targets)} files in {source} cannot be read; see above")
    if unread:
        raise unread[0]


@app.command()
def export(model: Model, output: Annotated[Path, typer.Argument(help="Where the network goes (.onnx).")]) -> None:
    """Write a network as ONNX: "images" [B, 3, H, W] in, "logits" [B, 1, H, W] out, of any batch and size."""
    _named(output, ".onnx")
    runtime.export(checkpoints.load(model), output)
    typer.echo(f"{output}: {output.stat().st_size:,} bytes")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(sets.BENCHMARKS)}.")], data: Root = None
) -> None:
    """Download, verify and unpack a benchmark set into the data root."""
    fetched = archives.fetch(name, data)
    typer.echo(f"{fetched.name}: {len(fetched):,} pairs in {fetched.images[0].parent.parent}")


@data_app.command("check")
def data_check(
    names: Annotated[list[str] | None, typer.Argument(help="Sets; all in the data root by default.")] = None,
    data: Root = None,
) -> None:
    """Pairs, orphans, unreadable files, size mismatches, duplicates and empty masks, in one table."""
    chosen = names or [*sets.EMBEDDED_SETS, *sets.available_sets(data)]
    result = inspection.inspect_sets(chosen, data)
    typer.echo(result.counts.to_string(index=False))
    if len(result.problems):
        typer.echo("\n" + result.problems.to_string(index=False))
    if not result.usable:
        raise SodlibError("some sets are not usable as they are; see the table")


def _write_map(saliency_map: np.ndarray, target: Path) -> None:
    with written_whole(target) as beside:
        Image.fromarray(saliency_map).save(beside, format="PNG")


def _named(path: Path, suffix: str) -> None:
    """Refuse a name that would make other programs take the file for something else."""
    if path.suffix.lower() != suffix:
        raise SodlibError(f"{path}: the file is written as {suffix}; give a name that ends so")


def _saliency_network(model: str) -> nn.Module:
    network = checkpoints.load(model)
    if isinstance(network, Classifier):
        raise SodlibError(f"{model} is a classifier and makes no saliency map; give a saliency network")
    return network


def main() -> None:
    """Run the command; a person's mistake is answered by one sentence and exit code 2."""
    try:
        app()
    except SodlibError as error:
        typer.echo(f"sodlib: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
