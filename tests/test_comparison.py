"""What stands beside what in the comparison of networks."""

from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from test_evidence import FIRST, SECOND, Recorded, evidence

from sodlib import comparison, gallery, paper, study
from sodlib.comparison_charts import convergence, epochs_to, pareto, sizes_and_scores
from sodlib.evidence import Evidence
from sodlib.presets import preset_named


def test_the_published_table():
    """29 networks on six sets, to the letter."""
    printed = comparison.published()
    assert printed.shape == (29, 14) and printed.index[0] == "ELD" and printed.index[-1] == "CSNet×2-L"
    assert printed.loc["PoolNet", ("DUTS-TE", "max_f")] == 0.886
    assert printed.loc["CSNet×1-L", ("size", "parameters_k")] == 94
    assert printed.loc["DHS", ("DUT-O", "max_f")] != printed.loc["DHS", ("DUT-O", "max_f")]
    assert set(study.TABLE_7) <= set(printed.index) and not set(comparison.BESIDE) & set(printed.index)
    assert set(comparison.NOTES) <= set(study.TABLE_7)


def test_the_validation_split_chooses():
    both = evidence([Recorded(shift=0.01)], [Recorded()])
    assert both.chosen((SECOND, FIRST)) == FIRST
    assert evidence([Recorded()]).chosen((FIRST,)) == FIRST
    item = Evidence("Table 7", preset_named("brief"), (0,), {FIRST: (), SECOND: (Recorded(),)})
    assert item.chosen((FIRST, SECOND)) == SECOND
    assert Evidence("Table 7", preset_named("brief"), (0,), {FIRST: (), SECOND: ()}).chosen((FIRST, SECOND)) == FIRST


def test_another_test_set():
    record = Recorded()
    item = evidence([record])
    assert item.on("ECSSD").score(FIRST) == item.score(FIRST)
    assert np.isnan(item.on("DUTS-TE").score(FIRST).value) and item.on("DUTS-TE").of(FIRST) == ()
    assert item.on("ECSSD").where == "ECSSD, n = 60 of 1,000"


def test_epochs():
    first, second = Recorded(), Recorded()
    for record, values in ((first, (0.3, 0.2, 0.1)), (second, (0.3, 0.1, 0.1))):
        record.data["history"] = [{"validation_mae": value} for value in values]
    by_seed = evidence([first, second], seeds=(0, 1)).by_epoch(FIRST, "validation_mae")
    assert by_seed.tolist() == [[0.3, 0.2, 0.1], [0.3, 0.1, 0.1]]
    assert [epochs_to(by_seed, level) for level in (0.4, 0.2, 0.1)] == [1, 2, 3] and np.isnan(epochs_to(by_seed, 0.05))


def test_nothing_is_invented_for_what_is_not_recorded():
    """Without records every number of ours is missing, and the paper's stay."""
    ways = {**study.TABLE_7, **comparison.BESIDE}.values()
    item = Evidence("Table 7", preset_named("brief"), (0,), {run: () for several in ways for run in several})
    recorded = Recorded()
    item = replace(item, records={**item.records, FIRST: (recorded,)})
    table = comparison.trained(item, ["ECSSD"])
    ours = table[[column for column in table if column[1] in ("ours", "max F", "MAE")]]
    assert ours.isna().all(axis=None) and (table["ECSSD", "95 %"] == "").all()
    assert table.loc["ENet", ("ECSSD", "max F, paper")] == 0.857
    assert table.loc["ENet", ("parameters (K)", "paper")] == 360
    assert np.isnan(table.loc["CSF on EfficientNet-Lite0", ("ECSSD", "max F, paper")])


def test_the_pareto_front():
    assert pareto([3, 1, 2, 4], [0.7, 0.5, 0.4, 0.7]) == [1, 0]
    assert pareto([1, 1], [0.2, 0.3]) == [1] and pareto([], []) == []


def test_figures():
    """Every point is named; a network without a score stands on the axis."""
    layer = pd.DataFrame({"parameters_k": [100.0, 1000, 50], "max_f": [0.8, 0.9, np.nan]}, index=["a", "b", "unknown"])
    measured = layer.dropna().assign(low=[0.75, 0.88], high=[0.83, 0.91])
    figure = sizes_and_scores({"reported": {"some": layer}, "here": {"ours": measured}})
    assert [[text.get_text() for text in axis.texts] for axis in figure.axes] == [["a", "b", "unknown"], ["a", "b"]]
    curves = {"from scratch": np.array([[0.3, 0.2], [0.4, 0.2]]), "ImageNet": np.array([[0.2, 0.1]])}
    figure = convergence({"a network": curves, "another": curves}, "MAE")
    assert len(figure.axes) == 2 and figure.axes[0].get_ylabel() == "MAE"
    assert figure.axes[0].lines[2].get_color() == figure.axes[1].lines[2].get_color()
    plt.close("all")


def test_labels_keep_off_points_and_fronts():
    """A steep front goes up to the right of its points, where a label stands by default."""
    layer = pd.DataFrame({"parameters_k": [100.0, 110, 120, 5000], "max_f": [0.8, 0.85, 0.9, 0.91]}, index=list("abcd"))
    figure = sizes_and_scores({"reported": {"some": layer}})
    (axis,) = figure.axes
    front = next(line for line in axis.lines if line.get_linestyle() == ":")
    corners = axis.transData.transform(front.get_xydata())
    along = np.concatenate([np.linspace(*ends, 50) for ends in pairwise(corners)])
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not any(box.contains(x, y) for box in boxes for x, y in along)
    assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
    plt.close("all")


def test_peers_have_sources():
    peers = comparison.literature()
    assert peers["source"].notna().all() and peers[peers["max_f"].isna()]["note"].str.contains("not at hand").all()
    assert peers.loc["U2Net-p", "max_f"] == 0.943
    assert len(paper.table(7)) == 29 * 6


class Kept:
    """A record of maps."""

    def __init__(self, **maps):
        self.arrays, self.has_weights = maps, False


def test_maps_are_chosen_by_the_rank_of_the_error():
    shown = gallery.photographs()
    truths = [truth for _, _, truth in shown]
    # Grey everywhere but for a share of black images: each error is known.
    maps = np.stack([np.full((8, 8), 0 if truth is None else 255 * (index % 2), np.uint8)
                     for index, truth in enumerate(truths)])  # fmt: skip
    one = Kept(maps=maps)
    chosen, by_network = gallery.beside({"one": one, "none": Kept()}, one)
    assert list(by_network) == ["one"] and len(chosen) == len(by_network["one"]) == 8
    assert [truth is None for _, _, truth in chosen] == [True] * 3 + [False] * 5
    errors = [np.abs(map_.astype(float) - truth).mean() for (_, _, truth), map_ in
              zip(chosen[3:], by_network["one"][3:], strict=True)]  # fmt: skip
    assert errors == sorted(errors) and all(
        map_.shape == image.shape[:2] for (_, image, _), map_ in zip(chosen, by_network["one"], strict=True)
    )
    everything = [np.abs(float(maps[i, 0, 0]) - truth).mean() for i, truth in enumerate(truths) if truth is not None]
    assert errors[0] == pytest.approx(min(everything)) and errors[-1] == pytest.approx(max(everything))
