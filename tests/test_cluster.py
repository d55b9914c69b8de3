"""The queue on a cluster: what the keeper takes, whom nobody answers, and real nodes that are killed."""

import math
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

import sodlib
from sodlib import records, runs
from sodlib.cluster import Keeper, RayWorkers, make
from sodlib.description import CENTRE, Pruning, Run
from sodlib.jobs import PAUSED, work
from sodlib.presets import PRESETS
from sodlib.runs import Surroundings, checkpoint_file
from sodlib.study import Declared
from sodlib.unfinished import Checkpoint

LONGER = {"epochs": 4, "steps_per_epoch": 8, "size": 32, "batch": 2, "images": 18}


def test_a_worker_that_was_given_up_for_lost_changes_nothing(tmp_path):
    run, other = Run(), tmp_path / "node" / "checkpoint"
    key, keeper = run.key("smoke"), Keeper(tmp_path, None)
    lost, seconds, files = keeper.begin(run, "smoke", "node 1", time.monotonic() + 60)
    assert 59 < seconds <= 60 and not files
    Checkpoint(other).write({"step": 7})
    keeper.keep(key, lost, other.read_bytes())
    turn, _, files = keeper.begin(run, "smoke", "node 2", math.inf)
    assert keeper.said() == [f"{key}: begins again on node 2"] and keeper.said() == []
    (path,) = files
    assert tmp_path / path == checkpoint_file(tmp_path, key)
    Checkpoint(other).write({"step": 8})
    keeper.keep(key, lost, other.read_bytes())
    keeper.deliver(key, lost, {"record.json": b"{}"})
    assert Checkpoint(tmp_path / path).read() == {"step": 7} and not records.every(tmp_path)
    keeper.keep(key, turn, other.read_bytes())
    assert Checkpoint(tmp_path / path).read() == {"step": 8}


def test_a_record_without_weights_is_delivered_too(tmp_path):
    key, keeper = CENTRE.key("smoke"), Keeper(tmp_path / "cluster", None)
    turn, _, _ = keeper.begin(CENTRE, "smoke", "node 1", math.inf)
    record = runs.obtain(CENTRE, "smoke", Surroundings(tmp_path / "node"))
    keeper.deliver(key, turn, {path.name: path.read_bytes() for path in record.folder.iterdir()})
    (kept,) = records.every(tmp_path / "cluster")
    assert kept.key == key and not kept.has_weights and kept.data["scores"] == record.data["scores"]


def test_a_node_without_the_data_says_so(tmp_path):
    code, sentence = make(Run(), "lite", tmp_path / "nothing", math.inf, keeper=None)
    assert code == 2 and Run().key("lite") in sentence and f"has no folder {tmp_path / 'nothing'}" in sentence


def test_ray_is_an_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(sodlib.SodlibError, match=r"pip install 'sodlib\[cluster\]'"):
        RayWorkers("smoke", tmp_path, None, "local")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere"])
def test_nobody_answers(tmp_path, address):
    pytest.importorskip("ray")
    with pytest.raises(sodlib.SodlibError, match=f"no cluster answers at --ray {address}"):
        RayWorkers("smoke", tmp_path, None, address)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head that makes no runs, and two nodes that make one each."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # Beside JupyterLab every process of ray would load a grammar of web addresses for seconds.
        folder = tmp_path_factory.mktemp("python")
        (folder / "rfc3987_syntax.py").write_text("raise ImportError\n")
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")
        options = {"object_store_memory": 80_000_000}
        health = {"health_check_period_ms": 1000, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": health, **options}
        try:
            started = Cluster(initialize_head=True, head_node_args=head)
        except Exception as error:
            pytest.skip(f"ray gives its processes 15 seconds to start, too few here: {error}")
        # Nodes in one folder would unpack the package over each other. A socket's path must be short: no `tmp_path`.
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
            for folder in (one, other):
                started.add_node(num_cpus=1, wait=False, temp_dir=folder, **options)
            started.wait_for_nodes()
            yield started
            started.shutdown()


@pytest.fixture
def slow(cluster, monkeypatch):
    """Workers whose runs take a while and keep a checkpoint every fourth step; here the same preset."""
    import ray

    def setup():
        import itertools
        import time
        from dataclasses import replace

        from sodlib.presets import PRESETS
        from sodlib.unfinished import Checkpoint

        calls = itertools.count(1)

        def due(_):
            time.sleep(0.1)
            return next(calls) % 4 == 0

        PRESETS["smoke"] = replace(PRESETS["smoke"], **longer)
        Checkpoint.due = due

    longer, init = LONGER, ray.init

    def slowed(address, runtime_env, **options):
        init(address, runtime_env={**runtime_env, "worker_process_setup_hook": setup}, **options)

    monkeypatch.setattr(ray, "init", slowed)
    monkeypatch.setitem(PRESETS, "smoke", replace(PRESETS["smoke"], **LONGER))


class Killed(RayWorkers):
    """Workers of which one is killed as soon as there is a checkpoint, and a node as soon as there is another."""

    def __init__(self, cluster, *arguments):
        super().__init__(*arguments)
        self.cluster, self.kills, self.checkpoint = cluster, 0, checkpoint_file(self.place, Run().key("smoke"))

    def wait(self):
        if self.kills < 2 and self.written() != self.seen and (found := self.working()):
            node, worker = found
            if self.kills == 1:
                self.cluster.remove_node(node, allow_graceful=False)
            os.kill(worker, signal.SIGKILL)
            time.sleep(0.5)
            self.kills += 1
            self.seen = self.written()
        return super().wait()

    def written(self):
        return self.checkpoint.stat().st_mtime_ns if self.checkpoint.exists() else None

    def working(self):
        """The node that makes a run, and its process that does."""
        import psutil

        for node in self.cluster.worker_nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for process in raylet.children():
                if process.cmdline()[0].startswith("ray::make"):
                    return node, process.pid
        return None


def test_a_run_outlives_its_minutes_its_worker_and_its_node(cluster, slow, tmp_path, capfd):
    """It ends with the same weights, bit for bit, as one that nothing happened to."""
    run, place = Run(), tmp_path / "cluster"
    workers, commit = Killed(cluster, "smoke", place, None, cluster.address), records.circumstances()["commit"]
    workers.start(run, 0)
    while not (results := RayWorkers.wait(workers)):
        pass
    assert results == [(run, PAUSED)]
    assert Checkpoint(workers.checkpoint).read()["step"] == 1
    workers.seen = workers.written()

    wrong = replace(run, pruning=Pruning("luck", parameters=100_000))
    outcome = work([Declared(each, ("Table 9",)) for each in (run, wrong)], "smoke", place, workers)
    output = capfd.readouterr()
    assert workers.kills == 2 and len(cluster.worker_nodes) == 1
    assert outcome.recorded == [run] and list(outcome.failed) == [wrong]
    assert f"{wrong.key('smoke')} on " in output.err and "unknown criterion" in output.err
    assert output.out.count("begins again on") == 3 and output.out.count(f"{run.key('smoke')}: goes on after") == 3
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == [run.key("smoke")]
    assert not workers.written()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = runs.obtain(run, "smoke", Surroundings(tmp_path / "alone"))
    torch.set_num_threads(threads)
    record = records.find(run.key("smoke"), place)
    assert record.data["threads"] == 1 and record.data["commit"] == commit
    histories = (
        [{name: value for name, value in entry.items() if "second" not in name} for entry in each.data["history"]]
        for each in (record, alone)
    )
    assert next(histories) == next(histories)
    assert np.array_equal(record.arrays["maps"], alone.arrays["maps"])
    states = (each.model().state_dict() for each in (record, alone))
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))
