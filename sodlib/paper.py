"""The published values of the paper (TPAMI 2021) and their comparison with ours.

One CSV per table lies in `data/paper/` of the repository, as printed; its README.md names units and columns.
"""

from pathlib import Path

import pandas as pd

from sodlib.errors import SodlibError

FOLDER = Path(__file__).resolve().parent.parent / "data" / "paper"
TABLES = range(1, 12)

# Columns that pandas would guess wrongly: "2-4" and "5e-2" are printed labels, and counts may have gaps.
_TYPES = {
    **dict.fromkeys(["parameters_k", "macc_g", "max_f", "mae", "width"], "float64"),
    **dict.fromkeys(["channels", "reference", "table", "row"], "Int64"),
    **dict.fromkeys(["dilations", "split", "stages", "setting", "printed", "meant", "column"], "str"),
}


def table(number: int) -> pd.DataFrame:
    """Table `number` (1 to 11) as printed, rows in the paper's order; a cell that it leaves empty is missing.

    Parameters are in thousands, MACC in 10^9, maximum F-measure, accuracies and shares as fractions of 1.
    Raises SodlibError for a number that is no table of the paper.
    """
    _known(number)
    return _read(f"table{number:02d}.csv")


def slips(number: int | None = None) -> pd.DataFrame:
    """The paper's own slips, of one table or of all: what is printed, what was probably meant, and why.

    `row` counts the data rows of that table from 1 and is empty where the slip is in the text.
    """
    found = _read("slips.csv")
    if number is None:
        return found
    _known(number)
    return found[found["table"] == number].reset_index(drop=True)


def released_counts() -> pd.DataFrame:
    """Parameters that the released CSNet-x2-L, which is pruned already, is left with when it is cut further at each
    threshold of Table 10: counted, not printed."""
    return _read("released10.csv")


def released() -> pd.DataFrame:
    """What was read from the two released checkpoints and counted on their channels, a row a network: counts alone, no
    weights. data/paper/README.md names the columns."""
    return _read("released.csv")


def discrepancies() -> pd.DataFrame:
    """Where the paper and its release differ, a row each: what either says, and how it is known."""
    return _read("discrepancies.csv")


def claims() -> pd.DataFrame:
    """The paper's claims, one sentence each, with the place and the number that carries them."""
    return _read("claims.csv")


def compare(ours: pd.DataFrame, paper: pd.DataFrame, on: list[str], values: list[str]) -> pd.DataFrame:
    """Published and own values side by side: for each of `values` the columns paper, ours, ours minus paper.

    The index is `on`; columns are pairs (value, "paper" | "ours" | "difference"). Rows keep the paper's
    order; rows that only `ours` has follow in theirs. What one side lacks is NaN, and so is its difference.
    Raises SodlibError for a missing column, an ambiguous row, or a value that is not a number.
    """
    left, right = _keyed(paper, "paper", on, values), _keyed(ours, "ours", on, values)
    rows = left.index.append(right.index[~right.index.isin(left.index)])
    left, right = left.reindex(rows), right.reindex(rows)
    sides = {"paper": left, "ours": right, "difference": right - left}
    order = [(value, side) for value in values for side in sides]
    return pd.concat(sides, axis="columns").swaplevel(axis="columns")[order]


def _keyed(frame: pd.DataFrame, side: str, on: list[str], values: list[str]) -> pd.DataFrame:
    if missing := [name for name in [*on, *values] if name not in frame.columns]:
        known = ", ".join(map(str, frame.columns))
        raise SodlibError(f"The table '{side}' has no column '{missing[0]}'; choose from {known}.")
    if (repeated := frame.duplicated(on)).any():
        row = frame.loc[repeated, on].iloc[0].to_dict()
        raise SodlibError(f"The table '{side}' has several rows with {row}; name more columns in 'on'.")
    keyed = frame.set_index(on)[values]
    try:
        return keyed.apply(pd.to_numeric).astype("float64")
    except (TypeError, ValueError) as error:
        raise SodlibError(f"The table '{side}' holds a value that is not a number: {error}.") from error


def _known(number: int) -> None:
    if number not in TABLES:
        raise SodlibError(f"The paper has no Table {number}; choose one from {TABLES[0]} to {TABLES[-1]}.")


def _read(name: str) -> pd.DataFrame:
    path = FOLDER / name
    if not path.is_file():
        raise SodlibError(f"{path} is missing; run sodlib from a complete checkout of the repository.")
    return pd.read_csv(path, dtype=_TYPES)
