"""U2Net-p, a light-weight detector of its own time, by its authors' weights: through ONNX Runtime.

(Qin et al., Pattern Recognition 2020. The file u2netp.onnx is under the Apache licence 2.0.)
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import SodlibError
from .images import MEAN, STANDARD_DEVIATION, normalise

#: What `runtime.export` names the input of its files.
ONNX_INPUT = "images"


class U2NetP(nn.Module):
    """The network in `path`, with the preparation that its authors give it: the photograph over its brightest value,
    the map stretched to 0..1. Input and output as for CSNet, of 320 x 320 alone.

    Raises SodlibError where ONNX or its runtime is not installed and where the file cannot be read.
    """

    input_size = 320

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise SodlibError(f"{path}: networks in ONNX need two packages: pip install 'sodlib[onnx]'") from error
        try:
            self._graph = onnx.shape_inference.infer_shapes(onnx.load(path)).graph
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            self._session = onnxruntime.InferenceSession(path, options)
        except Exception as error:  # both packages raise errors of many kinds
            raise SodlibError(f"{path}: not a readable ONNX file ({str(error).splitlines()[0]})") from error
        weights = map(onnx.numpy_helper.to_array, self._graph.initializer)
        self.weights = nn.ParameterList(nn.Parameter(torch.tensor(value), requires_grad=False) for value in weights)
        self._values = (*self._graph.value_info, *self._graph.output)
        self._input = self._session.get_inputs()[0].name
        if self._input == ONNX_INPUT:
            raise SodlibError(f"{path}: was exported from a network of this project; name that network instead")

    def forward(self, images: Tensor) -> Tensor:
        """Raises SodlibError for images of another size."""
        if images.shape[-2:] != (self.input_size, self.input_size):
            raise SodlibError(f"U2Net-p takes {self.input_size} x {self.input_size} alone; leave out the input size")
        deviation, mean = (torch.tensor(values).view(3, 1, 1) for values in (STANDARD_DEVIATION, MEAN))
        colours = images * deviation + mean
        brightest = colours.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)
        prepared = normalise(colours / brightest).contiguous()
        found = [torch.from_numpy(self._session.run(None, {self._input: one[None].numpy()})[0]) for one in prepared]
        maps = torch.cat(found)
        least, most = maps.amin((1, 2, 3), keepdim=True), maps.amax((1, 2, 3), keepdim=True)
        return torch.logit((maps - least) / (most - least).clamp_min(1e-6))

    @property
    def macs(self) -> int:
        """The MACs of its convolutions, of which batch norm is a part, for one image."""
        shapes = {value.name: [side.dim_value for side in value.type.tensor_type.shape.dim] for value in self._values}
        weights = {tensor.name: math.prod(tensor.dims) for tensor in self._graph.initializer}
        convolutions = [node for node in self._graph.node if node.op_type == "Conv"]
        return sum(math.prod(shapes[node.output[0]][2:]) * weights[node.input[1]] for node in convolutions)
