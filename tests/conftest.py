"""Settings of every test, and the programs that many of them share."""

import dataclasses
import fcntl
import gc
import os
import subprocess
import sys
from pathlib import Path

import jax
import probes
import pytest
from safetensors.numpy import load_file

from dynasac import Config, DynaSAC, PlanningConfig, SACConfig, checkpoint, recording, sac
from dynasac.runs import Run, read_metrics

QUICKLY_COMPILED = (
    "--xla_cpu_opt_preset=FAST_COMPILE",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_disable_hlo_passes=simplify-while-loops,while-loop-invariant-code-motion",
)
"""compiling takes far less time, and most of what tests compile runs for milliseconds; with
XLA_FLAGS in the environment, if only as an empty string, programs are compiled as those say"""

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", " ".join(QUICKLY_COMPILED))
if jax.config.values["jax_num_cpu_devices"] < 0:
    jax.config.update("jax_num_cpu_devices", 1)  # whichever test comes first; commands decide anew

SMALL_SAC = dataclasses.replace(
    sac.for_task(SACConfig(discount=0.99), 200, bounded=True, reward_size=5.0),
    hidden=(16, 16),
    batch_size=16,
)
SMALL_PLANNING = dataclasses.replace(
    PlanningConfig(), first_updates=6, updates=4, horizon=2, real_fraction=0.1
)
SMALL = dataclasses.replace(
    Config(),
    sac=SMALL_SAC,
    planning=SMALL_PLANNING,
    adapt="none",
    updates_per_real_step=1,
    replay_capacity=200,
)
"""Settings under which everything happens and nothing is learned."""


class CompileCounter:
    """How often JAX compiled a program since `start`."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._heard)

    def _heard(self, event, duration, **_):
        self.count += event == "/jax/core/compile/backend_compile_duration"


@pytest.fixture(scope="session")
def compilations() -> CompileCounter:
    return CompileCounter()


def beside_tests() -> dict[str, str]:
    """What a process needs in its environment to import what lies beside the tests.

    It plans on one core, since others are busy with other tests.
    """
    paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return {"JAX_NUM_CPU_DEVICES": "1", **found}


def untrained_run(directory: Path, agent: DynaSAC, model: str = "auto") -> Path:
    """The directory of a run that was stopped before anything was measured."""
    Run.create(directory, recording.asked_for(agent, model, "default")).close()
    agent.save(directory / "policy")
    return directory


def redescribed(path: Path, change) -> None:
    """Write another description into a file of `checkpoint.save_tree`, as a forger would."""
    with checkpoint.opened(path) as saved:
        description = saved.description
    checkpoint.save_arrays(path, load_file(path), change(description))


def same_run(ours: Path, theirs: Path) -> bool:
    """Whether two run directories hold the same bytes, but for what tells the time."""
    (mine, *_), (other, *_) = (checkpoint.numbered(run / "checkpoints") for run in (ours, theirs))
    pairs = [(run / "policy" / "policy.safetensors").read_bytes() for run in (ours, theirs)]
    rows = [
        [{k: v for k, v in row.items() if not k.endswith("_seconds")} for row in read_metrics(run)]
        for run in (ours, theirs)
    ]
    return mine.read_bytes() == other.read_bytes() and pairs[0] == pairs[1] and rows[0] == rows[1]


def pytest_collection_finish():
    """What has been imported stays: no more is it looked through for garbage."""
    gc.freeze()


def pytest_sessionfinish():
    """What is left is looked through once, and not ten times more by pytest itself."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    """Nothing is read from or written to the home directory."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["XDG_CACHE_HOME"]
    else:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory) -> Path:
    """A run of the default preset, cut short, on Pendulum-v1 without a real step.

    Whichever worker comes first makes it, for all, with a program that is compiled to be fast.
    """
    ours = tmp_path_factory.getbasetemp()
    shared = (ours.parent if "PYTEST_XDIST_WORKER" in os.environ else ours) / "trained"
    shared.mkdir(exist_ok=True)
    handle = os.open(shared, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if not (shared / "run" / "summary.json").exists():
            settings = ("--planning.first-updates=1500", "--real-episodes=0", "--seed=3")
            command = (sys.executable, "-m", "dynasac.cli", "train", "Pendulum-v1", *settings)
            subprocess.run(
                [*command, f"--output={shared / 'run'}"],
                env={**beside_tests(), "XLA_FLAGS": ""},
                stdout=subprocess.DEVNULL,
                check=True,
            )
    finally:
        os.close(handle)
    return shared / "run"


@pytest.fixture(scope="session")
def trained(trained_run) -> DynaSAC:
    """What was learned in `trained_run`. Do not change it."""
    return DynaSAC.load(trained_run / "policy", "Pendulum-v1")


@pytest.fixture
def rail() -> DynaSAC:
    """An untrained agent on a tiny environment with an exact model."""
    return DynaSAC("Rail-v0", probes.Slide(), SMALL)
