"""One optimiser step of a training, at the speed of the device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from . import distributed
from .decay import DynamicWeightDecay, parameter_groups
from .errors import SodlibError
from .kernels import replaced, stand_ins

#: Adam's betas as released. The second may be shorter for a short schedule.
BETAS = (0.9, 0.99)
SPEEDS = ("plain", "fast")
#: Steps that run before the capture of a CUDA graph, so that everything is compiled and allocated.
WARM_UP = 3


class Engine:
    """Runs the optimiser steps of one training.

    Loss: the network's own, or another of its logits and targets. Optimiser: Adam with coupled decay, in the groups
    of `decay.parameter_groups`. `model` stays on its device and is laid out channels last. Use as a context
    manager, or call `close`, to get an ordinary network back.

    `speed`: "plain" is torch as it comes. "fast" puts the `kernels.stand_ins` into the network and fuses the optimiser;
    on the processor it equals the plain one up to rounding. On CUDA it also computes the forward pass in
    bfloat16 and captures the step as one CUDA graph at the first call, after which the batch must keep its shape.

    Where processes train together (`distributed`), batch norm statistics, loss, gradients and pooled features are those
    of the whole batch, and the speed is "plain".

    Raises SodlibError for an unknown decay or speed.
    """

    def __init__(
        self,
        model: nn.Module,
        decay: str,
        decay_weight: float,
        dynamic_weight: float,
        speed: str = "fast",
        beta2: float = BETAS[1],
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        if speed not in SPEEDS:
            raise SodlibError(f"unknown speed {speed!r}; choose one of {', '.join(SPEEDS)}")
        self.model = model.to(memory_format=torch.channels_last)
        self.loss = loss or model.loss
        self._fast = speed == "fast" and not distributed.joined()
        self.device = next(model.parameters()).device
        self._captures = self._fast and self.device.type == "cuda"
        self._graph: torch.cuda.CUDAGraph | None = None
        # A CUDA graph reads the learning rate where it was at the capture, so it has to be a tensor.
        self._rate = torch.zeros((), device=self.device) if self._captures else 0.0
        groups = parameter_groups(model, decay, decay_weight)
        fused_adam = {"fused": True, "capturable": self._captures} if self._fast else {}
        self.optimizer = torch.optim.Adam(groups, betas=(BETAS[0], beta2), **fused_adam)
        self._on_network = ExitStack()
        self.dynamic = None
        if decay != "standard":
            self.dynamic = self._on_network.enter_context(DynamicWeightDecay(model, decay, dynamic_weight))
        parts = stand_ins(self.device) if self._fast else {}
        if distributed.joined():
            parts = {"norm_activation": distributed.norm_activation}
        self._on_network.enter_context(replaced(model, parts))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take everything off the network that the training has put on it."""
        self._on_network.close()
        self._graph = None

    def step(self, images: Tensor, targets: Tensor, rate: float) -> Tensor:
        """One step on inputs `[B, 3, S, S]` and targets, masks `[B, 1, S, S]` or classes `[B]`, with the learning rate
        `rate`; the loss before the step, `[]`, detached and still on the device."""
        self.model.train()
        # Only where the decoded images do not fit on the device does this move anything.
        images, targets = (tensor.to(self.device, non_blocking=True) for tensor in (images, targets))
        self._rate = self._rate.fill_(rate) if self._captures else rate
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate
        if not self._captures:
            return self._step(images, targets)
        if self._graph is None:
            self._capture(images, targets)
        self._images.copy_(images)
        self._targets.copy_(targets)
        self._graph.replay()
        return self._loss.clone()

    def _step(self, images: Tensor, targets: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._captures, cache_enabled=False):
            logits = self.model(images)
        loss = self.loss(logits.float(), targets)
        loss.backward()
        metrics = [] if self.dynamic is None else self.dynamic.metrics()
        loss, gradients = loss.detach(), [parameter.grad for parameter in self._tuned().values()]
        distributed.average([loss, *gradients, *metrics])
        if self.dynamic and not self.dynamic.written:
            self.dynamic.add_gradients(metrics)
        self.optimizer.step()
        if self.dynamic and self.dynamic.written:
            self.dynamic.shrink(self._rate, metrics)
        return loss

    def _capture(self, images: Tensor, targets: Tensor) -> None:
        """Record the step as a CUDA graph, which leaves network and optimiser as they were.

        See https://docs.pytorch.org/docs/stable/notes/cuda.html#whole-network-capture. What runs inside is ordinary
        eager code but for the Triton kernels: the graph takes away the launches that slow small kernels down, and
        torch.compile takes minutes for the whole network. cuDNN tries which of its convolutions is fastest at each
        shape.
        """
        self._images, self._targets = images.clone(memory_format=torch.preserve_format), targets.clone()
        network = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        optimizer = self.state()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        self._graph = torch.cuda.CUDAGraph()
        with torch.backends.cudnn.flags(enabled=True, benchmark=True):
            with torch.cuda.stream(side):
                for _ in range(WARM_UP):
                    self._step(self._images, self._targets)
            torch.cuda.current_stream().wait_stream(side)
            with torch.cuda.graph(self._graph):
                self._loss = self._step(self._images, self._targets)
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                tensor.copy_(network[name])
        self.restore(optimizer)

    def _tuned(self) -> dict[str, torch.nn.Parameter]:
        return {name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """A copy of the optimiser's state by parameter; empty before the first step."""
        return {
            name: {key: value.clone() for key, value in self.optimizer.state[parameter].items()}
            for name, parameter in self._tuned().items()
            if parameter in self.optimizer.state
        }

    @torch.no_grad()
    def restore(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Go on from what `state` returned. Raises SodlibError where it belongs to another network."""
        parameters = self._tuned()
        # A parameter that no gradient has reached has no state.
        if not state.keys() <= parameters.keys():
            raise SodlibError("the optimiser's state in the checkpoint belongs to another network; train it anew")
        for name, parameter in parameters.items():
            own = self.optimizer.state[parameter]
            for key, value in state.get(name, {}).items():
                if key not in own:
                    # As Adam itself would make it: the fused one counts its steps on the device and needs moments in
                    # the layout of the parameter.
                    counter = torch.zeros((), device=self.device if self._fast else "cpu")
                    own[key] = counter if key == "step" else torch.empty_like(parameter)
                own[key].copy_(value)
            for key in own.keys() - state.get(name, {}).keys():
                own[key].zero_()
