"""What `forward.c` is to do for a folded CSNet and images of one size: steps, weights, and where every plane lies.

The two depthwise convolutions of a block are one step in place; a sum over the scales starts from the coarser ones,
enlarged row by row; memory is used again as soon as nothing reads it any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from .errors import SodlibError
from .folding import FoldedConv, FoldedCSNet, FoldedDilated, FoldedOctave, FoldedScales

#: As in `forward.c`.
CONVOLUTION, DEPTHWISE, POOL, ENLARGE = range(4)
FIELDS = ("kind", "height", "width", "inputs", "sources", "in_stride", "outputs", "target", "plane", "stride",
          "weights", "kernel", "dilation", "activated", "factor", "average", "added", "additions",
          "merged")  # fmt: skip


@dataclass(frozen=True)
class Feature:
    """Planes of one resolution in the workspace: where each begins, and how far apart its rows are. `memory` is what
    was allocated for them, with a border of zeros or without."""

    planes: tuple[int, ...]
    height: int
    width: int
    stride: int
    memory: tuple[int, int]


class Program:
    """The steps for images of one size, with their weights. `lanes`: numbers in a vector; `most`: outputs that a
    block of a convolution has at most."""

    def __init__(self, network: FoldedCSNet, height: int, width: int, lanes: int, most: int) -> None:
        self._lanes, self._most = lanes, most
        self.steps: list[list[int]] = []
        #: The layer that each step is a part of, as the stages and the fusion number them.
        self.layers: list[str] = []
        self._layer = ""
        #: Bytes that each step reads and writes.
        self.traffic: list[int] = []
        self.table: list[int] = []
        self.numbers: list[np.ndarray] = []
        self._count = 0
        self.size = 0
        self._free: list[tuple[int, int]] = []
        self.input = self._allocate(3, height, width, border=1)
        scales: list[Feature | None] = [self.input]
        ends: list[Feature] = []
        for stage, units in enumerate(network.stages):
            scales = self._units(units, scales, f"stage{stage}", kept=ends)
            if stage in network.plan.fused_stages:
                ends.append(scales[0])
        # The prediction layer is part of the last step of the fusion, whose many planes are never written.
        merging = network.fusion is not None and isinstance(network.fusion[-1], FoldedOctave)
        features: Sequence[Feature | None] = ends
        if network.fusion is not None:
            features = self._units(network.fusion, ends, "fusion", [], network.last if merging else None)
        logits = features[0]
        if not merging:
            self._layer = "last"
            logits = self._allocate(1, features[0].height, features[0].width)
            self._convolve(network.last, features[0].planes, features[0], logits)
        self._layer = "last"
        self.output = self._enlarged(logits, height // logits.height)
        self.steps_array = np.array(self.steps, np.int64)
        self.table_array = np.array(self.table, np.int64)
        self.weights = np.concatenate(self.numbers).astype(np.float32)

    def _allocate(self, channels: int, height: int, width: int, border: int = 0) -> Feature:
        lanes = self._lanes
        stride = -(-(width + 2 * border) // lanes) * lanes + (lanes if border else 0)
        # A vector more: planes at multiples of 4096 bytes would share one part of the cache.
        plane = (height + 2 * border) * stride + lanes
        # Vectors are read beyond the last row, and before the first one.
        length = channels * plane + 2 * lanes
        start = None
        if not border:  # its zeros would not outlast another use
            for place, (free, free_length) in enumerate(self._free):
                if free_length >= length:
                    start = free
                    del self._free[place]
                    if free_length > length:
                        self._release((free + length, free_length - length))
                    break
        if start is None:
            start, self.size = self.size, self.size + length
        first = start + border * stride + border
        planes = tuple(first + c * plane for c in range(channels))
        return Feature(planes, height, width, stride, (start, length) if not border else (start, 0))

    def _release(self, memory: tuple[int, int]) -> None:
        if not memory[1]:
            return
        merged: list[tuple[int, int]] = []
        for start, length in sorted([*self._free, memory]):
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def _emit(self, **fields: int) -> None:
        self.steps.append([fields.get(name, 0) for name in FIELDS])
        self.layers.append(self._layer)
        inside = fields["height"] * fields["width"]
        read = inside if fields["kind"] != POOL else inside * fields["factor"] ** 2
        read = read // fields["factor"] ** 2 if fields["kind"] == ENLARGE else read
        self.traffic.append(
            4 * (fields.get("inputs", 1) * read + (1 if fields.get("merged") else fields["outputs"]) * inside)
        )

    def _listed(self, numbers: Sequence[int]) -> int:
        self.table += numbers
        return len(self.table) - len(numbers)

    def _stored(self, *arrays: Tensor) -> int:
        start = self._count
        for array in arrays:
            self.numbers.append(array.detach().float().flatten().numpy())
            self._count += array.numel()
        return start

    def _onto(self, target: Feature, first: int, count: int) -> dict[str, int]:
        """Fields for `count` planes of the target from the first."""
        planes = target.planes
        return {
            "target": planes[first],
            "plane": planes[1] - planes[0] if len(planes) > 1 else 0,
            "outputs": count,
            "height": target.height,
            "width": target.width,
            "stride": target.stride,
        }

    def _pool(self, x: Feature, factor: int, average: bool, target: Feature, first: int = 0) -> None:
        self._emit(kind=POOL, inputs=len(x.planes), sources=self._listed(x.planes), in_stride=x.stride, factor=factor,
                   average=average, **self._onto(target, first, len(x.planes)))  # fmt: skip

    def _enlarged(self, x: Feature, factor: int) -> Feature:
        if factor == 1:
            return x
        target = self._allocate(1, x.height * factor, x.width * factor)
        self._emit(kind=ENLARGE, sources=self._listed(x.planes), in_stride=x.stride, factor=factor,
                   **self._onto(target, 0, 1))  # fmt: skip
        return target

    def _convolve(
        self,
        conv: FoldedConv | None,
        planes: Sequence[int],
        x: Feature | None,
        target: Feature,
        first: int = 0,
        slopes: Tensor | None = None,
        added: Sequence[tuple[Sequence[int], Feature, int]] = (),
        last: FoldedConv | None = None,
    ) -> None:
        """A convolution of planes of `x`, plus those that are given with their features and a factor by which they are
        enlarged; then PReLU. Without a convolution, the sum of the latter alone. With `last`, a 1x1 convolution
        to one plane follows, which is all that is kept."""
        count = len(added[0][0]) if conv is None else conv.out_channels
        bias = torch.zeros(count) if conv is None or conv.bias is None else conv.bias
        kernel, dilation = (1, 1) if conv is None else (conv.kernel_size[0], conv.dilation[0])
        if conv is not None and conv.stride != (1, 1):
            raise SodlibError("the compiled engine has no convolutions with stride")
        packed = []
        if conv is not None:
            blocks = -(-count // self._most)
            ends = [b * count // blocks for b in range(blocks + 1)]
            packed = [conv.weight[a:b].permute(1, 2, 3, 0) for a, b in pairwise(ends)]
        if last is not None:
            packed += [last.weight, last.bias]
        if slopes is None and conv is not None:
            slopes = conv.slopes
        before = dilation * (x.stride + 1) if kernel == 3 else 0
        additions = [
            number
            for terms, y, factor in added
            for number in (terms[0], y.stride, terms[1] - terms[0] if len(terms) > 1 else 0, factor)
        ]
        self._emit(
            kind=CONVOLUTION,
            inputs=len(planes),
            sources=self._listed([plane - before for plane in planes]),
            in_stride=x.stride if x else 0,
            weights=self._stored(bias, torch.zeros(count) if slopes is None else slopes, *packed),
            kernel=kernel,
            dilation=dilation,
            activated=slopes is not None,
            added=self._listed(additions),
            additions=len(added),
            merged=last is not None,
            **self._onto(target, first, count),
        )

    def _units(
        self,
        units: nn.Sequential,
        scales: Sequence[Feature | None],
        part: str,
        kept: Sequence[Feature],
        last: FoldedConv | None = None,
    ) -> list[Feature | None]:
        """Run the layers; what they read is free afterwards, but for what is kept."""
        scales = list(scales)
        pending = None
        for place, unit in enumerate(units):
            self._layer = f"{part}.{place}"
            if isinstance(unit, FoldedScales) and unit.depthwise:
                if pending is None:
                    pending = unit
                else:
                    self._depthwise(pending, unit, scales)
                    pending = None
                continue
            if isinstance(unit, FoldedOctave):
                result = self._octave(unit, scales, last if unit is units[-1] else None)
            else:
                result = self._single(unit, scales)
            for x in scales:
                if x is not None and x not in kept:
                    self._release(x.memory)
            scales = result
        return scales

    def _depthwise(self, first: FoldedScales, second: FoldedScales, scales: Sequence[Feature | None]) -> None:
        for j, x in enumerate(scales):
            if x is not None:
                parts = [
                    part
                    for conv in (first.convs[str(j)], second.convs[str(j)])
                    for part in (conv.weight.flatten(1), conv.bias[:, None], conv.slopes[:, None])
                ]
                self._emit(kind=DEPTHWISE, inputs=len(x.planes), sources=self._listed(x.planes),
                           weights=self._stored(torch.cat(parts, 1)), **self._onto(x, 0, len(x.planes)))  # fmt: skip

    def _single(self, unit: FoldedScales, scales: Sequence[Feature | None]) -> list[Feature | None]:
        """The layer of every scale, ordinary or dilated convolutions."""
        result: list[Feature | None] = [None] * unit.scales
        for j, layer in unit.convs.items():
            x = scales[int(j)]
            convs = layer.convs if isinstance(layer, FoldedDilated) else [layer]
            slopes = layer.slopes.split([conv.out_channels for conv in convs])
            target = self._allocate(sum(conv.out_channels for conv in convs), x.height, x.width)
            border = max(conv.padding[0] for conv in convs)
            if border:
                padded = self._allocate(len(x.planes), x.height, x.width, border)
                self._pool(x, 1, False, padded)
                x = padded
            first = 0
            for conv, part in zip(convs, slopes, strict=True):
                self._convolve(conv, x.planes, x, target, first, part)
                first += conv.out_channels
            result[int(j)] = target
        return result

    def _octave(
        self, unit: FoldedOctave, scales: Sequence[Feature | None], last: FoldedConv | None
    ) -> list[Feature | None]:
        xs = {i: scales[i] for i in unit.inputs}
        read, temporary = self._gathered(unit, xs)
        added: dict[int, list] = {j: [] for j in unit.outputs}
        for name, conv in unit.coarse.items():
            i = int(name)
            terms = self._allocate(conv.out_channels, xs[i].height, xs[i].width)
            temporary.append(terms)
            self._convolve(conv, xs[i].planes, xs[i], terms)
            first = 0
            for j in (j for j in unit.outputs if j < i):
                added[j].append((terms.planes[first : first + unit.counts[j]], terms, 2 ** (i - j)))
                first += unit.counts[j]
        result: list[Feature | None] = [None] * unit.scales
        for j in unit.outputs:
            conv = unit.own[str(j)] if str(j) in unit.own else None  # noqa: SIM401 (a ModuleDict has no get)
            like, factor = (read[j], 1) if conv is not None else added[j][0][1:]
            result[j] = self._allocate(1 if last else unit.counts[j], like.height * factor, like.width * factor)
            planes = like.planes if conv is not None else ()
            self._convolve(conv, planes, like, result[j], 0, unit.slopes[str(j)], added[j], last)
        for feature in temporary:
            self._release(feature.memory)
        return result

    def _gathered(self, unit: FoldedOctave, xs: dict[int, Feature]) -> tuple[dict[int, Feature], list[Feature]]:
        """At every resolution what the convolutions read there: the finer scales, pooled, and then the scale itself,
        which takes its place in `xs`; and the memory that this took. A pooled scale is pooled further for the next."""
        border = max(conv.padding[0] for conv in (*unit.own.values(), *unit.coarse.values()))
        read, temporary = {}, []
        pooled = {i: (x, i) for i, x in xs.items()}
        for j in sorted({*xs, *map(int, unit.own)}):
            present = [i for i in xs if i == j or (i < j and str(j) in unit.own)]
            copied = [i for i in present if i < j or unit.stride == 2 or (border and xs[i] is not self.input)]
            space = xs.get(j)
            if copied:
                finest = xs[present[0]]
                shrunk = 2 ** (j - present[0]) if present[0] < j else unit.stride
                size = finest.height // shrunk, finest.width // shrunk
                space = self._allocate(sum(len(xs[i].planes) for i in copied), *size, border)
                temporary.append(space)
            planes: tuple[int, ...] = ()
            taken = 0
            for i in present:
                piece = xs[i].planes
                if i in copied:
                    source, level = pooled[i]
                    while level < j - 1:
                        smaller = self._allocate(len(piece), source.height // 2, source.width // 2)
                        temporary.append(smaller)
                        self._pool(source, 2, False, smaller)
                        source, level = smaller, level + 1
                    self._pool(source, 2 if i < j else unit.stride, i == j and unit.stride == 2, space, taken)
                    piece = space.planes[taken : taken + len(piece)]
                    taken += len(piece)
                    pooled[i] = replace(space, planes=piece), j
                    if i == j:
                        xs[j] = pooled[j][0]
                planes += piece
            read[j] = replace(space, planes=planes)
        return read, temporary
