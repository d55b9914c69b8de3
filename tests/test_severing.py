"""Severed layers: counted from records, and without a say in the map."""

import json

import numpy as np
import pytest
import torch

import sodlib
from sodlib.decay import gammas
from sodlib.records import Record
from sodlib.severing import FADED, largest_scales, reliance, severed, severed_layers
from sodlib.study_commands import show


@pytest.fixture
def model():
    torch.manual_seed(0)
    return sodlib.csnet().eval()


def recorded(model, folder):
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"parameters": 210_985, "scores": {}}))
    np.savez(
        folder / "arrays.npz", **{f"gamma/{name}": gamma.detach().numpy() for name, gamma in gammas(model).items()}
    )
    return Record(folder)


def sever(model, layer):
    for name, gamma in gammas(model).items():
        if name.startswith(f"{layer}."):
            gamma.data.mul_(FADED / 10)


def test_a_layer_is_severed_when_all_its_scales_are_near_zero(model, tmp_path, capsys):
    whole = recorded(model, tmp_path / "whole")
    assert len(largest_scales(whole)) == 54 and severed([whole]) == 0
    # One resolution of two is left: the layer still hands on.
    gammas(model)["stage3.2.conv3x3_2.bns.0.weight"].data.zero_()
    assert severed([recorded(model, tmp_path / "half")]) == 0
    sever(model, "stage3.2.conv3x3_2")
    sever(model, "stage4.0.conv1x1")
    cut = recorded(model, tmp_path / "cut")
    assert severed_layers(cut) == ["stage3.2.conv3x3_2", "stage4.0.conv1x1"]
    show(whole)
    show(cut)
    assert capsys.readouterr().out.splitlines() == [
        "whole: 210,985 parameters",
        "cut: 210,985 parameters",
        "  nothing passes 2 of its layers (severed, page 02); the first is stage3.2.conv3x3_2",
    ]
    assert severed([whole, cut]) == 1
    assert np.isnan(severed([]))


def test_maps_rely_on_no_stage_behind_a_severed_layer(model):
    # Random batch norms hand on next to nothing of an image: take statistics first.
    images = torch.rand(4, 3, 64, 64)
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(images)
    before = reliance(model, images)
    assert list(before) == ["stage1", "stage2", "stage3", "stage4"] and min(before.values()) > 1e-4
    for name, gamma in gammas(model).items():
        if name.startswith("stage4.0.conv3x3_2."):
            gamma.data.zero_()
    after = reliance(model, images)
    assert after["stage4"] == 0 and min(after["stage2"], after["stage3"]) > 1e-4
    assert not any(module._forward_hooks for module in model.modules())
