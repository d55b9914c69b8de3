"""What all tests share. Oracles and benchmark images lie outside the repository, in a folder `shared` beside it
(or where SODLIB_SHARED points); tests that need them are skipped where it is absent."""

import json
import os
from pathlib import Path

# The golden logits of the untrained networks amplify rounding 10,000-fold: kernels for another instruction set
# differ by 2e-4 there, though the arithmetic is the same. The oracle was made with AVX2.
os.environ["ONEDNN_MAX_CPU_ISA"] = "AVX2"
os.environ.pop("SODLIB_DATA", None)
# Without a GPU, Triton's kernels run in its interpreter; it asks before torch is imported.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# Of several processes that test at once, each takes its share of the cores, and so do those that it starts.
if processes := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // processes))

import numpy as np
import pytest
from matplotlib import rc_context

import sodlib

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """The notebooks first: they take longest, and other files fill the time beside them."""
    items.sort(key=lambda item: item.path.name not in ("test_notebooks.py", "test_repeatability.py"))


@pytest.fixture(autouse=True)
def style_of_its_own():
    """A page sets the style of all figures that follow."""
    with rc_context():
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    folder = Path(os.environ.get("SODLIB_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("no folder `shared` with the golden data beside the repository (SODLIB_SHARED names another)")
    return folder


@pytest.fixture(scope="session")
def golden(shared) -> Path:
    return shared / "golden"


@pytest.fixture(scope="session")
def shared_data(shared) -> Path:
    return shared / "data"


@pytest.fixture(scope="session")
def golden_channels(golden):
    return json.loads((golden / "unpruned.channels.json").read_text())


def tensors(archive, prefix="sd/"):
    return {name.removeprefix(prefix): archive[name] for name in archive if name.startswith(prefix)}


@pytest.fixture
def released(golden):
    """The released csnet-L-x2, a new copy for every test."""
    return sodlib.load_released(tensors(np.load(golden / "csnet-L-x2.npz")), golden / "csnet-L-x2.channels.json")
