"""What a notebook page needs from its surroundings: where figures and tables go, and what made the numbers."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pandas as pd
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from . import plots
from .data import data_root
from .errors import SodlibError

REPOSITORY = Path(__file__).resolve().parents[1]


class Page:
    """One notebook's place to write to, made from its parameters.

    `preset`: "" shows the committed records, else the preset whose records are shown or made. `data`: the root
    of the benchmark sets; "" leaves them out, so that only the embedded photographs are shown. `output`: the
    folder for figures, tables and new records; "" is the repository itself. `fresh`: make every run anew.
    """

    def __init__(self, preset: str = "", data: str = "", output: str = "", fresh: bool = False) -> None:
        if (preset or data or fresh) and not output:
            output = str(REPOSITORY / "build" / (preset or ("smoke" if fresh else "evidence")))
        self.preset, self.fresh = preset, fresh
        self.data = data_root(data) if data else None
        self.output = Path(output) if output else REPOSITORY
        self.figures = self.output / "figures"
        self.tables = self.output / ("tables" if output else "results/tables")
        plots.use_style()

    def figure(self, figure: Figure, name: str) -> None:
        """Show the figure and write it as `<name>.png` and `<name>.svg`; equal figures give equal files."""
        self.figures.mkdir(parents=True, exist_ok=True)
        for suffix, options in ((".png", {"dpi": 160}), (".svg", {"metadata": {"Date": None}})):
            beside = self.figures / f".{name}{suffix}"
            figure.savefig(beside, format=suffix[1:], **options)
            os.replace(beside, self.figures / f"{name}{suffix}")
        plt.show()

    def table(self, table: pd.DataFrame, name: str, index: bool = True) -> None:
        """Write the table as `<name>.csv`, headers of several levels joined by a space."""
        flat = table.copy()
        if isinstance(flat.columns, pd.MultiIndex):
            flat.columns = [" ".join(str(part) for part in column if str(part)) for column in flat.columns]
        self.tables.mkdir(parents=True, exist_ok=True)
        beside = self.tables / f".{name}.csv"
        try:
            flat.to_csv(beside, index=index, lineterminator="\n")
            os.replace(beside, self.tables / f"{name}.csv")
        except OSError as error:
            raise SodlibError(f"{self.tables / name}.csv: cannot be written ({error.strerror})") from error

    def versions(self) -> str:
        """One line on the software and hardware that this page was executed with."""
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {os.cpu_count()} cores"
        return f"Python {platform.python_version()}, torch {torch.__version__}, {device}"
