"""What a person sees of a training in a terminal, a pipe and a notebook, with real terminals and kernels."""

import io
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from conftest import REPOSITORY
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

from sodlib import progress
from sodlib.notebooks import run_notebooks

ENTRY = {
    "epoch": 1,
    "steps": 100,
    "loss": 0.43215,
    "learning_rate": 1e-3,
    "validation_loss": 0.5,
    "validation_max_f": 0.7,
    "validation_mae": 0.1,
    "images_per_second": 5123.4,
    "seconds": 2.0,
}
RECALIBRATED = {"validation_loss": 0.5, "validation_max_f": 0.8125, "validation_mae": 0.0625}
# A training of three epochs of two steps, for another process.
TRAINING = f"""
from sodlib.progress import observer
watch = observer(live=True)
watch.start("a-run", 6, 0)
for step in range(1, 7):
    watch.step(step)
    if step % 2 == 0:
        watch.epoch({ENTRY} | {{"epoch": step // 2, "steps": step, "validation_max_f": 0.7 + step / 100}})
watch.close()
"""


class Seconds:
    """A clock for `progress.monotonic`, set by hand."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Seconds()
    monkeypatch.setattr(progress, "monotonic", clock)
    return clock


def run_steps(watch, clock, steps, seconds_a_step):
    for step in steps:
        clock.now += seconds_a_step
        watch.step(step)


def test_lines(clock, capsys):
    """Time left leaves the first step, which compiles, out of account; there is none at the end."""
    watch = progress.Lines()
    watch.start("a-run", 300, 0)
    clock.now = 500.0
    run_steps(watch, clock, range(1, 101), 2.0)
    watch.epoch(ENTRY)
    run_steps(watch, clock, range(101, 201), 2.0)
    watch.epoch(ENTRY | {"epoch": 2, "steps": 200, "images_per_second": 12.4})
    run_steps(watch, clock, range(201, 301), 2.0)
    watch.epoch(ENTRY | {"epoch": 3, "steps": 300})
    watch.close()
    assert capsys.readouterr().out.splitlines() == [
        "a-run",
        "epoch 1/3  loss 0.4321  validation max F 0.7000  MAE 0.1000  5,123 images/s  6 min 40 s left",
        "epoch 2/3  loss 0.4321  validation max F 0.7000  MAE 0.1000  12 images/s  3 min 20 s left",
        "epoch 3/3  loss 0.4321  validation max F 0.7000  MAE 0.1000  5,123 images/s",
    ]


def test_lines_of_a_resumed_run(clock):
    """The steps of an earlier process say nothing about the speed of this one."""
    stream = io.StringIO()
    watch = progress.Lines(stream)
    watch.start("a-run", 30_000, 19_950)
    run_steps(watch, clock, range(19_951, 20_001), 0.5)
    watch.epoch(ENTRY | {"epoch": 200, "steps": 20_000})
    assert stream.getvalue().splitlines() == [
        "a-run: goes on after 19,950 of 30,000 steps",
        "epoch 200/300  loss 0.4321  validation max F 0.7000  MAE 0.1000  5,123 images/s  1 h 23 min left",
    ]


def test_lines_of_a_run_that_takes_over_within_the_schedule(clock):
    """Such a run counts its own steps, while its entries carry those of the whole schedule."""
    stream = io.StringIO()
    watch = progress.Lines(stream)
    watch.start("a-run", 250, 0)
    run_steps(watch, clock, range(1, 101), 0.0)
    watch.epoch(ENTRY | {"epoch": 3, "steps": 300})
    assert stream.getvalue().splitlines()[1].startswith("epoch 3/5  loss")


def test_lines_say_nothing_of_the_time_after_a_single_step(clock):
    stream = io.StringIO()
    watch = progress.Lines(stream)
    watch.start("a-run", 3, 0)
    watch.step(1)
    watch.epoch(ENTRY | {"steps": 1})
    assert stream.getvalue().endswith("epoch 1/3  loss 0.4321  validation max F 0.7000  MAE 0.1000  5,123 images/s\n")


def test_lines_after_recalibration_hold_what_there_is():
    stream = io.StringIO()
    watch = progress.Lines(stream)
    watch.start("a-run", 0, 0)
    watch.epoch(RECALIBRATED)
    assert stream.getvalue() == "a-run\nvalidation max F 0.8125  MAE 0.0625\n"


def test_lines_of_several_runs_name_theirs():
    stream = io.StringIO()
    for name in ("one", "two"):
        watch = progress.Lines(stream, named=True)
        watch.start(name, 0, 0)
        watch.epoch(RECALIBRATED)
    scores = "validation max F 0.8125  MAE 0.0625"
    assert stream.getvalue().splitlines() == [f"one: {scores}", f"two: {scores}"]


@pytest.mark.parametrize(
    "make", [progress.Silent, progress.Lines, progress.Bar, lambda: progress.LiveCurve(progress.Bar())]
)
def test_a_run_that_never_began_can_be_closed(make, capsys):
    make().close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.21, "4.2 s"), (42.4, "42 s"), (59.6, "1 min 0 s"), (192, "3 min 12 s"), (18_190, "5 h 3 min")],
)
def test_duration(seconds, text):
    assert progress.duration(seconds) == text


def test_pipe_gets_lines(capsys):
    exec(TRAINING, {})
    out, error = capsys.readouterr()
    assert [line.partition("  ")[0] for line in out.splitlines()] == ["a-run", "epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert error == ""


@pytest.fixture
def terminal(monkeypatch):
    """A function that calls another on a terminal of 80 columns and returns what it wrote there."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")

    def run(train):
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (24, 80))
        with ThreadPoolExecutor() as pool, monkeypatch.context() as patch:
            written = pool.submit(read_to_end, ours)
            with open(theirs, "w") as stream:
                patch.setattr(sys, "stdout", stream)
                patch.setattr(sys, "stderr", stream)
                train()
        os.close(ours)
        return written.result()

    return run


def read_to_end(terminal):
    written = b""
    try:
        while part := os.read(terminal, 4096):
            written += part
    except OSError:  # how Linux says that the other side is closed
        pass
    return written.decode()


def test_terminal_gets_a_bar_below_the_lines(terminal):
    screen = terminal(lambda: exec(TRAINING, {}))
    assert screen.count("\r\n") == 5  # the bar always rewrites the last line
    drawn = [line.rpartition("\r")[2].rstrip() for line in screen.split("\r\n")]
    line = "epoch {}/3  loss 0.4321  validation max F {:.4f}  MAE 0.1000  5,123 images/s"
    assert drawn[:4] == ["a-run", line.format(1, 0.72), line.format(2, 0.74), line.format(3, 0.76)]
    assert drawn[4].startswith("100%|") and "6/6 [" in drawn[4] and "loss 0.4321, max F 0.7600]" in drawn[4]
    assert all(len(line) <= 80 for line in drawn)


def test_bar_of_a_resumed_run_starts_where_it_went_on(terminal):
    bar = progress.Bar()

    def train():
        bar.start("a-run", 400, 300)
        bar.step(301)
        bar.step(400)
        bar.close()

    screen = terminal(train)
    assert screen.startswith("a-run: goes on after 300 of 400 steps\r\n")
    assert " 75%|" in screen and "300/400" in screen and "400/400" in screen


def test_bar_counts_time_left_from_the_end_of_the_first_step(terminal, clock, monkeypatch):
    monkeypatch.setattr("tqdm.std.time", clock)
    bar = progress.Bar()

    def train():
        bar.start("a-run", 13, 2)
        clock.now = 500.0
        bar.step(3)
        clock.now += 10.0
        bar.step(8)
        bar.close()

    assert "8/13 [00:10<00:10,  2.00s/step]" in terminal(train)


def test_bar_after_recalibration_shows_what_there_is(terminal):
    bar = progress.Bar()

    def recalibrate():
        bar.start("a-run", 0, 0)
        bar.epoch(RECALIBRATED)
        bar.close()

    screen = terminal(recalibrate)
    assert "validation max F 0.8125  MAE 0.0625\r\n" in screen and "max F 0.8125]" in screen


class OwnKernel(KernelManager):
    """The kernel of this Python."""

    @property
    def kernel_spec(self):
        return KernelSpec(**get_kernel_dict())


@pytest.fixture(scope="module")
def python_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def kernel(python_path):
    manager = OwnKernel()
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def cell_output(kernel, code, interactive):
    """The output messages of a cell, sent as JupyterLab does, or as one that executes notebooks headless."""
    messages = []
    reply = kernel.execute_interactive(code, allow_stdin=interactive, output_hook=messages.append, timeout=60)
    assert reply["content"]["status"] == "ok", reply["content"]
    shown = ("stream", "display_data", "update_display_data")
    return [(m["msg_type"], m["content"]) for m in messages if m["msg_type"] in shown]


def test_live_frontend_sees_one_figure_updated_below_one_bar(kernel):
    style_kept = "from matplotlib import rcParams\nbefore = rcParams.copy()\n{}\nassert rcParams == before"
    shown = cell_output(kernel, style_kept.format(TRAINING), interactive=True)
    widgets = [c for kind, c in shown if "application/vnd.jupyter.widget-view+json" in c.get("data", {})]
    figures = [(kind, content) for kind, content in shown if "image/png" in content.get("data", {})]
    assert len(widgets) == 1
    assert [kind for kind, _ in figures] == ["display_data", "update_display_data"]  # short epochs are drawn together
    assert len({content["transient"]["display_id"] for _, content in figures}) == 1
    assert len({content["data"]["image/png"] for _, content in figures}) == 2
    assert not [content for kind, content in shown if kind == "stream"]


def test_live_frontend_sees_every_epoch_where_drawing_takes_no_time(kernel):
    patched = f"from unittest.mock import patch\nwith patch('sodlib.progress.monotonic', float): exec({TRAINING!r})"
    shown = cell_output(kernel, patched, interactive=True)
    figures = [(kind, content) for kind, content in shown if "image/png" in content.get("data", {})]
    assert [kind for kind, _ in figures] == ["display_data", "update_display_data", "update_display_data"]
    assert len({content["data"]["image/png"] for _, content in figures}) == 3


def test_no_curve_where_no_epoch_was(kernel):
    """Recalibration has no epochs."""
    code = f"""
from sodlib.progress import observer
watch = observer(live=True)
watch.start("a-run", 0, 0)
watch.epoch({RECALIBRATED})
watch.close()
"""
    shown = cell_output(kernel, code, interactive=False)
    assert {kind for kind, _ in shown} == {"stream"}
    assert "".join(content["text"] for _, content in shown) == "a-run\nvalidation max F 0.8125  MAE 0.0625\n"


def test_headless_frontend_is_sent_one_figure_and_no_widget(kernel):
    shown = cell_output(kernel, TRAINING, interactive=False)
    kinds = [kind for kind, _ in shown if kind != "stream"]
    assert kinds == ["display_data"] and "image/png" in shown[-1][1]["data"]


def test_headless_notebook_holds_lines_and_one_figure(tmp_path, python_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(TRAINING)])
    nbformat.write(notebook, tmp_path / "live.ipynb")
    outcome = run_notebooks([tmp_path / "live.ipynb"], tmp_path / "executed", echo=lambda _: None)[0]
    assert outcome.ok, outcome.message
    lines, figure = nbformat.read(outcome.written, as_version=4).cells[0].outputs
    assert lines.name == "stdout" and len(lines.text.splitlines()) == 4
    assert "image/png" in figure.data
