"""A folded network with 8-bit weights and features, by ONNX Runtime's static quantisation."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from .folding import FoldedCSNet
from .runtime import onnx_content, package, quiet


def quantised(network: FoldedCSNet, inputs: Iterable[Tensor]) -> bytes:
    """An ONNX file whose convolutions work on 8-bit numbers, with ranges from these inputs `[B, 3, H, W]`, which must
    not be of a test set. Raises SodlibError where ONNX Runtime is not installed."""
    package("onnxruntime", "onnx")
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    batches = iter([{"images": batch.numpy()} for batch in inputs])

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(batches, None)

    with quiet(), tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(onnx_content(network))
        quantize_static(before, after, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        op_types_to_quantize=["Conv"], activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8)  # fmt: skip
        return after.read_bytes()
