"""One style for all figures, and one colour for each role, safe for colour-blind readers."""

from __future__ import annotations

import seaborn
from matplotlib import rcParams

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
