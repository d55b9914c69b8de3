"""Checkpoints of trainings that are under way, so that a stop at any moment costs the last minute and not the run."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .errors import SodlibError
from .files import written_whole

#: Seconds between two checkpoints: what a sudden end costs at most.
INTERVAL = 60.0


class Paused(BaseException):
    """The run stopped in good order because its time is over. It comes at any moment, also while a file is read, and
    is no error of whatever it interrupts; hence no `Exception`."""


class Checkpoint:
    """The state of one training in one file, which is replaced whole or not at all.

    `saved` is called with the file after each write. `hardware` is that of this process; `made_on` names all on which
    the state was made, the first one first.
    """

    def __init__(self, path: Path, saved: Callable[[Path], None] = lambda _: None, hardware: str = "") -> None:
        self.path, self.saved = path, saved
        self.made_on = [hardware] if hardware else []
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether the last one is older than the interval."""
        return time.monotonic() - self._written >= INTERVAL

    def read(self) -> dict[str, Any] | None:
        """The latest state, or None. Raises SodlibError where the file is damaged."""
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            self.made_on = list(dict.fromkeys([*state.pop("made on", []), *self.made_on]))
            return state
        except FileNotFoundError:
            return None
        except Exception as error:
            raise SodlibError(f"{self.path}: not a readable checkpoint; delete it to start the run anew") from error

    def write(self, state: dict[str, Any]) -> None:
        """Keep this state instead of the last. Raises SodlibError where it cannot be written; the last one stays."""
        buffer = io.BytesIO()
        torch.save({**state, "made on": self.made_on}, buffer)
        self.put(buffer.getvalue())

    def put(self, content: bytes) -> None:
        """`write` the content of another checkpoint's file."""
        try:
            with written_whole(self.path) as beside, beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        except SodlibError as error:
            raise SodlibError(f"{error}: free some space for the checkpoint and run again") from error
        self._written = time.monotonic()
        self.saved(self.path)

    def remove(self) -> None:
        """The run is recorded."""
        self.path.unlink(missing_ok=True)
