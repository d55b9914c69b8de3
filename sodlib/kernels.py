"""What makes a training step fast: stand-ins for parts of the network that compute the same up to rounding.

Batch norm and PReLU take torch more than half of a training step on the processor. Here they are one piece of compiled
C; on CUDA, they and all that lies between the convolutions are Triton's (`triton_norm`, `triton_maps`).
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .octconv import norm_activation
from .records import cpu

SOURCE = Path(__file__).with_name("norm_activation.c")
#: From malloc.h of glibc.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")


@cache
def shared_library(source: Path) -> ctypes.CDLL | None:
    """A file of C, compiled for this processor; None where there is no C compiler. What was compiled once is kept in
    the user's cache."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    # Two processors of one name need not run the same code.
    made_for = " ".join([compiler, *FLAGS, cpu("model name"), cpu("flags", "Features")])
    identity = hashlib.sha256(source.read_bytes() + made_for.encode()).hexdigest()
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sodlib" / f"{source.stem}-{identity}.so"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / kept.name
            for threads in (["-fopenmp"], []):
                command = [compiler, *FLAGS, *threads, str(source), "-o", str(path), "-lm"]
                if subprocess.run(command, capture_output=True).returncode == 0:
                    break
            else:
                return None
            try:
                kept.parent.mkdir(parents=True, exist_ok=True)
                beside = kept.with_suffix(f".{os.getpid()}")
                shutil.copy(path, beside)
                os.replace(beside, kept)
            except OSError:  # no place to keep it
                return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL(str(kept))
    except OSError:  # damaged, or in a place that nothing may be run from
        return None


@cache
def compiled_source() -> ctypes.CDLL | None:
    """`norm_activation.c`, compiled; None where there is no C compiler."""
    library = shared_library(SOURCE)
    if library is not None:
        pointer, number, size = (ctypes.c_void_p, ctypes.c_double, [ctypes.c_long] * 2 + [ctypes.c_int] * 2)
        library.forward.argtypes = [pointer] * 10 + size + [number, number]
        library.backward.argtypes = [pointer] * 11 + size
        library.forward.restype = library.backward.restype = None
    return library


def _layout(x: Tensor) -> tuple[int, int, int, int]:
    """Samples, rows a sample, numbers a row and channels, as `norm_activation.c` has them."""
    samples, channels, height, width = x.shape
    fold = math.gcd(16 // math.gcd(channels, 16), height * width)
    return samples, height * width // fold, fold * channels, channels


class _NormActivation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gamma: Tensor, beta: Tensor, slope: Tensor, norm: nn.BatchNorm2d) -> Any:
        mean, inverse = x.new_empty(2, x.shape[1])
        features, pooled = torch.empty_like(x), x.new_empty(x.shape[:2])
        tensors = (x, gamma, beta, slope, norm.running_mean, norm.running_var, mean, inverse, features, pooled)
        compiled_source().forward(*(tensor.data_ptr() for tensor in tensors), *_layout(x), norm.eps, norm.momentum)
        ctx.save_for_backward(x, gamma, beta, slope, mean, inverse)
        ctx.mark_non_differentiable(pooled)
        ctx.set_materialize_grads(False)
        return features, pooled

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: None) -> Any:
        x = ctx.saved_tensors[0]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        gradients = [torch.empty_like(x), *x.new_empty(3, x.shape[1])]
        tensors = (gradient, *ctx.saved_tensors, *gradients)
        compiled_source().backward(*(tensor.data_ptr() for tensor in tensors), *_layout(x))
        return *gradients, None


def norm_activation_c(x: Tensor, norm: nn.BatchNorm2d, activation: nn.PReLU) -> Tensor:
    """`octconv.norm_activation` on the processor; leaves the features' means over the pixels `[B, C]` with them, as
    the attribute `pooled`. What the C code cannot do goes the ordinary way."""
    if not norm.training or x.dtype != torch.float32 or x[:, 0].numel() < 2:
        return norm_activation(x, norm, activation)
    x = x.contiguous(memory_format=torch.channels_last)
    features, pooled = _NormActivation.apply(x, norm.weight, norm.bias, activation.weight, norm)
    norm.num_batches_tracked += 1
    features.pooled = pooled
    return features


@cache
def keep_freed_memory() -> None:
    """Let the C library keep the memory of freed tensors for the next ones, as long as the process lives.

    By default it returns everything above 32 MB to the system, which clears every page anew at the next step: at
    24 images of 224 x 224, half of the time of a step. Only glibc has the setting.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def stand_ins(device: torch.device) -> dict[str, Any]:
    """Functions that a training on `device` puts in the place of the attributes of that name on the network's
    modules. Without a C compiler, those of the processor lack `norm_activation`."""
    if device.type == "cuda":
        from . import triton_maps, triton_norm

        return {
            "norm_activation": triton_norm.norm_activation_triton,
            "upsampled_sum": triton_maps.upsampled_sum_triton,
            "max_pool": triton_maps.max_pool_triton,
            "average_pool": triton_maps.average_pool_triton,
        }
    if device.type != "cpu":
        return {}
    keep_freed_memory()
    return {"norm_activation": norm_activation_c} if compiled_source() else {}


@contextmanager
def replaced(model: nn.Module, parts: Mapping[str, Any]) -> Iterator[None]:
    """While this lasts, the modules that have an attribute of one of these names have these instead, also inside of
    another such time."""
    places = [(module, name) for module in model.modules() for name in parts if hasattr(module, name)]
    before = [vars(module).get(name) for module, name in places]
    for module, name in places:
        setattr(module, name, parts[name])
    try:
        yield
    finally:
        for (module, name), part in zip(places, before, strict=True):
            if part is None:
                delattr(module, name)
            else:
                setattr(module, name, part)
