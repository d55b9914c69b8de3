"""`make reproduce` on a fresh clone makes every table and figure of the repository again, from the records alone."""

import os
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY

#: What a clone holds of this; the rest of a working copy plays no part.
PARTS = ("data", "figures", "models", "notebooks", "results", "sodlib")


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository whose tables and figures were removed, then made again as `make reproduce` does."""
    root = tmp_path_factory.mktemp("clone")
    for part in PARTS:
        # What was not committed, such as unfinished runs and networks of other pages, must not be needed either.
        hidden = shutil.ignore_patterns("__pycache__", ".*", "*.failed.ipynb")
        shutil.copytree(REPOSITORY / part, root / part, ignore=hidden)
    shutil.rmtree(root / "figures")
    shutil.rmtree(root / "results" / "tables")
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "sodlib", "reproduce"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return root


def test_every_table_is_as_committed(clone):
    """Byte by byte, whatever the number of threads: a table holds six digits, of sums in float64."""
    ours, again = (
        {path.name: path.read_text() for path in (root / "results" / "tables").iterdir()}
        for root in (REPOSITORY, clone)
    )
    assert len(ours) > 40 and ours.keys() == again.keys()
    differing = {name: (text, again[name]) for name, text in ours.items() if text != again[name]}
    assert differing == {}


def test_every_figure_is_made_again(clone):
    ours, again = ({path.name for path in (root / "figures").iterdir()} for root in (REPOSITORY, clone))
    assert len(ours) > 40 and ours == again
