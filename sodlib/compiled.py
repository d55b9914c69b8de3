"""A folded CSNet as compiled C: `forward.c` runs the steps of a `Program`, one for every size of image.

Frameworks run every layer by itself, and have none for a gOctConv.
"""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .csnet import SIZE_MULTIPLE
from .errors import SodlibError
from .folding import FoldedCSNet
from .kernels import compiled as compiled_source
from .program import Program

SOURCE = Path(__file__).with_name("forward.c")

#: Sizes of images whose programs and memory are kept.
KEPT = 8


@cache
def machine_code() -> ctypes.CDLL | None:
    """`forward.c`, compiled for this processor; None where there is no C compiler, or one that cannot."""
    compiled = compiled_source(SOURCE)
    if compiled is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_long
        compiled.forward.argtypes = [pointer, number, pointer, pointer, pointer, number, pointer, pointer]
        compiled.forward.argtypes += [number] * 9 + [ctypes.c_int, pointer]
        compiled.forward.restype = compiled.layout.restype = None
    return compiled


@cache
def layout() -> tuple[int, int]:
    """Numbers in a vector, and outputs that a block of a convolution has at most."""
    lanes, most = ctypes.c_int(), ctypes.c_int()
    machine_code().layout(ctypes.byref(lanes), ctypes.byref(most))
    return lanes.value, most.value


class CompiledCSNet(nn.Module):
    """Input and output as for CSNet, on the processor, in float32, without gradients.

    Raises SodlibError where there is no C compiler, and for a network with strides inside its convolutions (of one
    scale only).
    """

    def __init__(self, network: FoldedCSNet) -> None:
        super().__init__()
        if machine_code() is None:
            raise SodlibError("the compiled engine needs a C compiler, `cc`: install gcc or clang")
        self.network, self.input_size = network, network.input_size
        self._program = lru_cache(KEPT)(lambda height, width: Program(network, height, width, *layout()))
        self._program(SIZE_MULTIPLE, SIZE_MULTIPLE)
        self._workspaces: dict[tuple[int, int], Tensor] = {}

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images, None)

    def seconds(self, image: Tensor) -> list[tuple[str, int, float]]:
        """The time of every step for one image: layer, kind, seconds."""
        program = self._program(*self.network.padded(image).shape[-2:])
        times = np.zeros(len(program.steps))
        self._run(image[:1], times.ctypes.data)
        return [
            (layer, step[0], float(time))
            for layer, step, time in zip(program.layers, program.steps, times, strict=True)
        ]

    def bytes_moved(self, height: int, width: int) -> int:
        """What the steps read and write for one image, every plane of a step once."""
        program = self._program(height, width)
        return sum(program.traffic)

    def _run(self, images: Tensor, times: int | None) -> Tensor:
        network = self.network
        height, width = images.shape[-2:]
        images = network.padded(images).detach().float().contiguous()
        batch, _, *size = images.shape
        program, threads = self._program(*size), torch.get_num_threads()
        workers = min(threads, batch)
        key = tuple(size)
        workspace = self._workspaces.get(key)
        if workspace is None or len(workspace) < workers:
            if len(self._workspaces) >= KEPT:
                self._workspaces.clear()
            workspace = self._workspaces[key] = torch.zeros(workers, program.size + 2 * SIZE_MULTIPLE)
        logits = torch.empty(batch, 1, *size)
        x, y = program.input, program.output
        machine_code().forward(
            program.steps_array.ctypes.data, len(program.steps), program.table_array.ctypes.data,
            program.weights.ctypes.data, workspace.data_ptr() + 64, workspace.shape[1], images.data_ptr(),
            logits.data_ptr(), batch, *size, x.planes[0], x.planes[1] - x.planes[0], x.stride, x.border,
            y.planes[0], y.stride, threads if batch == 1 else workers, times,
        )  # fmt: skip
        return logits[..., :height, :width]
