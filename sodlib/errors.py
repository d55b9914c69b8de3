"""The one exception that a person sees as a sentence, without a traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SodlibError(Exception):
    """Bad input: one sentence that names the file or value and says what to do."""


@contextmanager
def memory_named(who: str, advice: str = "run fewer --jobs at once or a smaller network") -> Iterator[None]:
    """Say in one sentence where memory ran out, and what to do. Raises SodlibError for that alone."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        starved = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not starved and not re.search("allocate memory|not enough memory|out of memory", str(error)):
            raise
        raise SodlibError(f"{who}: memory ran out; {advice}") from error
