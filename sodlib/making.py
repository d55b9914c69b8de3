"""How the network of a run is made: trained, turned into a classifier, pruned, or averaged over the masks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import networks
from .beyond import way_named
from .channels import ChannelPlan, plan_channels
from .classifier import TUNED, Classifier, fit_probe
from .csnet import CSNet
from .description import Run
from .mean_mask import MEAN_MASK, MeanMask, mean_mask
from .pixels import Pixels, Stream
from .position import even_out
from .presets import Preset
from .progress import Observer
from .pruning import keep, prune, recalibrate
from .roles import Roles
from .training import Recipe, seed_everything, train, validate
from .unfinished import Checkpoint, Paused


@dataclass(frozen=True)
class Making:
    """How the network of a run comes about; every way returns it with its history."""

    run: Run
    settings: Preset
    roles: Roles
    pixels: dict[str, Pixels]
    checkpoint: Checkpoint
    device: torch.device
    observer: Observer
    deadline: float

    def made(self, network: CSNet | None) -> tuple[CSNet | MeanMask, list[dict[str, Any]]]:
        """The network of the run, from that of the run's parent where it has one."""
        if self.run.activation_map:
            return network, []
        if self.run.network == MEAN_MASK:
            return self._averaged()
        return self._pruned(network) if self.run.pruning else self._trained(network)

    def _averaged(self) -> tuple[MeanMask, list[dict[str, Any]]]:
        started = time.monotonic()
        model = mean_mask(self.pixels[self.roles.train], self.settings.size)
        return model, [{"seconds": time.monotonic() - started, **self._validated(model)}]

    def _validated(self, model: torch.nn.Module) -> dict[str, float]:
        scores = validate(model, self.pixels[self.roles.validation], self.settings.size)
        return {f"validation_{name}": value for name, value in scores.items()}

    def _trained(self, network: CSNet | None) -> tuple[CSNet, list[dict[str, Any]]]:
        run, settings = self.run, self.settings
        seed_everything(run.seed)
        if run.network in networks.NAMES:
            return self._train(networks.build(run.network, settings.size, run.pretrained), self._recipe())
        plan = plan_channels(run.network, run.width, run.split, run.stages)
        model = self._classifier(plan, network) if run.classification else CSNet(plan, settings.size)
        if run.classification and run.classification.tuned == "probe":
            return self._probed(model)
        recipe = self._recipe()
        if run.recipe == "written":
            recipe = replace(recipe, last_step=self._steps() - settings.after_steps)
        if run.pretraining:
            model.take_stages_of(network)
        teacher = network.to(self.device) if recipe.beyond.distilled else None
        return self._train(model, recipe, teacher)

    def _classifier(self, plan: ChannelPlan, network: CSNet | None) -> Classifier:
        how = self.run.classification
        model = Classifier(plan, len(self.roles.classes), self.settings.size).to(self.device)
        if network is not None:
            model.take_features_of(network)
        elif how.tuned != "all":  # features that stay random
            stream = self._stream()
            recalibrate(model, (stream.batch(step)[0] for step in range(self.settings.after_steps)))
        if how.tuned in TUNED:
            model.tune(how.tuned)
        return model

    def _probed(self, model: Classifier) -> tuple[Classifier, list[dict[str, Any]]]:
        started, size = time.monotonic(), self.settings.size
        model.to(self.device)
        sets = [self.pixels[name] for name in (self.roles.train, self.roles.validation)]
        penalty = fit_probe(model, *(pixels.squares(range(len(pixels)), size) for pixels in sets))
        return model, [{"penalty": penalty, "seconds": time.monotonic() - started, **self._validated(model)}]

    def _pruned(self, model: CSNet) -> tuple[CSNet, list[dict[str, Any]]]:
        pruning = self.run.pruning
        kept = keep(
            model,
            pruning.criterion,
            threshold=self.settings.redundant if pruning.redundant else pruning.threshold,
            parameters=pruning.parameters,
            ranking=pruning.ranking,
        )
        if pruning.afterwards == "evened":
            images = self._stream().batch(0)[0].to(next(model.parameters()).device)
            return self._recalibrated(even_out(model, kept, images).to(self.device))
        model = prune(model, kept)
        if pruning.afterwards == "recalibrated":
            return self._recalibrated(model.to(self.device))
        # The forward passes of fine-tuning estimate the batch norm statistics as well, from a first batch on.
        recalibrate(model, [self._stream().batch(0)[0]])
        recipe, after = self._recipe(), self.settings.after_steps
        if self.run.recipe == "written":
            recipe = replace(recipe, first_step=self._steps() - after)
        else:
            recipe = replace(recipe, epochs=1, steps_per_epoch=after, learning_rate=recipe.learning_rate / 10)
        return self._train(model, recipe)

    def _train(
        self, model: CSNet, recipe: Recipe, teacher: torch.nn.Module | None = None
    ) -> tuple[CSNet, list[dict[str, Any]]]:
        settings = self.settings
        history = train(
            model.to(self.device),
            self.pixels[self.roles.train],
            self.pixels[self.roles.validation],
            recipe,
            self.observer,
            name=self.run.key(settings.name),
            follow={self.roles.follow: self.pixels[self.roles.follow]} if self.roles.follow else None,
            teacher=teacher,
            checkpoint=self.checkpoint,
            deadline=self.deadline,
        )
        return model, history

    def _recalibrated(self, model: CSNet) -> tuple[CSNet, list[dict[str, Any]]]:
        settings, checkpoint, observer = self.settings, self.checkpoint, self.observer
        stream = self._stream()
        state = checkpoint.read() or {"step": 0, "seconds": 0.0}
        if state["step"]:
            model.load_state_dict(state["model"])
        first, steps, started = state["step"], settings.after_steps, time.monotonic()
        observer.start(self.run.key(settings.name), steps, first)

        def images() -> Iterator[torch.Tensor]:
            for step in range(first, steps):
                yield stream.batch(step)[0]
                observer.step(step + 1)
                paused = time.monotonic() > self.deadline and step + 1 < steps
                if paused or checkpoint.due():
                    seconds = state["seconds"] + time.monotonic() - started
                    checkpoint.write({"model": model.state_dict(), "step": step + 1, "seconds": seconds})
                if paused:
                    raise Paused

        if first < steps:
            recalibrate(model.to(memory_format=torch.channels_last), images(), reset=first == 0)
        entry = {"seconds": state["seconds"] + time.monotonic() - started, **self._validated(model)}
        observer.epoch(entry)
        return model.eval(), [entry]

    def _stream(self) -> Stream:
        settings, recipe = self.settings, self._recipe()
        return Stream(self.pixels[self.roles.train], settings.size, settings.batch, recipe.seed, recipe.augmentation)

    def _recipe(self) -> Recipe:
        run, settings = self.run, self.settings
        return Recipe(
            epochs=settings.epochs,
            size=settings.size,
            batch=settings.batch,
            learning_rate=run.learning_rate or settings.learning_rate,
            steps_per_epoch=settings.steps_per_epoch,
            decay=run.decay,
            decay_weight=run.decay_weight,
            dynamic_weight=run.dynamic_weight,
            augmentation=run.recipe,
            seed=run.seed,
            beta2=settings.beta2,
            beyond=way_named(run.beyond),
        )

    def _steps(self) -> int:
        settings = self.settings
        return settings.epochs * (settings.steps_per_epoch or len(self.pixels[self.roles.train]) // settings.batch)
