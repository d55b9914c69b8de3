"""sodlib: a reproduction study of CSNet, the salient object detector with 100K parameters.

On import, torch takes numbers below 1e-38 for zero from then on (`torch.set_flush_denormal`).
"""

import numpy as np
import torch

from .checkpoints import load, load_released, save
from .cost import count_macs, count_parameters
from .csnet import csnet, extractor, vanilla
from .errors import SodlibError
from .metrics import evaluate
from .prediction import predict
from .runtime import export, optimise

__all__ = [
    "SodlibError",
    "count_macs",
    "count_parameters",
    "csnet",
    "evaluate",
    "export",
    "extractor",
    "load",
    "load_released",
    "optimise",
    "predict",
    "save",
    "vanilla",
]

# Weight decay drives PReLU slopes to about 1e-42. Arithmetic on such denormal numbers halves the speed of
# many processors; as zeros they change nothing. Set here, before torch starts the threads that inherit it, and
# after NumPy has looked at its number formats, which it would otherwise complain about.
np.finfo(np.float32), np.finfo(np.float64)
torch.set_flush_denormal(True)
