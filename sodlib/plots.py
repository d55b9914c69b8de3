"""One style for all figures and tables, and one colour for each role, safe for colour-blind readers."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn
from matplotlib import rcParams
from pandas.io.formats.style import Styler

#: Widths in inches that a figure may take: the report's full text width, and half of it.
FULL_WIDTH, HALF_WIDTH = 9.0, 4.4

#: What each colour means, in every figure alike (palette of Okabe and Ito, and two greys).
COLORS = {
    "high resolution": "#0072B2",
    "low resolution": "#E69F00",
    "fused": "#009E73",
    "standard decay": "#56B4E9",
    "dynamic decay": "#D55E00",
    "training": "#0072B2",
    "validation": "#E69F00",
    "ours": "#D55E00",
    "paper": "#595959",
    "before pruning": "#56B4E9",
    "after pruning": "#009E73",
    "threshold": "#CC79A7",
    "text": "#262626",
    "faint": "#B8B8B8",
}

#: The order for series without a role of their own.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#595959")

#: Saliency maps are grey from 0 (black) to 1 (white), everywhere.
SALIENCY = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}

#: What heads a column of this name in a table.
LABELS = {
    "parameters_k": "parameters (K)",
    "macc_g": "MACC (G)",
    "convolution_g": "convolutions (G)",
    "max_f": "max F",
    "mae": "MAE",
    "high_size": "high: side",
    "high_channels": "high: channels",
    "low_size": "low: side",
    "low_channels": "low: channels",
    "first": "first convolution",
}

_STYLE = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (FULL_WIDTH, 3.6),
    "savefig.facecolor": "white",
    "font.family": "DejaVu Sans",  # ships with matplotlib, so that every machine draws the same
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.labelsize": 10,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#595959",
    "axes.linewidth": 0.8,
    "axes.labelcolor": COLORS["text"],
    "text.color": COLORS["text"],
    "xtick.color": COLORS["text"],
    "ytick.color": COLORS["text"],
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.6,
    "image.interpolation": "nearest",  # a pixel of the figure is a pixel of the network
    "svg.fonttype": "path",
    "svg.hashsalt": "sodlib",  # element ids would be random otherwise, and no two SVGs equal
}


def use_style() -> None:
    """Give all figures drawn from here on the one style, through matplotlib's rcParams."""
    seaborn.set_theme(style="whitegrid", palette=list(PALETTE))
    rcParams.update(_STYLE)


class _Table(Styler):
    """A Styler whose plain form is its caption: the usual one holds an address that differs every time."""

    def __repr__(self) -> str:
        return str(self.caption)


def styled(table: pd.DataFrame, caption: str, formats: Mapping[Any, str] | None = None) -> Styler:
    """The table as a notebook shows it: small, with a caption that names the units, empty cells as a dash.

    `formats` gives a format such as "{:.2f}" for each column that needs one; those of other tables may stand
    beside. Columns that have an entry in LABELS are headed by it.
    """
    # The identity is of the caption, since a random one would make every execution differ.
    shown = _Table(table, uuid=f"{zlib.crc32(caption.encode()):08x}", cell_ids=False).set_caption(caption)
    rules = {
        "": "font-size: 0.85em; border-collapse: collapse",
        "caption": "caption-side: top; text-align: left; font-style: italic; padding: 0.4em 0; white-space: nowrap",
        "th, td": "padding: 0.2em 0.7em; vertical-align: top; max-width: 26em",
        "th.row_heading, th.index_name": "text-align: left; font-weight: normal",
        "th.col_heading[colspan]": "text-align: center",
        "thead": "border-bottom: 1px solid currentColor",
    }
    shown.set_table_styles([{"selector": selector, "props": props} for selector, props in rules.items()])
    words = [column for column in table if not pd.api.types.is_numeric_dtype(table[column])]
    left = [{"selector": "th.col_heading, td", "props": "text-align: left"}]
    shown.set_table_styles(dict.fromkeys(words, left), overwrite=False)
    shown.format_index(lambda name: LABELS.get(name, str(name)), axis="columns")
    shown.format_index(lambda name: f"{name:g}" if isinstance(name, float) else str(name), axis="index")
    known = {column: form for column, form in (formats or {}).items() if column in table}
    return shown.format(known, na_rep="–")
