"""Two processes, started by `torchrun`, train as one does.

This file is also the script that they run: `test_distributed.py MODE FOLDER`.

The comparisons are in double precision. In single precision an untrained CSNet amplifies rounding 10,000-fold and Adam
makes steps of full length out of it: after a few of them, any two orders of summation have led to other weights.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sodlib
from sodlib import distributed, octconv, records, roles, runs
from sodlib.classifier import Classifier
from sodlib.csnet import CSNet
from sodlib.data import find_set
from sodlib.decay import DECAYS
from sodlib.description import Run
from sodlib.pixels import open_pixels
from sodlib.presets import PRESETS
from sodlib.progress import Lines
from sodlib.training import Recipe, assist, seed_everything, train
from sodlib.unfinished import Checkpoint, Paused

RECIPE = Recipe(epochs=1, steps_per_epoch=2, size=32, batch=4, learning_rate=3e-3)
TINY = replace(PRESETS["smoke"], epochs=1, steps_per_epoch=1, batch=4, images=18, size=32, follow=None,
               pretraining_steps=1)  # fmt: skip
#: Rounding of 1e-16, amplified by two steps. Statistics of a process's own part would differ by more than 1e-3.
TOLERANCE = {"rtol": 1e-7, "atol": 1e-7}


def torchrun(mode, folder):
    """Exit code, what was printed, what was complained about."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(records.REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, mode, str(folder)], env=environment, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What one process and two have made, in the folders "one" and "two", and what the two have printed."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("one", "two"):
        (folder / name).mkdir()
    code, printed, complaints = torchrun("make", folder / "two")
    assert code == 0, complaints
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CSNet, "forward", CSNet.forward)
        patch.setattr(Classifier, "pooled", Classifier.pooled)
        patch.setitem(PRESETS, "smoke", TINY)
        try:
            make(folder / "one")
        finally:
            torch.set_default_dtype(torch.float32)
    return folder, printed


def make(folder):
    """The layer alone, a training by every decay, the records of a pre-training and of what starts from it; in this
    process, and in those that it is joined with."""
    torch.set_default_dtype(torch.float64)
    forward, pooled = CSNet.forward, Classifier.pooled
    CSNet.forward = lambda self, x: forward(self, x.double()).float()
    Classifier.pooled = lambda self, x: pooled(self, x.double())
    rank = distributed.part()[0]
    torch.save(layer(), folder / f"layer{rank}")
    pixels = open_pixels(find_set("cutouts/train").subset(range(8), "eight"))
    for decay in DECAYS:
        if rank > 0:
            # A training of its own by the first process, and one that goes on after a pause.
            for _ in range(2 if decay == "dynamic" else 1):
                _, model, recipe, optimizer = distributed.hear()
                assist(model, pixels, recipe, optimizer)
            continue
        seed_everything(0)
        model, recipe, checkpoint = sodlib.csnet(split="1/0"), replace(RECIPE, decay=decay), None
        if decay == "dynamic" and distributed.joined():
            checkpoint = Checkpoint(folder / "dynamic.pt")
            with pytest.raises(Paused):
                train(model, pixels, pixels, recipe, checkpoint=checkpoint, deadline=time.monotonic())
            assert checkpoint.read()["step"] == 1
            model = sodlib.csnet(split="1/0")
        history = train(model, pixels, pixels, recipe, checkpoint=checkpoint)
        assert not any("norm_activation" in vars(module) for module in model.modules())
        torch.save((model.state_dict(), history), folder / decay)
    runs.obtain(Run(pretraining="folder"), "smoke", runs.Surroundings(folder / "results", observer=Lines()))


def layer():
    """The forward and backward pass of batch norm and PReLU, for this process's part of a batch: per sample,
    of the whole batch, and summed over the batch."""
    torch.manual_seed(0)
    x = 50 + torch.randn(6, 5, 4, 4) * torch.arange(1.0, 7)[:, None, None, None]
    wanted, norm, activation = torch.randn_like(x), nn.BatchNorm2d(5), nn.PReLU(5)
    nn.init.normal_(norm.weight)
    rank, count = distributed.part()
    apply = distributed.norm_activation if distributed.joined() else octconv.norm_activation
    x, wanted = (values.chunk(count)[rank].clone() for values in (x, wanted))
    y = apply(x.requires_grad_(), norm, activation)
    (y * wanted).sum().backward()
    evaluated = apply(x, norm.eval(), activation.eval())
    gradients = [parameter.grad for parameter in (*norm.parameters(), *activation.parameters())]
    return [y.detach(), x.grad, evaluated.detach()], list(norm.buffers()), gradients


def test_norm_activation_is_of_the_whole_batch(made):
    folder, _ = made
    samples, statistics, sums = torch.load(folder / "one" / "layer0")
    first, second = (torch.load(folder / "two" / f"layer{rank}") for rank in (0, 1))
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close([torch.cat(parts) for parts in zip(first[0], second[0], strict=True)], samples, **exact)
    torch.testing.assert_close(first[1], statistics, **exact)
    torch.testing.assert_close(second[1], statistics, **exact)
    torch.testing.assert_close([a + b for a, b in zip(first[2], second[2], strict=True)], sums, **exact)


@pytest.mark.parametrize("decay", DECAYS)
def test_a_training_of_two_processes(made, decay):
    """Weights, batch norm statistics and history; the one by "dynamic" was stopped once and went on."""
    folder, _ = made
    (one, history), (two, other) = (torch.load(folder / name / decay) for name in ("one", "two"))
    torch.testing.assert_close(two, one, **TOLERANCE)
    assert_same_history(history, other)


def test_two_processes_make_the_records_of_one(made, monkeypatch):
    """A pre-training, and the training that starts from it."""
    folder, printed = made
    monkeypatch.setitem(PRESETS, "smoke", TINY)
    chain = [run.key("smoke") for run in Run(pretraining="folder").chain]
    # Each one's name and its only epoch, said once.
    lines = printed.splitlines()
    assert lines[::2] == chain and len(lines) == 4 and all(line.startswith("epoch 1/1") for line in lines[1::2])
    assert not list((folder / "two").glob("results/.unfinished/*.pt"))
    for key in chain:
        first, second = (records.find(key, folder / name / "results") for name in ("one", "two"))
        assert second.data["hardware"] == first.data["hardware"] + ", 2 processes"
        weights = (load_file(record.folder / "weights.safetensors") for record in (second, first))
        torch.testing.assert_close(*weights, **TOLERANCE)
        assert_same_history(first.data["history"], second.data["history"])


def assert_same_history(first, second):
    times = ("seconds", "scoring_seconds", "images_per_second")
    without = [
        [{name: v for name, v in entry.items() if name not in times} for entry in each] for each in (first, second)
    ]
    for one, two in zip(*without, strict=True):
        # Scores are of maps in 256 levels: a value at the edge of one may fall on either side.
        assert two == pytest.approx(one, rel=1e-6, abs=1e-5)


def test_an_error_in_one_process_ends_all_with_one_sentence(tmp_path):
    code, printed, complaints = torchrun("lose", tmp_path)
    assert code != 0 and "epoch" not in printed and records.every(tmp_path) == []
    said = [line for line in complaints.splitlines() if line.startswith("sodlib: ")]
    assert said == ["sodlib: photo.jpg: lost by the second process"]


def test_a_batch_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(distributed, "part", lambda: (0, 3))
    pixels = open_pixels(find_set("cutouts/train").subset(range(8), "eight"))
    with pytest.raises(sodlib.SodlibError, match="a batch of 4 cannot be shared by 3 processes; choose a multiple"):
        train(sodlib.csnet(), pixels, pixels, RECIPE)


def lose(_):
    raise sodlib.SodlibError("photo.jpg: lost by the second process")


if __name__ == "__main__":
    mode, folder = sys.argv[1:]
    PRESETS["smoke"] = TINY
    if mode == "make":
        distributed.join()
        make(Path(folder))
    else:
        from sodlib.__main__ import main

        if os.environ["RANK"] == "1":
            roles.open_pixels = lose
        sys.argv = ["sodlib", "train", "--preset", "smoke", "--results", folder]
        main()
