"""Run the notebooks of this repository: what `make reproduce` and `sodlib reproduce` do."""

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path

import sodlib
from sodlib.data import data_root
from sodlib.errors import SodlibError
from sodlib.notebooks import FAILED_SUFFIX, nearest, run_notebooks, say
from sodlib.presets import PRESETS
from sodlib.progress import duration
from sodlib.study import SHOWN, best_preset, runs_of


def reproduce(
    preset: str | None = None,
    data: Path | None = None,
    fresh: bool = False,
    only: Sequence[str] = (),
    *,
    cell_timeout: int = 4 * 3600,
    echo: Callable[[str], None] = say,
) -> int:
    """Run the notebooks; returns the exit code, 0 only where all of them succeeded.

    With neither preset, data root nor `fresh` they run in place and refresh `notebooks/`, `figures/` and
    `results/tables/` from the records. Otherwise, or where an item that they show has no record at all, everything
    goes under `build/<preset>/`, so that committed evidence is never replaced by less: `fresh` without a preset means
    smoke, neither of them `build/evidence/`. `fresh` first removes the records of an earlier such batch.
    `only` picks notebooks by name or leading number ("03_pruning" or "03"); `cell_timeout` is in seconds.

    Raises SodlibError for an unknown preset, notebook or data root, and where sodlib is not in a checkout.
    """
    start = time.monotonic()
    root = repository()
    if preset and preset not in PRESETS:
        raise SodlibError(f"There is no preset {nearest(preset, list(PRESETS))}.")
    notebooks = choose(root / "notebooks", only)

    # Kernels import the sodlib of this process, order sets alike in every run, and show figures in the page.
    python_path = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(python_path), "PYTHONHASHSEED": "0"}
    unset = ["MPLBACKEND"]
    recorded = all(best_preset(runs_of(item)) for item in SHOWN)
    if not (preset or fresh or recorded):
        echo("Of some tables or figures nothing is recorded: that is made at smoke, and all goes under build/.")
    if preset or data or fresh or not recorded:
        preset = preset or ("smoke" if fresh else "")
        output = root / "build" / (preset or "evidence")
        tables = output / "tables"
        sets = data_root(data)
        if fresh:
            shutil.rmtree(output / "results", ignore_errors=True)
        parameters = {
            "preset": preset,
            "data": str(sets.resolve()) if sets else "",
            "output": str(output),
            "fresh": fresh,
        }
    else:
        output, tables, parameters = root, root / "results" / "tables", None
        unset.append("SODLIB_DATA")
        if os.environ.get("SODLIB_DATA"):
            echo("SODLIB_DATA is not used: committed pages show no benchmark photographs; --data does.")

    folders = [output / "notebooks", output / "figures", tables, output / "results"]
    before = [_fingerprints(folder, tables) for folder in folders]
    with _environment(environment, unset):
        outcomes = run_notebooks(notebooks, folders[0], parameters, cell_timeout=cell_timeout, echo=echo)

    echo(f"{_count(outcomes, 'notebook')} in {duration(time.monotonic() - start)}. In {root}:")
    for folder, old in zip(folders, before, strict=True):
        new = _fingerprints(folder, tables)
        if old or new:
            echo(f"  {folder.relative_to(root).as_posix()}/: {_difference(old, new)}")
    failures = [outcome.message for outcome in outcomes if not outcome.ok]
    if failures:
        echo(f"Failed, {len(failures)} of {_count(outcomes, 'notebook')}:")
        for message in failures:
            echo(f"  {message}")
    return 1 if failures else 0


def repository() -> Path:
    """The checkout that sodlib is imported from; raises SodlibError where it is installed without one."""
    root = Path(sodlib.__file__).resolve().parents[1]
    if not (root / "notebooks").is_dir():
        raise SodlibError(f"There is no folder {root / 'notebooks'}: run from a checkout of the repository.")
    return root


def choose(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """The notebooks of a folder in the order of their names, all or those named in `only` by number or name."""
    paths = sorted(folder.glob("*.ipynb"))
    found = {path.stem: path for path in paths if not path.name.endswith(FAILED_SUFFIX)}
    if not found:
        raise SodlibError(f"There is no notebook in {folder}: restore it with git.")
    chosen = set()
    for name in only:
        stem = Path(name).name.removesuffix(".ipynb")
        matches = {known for known in found if stem in (known, known.split("_")[0])}
        if not matches:
            raise SodlibError(f"There is no notebook {nearest(stem, list(found))}.")
        chosen |= matches
    return [path for stem, path in found.items() if stem in chosen or not only]


def _fingerprints(folder: Path, tables: Path) -> dict[str, str]:
    """File below `folder` -> SHA-256 of its content, without hidden files; tables are no other results."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        apart = folder != tables and tables in path.parents
        if path.is_file() and not apart and not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                digests[name.as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _difference(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    """How many files there are, and which of them are new, changed or gone."""
    kinds = {
        "new": [name for name in new if name not in old],
        "changed": [name for name in new if name in old and old[name] != new[name]],
        "gone": [name for name in old if name not in new],
    }
    unchanged = len(new) - len(kinds["new"]) - len(kinds["changed"])
    parts = [f"{unchanged} unchanged"] if unchanged else []
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            parts.append(f"{len(names)} {kind} ({', '.join(names[:3])}{more})")
    return f"{_count(new, 'file')}, {', '.join(parts)}"


def _count(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


@contextlib.contextmanager
def _environment(changes: Mapping[str, str], unset: Sequence[str]) -> Iterator[None]:
    """Change environment variables for a while; kernels inherit them."""
    before = dict(os.environ)
    os.environ.update(changes)
    for name in unset:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
