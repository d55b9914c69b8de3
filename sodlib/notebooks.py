"""Execute notebooks headless with papermill, and tell the truth about how that went.

Papermill alone takes a mistyped parameter with a warning, has no time limit for a cell, loses output where a
cell prints much, starts whichever `python3` kernel is installed for the user, and writes times and paths into
the file. `run_notebooks` closes these gaps.
"""

import ast
import contextlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from textwrap import shorten

import nbformat
import papermill
import zmq.asyncio
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm import tqdm
from traitlets import default

from sodlib.errors import SodlibError
from sodlib.files import written_whole
from sodlib.progress import duration

# How long the output of a cell may still arrive once the cell has ended, in seconds.
_OUTPUT_TIMEOUT = 300

_WIDGET = "application/vnd.jupyter.widget-view+json"

FAILED_SUFFIX = ".failed.ipynb"
say: Callable[[str], None] = partial(print, flush=True)


@dataclass(frozen=True)
class Outcome:
    """How one notebook went.

    `message` is empty where `ok`, else it names notebook, cell and error. `written` is the executed notebook,
    or the state in which it failed; None where it could not be read.
    """

    notebook: Path
    ok: bool
    message: str
    seconds: float
    written: Path | None


def run_notebooks(
    notebooks: Sequence[Path],
    output: Path,
    parameters: Mapping[str, object] | None = None,
    *,
    cell_timeout: int = 3600,
    echo: Callable[[str], None] = say,
) -> list[Outcome]:
    """Execute notebooks in turn, each in its own folder and with this Python, and write them to `output`.

    A notebook that succeeds becomes `output/<name>.ipynb`, free of what changes from run to run. One that
    fails leaves an earlier `output/<name>.ipynb` as it is, becomes `output/<name>.failed.ipynb`, and does not
    stop the others. Without `parameters` no cell is injected. No cell may take longer than `cell_timeout`
    seconds.

    Raises SodlibError before anything runs where a notebook does not declare one of the parameters in its
    cell tagged `parameters`, or declares it with another type.
    """
    if cell_timeout < 1:
        raise SodlibError(f"A cell cannot run for {cell_timeout} s: give a time limit of 1 s or more.")
    given = dict(parameters or {})
    sources = [_read(notebook) for notebook in notebooks]
    for notebook, source in zip(notebooks, sources, strict=True):
        if given and isinstance(source, NotebookNode):
            _check_parameters(notebook.name, source, given)
    output.mkdir(parents=True, exist_ok=True)

    outcomes = []
    for number, (notebook, source) in enumerate(zip(notebooks, sources, strict=True), start=1):
        echo(f"[{number}/{len(notebooks)}] {notebook.name}")
        start = time.monotonic()
        if isinstance(source, str):
            message, written, cells = source, None, 0
        else:
            run = _Run(notebook, source)
            message = run.execute(given, cell_timeout)
            written, cells = _write(run.notebook, notebook, output, failed=bool(message)), run.finished
        seconds = time.monotonic() - start
        outcomes.append(Outcome(notebook, not message, message, seconds, written))
        verdict = f"FAILED: {message}" if message else f"done, {cells} code cells"
        echo(f"      {verdict} ({duration(seconds)})")
    return outcomes


class _OwnKernel(AsyncKernelManager):
    """The kernel of the running interpreter, whatever `python3` kernel is installed for the user."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]))

    @default("context")
    def _context_default(self) -> zmq.asyncio.Context:
        # With ZeroMQ's default of 1,000 waiting messages, a cell that prints much loses part of its output.
        self._created_context = True
        context = zmq.asyncio.Context()
        context.rcvhwm = 0
        return context


@dataclass
class _Run:
    """One execution: the cell that it has reached, and the notebook so far, also where it fails."""

    path: Path
    notebook: NotebookNode
    number: int = 0  # of the current code cell, as in In [number]
    source: str = ""  # of the current code cell
    finished: int = 0  # code cells
    bar: tqdm = field(default_factory=lambda: tqdm(disable=True))

    def execute(self, parameters: Mapping[str, object], cell_timeout: int) -> str:
        """Run all cells; returns the empty string, or what failed and where."""
        try:
            with _quiet_papermill():
                papermill.execute_notebook(
                    self.notebook,
                    None,
                    parameters=dict(parameters),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    cwd=self.path.parent,
                    execution_timeout=cell_timeout,
                    iopub_timeout=_OUTPUT_TIMEOUT,
                    coalesce_streams=True,
                    kernel_manager_class=_OwnKernel,
                    on_notebook_start=self._begin,
                    on_cell_execute=self._cell_starts,
                    on_cell_executed=self._cell_ends,
                )
        except PapermillExecutionError as error:
            self.number, self.source = error.exec_count, error.source
            return self._failure(_last_line(error.ename, error.evalue))
        except DeadKernelError:
            return self._failure("the kernel died: it was killed, ran out of memory or crashed")
        except TimeoutError as error:
            if "IOPub" in str(error):
                return self._failure(f"its output took more than {_OUTPUT_TIMEOUT} s to arrive: print less")
            return self._failure(f"it ran longer than its time limit of {cell_timeout} s")
        except Exception as error:  # whatever befalls one notebook must not stop the others
            return self._failure(_last_line(type(error).__name__, str(error)))
        finally:
            self.bar.close()
        if self.finished < len(_code_cells(self.notebook)):
            return self._failure("it ended the notebook before its last cell")
        return ""

    def _begin(self, notebook: NotebookNode) -> None:
        self.notebook = notebook
        # A bar only where somebody watches; it is gone when the notebook is done.
        total = len(_code_cells(notebook))
        self.bar = tqdm(total=total, desc=self.path.stem, unit="cell", leave=False, disable=None)

    def _cell_starts(self, cell: NotebookNode, cell_index: int) -> None:
        self.number, self.source = self.number + 1, cell.source

    def _cell_ends(self, cell: NotebookNode, cell_index: int, execute_reply: object) -> None:
        self.finished += 1
        self.bar.update()

    def _failure(self, reason: str) -> str:
        if not self.number:
            return f"{self.path.name}, before its first cell: {reason}"
        first_line = shorten(self.source.strip().splitlines()[0], 70, placeholder="...")
        return f"{self.path.name}, cell [{self.number}] `{first_line}`: {reason}"


def _read(path: Path) -> NotebookNode | str:
    """The notebook at `path`, or why it cannot be read."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["nbformat"] != 4:
            return f"{path.name} has notebook format {raw['nbformat']}, not 4: open and save it in JupyterLab"
        # Cells without an id would get a random one in every run.
        for index, cell in enumerate(raw["cells"]):
            cell.setdefault("id", f"cell-{index}")
        raw["nbformat_minor"] = max(5, raw["nbformat_minor"])
        notebook = nbformat.reads(json.dumps(raw), as_version=4)
        nbformat.validate(notebook)
    except FileNotFoundError:
        return f"{path} does not exist"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, nbformat.ValidationError):
        return f"{path} is not a readable notebook: open it in JupyterLab, or restore it"
    # Parameters that an earlier papermill run left behind would win over the defaults.
    notebook.cells = [cell for cell in notebook.cells if not _tagged(cell, "injected-parameters")]
    return notebook


def _check_parameters(name: str, notebook: NotebookNode, parameters: Mapping[str, object]) -> None:
    declared = _declared(name, notebook)
    for parameter, value in parameters.items():
        if parameter not in declared:
            raise SodlibError(f"{name} has no parameter {nearest(parameter, list(declared))}.")
        given, types = type(value).__name__, declared[parameter]
        if given not in types and not (given == "int" and "float" in types):
            wanted = " or ".join(sorted(types))
            raise SodlibError(f"{name}: the parameter {parameter} takes {wanted}, not {given} ({value!r}).")


def _declared(name: str, notebook: NotebookNode) -> dict[str, set[str]]:
    """Parameter -> names of the types it takes, from the cell tagged `parameters`.

    Not by `papermill.inspect_notebook`: it overlooks a line with a second "=", even one in the comment.
    """
    cell = next((cell for cell in notebook.cells if _tagged(cell, "parameters")), None)
    if cell is None:
        raise SodlibError(f"{name} takes no parameters: it has no cell tagged `parameters`.")
    declared = {}
    try:
        for statement in ast.parse(cell.source).body:
            match statement:
                case ast.AnnAssign(target=ast.Name(id=parameter), annotation=annotation):
                    declared[parameter] = _annotated_types(annotation)
                case ast.Assign(targets=[ast.Name(id=parameter)], value=value):
                    declared[parameter] = {type(ast.literal_eval(value)).__name__}
    except (SyntaxError, ValueError) as error:
        raise SodlibError(f"{name}: its parameters cell must assign literals only: {error}.") from None
    return declared


def _annotated_types(annotation: ast.expr) -> set[str]:
    match annotation:
        case ast.BinOp(left=left, right=right):
            return _annotated_types(left) | _annotated_types(right)
        case ast.Subscript(value=value):
            return _annotated_types(value)
        case ast.Constant(value=None):
            return {"NoneType"}
    return {ast.unparse(annotation)}


def _write(notebook: NotebookNode, source: Path, output: Path, failed: bool) -> Path:
    """Write beside, then rename, unless nothing would change. A success removes the file of a failure."""
    failure = output / f"{source.stem}{FAILED_SUFFIX}"
    path = failure if failed else output / source.name
    content = (nbformat.writes(_without_traces(notebook)).rstrip("\n") + "\n").encode()
    if not path.exists() or path.read_bytes() != content:
        with written_whole(path) as beside:
            beside.write_bytes(content)
    if not failed:
        failure.unlink(missing_ok=True)
    return path


def _without_traces(notebook: NotebookNode) -> NotebookNode:
    """Take out what depends on machine, moment or run: times, paths, random names, dead widgets."""
    python = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    notebook.metadata = NotebookNode(kernelspec=python, language_info={"name": "python"})
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags"):
            cell.metadata.pop("tags", None)
        if _tagged(cell, "injected-parameters"):
            cell.id = "injected-parameters"
            cell.source = cell.source.removeprefix("# Parameters\n").rstrip()
        outputs = cell.get("outputs", [])
        for output in outputs:
            if output.output_type == "stream":
                output.text = re.sub(r"\S*ipykernel_\d+\S\d+\.py", "notebook cell", output.text)
        if outputs:
            cell.outputs = [output for output in outputs if _WIDGET not in output.get("data", {})]
    return notebook


def _code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    """The cells that are executed."""
    code = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    return [cell for cell in code if not _tagged(cell, "skip-execution")]


def _tagged(cell: NotebookNode, tag: str) -> bool:
    return tag in cell.metadata.get("tags", [])


@contextlib.contextmanager
def _quiet_papermill() -> Iterator[None]:
    """Papermill logs each error that it also raises, and warns of parameters that it cannot parse."""
    logger = logging.getLogger("papermill")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _last_line(kind: str, text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{kind}: {lines[-1]}" if lines else kind


def nearest(name: str, known: Sequence[str]) -> str:
    """The unknown name, the known one that it may mean, and all of them, for the end of a sentence."""
    matches = get_close_matches(name, known, n=1)
    guess = f", did you mean {matches[0]!r}" if matches else ""
    return f"{name!r}{guess} (there is {', '.join(known) or 'none'})"
