"""The published values: readable, consistent with each other up to the marked slips, comparable with ours."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sodlib import paper
from sodlib.errors import SodlibError

FRACTIONS = ["max_f", "mae", "top1_accuracy", "gain", "parameters_removed", "macc_removed"]


@pytest.mark.parametrize("number", paper.TABLES)
def test_every_table_is_tidy(number):
    table = paper.table(number)
    assert len(table) > 0
    for column in table.columns.intersection(FRACTIONS):
        assert table[column].dropna().between(0, 1).all()
    for column in table.columns.intersection(["parameters_k", "macc_g", "run_time_ms"]):
        assert (table[column].dropna() > 0).all()


@pytest.mark.parametrize("call", [paper.table, paper.slips])
@pytest.mark.parametrize("number", [0, 12, -1])
def test_unknown_table_is_one_sentence(call, number):
    with pytest.raises(SodlibError, match=f"no Table {number}; choose one from 1 to 11"):
        call(number)


def test_missing_folder_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(paper, "FOLDER", tmp_path)
    with pytest.raises(SodlibError, match=r"table06\.csv is missing"):
        paper.table(6)


def test_labels_stay_as_printed():
    assert paper.table(10)["setting"].tolist()[3:5] == ["5e-2", "3e-2"]
    assert paper.table(5)["stages"].tolist() == ["4", "3-4", "2-4", "1-4"]


def test_slips_point_at_the_cells_they_quote():
    cells = paper.slips().dropna(subset="row")
    assert len(cells) > 20
    for slip in cells.itertuples():
        cell = paper.table(slip.table).iloc[slip.row - 1][slip.column]
        assert slip.meant != slip.printed
        if isinstance(cell, str):
            assert cell == slip.printed
        else:
            assert float(cell) == float(slip.printed)


def test_slips_of_one_table():
    assert set(paper.slips(10)["printed"]) == {"5e-2", "3e-2", "140.8", "38%", "51%"}
    assert paper.slips(9).empty


def test_table_3_gains_are_over_the_first_row():
    table = paper.table(3)
    gain = table["top1_accuracy"] - table["top1_accuracy"].iloc[0]
    pd.testing.assert_series_equal(table["gain"][1:], gain[1:], check_names=False, rtol=0, atol=1e-9)


def test_table_7_has_six_sets_for_each_network():
    table = paper.table(7)
    assert (table.groupby("network")["set"].nunique() == 6).all()
    assert len(table) == 6 * table["network"].nunique()
    assert (table.groupby("network")[["parameters_k", "macc_g"]].nunique() <= 1).all(axis=None)
    assert (table["max_f"].isna() == table["mae"].isna()).all()


def test_table_10_ratio_is_the_share_that_stays():
    full = paper.table(11).query("width == 2 and not pruned")["parameters_k"].item()
    rows = paper.table(10).query("rule == 'ratio'")
    assert [f"{100 * kept / full:.0f}%" for kept in rows["parameters_k"]] == rows["setting"].tolist()


def test_table_11_ratios_follow_from_its_counts():
    table = paper.table(11)
    full, pruned = table[~table["pruned"]].set_index("width"), table[table["pruned"]].set_index("width")
    for count, removed in [("parameters_k", "parameters_removed"), ("macc_g", "macc_removed")]:
        share = (1 - pruned[count] / full[count]).round(2)
        pd.testing.assert_series_equal(pruned[removed], share, check_names=False)


def test_tables_6_7_8_and_11_share_their_networks():
    values = ["parameters_k", "macc_g", "max_f"]
    eleven = paper.table(11).set_index(["width", "pruned"])[values]
    six = paper.table(6).query("split == '5/5'").set_index(["network", "width"])[[*values, "mae"]]
    for width in (1.0, 2.0):
        assert six.loc[("CSNet-L", width), values].tolist() == eleven.loc[(width, True)].tolist()
    # The one contradiction between these tables is a marked slip of Table 6: max F of CSNet 5/5.
    differs = six.loc[("CSNet", 1.0), values] != eleven.loc[(1.0, False)]
    assert differs[differs].index.tolist() == ["max_f"]
    assert "0.901" in paper.slips(6)["printed"].tolist()

    seven = paper.table(7).query("set == 'ECSSD'").set_index("network")
    for width in (1.0, 1.5, 2.0):
        assert seven.loc[f"CSNet×{width:g}-L", values].tolist() == eleven.loc[(width, True)].tolist()
    for width in (1.0, 2.0):
        assert seven.loc[f"CSNet×{width:g}-L", "mae"] == six.loc[("CSNet-L", width), "mae"]

    eight = paper.table(8).set_index("network")["macc_g"].drop("CSNet×1")
    differs = eight != seven.loc[eight.index, "macc_g"]
    assert differs[differs].index.tolist() == ["PiCANet"]
    assert "54.06" in paper.slips(8)["printed"].tolist()


def test_every_table_and_figure_has_its_claim():
    claims = paper.claims()
    tables = {f"table{number:02d}" for number in range(1, 12)}
    figures = {f"figure{number:02d}" for number in range(1, 15)}
    assert claims["id"].is_unique
    assert set(claims["id"]) >= {"a", "b", "c", "d", *tables, *figures}
    assert claims.notna().all(axis=None)
    assert claims["claim"].str.endswith(".").all()


KEYS = st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4)), unique=True, max_size=12)


@given(published=KEYS, own=KEYS)
def test_compare_keeps_the_papers_order_and_every_row(published, own):
    def frame(keys, factor):
        return pd.DataFrame(
            {
                "network": [name for name, _ in keys],
                "width": pd.Series([width for _, width in keys], dtype=float),
                "max_f": pd.Series([factor * width for _, width in keys], dtype=float),
            }
        )

    result = paper.compare(frame(own, 3), frame(published, 1), ["network", "width"], ["max_f"])
    assert result.index.tolist() == published + [key for key in own if key not in published]
    for key, row in zip(result.index, result["max_f"].itertuples(index=False), strict=True):
        assert row.paper == key[1] if key in published else pd.isna(row.paper)
        assert row.ours == 3 * key[1] if key in own else pd.isna(row.ours)
        assert row.difference == 2 * key[1] if key in published and key in own else pd.isna(row.difference)


def test_compare_joins_on_one_column_and_accepts_whole_widths():
    ours = pd.DataFrame({"width": [2, 1], "parameters_k": [788.631, None]})
    published = paper.table(11).query("not pruned")
    result = paper.compare(ours, published, ["width"], ["parameters_k"])
    assert result.index.tolist() == [1.0, 1.2, 1.5, 1.8, 2.0]
    assert result.columns.tolist() == [("parameters_k", side) for side in ("paper", "ours", "difference")]
    assert result.loc[2.0, ("parameters_k", "difference")] == pytest.approx(0.631)
    assert result["parameters_k"]["ours"].isna().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"width": [1.0]}, "'ours' has no column 'max_f'"),
        ({"width": [1.0, 1.0], "max_f": [0.9, 0.8]}, "'ours' has several rows with {'width': 1.0}"),
        ({"width": [1.0], "max_f": ["high"]}, "'ours' holds a value that is not a number"),
    ],
)
def test_compare_refuses_what_it_cannot_match(ours, message):
    with pytest.raises(SodlibError, match=message):
        paper.compare(pd.DataFrame(ours), paper.table(11).query("pruned"), ["width"], ["max_f"])
