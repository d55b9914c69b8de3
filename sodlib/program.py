"""What `forward.c` is to do for a folded CSNet and images of one size: steps, weights, and where every plane lies.

The two depthwise convolutions of a block, and the pooling that the next one needs, are one step. A sum over the scales
starts from the coarser ones, enlarged row by row. The blocks of a stage work in place, and memory is used again as soon
as nothing reads it any more: what was written long ago, or never, is far from the processor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from .errors import SodlibError
from .folding import FoldedConv, FoldedCSNet, FoldedDilated, FoldedOctave, FoldedScales
from .workspace import Feature, Workspace

#: What few outputs can shift: one vector of AVX-512.
MOST_DILATION = 16
#: As in `forward.c`.
CONVOLUTION, DEPTHWISE, POOL = range(3)
FIELDS = ("kind", "height", "width", "inputs", "sources", "in_stride", "outputs", "target", "plane", "stride",
          "weights", "kernel", "dilation", "activated", "factor", "average", "added", "additions",
          "merged", "buffered", "pooled", "pooled_plane", "pooled_stride", "border")  # fmt: skip


class Program:
    """The steps for images of one size, with their weights. `lanes`: numbers in a vector; `most`: outputs that a
    block of a convolution has at most."""

    def __init__(self, network: FoldedCSNet, height: int, width: int, lanes: int, most: int) -> None:
        self._most = most
        self.steps: list[list[int]] = []
        #: The layer that each step is a part of, as the stages and the fusion number them.
        self.layers: list[str] = []
        self._layer = ""
        #: Bytes that each step reads and writes.
        self.traffic: list[int] = []
        self.table: list[int] = []
        self.numbers: list[np.ndarray] = []
        self._count = 0
        self._memory = memory = Workspace(lanes)
        self.input = memory.allocate(3, height, width, border=1)
        scales: list[Feature | None] = [self.input]
        ends: list[Feature] = []
        for stage, units in enumerate(network.stages):
            following = network.stages[stage + 1] if stage + 1 < len(network.stages) else []
            # Planes of every scale that are enough for all blocks of this resolution.
            self._room = _most_channels([*units, *following] if stage == 0 else units)
            scales = self._units(units, scales, f"stage{stage}", ends, following[0] if following else None)
            if stage in network.plan.fused_stages:
                ends.append(replace(scales[0], pooled=None))
        # The prediction layer is part of the last step of the fusion, whose many planes are never written.
        merging = network.fusion is not None and isinstance(network.fusion[-1], FoldedOctave)
        features: Sequence[Feature | None] = ends
        if network.fusion is not None:
            features = self._units(network.fusion, ends, "fusion", [], None, network.last if merging else None)
        logits = features[0]
        if not merging:
            self._layer = "last"
            logits = memory.allocate(1, features[0].height, features[0].width)
            self._convolve(network.last, features[0].planes, features[0], logits)
        self._layer = "last"
        self.output = self._enlarged(logits, height // logits.height)
        self.steps_array = np.array(self.steps, np.int64)
        self.table_array = np.array(self.table, np.int64)
        self.weights = np.concatenate(self.numbers).astype(np.float32)
        self.size = memory.size

    def _emit(self, **fields: int) -> None:
        self.steps.append([fields.get(name, 0) for name in FIELDS])
        self.layers.append(self._layer)
        inside = fields["height"] * fields["width"]
        read = inside if fields["kind"] != POOL else inside * fields["factor"] ** 2
        written = inside + (inside // 4 if fields.get("pooled_stride") else 0)
        outputs = 1 if fields.get("merged") else fields["outputs"]
        self.traffic.append(4 * (fields["inputs"] * read + outputs * written))

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
            "border": target.border,
        }

    def _pool(self, x: Feature, factor: int, average: bool, target: Feature) -> None:
        self._emit(kind=POOL, inputs=len(x.planes), sources=self._listed(x.planes), in_stride=x.stride, factor=factor,
                   average=average, **self._onto(target, 0, len(x.planes)))  # fmt: skip

    def _enlarged(self, x: Feature, factor: int) -> Feature:
        if factor == 1:
            return x
        target = self._memory.allocate(1, x.height * factor, x.width * factor)
        self._convolve(None, (), None, target, added=[(x.planes, x, factor)])
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
        if conv is not None and (conv.stride != (1, 1) or dilation > MOST_DILATION):
            raise SodlibError(f"the compiled engine has no convolutions with stride or dilated by over {MOST_DILATION}")
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
        if any(factor not in (2, 4, 8) for *_, factor in added):
            raise SodlibError("the compiled engine enlarges by 2, 4 or 8 alone")
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
            buffered=count > self._most and not set(planes).isdisjoint(target.planes),
            **self._onto(target, first, count),
        )

    def _depthwise(self, units: Sequence[FoldedScales], j: int, x: Feature, average: bool) -> None:
        """The two depthwise convolutions of scale `j` in place, and the pooling into `x.pooled`, if any, by the mean or
        the largest."""
        parts = [
            part
            for conv in (unit.convs[str(j)] for unit in units)
            for part in (conv.weight.flatten(1), conv.bias[:, None], conv.slopes[:, None])
        ]
        fields = self._onto(x, 0, len(x.planes))
        if small := x.pooled:
            onto = self._onto(small, 0, len(x.planes))
            fields |= {"pooled_" + name: onto[name] for name in ("plane", "stride")}
            fields |= {"pooled": onto["target"], "border": small.border}
        self._emit(kind=DEPTHWISE, inputs=len(x.planes), sources=self._listed(x.planes), average=average,
                   weights=self._stored(torch.cat(parts, 1)), **fields)  # fmt: skip

    def _units(
        self,
        units: nn.Sequential,
        scales: Sequence[Feature | None],
        part: str,
        kept: Sequence[Feature],
        later: nn.Module | None,
        last: FoldedConv | None = None,
    ) -> list[Feature | None]:
        """Run the layers; what they read is free afterwards, but for what is kept. `later`: the layer after."""
        self._kept = {each.memory for each in kept}
        for place, unit in enumerate(units):
            if isinstance(unit, FoldedScales) and unit.depthwise:
                continue  # done with the convolution before it
            self._layer = f"{part}.{place}"
            after = [each for each in units[place + 1 : place + 3] if isinstance(each, FoldedScales) and each.depthwise]
            following = (*units, later)[place + 1 + len(after)]
            if isinstance(unit, FoldedOctave):
                result = self._octave(unit, scales, last if unit is units[-1] else None, after, following)
            else:
                result = self._single(unit, scales, after)
            if not _halves(unit):
                self._forget(scales, {x.memory for x in result if x is not None})
            scales = result
        return list(scales)

    def _forget(self, scales: Iterable[Feature | None], in_use: Collection[tuple[int, int]] = ()) -> None:
        """The memory of features that are neither in use nor kept is free."""
        for x in scales:
            if x is not None and x.memory not in self._kept and x.memory not in in_use:
                self._memory.release(x.memory)

    def _single(
        self, unit: FoldedScales, scales: Sequence[Feature | None], after: Sequence[FoldedScales]
    ) -> list[Feature | None]:
        """The layer of every scale, ordinary or dilated convolutions."""
        result: list[Feature | None] = [None] * unit.scales
        for j, layer in unit.convs.items():
            x = scales[int(j)]
            convs = layer.convs if isinstance(layer, FoldedDilated) else [layer]
            slopes = layer.slopes.split([conv.out_channels for conv in convs])
            target = self._memory.allocate(sum(conv.out_channels for conv in convs), x.height, x.width)
            border, padded = _border(layer), None
            if border > x.border:
                padded = self._memory.allocate(len(x.planes), x.height, x.width, border)
                self._pool(x, 1, False, padded)
                x = padded
            first = 0
            for conv, part in zip(convs, slopes, strict=True):
                self._convolve(conv, x.planes, x, target, first, part)
                first += conv.out_channels
            if padded:
                self._memory.release(padded.memory)
            if after:
                self._depthwise(after, int(j), target, False)
            result[int(j)] = target
        return result

    def _octave(
        self,
        unit: FoldedOctave,
        scales: Sequence[Feature | None],
        last: FoldedConv | None,
        after: Sequence[FoldedScales],
        following: nn.Module | None,
    ) -> list[Feature | None]:
        xs = {i: scales[i] for i in unit.inputs}
        read, temporary = self._gathered(unit, xs)
        if _halves(unit):  # and reads no more of what is large
            self._forget(scales)
        added: dict[int, list] = {j: [] for j in unit.outputs}
        coarse: dict[int, Feature] = {}
        for name, conv in unit.coarse.items():
            i = int(name)
            terms = coarse[i] = self._memory.allocate(conv.out_channels, xs[i].height, xs[i].width)
            self._convolve(conv, xs[i].planes, xs[i], terms)
            first = 0
            for j in (j for j in unit.outputs if j < i):
                added[j].append((terms.planes[first : first + unit.counts[j]], terms, 2 ** (i - j)))
                first += unit.counts[j]
        result: list[Feature | None] = [None] * unit.scales
        for j in unit.outputs:
            conv = unit.own[str(j)] if str(j) in unit.own else None  # noqa: SIM401 (a ModuleDict has no get)
            like, factor = (read[j], 1) if conv is not None else added[j][0][1:]
            if (
                after
                and conv
                and unit.stride == conv.kernel_size[0] == 1
                and self._replaceable(xs.get(j), unit.counts[j])
            ):
                target = self._memory.planes(xs[j], unit.counts[j])
            else:
                room = self._room[j] if after else 1 if last else unit.counts[j]
                border = 0 if after else _border(following)
                target = self._memory.allocate(room, like.height * factor, like.width * factor, border)
                target = self._memory.planes(target, 1 if last else unit.counts[j])
            self._convolve(conv, like.planes if conv else (), like, target, 0, unit.slopes[str(j)], added[j], last)
            for i in [i for i in coarse if not any(j < k < i for k in unit.outputs)]:  # nothing is left to add it to
                self._memory.release(coarse.pop(i).memory)
            if after:
                average = _halves(following)
                finer = isinstance(following, FoldedOctave) and j in following.inputs
                if finer and (average or str(j + 1) in following.own):
                    size = target.height // 2, target.width // 2
                    target = replace(target, pooled=self._memory.allocate(unit.counts[j], *size, _border(following)))
                self._depthwise(after, j, target, average)
            result[j] = target
        for feature in temporary:
            self._memory.release(feature.memory)
        return result

    def _replaceable(self, x: Feature | None, count: int) -> bool:
        """Whether so many outputs of a convolution may take the place of its input."""
        return x is not None and x.memory not in self._kept and self._memory.has_room(x, count)

    def _gathered(self, unit: FoldedOctave, xs: dict[int, Feature]) -> tuple[dict[int, Feature], list[Feature]]:
        """At every resolution what the convolutions read there: the finer scales, pooled, and then the scale itself,
        which takes its place in `xs`; and the memory that this took. A pooled scale is pooled further for the next."""
        border, temporary = _border(unit), []

        def copied(x: Feature, factor: int, average: bool) -> Feature:
            if factor == 2 and x.pooled:
                small = x.pooled
            else:
                small = self._memory.allocate(len(x.planes), x.height // factor, x.width // factor, border)
                self._pool(x, factor, average, small)
            temporary.append(small)
            return small

        pooled = {}
        for i, x in xs.items():
            pooled[i] = x
            if unit.stride == 2 or border > x.border:
                xs[i] = copied(x, unit.stride, True)
                if unit.stride == 2:
                    pooled[i] = xs[i]
        read = {}
        for j in sorted({*xs, *map(int, unit.own)}):
            finer = [i for i in xs if i < j and any(k >= j for k in map(int, unit.own))]
            for i in finer:
                pooled[i] = copied(pooled[i], 2, False)
            parts = [pooled[i] for i in finer if str(j) in unit.own] + [xs[i] for i in xs if i == j]
            if parts:
                read[j] = replace(parts[0], planes=tuple(plane for x in parts for plane in x.planes))
        return read, temporary


def _most_channels(units: Iterable[nn.Module]) -> Counter[int]:
    """Of every scale."""
    most: Counter[int] = Counter()
    for unit in units:
        if isinstance(unit, FoldedOctave):
            most |= Counter(dict(enumerate(unit.counts)))
    return most


def _halves(unit: nn.Module | None) -> bool:
    """Whether a layer shrinks all that it reads to half, by the mean."""
    return isinstance(unit, FoldedOctave) and unit.stride == 2


def _border(layer: nn.Module | None) -> int:
    """The zeros around what the convolutions of a layer read."""
    return max((part.padding[0] for part in layer.modules() if isinstance(part, FoldedConv)), default=0) if layer else 0
