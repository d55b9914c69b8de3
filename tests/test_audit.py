"""Paper against release: the checks of page 09, and the committed counts against the released networks themselves."""

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import tensors

import sodlib
from sodlib import audit, paper
from sodlib.channels import ChannelPlan, plan_channels
from sodlib.cost import MACC_KINDS, macc_by_part
from sodlib.csnet import CSNet
from sodlib.data import find_set, read_pair
from sodlib.decay import gammas
from sodlib.octconv import WEIGHT_FACTOR
from sodlib.page import Page
from sodlib.pixels import open_pixels
from sodlib.pruning import keep_above, scores
from sodlib.records import Record
from sodlib.severing import reliance


def test_committed_counts_are_those_of_the_released_networks(golden, released):
    counted = paper.released().set_index("network")
    for name, row in counted.iterrows():
        plan = ChannelPlan.from_json(
            golden / f"csnet-L-{name.removeprefix('CSNet').removesuffix('-L').replace('×', 'x')}.channels.json"
        )
        model, kinds = CSNet(plan), sum(macc_by_part(plan).values(), start=Counter())
        assert [row[kind.replace(" ", "_")] for kind in MACC_KINDS] == [kinds[kind] for kind in MACC_KINDS]
        assert row["parameters"] == sodlib.count_parameters(model)
        assert row["tensors"] == len(list(model.parameters()))
        assert row["scaled_channels"] == len(audit.variances(model))
    row, variances = counted.loc["CSNet×2-L"], audit.variances(released)
    assert row["weak_channels"] == (variances < 1e-5 * WEIGHT_FACTOR**2).sum()
    assert row["median_variance"] == pytest.approx(np.median(variances), rel=1e-5)
    by_layer = {}
    for name, gamma in gammas(released).items():
        by_layer.setdefault(name.partition(".bns.")[0], []).append(gamma.detach().abs().max().item())
    assert len(by_layer) == 54
    assert row["weakest_layer"] == pytest.approx(min(map(max, by_layer.values())), rel=1e-5)
    squares, _ = open_pixels(find_set("cutouts/test")).squares(range(32), 224)
    for stage, change in reliance(released, squares).items():
        assert row[f"reliance_{stage}"] == pytest.approx(change, abs=1e-4)
    state = tensors(np.load(golden / "csnet-L-x2.npz"))
    batches = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert batches == {row["batches_counted"]}


def test_the_misprinted_threshold_would_empty_a_layer(released):
    masks = [keep_above(scores(released), threshold) for threshold in (3e-3, 3e-2)]
    # Our rule keeps the best channel of a layer that has none left.
    alone = [sum(sum(int(mask.sum()) for mask in block) == 1 for block in mask_of.blocks) for mask_of in masks]
    assert alone[0] == 0 and alone[1] > 0


def test_an_optimiser_of_another_network_moves_nothing():
    released, written = (audit.tuned_after_pruning(released) for released in (True, False))
    assert list(released.values()) == [421, 0, 419, 0, 3]
    assert list(written.values())[:3] == [419, 419, 419] and written["of these moved"] > 400


@pytest.mark.parametrize("build", [sodlib.csnet, lambda: sodlib.csnet(split="1/0")], ids=["two scales", "one scale"])
def test_the_factor_is_a_smaller_epsilon(build):
    torch.manual_seed(0)
    model = build()
    with torch.no_grad():  # as a decay leaves them
        for convs, _ in audit.scaled_layers(model):
            for conv in convs:
                conv.weight /= 300
    images, masks = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32)
    same = audit.factor_as_epsilon(model, images, masks, 1e-5 / WEIGHT_FACTOR**2)
    other = audit.factor_as_epsilon(model, images, masks, 1e-5)
    assert max(same.values()) < 1e-6 and min(other.values()) > 1e-2
    model.eval()
    twin = audit.without_factor(model, 1e-5 / WEIGHT_FACTOR**2).eval()
    with torch.no_grad():
        torch.testing.assert_close(twin(images), model(images), atol=1e-4, rtol=1e-4)


def test_every_scaled_convolution_is_found():
    model = sodlib.csnet()
    found = sum(len(convs) for convs, _ in audit.scaled_layers(model))
    assert found == sum(type(module).__name__ in ("ScaledConv2d", "SingleScaleConv") for module in model.modules())


def test_structures_have_one_answer_each():
    table = audit.structures()
    assert table["fits"].tolist() == ["no", "yes"] * 4
    plan = plan_channels("vanilla")
    assert audit.merging_at(plan, (2, 3, 4)) == plan


def test_work_adds_up():
    table = audit.kinds_of_work({"CSNet×1": plan_channels()})
    assert round(table.loc["CSNet×1", "macc_g"], 9) == 0.610638784 == round(table.iloc[0, :-1].sum(), 9)


def test_other_networks_were_counted_alike():
    table = audit.others_counted()
    apart = (table["with batch norm and PReLU (G)"] - table["macc_g, printed"]).abs()
    assert (apart < 0.01).all() and (table["macc_g, printed"] - table["convolution_g"] > 0.03).all()
    assert (table["parameters_k"] / table["parameters_k, printed"] - 1).abs().max() < 0.02


def test_augmentations_are_what_they_say():
    released, written = audit.drawn("released"), audit.drawn("written")
    assert written["up-down"] == written["area cropped"] == 0 and written["left-right"] == pytest.approx(0.5, abs=0.03)
    assert released["left-right"] == pytest.approx(0.25, abs=0.03) == released["up-down"]
    # 15 pixels on average off each pair of sides
    assert released["area cropped"] == pytest.approx(1 - (1 - 15 / 300) * (1 - 15 / 400), abs=0.002)


def test_signed_metrics_are_negative_only_where_features_can_be():
    torch.manual_seed(0)
    model, images = sodlib.csnet(), torch.randn(4, 3, 32, 32)
    for slope, low, high in ((0.0, 0, 0), (1.0, 0.2, 0.8)):
        for module in model.modules():
            if isinstance(module, torch.nn.PReLU):
                module.weight.data.fill_(slope)
        assert low <= audit.negative_metrics(model, images) <= high


def test_cutting_makes_maps_darker(monkeypatch):
    """Against a truth without any object a map's MAE is its brightness."""
    torch.manual_seed(0)
    images = find_set("cutouts/test")
    monkeypatch.setattr(audit, "read_pair", lambda *which: (read_pair(*which)[0], np.zeros_like(read_pair(*which)[1])))
    errors = audit.cut_or_rounded(torch.nn.Conv2d(3, 1, 1), images.subset(range(4), images.name))
    assert errors["rounded"] == pytest.approx(errors["exact"], abs=1e-4)
    assert errors["exact"] - errors["cut"] == pytest.approx(0.5 / 255, rel=0.1)


def recorded(tmp_path, *histories):
    found = []
    for name, history in enumerate(histories):
        record = Record(tmp_path / str(name))
        names = ("set_mae", "validation_mae", "validation_max_f")
        record.__dict__["data"] = {"history": [dict(zip(names, entry, strict=True)) for entry in history]}
        found.append(record)
    return found


def test_choices_of_the_epoch(tmp_path):
    first = [(0.2, 0.5, 0.6), (0.4, 0.3, 0.8), (0.3, 0.4, 0.7)]
    second = [(0.3, 0.5, 0.1), (0.2, 0.4, 0.2), (0.1, 0.3, 0.3)]
    chosen = audit.epochs_chosen(recorded(tmp_path, first, second), "set")
    assert chosen["epoch by test"].tolist() == [1, 3] and chosen["epoch by validation"].tolist() == [2, 3]
    gains = [
        audit.gain(chosen, *which).value
        for which in (("test MAE", "other"), ("test MAE", "last"), ("validation max F", "last"))
    ]
    assert gains == pytest.approx([-0.1, -0.05, 0.05])
    estimate = audit.gain(chosen, "test MAE", "other")
    assert estimate.low == pytest.approx(-0.2) and estimate.high == 0
    with pytest.raises(sodlib.SodlibError, match="no training"):
        audit.epochs_chosen([], "set")


def test_recorded_trainings_followed_a_test_set(tmp_path):
    page = Page(output=str(tmp_path))
    records = page.recorded(audit.followed(), "brief")
    assert len(records) >= 30 and all("ECSSD/250_mae" in record.data["history"][0] for record in records)


def test_differences_are_told_with_their_evidence():
    table = paper.discrepancies()
    assert table["topic"].is_unique and table["evidence"].notna().all()
