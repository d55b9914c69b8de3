"""What the repository promises about itself."""

import json
import re
import tomllib

import pytest
from conftest import REPOSITORY

NOTEBOOKS = sorted(path for path in (REPOSITORY / "notebooks").glob("*.ipynb") if ".failed." not in path.name)


def test_conda_and_pip_name_the_same_dependencies():
    pip = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    conda = re.findall(r"^ +- ([\w-]+(?:>=[\w.]+))$", (REPOSITORY / "environment.yml").read_text(), re.MULTILINE)
    renamed = {
        requirement.replace("pytorch>", "torch>") for requirement in conda if not requirement.startswith("python>")
    }
    assert renamed == set(pip)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_executed_and_small(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert path.stat().st_size < 3_000_000
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in code) == 1
    assert any(cell["outputs"] for cell in code)
    for cell in code:
        for output in cell["outputs"]:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr", cell["source"]
    # An address in memory or a folder of one machine would change from run to run.
    text = path.read_text()
    assert not re.search(r" at 0x[0-9a-f]{6,}", text)
    assert not re.search(r"/(home|root|Users|work)/", text)


def test_no_module_is_long():
    for path in (REPOSITORY / "sodlib").glob("*.py"):
        assert len(path.read_text().splitlines()) <= 350, path
