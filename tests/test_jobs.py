"""The queue of runs: its order, what it does with failures and with its minutes, and real processes that are killed."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

import sodlib
from sodlib import data, integrity, jobs, networks, records, runs, study
from sodlib.description import Classification, Pruning, Run
from sodlib.jobs import PAUSED, work
from sodlib.presets import PRESETS, Preset
from sodlib.study import STUDY, Declared, by_item, choose
from sodlib.unfinished import Checkpoint

PRUNING = Pruning(parameters=100_000)


def record(place, run, preset="smoke", weights=True):
    folder = records.write(place, run.key(preset), {"hardware": "none", "scores": {}}, {}).folder
    if weights:
        (folder / "weights.safetensors").touch()


class Instant:
    """Workers that end at once: with a record, or as `codes` says."""

    def __init__(self, place, count=1, codes=None):
        self.place, self.count, self.codes = place, count, codes or {}
        self.started, self.running, self.most = [], [], 0

    def free(self):
        return len(self.running) < self.count

    def start(self, run, seconds):
        self.started.append(run)
        self.running.append(run)
        self.most = max(self.most, len(self.running))

    def wait(self):
        run = self.running.pop(0)
        code = self.codes.get(run, 0)
        if code == 0:
            record(self.place, run)
        return [(run, code)]

    def stop(self):
        pass


def declared(*entries):
    return [Declared(run, feeds if isinstance(feeds, tuple) else (feeds,)) for run, feeds in entries]


def test_what_most_tables_wait_for_comes_first(tmp_path):
    rare, common, wide = Run(split="3/1"), Run(), Run(width=2)
    pruned = replace(common, pruning=PRUNING)
    entries = declared(
        (replace(common, seed=1), "Table 6"), (wide, "Table 6"), (rare, "Table 6"), (pruned, ("Table 9", "Table 10")),
    )  # fmt: skip
    expected = [common, pruned, rare, wide, replace(common, seed=1)]
    assert jobs.pending(entries, "smoke", tmp_path) == expected
    record(tmp_path, common)
    assert jobs.pending(entries, "smoke", tmp_path) == [pruned, rare, wide, replace(common, seed=1)]
    (tmp_path / common.key("smoke") / "weights.safetensors").unlink()
    assert jobs.pending(entries, "smoke", tmp_path) == expected, "the pruned run needs the network"
    record(tmp_path, pruned)
    assert common not in jobs.pending(entries, "smoke", tmp_path)


def test_a_chain_is_made_from_its_first_lost_network(tmp_path):
    """A look needs the classifier's network and that the saliency network's: records without either do not count."""
    classifier = study.TRANSFERS["all"]
    look = replace(classifier, activation_map="cam")
    for run in classifier.chain:
        record(tmp_path, run, weights=False)
    workers = Instant(tmp_path)
    outcome = work(declared((look, "Figure 9")), "smoke", tmp_path, workers, say=lambda _: None)
    assert workers.started == [study.ALL_STAGES, classifier, look] == list(look.chain) and not outcome.left
    assert jobs.pending(declared((look, "Figure 9")), "smoke", tmp_path) == []


def test_the_queue_makes_each_run_once(tmp_path):
    entries = declared((Run(), "Table 6"), (replace(Run(), pruning=PRUNING), "Table 9"), (Run(width=2), "Table 6"))
    workers = Instant(tmp_path, count=2)
    outcome = work(entries, "smoke", tmp_path, workers, say=lambda _: None)
    assert workers.started == [Run(), Run(width=2), Run(pruning=PRUNING)] and workers.most == 2
    assert set(outcome.recorded) == set(workers.started) and not outcome.failed
    again = Instant(tmp_path)
    work(entries, "smoke", tmp_path, again, say=lambda _: None)
    assert again.started == []


def test_a_failure_keeps_only_its_own_prunings_from_being_made(tmp_path):
    wide = Run(width=2)
    entries = declared((Run(pruning=PRUNING), "Table 9"), (wide, "Table 6"), (Run(split="3/1"), "Table 6"))
    workers = Instant(tmp_path, codes={Run(): -9, wide: 2})
    outcome = work(entries, "smoke", tmp_path, workers, say=lambda _: None)
    assert outcome.recorded == [Run(split="3/1")]
    assert outcome.failed == {
        Run(): "its process was ended by signal 9; perhaps memory ran out, run fewer --jobs at once",
        Run(pruning=PRUNING): "its training failed",
        wide: "see its message above",
    }


def test_the_minutes_end_the_queue(tmp_path):
    entries = declared((Run(pruning=PRUNING), "Table 9"), (Run(width=2), "Table 6"))
    outcome = work(entries, "smoke", tmp_path, Instant(tmp_path), minutes=0.1, say=lambda _: None)
    assert not outcome.recorded and len(outcome.left) == 3
    workers = Instant(tmp_path, codes={Run(): PAUSED})
    outcome = work(entries, "smoke", tmp_path, workers, minutes=5, say=lambda _: None)
    assert outcome.paused == [Run()] and outcome.left == [Run(pruning=PRUNING)] and outcome.recorded == [Run(width=2)]


def test_what_another_process_makes_is_left_to_it(tmp_path):
    said = []
    with runs.claim(tmp_path, Run().key("smoke")):
        outcome = work(declared((Run(), "Table 6")), "smoke", tmp_path, Instant(tmp_path), say=said.append)
    assert outcome.left == [Run()] and "another process" in said[0]


def test_estimates_come_from_this_hardware(tmp_path):
    described = {"hardware": "here", "seconds": 90.0, "evaluation_seconds": 10.0, "scores": {}}
    data = {**described, "run": Run().description("lite")["run"], "preset": {"name": "lite"}}
    records.write(tmp_path, "one", data, {})
    records.write(tmp_path, "other", {**data, "hardware": "there", "seconds": 1e6}, {})
    known = jobs.rates(records.every(tmp_path), "here")
    lite, fast = PRESETS["lite"], PRESETS["fast"]
    assert jobs.estimate(Run(seed=5), lite, known) == pytest.approx(100)
    assert 100 < jobs.estimate(Run(width=2), lite, known) < 500
    longer = fast.epochs / lite.epochs * (fast.size / lite.size) ** 2
    assert jobs.estimate(Run(), fast, known) == pytest.approx(100 * longer, rel=0.02)
    assert math.isnan(jobs.estimate(Run(pruning=PRUNING), lite, known))
    assert math.isnan(jobs.estimate(Run(), lite, jobs.rates([], "here")))


def test_without_the_packages_of_other_networks_the_queue_has_no_estimate_of_them(tmp_path, monkeypatch):
    packages = {"timm", "pytorchcv"}
    for name in packages | {loaded for loaded in sys.modules if loaded.partition(".")[0] in packages}:
        monkeypatch.setitem(sys.modules, name, None)
    for name in ("backbones", "baselines"):
        monkeypatch.delitem(sys.modules, f"sodlib.{name}", raising=False)
        monkeypatch.delattr(f"sodlib.{name}", raising=False)
    jobs._macs.cache_clear()
    enet = Run(network="enet", decay="standard")
    assert math.isnan(jobs.estimate(enet, PRESETS["smoke"], {(False, "smoke"): 1.0}))
    assert jobs.pending([Declared(enet, ("Table 7",)), Declared(Run(), ("Table 7",))], "smoke", tmp_path)[-1] == enet
    with pytest.raises(sodlib.SodlibError, match="enet: networks by others need pytorchcv"):
        networks.build("enet")
    jobs._macs.cache_clear()


def test_fewer_images_are_less_work():
    whole, brief = PRESETS["lite"], PRESETS["brief"]
    labelled, classes = Run(images="labelled"), Run(images="classes", classification=Classification("random", "all"))
    assert jobs.units(labelled, whole) == pytest.approx(jobs.units(Run(), whole) * 5657 / 10_050, rel=0.01)
    assert jobs.units(classes, whole) == pytest.approx(jobs.units(Run(), whole) * 644 / 10_050, rel=0.01)
    assert jobs.units(labelled, brief) == jobs.units(Run(), brief), "as many steps there"


def test_a_damaged_record_does_not_stop_the_queue(tmp_path):
    for name, content in {"cut": '{"hardware": "none"', "bare": '{"hardware": "none"}', "odd": '{"preset": 1}'}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "record.json").write_text(content)
    assert jobs.rates(records.every(tmp_path), "none") == {}
    (tmp_path / "cut").rename(tmp_path / ".key.being-written")
    assert [record.key for record in records.every(tmp_path)] == ["bare", "odd"]


def test_a_run_takes_the_gpu_that_fewest_are_on(tmp_path, monkeypatch):
    class Process:
        def __init__(self, _, env, **__):
            self.gpu, self.returncode = env["CUDA_VISIBLE_DEVICES"], None

        def poll(self):
            return self.returncode

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(jobs.subprocess, "Popen", Process)
    workers = jobs.LocalWorkers("smoke", tmp_path, None, 2)
    workers.start(Run(), math.inf)
    for _ in range(3):
        workers.start(Run(), math.inf)
        first, last = workers.running
        assert {first.gpu, last.gpu} == {"3", "5"}
        last.returncode = 0
        workers.wait()


def test_the_study_is_declared_whole():
    """One entry a run, every pruned run with its training, and what each table of the paper has rows for."""
    everything = [entry.run for entry in STUDY]
    assert len(set(everything)) == len(everything) == len({run.key("paper") for run in everything})
    assert all(run.parent in everything for run in everything)
    items = by_item(STUDY)
    seed_0 = {item: [entry.run for entry in entries if entry.run.seed == 0] for item, entries in items.items()}
    assert {run.pruning.threshold for run in seed_0["Table 10"] if run.pruning and run.width == 2} >= {1e-2, 1e-20}
    assert {(run.network, run.split) for run in seed_0["Table 6"] if not run.pruning} >= {
        (network, split) for network in ("csnet", "extractor") for split in ("1/0", "3/1", "5/5", "1/3", "0/1")
    }
    assert {run.stages for run in seed_0["Table 5"] if run.pruning} == {"4", "3-4", "2-4", "1-4"}
    assert len([run for run in seed_0["Table 9"] if run.pruning]) == 4
    assert len([run for run in seed_0["Table 11"] if run != study.CENTRE]) == 10
    assert len([run for run in seed_0["Figure 13"] if run.pruning]) == 10
    assert {run.network for run in seed_0["Table 7"]} >= {"mean-mask", *networks.NAMES}
    assert {run.pretraining for run in seed_0["Figure 11"] if run.pruning} == {"", "folder", "categories"}
    assert list(items)[:3] == ["Algorithm 1", "Beyond the paper", "Figure 1"]


def test_runs_are_chosen_by_item_or_key():
    assert {entry.run for entry in choose(["table 5"], "lite")} == {entry.run for entry in by_item(STUDY)["Table 5"]}
    assert choose(["Table5"], "lite") == choose(["table 5"], "lite")
    assert [entry.run for entry in choose([Run().key("lite")], "lite")] == [Run()]
    assert choose([], "lite") == STUDY
    for word in ("table 77", "csnet-x9", "table 1"):
        with pytest.raises(sodlib.SodlibError, match=f"'{word}'.*Table 5, Table 6"):
            choose([word], "lite")


TINY = """
import sys
from dataclasses import replace
import sodlib.__main__
from sodlib import presets, runs, unfinished
from sodlib.progress import Silent
from sodlib.description import Pruning, Run
from pathlib import Path

unfinished.INTERVAL = 0
presets.PRESETS["smoke"] = replace(presets.PRESETS["smoke"], epochs=4, steps_per_epoch=5, batch=4, images=18, size=32)

class Says(Silent):
    def start(self, name, steps, done):
        print("start", done, flush=True)

    def step(self, done):
        print("step", done, flush=True)

runs.obtain(Run(), "smoke", runs.Surroundings(Path(sys.argv[1]), observer=Says()))
# A bare machine has none of these.
assert not {"IPython", "ipywidgets", "jupyterlab", "matplotlib", "papermill", "pytorch_grad_cam", "pytorchcv", "ray",
            "scipy", "seaborn", "timm", "torchvision"} & set(sys.modules)
"""


def tiny_process(place):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", TINY, str(place)], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_a_killed_training_goes_on_bit_for_bit(tmp_path):
    """Kill -9 after the 7th and after the 14th step; the third process ends as the one that nobody stopped."""
    assert tiny_process(tmp_path / "whole").wait() == 0
    begun = []
    for last in (7, 14, None):
        process = tiny_process(tmp_path / "killed")
        for line in process.stdout:
            kind, step = line.split()
            if kind == "start":
                begun.append(int(step))
            elif int(step) == last:
                process.send_signal(signal.SIGKILL)
        assert process.wait() == (-9 if last else 0)
    assert begun[0] == 0 and 6 <= begun[1] < 13 <= begun[2] < 20
    (whole,), (killed,) = (records.every(tmp_path / name) for name in ("whole", "killed"))
    assert whole.key == killed.key
    pairs = zip(whole.model().state_dict().items(), killed.model().state_dict().items(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in pairs)
    times = ("seconds", "scoring_seconds", "images_per_second")
    histories = [
        [{name: value for name, value in entry.items() if name not in times} for entry in found.data["history"]]
        for found in (whole, killed)
    ]
    assert histories[0] == histories[1] and len(histories[0]) == 4
    assert whole.data["scores"] == killed.data["scores"]
    assert not list((tmp_path / "killed" / ".unfinished").glob("*.pt"))


def test_two_processes_make_a_run_once(tmp_path):
    first = tiny_process(tmp_path)
    assert first.stdout.readline() == "start 0\n"
    second = tiny_process(tmp_path)
    said = second.communicate()[0]
    assert second.returncode == 0 and first.wait() == 0
    assert said == "" and len(records.every(tmp_path)) == 1
    first.stdout.close()


def test_the_queue_ends_with_its_process_and_goes_on(tmp_path):
    """The command itself: killed while its worker trains, it takes the worker along; again, it makes the record."""
    key = Run().key("smoke")
    command = [sys.executable, "-m", "sodlib", "study", "run", "--only", key, "--preset", "smoke"]
    command += ["--results", str(tmp_path), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    first = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    assert key in first.stdout.readline()
    first.kill()
    first.wait()
    first.stdout.close()
    until = time.monotonic() + 20
    while True:
        with runs.claim(tmp_path, key, wait=False) as free:
            if free:
                break
        assert time.monotonic() < until, "the worker outlived its queue"
        time.sleep(0.05)
    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0 and "1 of 1 runs recorded" in again.stdout
    assert [found.key for found in records.every(tmp_path)] == [key]
    assert integrity.check_records(tmp_path, STUDY) == []


def test_what_check_finds(tmp_path, monkeypatch):
    whole = runs.obtain(Run(), "smoke", runs.Surroundings(tmp_path))
    assert integrity.check_records(tmp_path, STUDY) == []
    assert integrity.check_records(tmp_path, [])[0][1].startswith("is no longer declared")
    with monkeypatch.context() as sets:
        sets.setattr(Preset, "load", lambda _, name, root: data.find_set(name, root).subset(range(3), name))
        problems = [problem.split(" (")[0] for _, problem in integrity.check_records(tmp_path, STUDY)]
        assert problems == [f"was made with another cutouts/{part}" for part in ("train", "validation", "test")]
    text = (whole.folder / "record.json").read_text()
    for old, new, problem in [
        ('"history"', '"past"', "is incomplete (no history)"),
        ("{", "", "is incomplete"),
        ('"width": 1.0', '"width": 2.0', "its name does not follow from its description"),
        (whole.data["fingerprints"]["cutouts/train"], "0" * 12, "was made with another cutouts/train"),
    ]:
        (whole.folder / "record.json").write_text(text.replace(old, new, 1))
        problems = integrity.check_records(tmp_path, STUDY)
        assert len(problems) == 1 and problems[0][0] == whole.key and problem in problems[0][1], problems
    (whole.folder / "record.json").write_text(text)
    with pytest.raises(sodlib.SodlibError, match="no such folder"):
        integrity.check_records(tmp_path / "nowhere", STUDY)
    pruned = runs.obtain(Run(pruning=study.REDUNDANT), "smoke", runs.Surroundings(tmp_path))
    assert integrity.check_records(tmp_path, STUDY) == []
    arrays = {name: values + 1 if name.startswith("gamma/") else values for name, values in whole.arrays.items()}
    np.savez(whole.folder / "arrays.npz", **arrays)
    (found,) = integrity.check_records(tmp_path, STUDY)
    assert found[0] == pruned.key and found[1].startswith("was pruned of another training")
    shutil.rmtree(pruned.folder)
    (whole.folder / "arrays.npz").write_bytes(b"cut")
    (tmp_path / ".half").mkdir()
    assert [problem.split(" (")[0] for _, problem in integrity.check_records(tmp_path, STUDY)] == [
        "was left half written; delete it",
        "is incomplete",
    ]


def test_a_checkpoint_shows_that_a_run_is_under_way(tmp_path):
    assert not jobs.has_checkpoint(Run(), "smoke", tmp_path)
    Checkpoint(runs.checkpoint_file(tmp_path, Run().key("smoke"))).write({"step": 1})
    assert jobs.has_checkpoint(Run(), "smoke", tmp_path)
