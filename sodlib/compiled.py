"""A folded CSNet as compiled C: `forward.c` runs the steps of a `Program`, one for every size of image.

Frameworks run every layer by itself, and have none for a gOctConv.
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from .csnet import SIZE_MULTIPLE
from .errors import SodlibError
from .folding import FoldedCSNet
from .kernels import shared_library
from .program import Program

SOURCE = Path(__file__).with_name("forward.c")

#: Sizes of images whose programs and memory are kept.
KEPT = 8
#: One image or batch at a time takes all cores by itself, and its memory is kept for the next one.
RUNNING = threading.Lock()


@cache
def machine_code() -> ctypes.CDLL | None:
    """`forward.c`, compiled for this processor; None where there is no C compiler, or one that cannot."""
    compiled = shared_library(SOURCE)
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


def on_processor(images: Tensor) -> Tensor:
    """Images as an engine outside of torch needs them. Raises SodlibError for others than `[B, 3, H, W]` on the
    processor."""
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape or images.device.type != "cpu":
        raise SodlibError(f"this engine takes images [B, 3, H, W] on the processor, not {list(images.shape)} on "
                          f"{images.device}")  # fmt: skip
    return images.detach().float().contiguous()


class CompiledCSNet(nn.Module):
    """Input and output as for CSNet, on the processor, in float32, without gradients. Threads take turns.

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
        height, width = images.shape[-2:]
        images = self.network.padded(on_processor(images)).contiguous()
        batch, _, *size = images.shape
        logits, threads = torch.empty(batch, 1, *size), torch.get_num_threads()
        workers = min(threads, batch)
        with RUNNING:
            program, workspace = self._program(*size), self._workspace(tuple(size), workers)
            x, y = program.input, program.output
            machine_code().forward(
                program.steps_array.ctypes.data, len(program.steps), program.table_array.ctypes.data,
                program.weights.ctypes.data, workspace.data_ptr() + 64, workspace.shape[1], images.data_ptr(),
                logits.data_ptr(), batch, *size, x.planes[0], x.planes[1] - x.planes[0], x.stride, x.border,
                y.planes[0], y.stride, threads if batch == 1 else workers, times,
            )  # fmt: skip
        return logits[..., :height, :width]

    def _workspace(self, size: tuple[int, int], workers: int) -> Tensor:
        workspace = self._workspaces.get(size)
        if workspace is None or len(workspace) < workers:
            if len(self._workspaces) >= KEPT:
                self._workspaces.clear()
            workspace = self._workspaces[size] = torch.zeros(workers, self._program(*size).size + 2 * SIZE_MULTIPLE)
        return workspace
