"""The notebook runner: what succeeds, what fails, what is written, and what never changes."""

import json
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import sodlib
from sodlib.errors import SodlibError
from sodlib.notebooks import Outcome, run_notebooks
from sodlib.reproduce import reproduce

# With an "=" in a comment: papermill's own inspection overlooks such a line.
PARAMETERS = """preset: str = ""     # "" = the committed records; or smoke
data: str = ""
output: str = ""
fresh: bool = False
rate: float = 0.5
steps = 3
seeds: list[int] | None = None"""

NOISY = """import sys, warnings
print("first")
warnings.warn("careful")
for i in range(20_000):
    print(i, flush=i % 20 == 0)
print("last")
sys.executable"""

WIDGET = """from IPython.display import display
import ipywidgets
display(ipywidgets.IntProgress())"""


def save(path: Path, *cells, parameters: str | None = PARAMETERS) -> Path:
    """Write a notebook: a heading, the parameters cell, then code cells."""
    nodes = [new_markdown_cell("# A page")]
    if parameters is not None:
        nodes.append(new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nodes += [cell if isinstance(cell, nbformat.NotebookNode) else new_code_cell(cell) for cell in cells]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=nodes), path)
    return path


def run(notebook: Path, output: Path, **options) -> Outcome:
    (outcome,) = run_notebooks([notebook], output, echo=lambda line: None, **options)
    return outcome


def printed(path: Path) -> str:
    """All that the cells of a notebook printed or returned."""
    outputs = [output for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one page that draws a figure and says which data root it sees."""
    monkeypatch.setattr(sodlib, "__file__", str(tmp_path / "sodlib" / "__init__.py"))
    monkeypatch.setattr("sodlib.reproduce.best_preset", lambda runs: "lite")
    page = """import os
from pathlib import Path
root = Path(output or "..")
tables = root / "tables" if output else root / "results" / "tables"
for folder in (root / "figures", tables):
    folder.mkdir(parents=True, exist_ok=True)
(root / "figures" / "curve.svg").write_text("<svg/>")
(tables / "1.csv").write_text("a,b")
print(preset, Path(data).name, fresh, Path(os.environ.get("SODLIB_DATA", "unset")).name)
list(set("abcdefgh"))"""
    save(tmp_path / "notebooks" / "01_page.ipynb", page)
    return tmp_path


def test_second_run_in_place_changes_nothing(tmp_path, monkeypatch):
    """No trace of time, machine or chance; all of the output; the kernel of this very Python."""
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    elsewhere = {"argv": ["false"], "display_name": "another Python", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(elsewhere))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    page = save(tmp_path / "page.ipynb", NOISY, WIDGET)
    stored = json.loads(page.read_text())
    for cell in stored["cells"]:
        del cell["id"]
    injected = {"source": "steps = 99", "metadata": {"tags": ["injected-parameters"]}}
    stored["cells"].insert(2, stored["cells"][1] | injected)
    stored["metadata"]["papermill"] = {"input_path": "/home/somebody/page.ipynb"}
    page.write_text(json.dumps(stored))

    first = run(page, tmp_path)
    assert first == Outcome(page, True, "", first.seconds, page)
    once = page.read_bytes()
    assert run(page, tmp_path).ok
    assert page.read_bytes() == once
    assert [path.name for path in tmp_path.glob("*.ipynb")] == ["page.ipynb"]

    executed = nbformat.read(page, 4)
    assert [cell.id for cell in executed.cells] == ["cell-0", "cell-1", "cell-3", "cell-4"]
    assert [cell.metadata for cell in executed.cells] == [{}, {"tags": ["parameters"]}, {}, {}]
    assert set(executed.metadata) == {"kernelspec", "language_info"}
    lines = printed(page).splitlines()
    assert [line for line in lines if line.isdigit()] == [str(i) for i in range(20_000)]
    assert "last" in lines and any(line.endswith("UserWarning: careful") for line in lines)
    assert sys.executable in printed(page)
    # But for the interpreter, which the page prints, and which may lie there.
    written = page.read_text().replace(sys.executable, "")
    assert "/tmp" not in written and "widget-view" not in written


def test_parameters_reach_the_notebook(tmp_path):
    page = save(tmp_path / "page.ipynb", "print(preset, rate, steps, fresh, seeds)")
    source = page.read_bytes()
    given = {"preset": 'a "quoted" {name}\\', "rate": 1, "steps": 7, "fresh": True, "seeds": None}
    assert run(page, tmp_path / "out{put}", parameters=given).ok
    executed = tmp_path / "out{put}" / "page.ipynb"
    assert printed(executed) == 'a "quoted" {name}\\ 1 7 True None\n'
    injected = nbformat.read(executed, 4).cells[2]
    assert injected.id == "injected-parameters" and injected.source.startswith("preset = ")
    assert page.read_bytes() == source


@pytest.mark.parametrize(
    ("parameters", "complaint"),
    [
        ({"prest": "smoke"}, "page.ipynb has no parameter 'prest', did you mean 'preset'"),
        ({"fresh": "yes"}, r"page.ipynb: the parameter fresh takes bool, not str \('yes'\)"),
        ({"steps": True}, "the parameter steps takes int, not bool"),
        ({"rate": "0.1"}, "the parameter rate takes float, not str"),
        ({"seeds": 0}, "the parameter seeds takes NoneType or list, not int"),
    ],
)
def test_wrong_parameters_stop_everything_before_it_starts(tmp_path, parameters, complaint):
    page = save(tmp_path / "page.ipynb")
    with pytest.raises(SodlibError, match=complaint):
        run_notebooks([tmp_path / "missing.ipynb", page], tmp_path / "out", parameters)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        (None, "page.ipynb takes no parameters: it has no cell tagged `parameters`"),
        ("preset = input()", "page.ipynb: its parameters cell must assign literals only"),
        ("preset = (", "page.ipynb: its parameters cell must assign literals only"),
    ],
)
def test_parameters_need_a_cell_that_declares_them(tmp_path, cell, complaint):
    page = save(tmp_path / "page.ipynb", parameters=cell)
    with pytest.raises(SodlibError, match=complaint):
        run_notebooks([page], tmp_path / "out", {"preset": "smoke"})


def test_every_failure_is_told_and_stops_no_other_notebook(tmp_path):
    # Tagged so, a cell lets the next ones run; the failure is its own all the same.
    error = "# prune\nraise ValueError('first\\nno such layer')"
    passed_over = new_code_cell(error, metadata={"tags": ["raises-exception"]})
    notebooks = [
        save(tmp_path / "error.ipynb", "1", passed_over, "print('after')"),
        save(tmp_path / "killed.ipynb", "import os", "os.kill(os.getpid(), 9)"),
        save(tmp_path / "slow.ipynb", "import time\ntime.sleep(60)"),
        save(tmp_path / "leaves.ipynb", "raise SystemExit", "print('never')"),
        tmp_path / "missing.ipynb",
        tmp_path / "torn.ipynb",
        tmp_path / "odd.ipynb",
        save(tmp_path / "good.ipynb", "print('done')"),
    ]
    (tmp_path / "torn.ipynb").write_text('{"cells": [')
    (tmp_path / "odd.ipynb").write_text('{"cells": [{}], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    said = []
    output = tmp_path / "out"
    outcomes = run_notebooks(notebooks, output, cell_timeout=1, echo=said.append)

    messages = [outcome.message for outcome in outcomes]
    assert messages == [
        "error.ipynb, cell [3] `# prune`: ValueError: no such layer",
        "killed.ipynb, cell [3] `os.kill(os.getpid(), 9)`: "
        "the kernel died: it was killed, ran out of memory or crashed",
        "slow.ipynb, cell [2] `import time`: it ran longer than its time limit of 1 s",
        "leaves.ipynb, cell [2] `raise SystemExit`: it ended the notebook before its last cell",
        f"{tmp_path / 'missing.ipynb'} does not exist",
        f"{tmp_path / 'torn.ipynb'} is not a readable notebook: open it in JupyterLab, or restore it",
        f"{tmp_path / 'odd.ipynb'} is not a readable notebook: open it in JupyterLab, or restore it",
        "",
    ]
    assert [outcome.ok for outcome in outcomes] == [False] * 7 + [True]
    assert [outcome.notebook for outcome in outcomes] == notebooks
    names = [f"{stem}.failed.ipynb" for stem in ("error", "killed", "slow", "leaves")]
    written = [*(output / name for name in names), None, None, None, output / "good.ipynb"]
    assert [outcome.written for outcome in outcomes] == written
    assert sorted(output.iterdir()) == sorted(path for path in written if path)
    assert said[0] == "[1/8] error.ipynb" and messages[0] in said[1] and len(said) == 16
    assert "no such layer" in (output / "error.failed.ipynb").read_text()


def test_failure_keeps_the_good_page_and_success_clears_the_failure(tmp_path):
    page = save(tmp_path / "page.ipynb", "assert not fresh")
    output = tmp_path / "out"
    output.mkdir()
    (output / "page.ipynb").write_text("good")
    outcome = run(page, output, parameters={"fresh": True})
    assert outcome.message == "page.ipynb, cell [3] `assert not fresh`: AssertionError"
    assert outcome.written == output / "page.failed.ipynb"
    assert (output / "page.ipynb").read_text() == "good"
    assert run(page, output).ok
    assert [path.name for path in output.iterdir()] == ["page.ipynb"]
    assert (output / "page.ipynb").read_text() != "good"


def test_time_limit_must_be_positive(tmp_path):
    with pytest.raises(SodlibError, match="cannot run for 0 s"):
        run_notebooks([], tmp_path, cell_timeout=0)


def test_reproduce_in_place_refreshes_the_committed_pages(checkout, monkeypatch):
    monkeypatch.setenv("SODLIB_DATA", str(checkout / "sets"))
    said = []
    assert reproduce(echo=said.append) == 0
    assert printed(checkout / "notebooks" / "01_page.ipynb").splitlines()[0] == "  False unset"
    assert not (checkout / "build").exists()
    assert said[0].startswith("SODLIB_DATA is not used")
    assert said[-3:] == [
        "  notebooks/: 1 file, 1 changed (01_page.ipynb)",
        "  figures/: 1 file, 1 new (curve.svg)",
        "  results/tables/: 1 file, 1 new (1.csv)",
    ]
    said.clear()
    assert reproduce(echo=said.append) == 0
    folders = ["notebooks", "figures", "results/tables"]
    assert said[-3:] == [f"  {folder}/: 1 file, 1 unchanged" for folder in folders]


def test_without_records_nothing_committed_is_touched(checkout, monkeypatch):
    monkeypatch.delenv("SODLIB_DATA", raising=False)
    monkeypatch.setattr("sodlib.reproduce.best_preset", lambda runs: None)
    source = (checkout / "notebooks" / "01_page.ipynb").read_bytes()
    said = []
    assert reproduce(echo=said.append) == 0
    assert said[0].startswith("Of some tables or figures nothing is recorded")
    assert (checkout / "build" / "evidence" / "notebooks" / "01_page.ipynb").exists()
    assert (checkout / "notebooks" / "01_page.ipynb").read_bytes() == source


@pytest.mark.parametrize(
    ("choice", "folder", "seen"),
    [
        ({"fresh": True}, "smoke", "smoke  True unset"),
        ({"data": "sets"}, "evidence", " sets False unset"),
        ({"preset": "lite", "SODLIB_DATA": "sets"}, "lite", "lite sets False sets"),
    ],
)
def test_reproduce_elsewhere_leaves_the_repository_alone(checkout, monkeypatch, choice, folder, seen):
    monkeypatch.delenv("SODLIB_DATA", raising=False)
    monkeypatch.chdir(checkout)
    Path("sets").mkdir()
    if "SODLIB_DATA" in choice:
        monkeypatch.setenv("SODLIB_DATA", str(choice.pop("SODLIB_DATA")))
    source = (checkout / "notebooks" / "01_page.ipynb").read_bytes()
    said = []
    assert reproduce(**choice, only=["01"], echo=said.append) == 0
    build = checkout / "build" / folder
    assert printed(build / "notebooks" / "01_page.ipynb").splitlines()[0] == seen
    assert (build / "figures" / "curve.svg").exists() and (build / "tables" / "1.csv").exists()
    assert (checkout / "notebooks" / "01_page.ipynb").read_bytes() == source
    assert not (checkout / "figures").exists()
    assert f"  build/{folder}/figures/: 1 file, 1 new (curve.svg)" in said


def test_reproduce_fails_with_its_notebooks(checkout):
    save(checkout / "notebooks" / "02_broken.ipynb", "1 / 0")
    said = []
    assert reproduce(only=["02_broken.ipynb"], echo=said.append) == 1
    assert said[-2:] == [
        "Failed, 1 of 1 notebook:",
        "  02_broken.ipynb, cell [2] `1 / 0`: ZeroDivisionError: division by zero",
    ]
    # What a failure leaves behind is no notebook of the project.
    with pytest.raises(SodlibError, match=r"no notebook '02_broken\.failed'"):
        reproduce(only=["02_broken.failed.ipynb"])


@pytest.mark.parametrize(
    ("choice", "complaint"),
    [
        ({"preset": "smok"}, "no preset 'smok', did you mean 'smoke'"),
        ({"preset": "../.."}, "no preset '../..'"),
        ({"only": ["01_pages"]}, "no notebook '01_pages', did you mean '01_page'"),
        ({"data": Path("nowhere")}, "no folder nowhere"),
    ],
)
def test_reproduce_refuses_what_is_not_there(checkout, choice, complaint):
    with pytest.raises(SodlibError, match=complaint):
        reproduce(**choice)
    assert not (checkout / "build").exists()


def test_reproduce_needs_a_checkout(tmp_path, monkeypatch):
    monkeypatch.setattr(sodlib, "__file__", str(tmp_path / "site-packages" / "sodlib" / "__init__.py"))
    with pytest.raises(SodlibError, match="run from a checkout"):
        reproduce()
    (tmp_path / "site-packages" / "notebooks").mkdir(parents=True)
    with pytest.raises(SodlibError, match="no notebook in"):
        reproduce()
