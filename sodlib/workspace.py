"""Where the features of a compiled network lie: planes in one piece of memory, used again and again."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Feature:
    """Planes of one resolution in the workspace: where each begins, and how far apart its rows are. `memory` is what
    was allocated for them, with a `border` of zeros before and behind every row or without. `pooled`: the same at half
    the resolution, where the step that made it did that too."""

    planes: tuple[int, ...]
    height: int
    width: int
    stride: int
    memory: tuple[int, int]
    border: int = 0
    pooled: Feature | None = None


class Workspace:
    """Memory in numbers, of which `size` are needed in all. Rows are whole vectors of `lanes` numbers."""

    def __init__(self, lanes: int) -> None:
        self._lanes, self.size = lanes, 0
        self._free: list[tuple[int, int]] = []

    def allocate(self, channels: int, height: int, width: int, border: int = 0) -> Feature:
        """Memory that is free, or more of it. A border of zeros is at least so wide, in whole vectors; what writes the
        rows has to write it too."""
        lanes = self._lanes
        border = -(-border // lanes) * lanes
        # A row's border is also the one behind the row above. Above and below the plane there is none: convolutions
        # leave out what they would read there.
        stride = border + -(-width // lanes) * lanes
        plane, length = self._extent(channels, height, stride)
        start = None
        for place, (free, free_length) in enumerate(self._free):
            if free_length >= length:
                start = free
                del self._free[place]
                if free_length > length:
                    self.release((free + length, free_length - length))
                break
        if start is None:
            start, self.size = self.size, self.size + length
        planes = tuple(start + border + c * plane for c in range(channels))
        return Feature(planes, height, width, stride, (start, length), border)

    def release(self, memory: tuple[int, int]) -> None:
        """What was allocated is free for others."""
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, memory]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def planes(self, x: Feature, count: int) -> Feature:
        """The first planes in the memory of a feature without a border."""
        plane, _ = self._extent(count, x.height, x.stride)
        return replace(x, planes=tuple(x.planes[0] + c * plane for c in range(count)), pooled=None)

    def has_room(self, x: Feature, count: int) -> bool:
        """Whether the memory of a feature is enough for so many planes."""
        return self._extent(count, x.height, x.stride)[1] <= x.memory[1]

    def _extent(self, channels: int, height: int, stride: int) -> tuple[int, int]:
        """How far planes are apart, and the length of all."""
        # A vector more: planes at multiples of 4096 bytes would share one part of the cache.
        plane = height * stride + self._lanes
        # Vectors are read beyond the last row, and before the first one.
        return plane, channels * plane + 2 * self._lanes
