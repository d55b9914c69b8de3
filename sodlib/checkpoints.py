"""Networks in and out of files. Nothing here unpickles: safetensors, or `torch.load` with weights only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from . import networks
from .channels import ChannelPlan
from .classifier import Classifier
from .csnet import CSNet
from .errors import SodlibError
from .files import written_whole
from .u2net import U2NetP

#: Networks that ship with the project, one file a name.
MODELS = Path(__file__).resolve().parents[1] / "models"


def save(model: nn.Module, path: str | Path) -> None:
    """Write a network with its channel plan, or its name (`networks.NAMES`), and input size as one safetensors file.

    Raises SodlibError for what is neither, such as an optimised network, and where the file cannot be written.
    """
    path = Path(path)
    if not isinstance(model, CSNet) and getattr(model, "name", None) not in networks.NAMES:
        raise SodlibError(
            f"a {type(model).__name__} has no channel plan that a file could hold; save the network that it was made of"
        )
    metadata = {"input_size": str(model.input_size)}
    metadata |= {"plan": json.dumps(model.plan.to_json())} if isinstance(model, CSNet) else {"network": model.name}
    if isinstance(model, Classifier):
        metadata["classes"] = str(model.classes)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with written_whole(path) as beside:
        try:
            save_file(tensors, beside, metadata)
        except SafetensorError as error:  # of the file system, as safetensors says it
            raise OSError(str(error)) from error
        beside.chmod(0o644)


def load(name_or_path: str | Path) -> nn.Module:
    """A network in evaluation mode, from a file of `save`, by the name of one that ships with the project, or U2Net-p
    from its .onnx file.

    Raises SodlibError for an unknown name or a file that `save` did not write.
    """
    path = Path(name_or_path)
    if not path.suffix and not path.exists():
        path = MODELS / f"{name_or_path}.safetensors"
        if not path.exists():
            known = ", ".join(sorted(file.stem for file in MODELS.glob("*.safetensors"))) or "none"
            raise SodlibError(f"unknown model {str(name_or_path)!r}; shipped: {known}; or give a .safetensors file")
    if path.suffix == ".onnx":
        return U2NetP(path).eval()
    if not path.is_file():
        raise SodlibError(f"there is no file {path}; give a .safetensors file, or the name of a network that ships")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        input_size, classes = int(metadata["input_size"]), int(metadata.get("classes", 0))
        if "network" in metadata:
            return _fill(networks.build(metadata["network"], input_size), tensors, str(path))
        plan = dict(json.loads(metadata["plan"]))
    except (OSError, SafetensorError) as error:
        raise SodlibError(f"{path}: not a readable safetensors file ({error})") from error
    except (KeyError, ValueError, TypeError) as error:
        raise SodlibError(f"{path}: holds no channel plan; it was not written by sodlib.save") from error
    plan = ChannelPlan.from_json(plan)
    model = Classifier(plan, classes, input_size) if classes else CSNet(plan, input_size)
    return _fill(model, tensors, str(path))


def load_released(state_dict: Mapping[str, Any], channels: Mapping[str, Any] | str | Path) -> CSNet:
    """The released network: a state dict under its published names (tensors or arrays) and its channel list.

    `channels` is the plan in JSON form or the path of its file. The authors' checkpoints are under
    CC BY-NC-SA and not part of this project; `read_checkpoint` reads theirs.
    Raises SodlibError where the two do not fit.
    """
    plan = ChannelPlan.from_json(channels if isinstance(channels, str | Path) else dict(channels))
    return _fill(CSNet(plan), state_dict, "the state dict")


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a .pth or .safetensors file. Pickled objects other than tensors are refused."""
    try:
        if Path(path).suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling answers other bytes with nearly any exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SodlibError(f"{path}: not a readable checkpoint of tensors ({reason})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else None
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not named or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise SodlibError(f"{path}: holds no state dict, that is, no dictionary of tensors by name")
    return {name.removeprefix("module."): value for name, value in content.items()}


def _fill(model: nn.Module, tensors: Mapping[str, Any], source: str) -> nn.Module:
    """Copy tensors into the network, in evaluation mode; refuse another architecture by its first misfit."""
    wanted = model.state_dict()
    for name, target in wanted.items():
        if name not in tensors:
            raise SodlibError(f"{source} is of another network than its channel plan: it has no {name}")
        if tuple(tensors[name].shape) != tuple(target.shape):
            raise SodlibError(
                f"{source} is of another network than its channel plan: {name} is {list(tensors[name].shape)} "
                f"and should be {list(target.shape)}"
            )
    if extra := sorted(set(tensors) - set(wanted)):
        raise SodlibError(f"{source} is of another network than its channel plan: it also holds {extra[0]}")
    model.load_state_dict(
        {name: torch.from_numpy(np.asarray(t)) if not isinstance(t, Tensor) else t for name, t in tensors.items()}
    )
    return model.eval()
