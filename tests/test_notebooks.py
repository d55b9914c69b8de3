"""Every notebook runs through papermill from nothing, at the smoke preset."""

import os

import papermill
import pytest
from conftest import REPOSITORY

from sodlib.notebooks import run_notebooks
from sodlib.presets import PRESETS

NAMES = sorted(path.name for path in (REPOSITORY / "notebooks").glob("*.ipynb") if ".failed." not in path.name)


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    """One place for all notebooks, as in a batch: what one has made, the next one finds."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.parametrize("name", NAMES)
def test_papermill_alone_knows_the_parameters(name):
    """It overlooks a line with a second "=", such as one in a comment, and then warns of what it is given."""
    known = papermill.inspect_notebook(REPOSITORY / "notebooks" / name)
    assert {"preset", "data", "output", "fresh"} <= known.keys() <= {"preset", "data", "output", "fresh", "live"}


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs_at_smoke(name, output, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
    parameters = {"preset": "smoke", "data": "", "output": str(output), "fresh": True}
    said = []
    outcomes = run_notebooks(
        [REPOSITORY / "notebooks" / name], output / "notebooks", parameters, cell_timeout=1800, echo=said.append
    )
    assert outcomes[0].ok, outcomes[0].message
    number = name.split("_")[0]
    assert list((output / "figures").glob(f"{number}-*.png")) and list((output / "tables").glob(f"{number}-*.csv"))


def test_smoke_is_small():
    """The batch above stays quick only while a smoke run is a matter of seconds."""
    smoke = PRESETS["smoke"]
    assert smoke.epochs * smoke.steps_per_epoch * smoke.batch <= 200 and smoke.size <= 64 and smoke.images <= 64
    assert smoke.train.startswith("cutouts/")
