"""The channel plan: how many channels every layer of a CSNet has at every scale, as plain data.

Any network of the paper is built from one plan: a width, a split ratio, a pruned network, a released
checkpoint. Pruning maps a plan to a smaller plan.

A *split* is a tuple with one channel count per scale, finest first: `(10, 10)` is ten channels at full and
ten at half resolution, `(40,)` is a single scale. A zero keeps the scale's place but leaves it absent.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import SodlibError

Split = tuple[int, ...]

DILATIONS = (1, 2, 4, 8, 16)
BLOCKS_PER_STAGE = (3, 4, 6, 4)
BASE_WIDTH = 20
#: Multiples of the base width in stages 1 to 4 (paper, section 4.4).
STAGE_MULTIPLES = (1, 2, 4, 4)
SPLITS = ("1/0", "3/1", "5/5", "1/3", "0/1")
NETWORKS = ("csnet", "extractor", "vanilla")
FUSED_STAGES = {"4": (4,), "3-4": (3, 4), "2-4": (2, 3, 4), "1-4": (1, 2, 3, 4)}


@dataclass(frozen=True)
class BlockPlan:
    """One ILBlock: its place in the network, its splits, and its first convolution."""

    name: str
    inputs: Split
    outputs: Split
    kernel_size: int
    stride: int


@dataclass(frozen=True)
class FusionPlan:
    """The cross-stage fusion: outputs of the first gOctConv and of the dilated convolutions (per scale and
    dilation), and the channels of the single-scale output."""

    outputs: Split
    dilated: tuple[Split, ...]
    merged: int

    @property
    def dilated_outputs(self) -> Split:
        """Channels per scale after the parallel dilated convolutions."""
        return tuple(sum(split) for split in self.dilated)


@dataclass(frozen=True)
class ChannelPlan:
    """Channels of a whole network.

    `network` is "csnet", "extractor" (no fusion) or "vanilla" (no fusion, full OctConvs in place of the
    depthwise ones; paper, Table 6). `blocks` holds the output split of the 18 ILBlocks, the stem first.
    """

    network: str
    blocks: tuple[Split, ...]
    fusion: FusionPlan | None = None
    stages: tuple[int, ...] = BLOCKS_PER_STAGE

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """Index into `blocks` of the last block of stages 1, 2, 3, 4."""
        return tuple(int(end) for end in np.cumsum(self.stages))

    @property
    def fused_stages(self) -> tuple[int, ...]:
        """The stages whose outputs feed the fusion, always the last ones; only stage 4 without a fusion."""
        count = len(self.fusion.outputs) if self.fusion else 1
        return tuple(range(len(self.stages) + 1 - count, len(self.stages) + 1))

    @property
    def fusion_inputs(self) -> Split:
        """Channels that the fusion (or the prediction layer) takes from the fused stages, finest first."""
        ends = self.stage_ends
        return tuple(self.blocks[ends[stage - 1]][0] for stage in self.fused_stages)

    def block_plans(self) -> Iterator[BlockPlan]:
        """The 18 ILBlocks in order. The stem and the first block of stages 2 to 4 have a 3x3 first
        convolution, the latter with stride 2."""
        yield BlockPlan("stage0.0", (3,), self.blocks[0], 3, 1)
        index = 1
        for stage, length in enumerate(self.stages, start=1):
            for position in range(length):
                first = position == 0 and stage > 1
                yield BlockPlan(
                    f"stage{stage}.{position}",
                    self.blocks[index - 1],
                    self.blocks[index],
                    3 if first else 1,
                    2 if first else 1,
                )
                index += 1

    def to_json(self) -> dict[str, Any]:
        """Plain data that a person can read: one entry a layer with its input and output splits."""
        layers: list[dict[str, Any]] = [
            {"layer": block.name, "in": list(block.inputs), "out": list(block.outputs)} for block in self.block_plans()
        ]
        if self.fusion:
            fused, dilated = list(self.fusion.outputs), list(self.fusion.dilated_outputs)
            layers += [
                {"layer": "oct_fuse.fuse", "in": list(self.fusion_inputs), "out": fused},
                {
                    "layer": "oct_fuse.ms",
                    "in": fused,
                    "out": dilated,
                    "dilated_out": [list(split) for split in self.fusion.dilated],
                    "dilations": list(DILATIONS),
                },
                {"layer": "oct_fuse.fuse1x1", "in": dilated, "out": [self.fusion.merged]},
            ]
        return {"network": self.network, "stages": list(self.stages), "layers": layers}

    @classmethod
    def from_json(cls, data: dict[str, Any] | str | Path) -> ChannelPlan:
        """A plan from the form of `to_json`, or from the path of a JSON file in that form.

        Raises SodlibError where the data is not a channel plan or its layers do not follow each other.
        """
        if not isinstance(data, dict):
            try:
                data = json.loads(Path(data).read_text())
            except (OSError, ValueError) as error:
                raise SodlibError(f"{data}: no readable JSON channel plan ({error})") from error
        try:
            layers = {entry["layer"]: entry for entry in data["layers"]}
            stages = tuple(data["stages"])
            blocks = tuple(tuple(entry["out"]) for name, entry in layers.items() if name.startswith("stage"))
            fusion = None
            if "oct_fuse.fuse" in layers:
                fusion = FusionPlan(
                    tuple(layers["oct_fuse.fuse"]["out"]),
                    tuple(tuple(split) for split in layers["oct_fuse.ms"]["dilated_out"]),
                    layers["oct_fuse.fuse1x1"]["out"][0],
                )
            counts = [count for block in blocks for count in block]
            if not all(isinstance(count, int) and count >= 0 for count in counts) or not all(map(any, blocks)):
                raise SodlibError("channel plan: numbers of channels are whole, and every block has some")
            network = data.get("network", "csnet")
            if network not in NETWORKS:
                raise SodlibError(f"channel plan: the network {network!r} is none of {', '.join(NETWORKS)}")
            if fusion and any(len(split) != len(DILATIONS) for split in fusion.dilated):
                raise SodlibError(f"channel plan: the dilated convolutions of a scale are {len(DILATIONS)}, some of 0")
            plan = cls(network, blocks, fusion, stages)
            ours = {entry["layer"]: (entry["in"], entry["out"]) for entry in plan.to_json()["layers"]}
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise SodlibError(f"not a channel plan: {error!r} is missing or malformed") from error
        if layers.keys() != ours.keys():
            names = ", ".join(sorted(layers.keys() ^ ours.keys()))
            raise SodlibError(f"channel plan: these layers are missing or do not belong to it: {names}")
        for name, entry in layers.items():
            given = [entry["in"] if isinstance(entry["in"], list) else [entry["in"]], entry["out"]]
            if [list(part) for part in given] != [list(part) for part in ours[name]]:
                raise SodlibError(f"channel plan: {name} is {given}, but the layers before it give {ours[name]}")
        return plan


def by_dilation(channels: int) -> Split:
    """The channels of the five dilations of the fusion: a fifth each, cut to an integer, and the rest for the last."""
    return (channels // 5,) * 4 + (channels - 4 * (channels // 5),)


def plan_channels(network: str = "csnet", width: float = 1.0, split: str = "5/5", stages: str = "2-4") -> ChannelPlan:
    """The unpruned plan of a network of the paper (Tables 1, 2, 5, 6 and 11).

    `network`: one of NETWORKS; `width`: the factor k of CSNet-xk, 1 to 100;
    `split`: C_H/C_L, one of SPLITS; `stages`: what the fusion takes, one of FUSED_STAGES; the others have no fusion.

    The last block of a fused stage merges to one scale. Two rows of Table 6 follow other rules, found by
    matching their MACC: the Vanilla network also merges at the ends of stages 2 and 3; and at split 1/0 a
    CSNet is a network of one scale (0.91 G), an Extractor one of two scales with the second left empty (0.80 G).

    Raises SodlibError for an unknown name, another width, or stages for a network without fusion.
    """
    if network not in NETWORKS:
        raise SodlibError(f"unknown network {network!r}; choose one of {', '.join(NETWORKS)}")
    if split not in SPLITS:
        raise SodlibError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    if stages not in FUSED_STAGES:
        raise SodlibError(f"unknown fusion stages {stages!r}; choose one of {', '.join(FUSED_STAGES)}")
    if network != "csnet" and stages != "2-4":
        raise SodlibError(f"{network} has no fusion that could take the stages {stages}; leave them out")
    if not 1 <= width <= 100:
        raise SodlibError(f"width {width} is out of range; give one from 1, the base network, to 100")

    base = round(BASE_WIDTH * width)
    high, low = (int(part) for part in split.split("/"))
    shares = np.array([high, low]) / (high + low)
    if network == "csnet" and split == "1/0":
        shares = np.array([1.0])
    fused = FUSED_STAGES[stages] if network == "csnet" else (4,)
    merging = (2, 3, 4) if network == "vanilla" else fused

    def divided(total: int) -> Split:
        return tuple(int(count) for count in np.round(total * shares))

    blocks = [divided(base)]
    for stage, (length, multiple) in enumerate(zip(BLOCKS_PER_STAGE, STAGE_MULTIPLES, strict=True), start=1):
        total = base * multiple
        last = (total,) if stage in merging else divided(total)
        blocks += [divided(total)] * (length - 1) + [last]

    fusion = None
    if network == "csnet":
        outputs = tuple(base * STAGE_MULTIPLES[stage - 1] // 3 for stage in fused)
        fusion = FusionPlan(outputs, tuple(map(by_dilation, outputs)), sum(outputs))
    return ChannelPlan(network, tuple(blocks), fusion)
