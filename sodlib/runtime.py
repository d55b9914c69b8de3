"""Networks for use alone: the same function through the engines that people use, and the fastest that is there.

Every engine is a module with the input and output of CSNet. All run the folded network (`folding.py`), in float32.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from .classifier import Classifier
from .compiled import CompiledCSNet, on_processor
from .csnet import CSNet
from .errors import SodlibError
from .files import written_whole
from .folding import FoldedCSNet, fold
from .u2net import ONNX_INPUT

#: Opset of the ONNX files: the first with PReLU and resizing as they are used here that every runtime of today reads.
OPSET = 18
#: Photographs from which on an engine pays whose start takes half a minute.
MANY = 500


class Engine(nn.Module):
    """The folded network run by something other than torch. It keeps the network for its size and its device."""

    def __init__(self, network: FoldedCSNet) -> None:
        super().__init__()
        self.network, self.input_size = network, network.input_size

    def run(self, images: Tensor) -> Tensor:
        """Logits of float32 images on the processor."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.run(on_processor(images))


class OnnxRuntime(Engine):
    """ONNX Runtime on the processor, from a file of `export` or one made on the way."""

    def __init__(self, network: FoldedCSNet, content: bytes | None = None) -> None:
        super().__init__(network)
        runtime = package("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self._session = runtime.InferenceSession(
            content or onnx_content(network), options, providers=["CPUExecutionProvider"]
        )

    def run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._session.run(None, {ONNX_INPUT: images.numpy()})[0])


class OpenVino(Engine):
    """OpenVINO on the processor. `precision` is "f32" or "bf16"; OpenVINO's own choice would be the latter where the
    processor has it."""

    def __init__(self, network: FoldedCSNet, precision: str = "f32", content: bytes | None = None) -> None:
        super().__init__(network)
        openvino = package("openvino", "openvino")
        core = openvino.Core()
        # By way of ONNX: what OpenVINO makes of torch's own graph takes more than twice as long.
        read = core.read_model(io.BytesIO(content or onnx_content(network)))
        options = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": precision,
        }
        self._model = core.compile_model(read, "CPU", options)

    def run(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self._model(images.numpy())[0].copy())


def _torch_compiled(network: FoldedCSNet) -> nn.Module:
    compiled = torch.compile(network.to(memory_format=torch.channels_last), dynamic=False)
    compiled.input_size = network.input_size
    return compiled


#: What runs a folded network, by name, the fastest first on the processor (`benchmarks/runtime.py`).
ENGINES: dict[str, Callable[[FoldedCSNet], nn.Module]] = {
    "c": CompiledCSNet,
    "openvino": OpenVino,
    "onnxruntime": OnnxRuntime,
    "torch.compile": _torch_compiled,
    "torch": lambda network: network.to(memory_format=torch.channels_last),
}
#: Those that are ready at once, and those that take half a minute. (torch.compile takes longer, and is not chosen.)
IMMEDIATE, EXPORTED = ("c", "torch"), ("openvino", "onnxruntime")


def optimise(model: nn.Module, engine: str = "") -> nn.Module:
    """The same function, faster: for use alone, not for training. Logits of trained networks agree to 1e-4; large ones,
    as of random weights, as float32 rounds them.

    Without the name of an engine, the fastest of IMMEDIATE that can run the network, which is returned as it is where
    none can. Raises SodlibError for an unknown engine, one that is not installed, and a network that it cannot run.
    """
    if engine and engine not in ENGINES:
        raise SodlibError(f"unknown engine {engine!r}; choose one of {', '.join(ENGINES)}")
    return ENGINES[engine](_foldable(model)) if engine else fastest(model)[0]


def fastest(model: nn.Module, photographs: int = 1) -> tuple[nn.Module, str, list[str]]:
    """The fastest engine that is installed and can run the network, its name, and a line for every faster one that
    cannot run it. EXPORTED are considered for MANY photographs alone; a network that none can
    run is returned as it is."""
    remarks = []
    try:
        network = _foldable(model)
    except SodlibError as error:
        return model, "eager", [str(error)]
    for name, build in ENGINES.items():
        if name in IMMEDIATE or (name in EXPORTED and photographs >= MANY):
            try:
                return build(network), name, remarks
            except NotInstalled:
                continue
            except Exception as error:  # what an engine raises for a network that it cannot run is its own affair
                remarks.append(f"engine {name} cannot run this network ({_first_line(error)}); trying the next")
    return model, "eager", remarks


def export(model: nn.Module, path: str | Path) -> None:
    """Write the network as one ONNX file: input "images" `[B, 3, H, W]`, output "logits" `[B, 1, H, W]`, any sizes.

    Raises SodlibError where the packages are not installed, the network is no CSNet, or the file cannot be written.
    """
    path = Path(path)
    content = onnx_content(_foldable(model))
    with written_whole(path) as beside:
        beside.write_bytes(content)


class NotInstalled(SodlibError):
    """An engine's package is not there."""


def package(name: str, extra: str) -> ModuleType:
    """An optional package. Raises NotInstalled with the extra that brings it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise NotInstalled(f"{name} is not installed: pip install 'sodlib[{extra}]'") from error


def _foldable(model: nn.Module) -> FoldedCSNet:
    if isinstance(model, FoldedCSNet):
        return model
    if not isinstance(model, CSNet) or isinstance(model, Classifier):
        raise SodlibError(f"only a saliency network of a channel plan can be optimised, not {type(model).__name__}")
    return fold(model).cpu().float()


def _exported(network: FoldedCSNet) -> torch.export.ExportedProgram:
    """The network as torch's graph for any batch, height and width. (The example's sizes are not multiples of 16, since
    what holds for the example would be taken to hold always.)"""
    dynamic = torch.export.Dim.DYNAMIC
    with torch.no_grad(), quiet():
        network = network.to(memory_format=torch.contiguous_format)
        return torch.export.export(
            network, (torch.zeros(2, 3, 200, 216),), dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},)
        )


def onnx_content(network: FoldedCSNet) -> bytes:
    """The network as an ONNX file. Raises NotInstalled."""
    for name in ("onnx", "onnxscript"):
        package(name, "onnx")
    with quiet():
        program = torch.onnx.export(
            _exported(network),
            input_names=[ONNX_INPUT],
            output_names=["logits"],
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    return program.model_proto.SerializeToString()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters report progress and plans that concern nobody here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
