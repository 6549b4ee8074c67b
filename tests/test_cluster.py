"""Trainings on a Ray cluster: what travels, what faults cost, and who can reach it."""

import importlib.util
import os
import signal
import time
from pathlib import Path

import pytest
from conftest import same_run

import dynasac
from dynasac import UsageError, checkpoint
from dynasac.runs import read_metrics
from dynasac.sweep.cluster import RayPool, check_files, read_files, write_files
from dynasac.sweep.pool import Pool
from dynasac.sweep.work import Job, work

# not imported: before it is, a pool says where it has to listen
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")

SETTINGS = {
    "sac.hidden": [8, 8],
    "sac.batch_size": 16,
    "updates_per_real_step": 1,
    "replay_capacity": 1000,
    "adapt": "none",
}


PLANNED = {"planning.first_updates": 6, "planning.horizon": 2}
LONG = 60
"""episodes"""


def job(name: str, episodes: int = 2, env: str = "probes:Clock-v0", model: str = "none", **more):
    settings = {**SETTINGS, "real_episodes": episodes, **more}
    return Job(name, env, 3, settings, model, evaluation_episodes=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def pool(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        pool = RayPool("local", folder)
        yield pool
        pool.close()


def until(pool: Pool, ended: int = 1, seconds: float = 60):
    """The events until so many trainings have ended."""
    found, deadline = [], time.monotonic() + seconds
    while sum(event.kind != "row" for event in found) < ended:
        assert time.monotonic() < deadline, found
        found += pool.events(1.0)
    return found


def until_saved(pool: Pool, directory: Path, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not checkpoint.numbered(directory / "checkpoints"):
        assert time.monotonic() < deadline
        assert all(event.kind == "row" for event in pool.events(0.05))


def processes(title: str) -> dict[int, str]:
    """Ray's processes by what they say that they are doing."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_text().replace("\0", " ").strip()
        except OSError:
            continue
        if said.startswith(title):
            found[int(path.parent.name)] = said
    return found


def test_a_training_comes_back_whole(pool, folder, tmp_path):
    pool.submit(job("first"))
    *rows, done = until(pool)
    assert isinstance(pool, Pool)
    assert pool.slots == dynasac.processes.processors()
    assert [event.row["real_episodes"] for event in rows] == [0, 1, 2]
    assert (done.kind, done.row["real_episodes"]) == ("done", 2)
    ours, theirs = folder / "first", tmp_path / "here"
    work(job("first"), theirs, lambda row: None)
    assert same_run(ours, theirs)
    names = [{name for name in read_files(run) if "events" not in name} for run in (ours, theirs)]
    assert names[0] == names[1]


def test_what_is_finished_is_not_done_again(pool, folder):
    before = read_files(folder / "first")
    pool.submit(job("first"))
    (done,) = until(pool)
    assert (done.kind, done.row["real_episodes"]) == ("done", 2)
    assert read_files(folder / "first") == before


def test_a_model_of_ones_own_travels(pool, folder, tmp_path):
    (tmp_path / "slide.py").write_text("from probes import Slide")
    pool.submit(job("own", 0, "probes:Rail-v0", f"{tmp_path}/slide.py:Slide", **PLANNED))
    *_, done = until(pool)
    assert (done.kind, done.why) == ("done", None)
    assert checkpoint.read_json(folder / "own" / "config.json")["model"] == "slide.py:Slide"


def test_errors_come_in_one_line(pool, folder):
    pool.submit(job("nan", env="probes:BrokenObservation-v0"))
    pool.submit(job("unknown", **{"sac.colour": 1}))
    ends = {event.name: event for event in until(pool, 2) if event.kind != "row"}
    assert {event.kind for event in ends.values()} == {"failed"}
    assert "step 2" in ends["nan"].why
    assert ends["unknown"].why.startswith("there is no setting 'sac.colour'")


def test_a_worker_that_was_killed_costs_what_came_after_its_checkpoint(pool, folder, tmp_path):
    pool.submit(job("killed", LONG))
    until_saved(pool, folder / "killed")
    (worker,) = processes("ray::train")
    os.kill(worker, signal.SIGKILL)
    *_, lost = until(pool)
    assert (lost.name, lost.kind) == ("killed", "lost")
    assert "died" in lost.why
    saved = checkpoint.numbered(folder / "killed" / "checkpoints")[0].name
    assert not (folder / "killed" / "summary.json").exists()
    pool.submit(job("killed", LONG))
    *rows, done = until(pool)
    assert done.kind == "done"
    assert rows[0].row["real_episodes"] > 0
    assert checkpoint.numbered(folder / "killed" / "checkpoints")[0].name > saved
    work(job("killed", LONG), tmp_path / "here", lambda row: None)
    assert same_run(folder / "killed", tmp_path / "here")


def test_a_training_that_is_stopped_can_be_gone_on_with(pool, folder):
    names = ["stopped", "other", "waiting"]
    for name in names[: pool.slots + 1]:
        pool.submit(job(name, LONG))
    until_saved(pool, folder / "stopped")
    for name in names[: pool.slots + 1]:
        pool.stop(name)
    ends = until(pool, pool.slots + 1)
    assert {event.kind for event in ends} <= {"row", "stopped"}
    rows = len(read_metrics(folder / "stopped"))
    assert 0 < rows < LONG
    pool.submit(job("stopped", rows))
    *_, done = until(pool)
    assert done.kind == "done"


def test_where_the_queue_is_lost_so_are_the_trainings(pool, folder):
    pool.submit(job("queued", LONG))
    until_saved(pool, folder / "queued")
    (holder,) = processes("ray::_QueueActor")
    os.kill(holder, signal.SIGKILL)
    *_, lost = until(pool)
    assert (lost.name, lost.kind) == ("queued", "lost")
    pool.submit(job("after", 1))
    *_, done = until(pool)
    assert (done.name, done.kind) == ("after", "done")


HOSTILE = [
    "../x",
    "/x",
    "a/../../x",
    "checkpoints/..",
    "a/b/c",
    "",
    "a//b",
    ".hidden",
    "a\0b",
    "~/x",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name):
    with pytest.raises(UsageError, match="by the name"):
        check_files({name: b""})


def test_too_much_is_refused():
    with pytest.raises(UsageError, match="2,000 files"):
        check_files({f"{number}": b"" for number in range(2000)})


def test_what_came_from_a_worker_follows_no_link(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").symlink_to(tmp_path / "elsewhere")
    assert read_files(tmp_path / "run") == {}
    write_files(tmp_path / "run", {"config.json": b"{}"})
    assert not (tmp_path / "elsewhere").exists()
