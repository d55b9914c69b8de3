"""What a person sees during a training: a bar, a line an epoch, or a live curve in a notebook."""

from __future__ import annotations

import io
import math
import sys
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: How an entry of the history is shown, in this order.
_SHOWN = {
    "loss": "loss {:.4f}",
    "validation_max_f": "validation max F {:.4f}",
    "validation_mae": "MAE {:.4f}",
    "validation_accuracy": "validation accuracy {:.3f}",
    "images_per_second": "{:,.0f} images/s",
}


class Observer(Protocol):
    """Whoever watches a training. The loop calls `start` once, the rest as it goes, and `close` however it ends."""

    def start(self, name: str, steps: int, done: int) -> None:
        """The run of this name begins, or goes on after `done` of its optimiser steps."""

    def step(self, done: int) -> None:
        """Another step was taken; on a GPU it may still be under way."""

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """An epoch is over. `entry` is the history's: at least one validation score, mostly `epoch` and `steps`."""

    def close(self) -> None:
        """The run is over or was stopped."""


class Silent:
    """Shows nothing."""

    def start(self, name: str, steps: int, done: int) -> None: ...
    def step(self, done: int) -> None: ...
    def epoch(self, entry: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class Lines:
    """The run's name, then one line an epoch, to `stream` (default: standard output) without delay.

    `named` begins every line with the run's name instead, for several runs that share the stream.
    """

    def __init__(self, stream: TextIO | None = None, named: bool = False) -> None:
        self._stream, self._named = stream, named

    def start(self, name: str, steps: int, done: int) -> None:
        self._steps, self._done, self._first = steps, done, None
        self._prefix = f"{name}: " if self._named else ""
        if done or not self._named:
            self._write(_headline(name, steps, done))

    def step(self, done: int) -> None:
        self._done = done
        if self._first is None:  # it may compile: time left is counted from its end
            self._first = done, monotonic()

    def epoch(self, entry: Mapping[str, Any]) -> None:
        line, left = self._prefix + _line(entry, self._steps - self._done), self._seconds_left()
        self._write(f"{line}  {duration(left)} left" if left else line)

    def close(self) -> None: ...

    def _seconds_left(self) -> float | None:
        """At the speed of the steps taken in this process; None before there are any."""
        if self._first is None or self._done == self._first[0]:
            return None
        first, since = self._first
        return (monotonic() - since) / (self._done - first) * (self._steps - self._done)

    def _write(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


class Bar:
    """A tqdm bar with the time left, loss and validation: a widget in a notebook; in a terminal on standard error,
    with one line an epoch above it."""

    def __init__(self) -> None:
        self._bar = tqdm(disable=True)

    def start(self, name: str, steps: int, done: int) -> None:
        self.close()
        self._terminal, self._steps, self._first = _kernel() is None, steps, True
        if self._terminal:  # too narrow for a bar behind the name
            print(_headline(name, steps, done), flush=True)
            make = tqdm
        else:
            from tqdm.auto import tqdm as make
        # No smoothing: steps come in bursts, an epoch's and then none during validation.
        options = {"unit": "step", "smoothing": 0, "miniters": 1, "dynamic_ncols": True}
        self._bar = make(desc=None if self._terminal else name, total=steps, initial=done, **options)

    def step(self, done: int) -> None:
        if self._first:  # as in Lines, time left is counted from the end of the first step
            self._first = False
            self._bar.n = self._bar.initial = done
            self._bar.unpause()
        self._bar.update(done - self._bar.n)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        if self._terminal:
            with self._bar.external_write_mode():
                print(_line(entry, self._steps - self._bar.n), flush=True)
        shown = {"loss": "loss", "validation_max_f": "max F"}
        postfix = (f"{label} {entry[name]:.4f}" for name, label in shown.items() if name in entry)
        self._bar.set_postfix_str(", ".join(postfix))

    def close(self) -> None:
        self._bar.close()


class LiveCurve:
    """Loss and validation max F-measure over the epochs, as one figure in a notebook, beside another observer.

    The figure is drawn anew in its place after every epoch, less often where epochs are so short that drawing would
    take more than a tenth of the time; without `redraw` it appears once, at the end.
    """

    def __init__(self, beside: Observer, redraw: bool = True) -> None:
        self._beside, self._redraw, self._history, self._drawn = beside, redraw, [], 0

    def start(self, name: str, steps: int, done: int) -> None:
        self._beside.start(name, steps, done)
        self._name, self._steps, self._done = name, steps, done
        self._display, self._history, self._drawn = None, [], 0
        self._due = 0.0 if self._redraw else math.inf

    def step(self, done: int) -> None:
        self._done = done
        self._beside.step(done)

    def epoch(self, entry: Mapping[str, Any]) -> None:
        self._beside.epoch(entry)
        if "epoch" in entry:
            self._history.append(entry)
            if monotonic() >= self._due:
                self._show()

    def close(self) -> None:
        self._beside.close()
        if self._drawn < len(self._history):
            self._show()

    def _show(self) -> None:
        from IPython.display import Image, display
        from matplotlib import rc_context

        from .plots import use_style

        began, picture = monotonic(), io.BytesIO()
        with rc_context():  # a training leaves the style of the user's own figures alone
            use_style()
            figure = training_curve(self._history, _last_epoch(self._history[-1], self._steps - self._done))
            figure.suptitle(self._name, fontsize="medium", x=0.01, ha="left")
            figure.savefig(picture, format="png", dpi=2 * figure.dpi)
        image = Image(picture.getvalue(), retina=True, alt=f"Loss and max F-measure of {self._name} by epoch")
        if self._display:
            self._display.update(image)
        else:
            self._display = display(image, display_id=True)
        self._drawn = len(self._history)
        self._due = 10 * monotonic() - 9 * began


def training_curve(history: Sequence[Mapping[str, Any]], last_epoch: int) -> Figure:
    """Training and validation loss, and validation max F-measure, with room up to the last epoch."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    from .plots import COLORS, FULL_WIDTH

    lines = (("loss", "training", 0), ("validation_loss", "validation", 0), ("validation_max_f", "validation", 1))
    epochs = [entry["epoch"] for entry in history]
    figure = Figure(figsize=(FULL_WIDTH, 3.2))
    axes = figure.subplots(1, 2)
    for name, role, panel in lines:
        values = [entry[name] for entry in history]
        marker, label = "o" if len(history) <= 40 else None, f"{role}, now {values[-1]:.4f}"
        axes[panel].plot(epochs, values, marker=marker, ms=3, color=COLORS[role], label=label)
    best = max(values)
    epoch = epochs[values.index(best)]
    label = f"best {best:.4f}, epoch {epoch}"
    axes[1].plot(epoch, best, "o", ms=9, mfc="none", mec=COLORS["text"], clip_on=False, label=label)
    captions = (("loss (binary cross-entropy)", "upper right"), ("max F-measure", "lower right"))
    for axis, (label, corner) in zip(axes, captions, strict=True):
        axis.set(xlabel="epoch", ylabel=label, xlim=(epochs[0] - 0.5, last_epoch + 0.5))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(loc=corner)
    return figure


def observer(live: bool = False) -> Observer:
    """Who watches a training here: a bar where a person looks at a terminal or a notebook, else a line an epoch.

    `live` adds the curve in a notebook, also in one that runs headless.
    """
    if shell := _kernel():
        # A frontend says with every cell whether it could ask its user for input; papermill and nbconvert say no.
        watched = shell.kernel.get_parent("shell").get("content", {}).get("allow_stdin", False)
    else:
        watched = sys.stdout.isatty() and sys.stderr.isatty()
    shown = Bar() if watched else Lines()
    return LiveCurve(shown, redraw=watched) if live and shell else shown


def _kernel() -> Any:
    """The shell of the Jupyter kernel that this process is, else None."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell if hasattr(shell, "kernel") else None


def _headline(name: str, steps: int, done: int) -> str:
    return f"{name}: goes on after {done:,} of {steps:,} steps" if done else name


def _line(entry: Mapping[str, Any], steps_left: int) -> str:
    """The entry on one line of 80 columns; what it lacks is left out."""
    epoch = [f"epoch {entry['epoch']}/{_last_epoch(entry, steps_left)}"] if "epoch" in entry else []
    return "  ".join(epoch + [form.format(entry[name]) for name, form in _SHOWN.items() if name in entry])


def _last_epoch(entry: Mapping[str, Any], steps_left: int) -> int:
    """The epoch in which the run ends, from the length of those that led to this entry."""
    return entry["epoch"] + math.ceil(steps_left * entry["epoch"] / entry["steps"])


def duration(seconds: float) -> str:
    """Seconds as a person reads them: "4.2 s", "42 s", "3 min 12 s", "5 h 3 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
