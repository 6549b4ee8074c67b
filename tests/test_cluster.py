"""Trainings on a Ray cluster: what travels, what faults cost, and who can reach it."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import beside_tests, same_run

import dynasac
from dynasac import UsageError, checkpoint, cluster, runs
from dynasac.sweep.pool import Pool
from dynasac.sweep.ray_pool import RayPool, check_files, read_files, write_files
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


LOOPBACK = {"0100007F", f"{0:016X}FFFF00000100007F", f"{0:024X}01000000"}
"""as the kernel writes 127.0.0.1, the same within IPv6, and ::1"""
LONG, ENDLESS = 24, 2000
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


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed") / "run"
    work(job("long", LONG), directory, lambda row: None)
    return directory


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


def ours(title: str = "") -> list[int]:
    """Processes that this one began, or those began that it began, which say that they do this."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            parents[int(folder.name)] = int(after_name[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text()
    found, level = [], {os.getpid()}
    while level:
        level = {child for child, parent in parents.items() if parent in level}
        found += level
    return [process for process in found if titles.get(process, "").startswith(title)]


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


def test_a_model_of_ones_own_travels(pool, tmp_path):
    (tmp_path / "mine.py").write_text("raise RuntimeError('got here')")
    pool.submit(job("own", model=f"{tmp_path}/mine.py:Mine"))
    (failed,) = until(pool)
    assert failed.why == "mine.py does not import: RuntimeError: got here (line 1)"


def test_errors_come_in_one_line(pool, folder):
    pool.submit(job("nan", env="probes:BrokenObservation-v0"))
    pool.submit(job("unknown", **{"sac.colour": 1}))
    ends = {event.name: event for event in until(pool, 2) if event.kind != "row"}
    assert {event.kind for event in ends.values()} == {"failed"}
    assert "step 2" in ends["nan"].why
    assert "in step\n" in (folder / "nan.log").read_text()
    assert ends["unknown"].why.startswith("there is no setting 'sac.colour'")


def test_a_worker_that_was_killed_costs_what_came_after_its_checkpoint(pool, folder, undisturbed):
    pool.submit(job("killed", LONG))
    until_saved(pool, folder / "killed")
    (worker,) = ours("ray::train")
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
    assert same_run(folder / "killed", undisturbed)


def test_a_training_that_is_stopped_can_be_gone_on_with(pool, folder):
    pool.submit(job("stopped", ENDLESS))
    until_saved(pool, folder / "stopped")
    pool.stop("stopped")
    *_, stopped = until(pool)
    assert stopped.kind == "stopped"
    rows = len(runs.read_metrics(folder / "stopped"))
    assert 0 < rows < ENDLESS
    pool.submit(job("stopped", ENDLESS))
    pool.stop("stopped")  # before it has begun again, or just after
    *_, stopped = until(pool)
    assert stopped.kind == "stopped"
    assert len(runs.read_metrics(folder / "stopped")) >= rows


def test_a_ray_of_our_own_is_reached_from_this_machine_alone(pool):
    sockets = set()
    for process in ours():
        for handle in Path(f"/proc/{process}/fd").glob("*"):
            with contextlib.suppress(OSError):
                sockets |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(handle)))
    listening = [
        fields[1].partition(":")[0]
        for table in ("tcp", "tcp6")
        for fields in map(str.split, Path(f"/proc/net/{table}").read_text().splitlines())
        if fields[3] == "0A" and fields[9] in sockets
    ]
    assert len(listening) > 3
    assert set(listening) <= LOOPBACK


def test_machines_with_other_versions_are_refused(pool, monkeypatch):
    monkeypatch.setattr(runs, "versions", lambda: {"python": "3.0", "jax": "0.0.1"})
    with pytest.raises(UsageError, match=r"has jax .* not 0\.0\.1 as here: install the same"):
        cluster.check_versions(pool._ray)


def test_with_no_processor_for_a_moment_trainings_wait(pool, monkeypatch):
    monkeypatch.setattr(pool._ray, "cluster_resources", dict)
    pool.events(0.0)
    assert pool.slots == 1


def test_where_the_queue_is_lost_so_are_the_trainings(pool, folder):
    pool.submit(job("queued", ENDLESS))
    until_saved(pool, folder / "queued")
    (holder,) = ours("ray::_QueueActor")
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


def test_a_checkpoint_comes_after_what_it_builds_on_and_a_summary_last(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(checkpoint, "write_bytes", lambda path, _: written.append(path.name))
    names = ["summary.json", "checkpoints/state-00000001.safetensors", "metrics.csv", "policy/a"]
    write_files(tmp_path, dict.fromkeys(names, b""))
    assert written[2:] == ["state-00000001.safetensors", "summary.json"]


CLUSTER = """
import sys
from pathlib import Path
from ray.cluster_utils import Cluster
from dynasac.sweep.ray_pool import RayPool
from test_cluster import LONG, job, until, until_saved

few = {"include_dashboard": False, "object_store_memory": 80_000_000}
cluster = Cluster(True, head_node_args={"num_cpus": 0, **few})
node = cluster.add_node(num_cpus=1, **few)
folder = Path(sys.argv[1])
pool = RayPool(cluster.address, folder)
print(cluster.address, pool.slots, flush=True)
pool.submit(job("far", LONG))
until_saved(pool, folder / "far")
cluster.remove_node(node, allow_graceful=False)
*_, lost = until(pool)
print(lost.kind, lost.why, flush=True)
cluster.add_node(num_cpus=1, **few)
pool.submit(job("far", LONG))
while True:
    for event in pool.events(1.0):
        print(event.kind, event.row["real_episodes"], flush=True)
"""


STRANGER = "from dynasac.sweep.ray_pool import RayPool; RayPool('{}', None)"


def test_a_cluster_with_a_token_loses_a_machine_and_then_its_driver(
    pool, folder, undisturbed, tmp_path
):
    (tmp_path / "token").write_text("a-token-of-a-cluster")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    without = {k: v for k, v in beside_tests().items() if not k.startswith("RAY_")}
    with contextlib.ExitStack() as ended:

        def begun(program: str, variables: dict[str, str]) -> subprocess.Popen:
            process = subprocess.Popen(
                [sys.executable, "-c", program, folder],
                env={**without, **variables},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            ended.enter_context(process)
            ended.callback(process.kill)
            return process

        driver = begun(CLUSTER, token)
        said = (line for line in driver.stdout if re.match(r"\d+\.|lost|row", line))
        address, slots = next(said).split()
        assert slots == "1"
        other = begun(STRANGER.format(address), {**token, "RAY_AUTH_TOKEN": "another-token"})
        assert next(said).startswith("lost NodeDiedError")
        *_, refused = other.stdout
        assert f"UsageError: cannot work on --ray-address {address}: ConnectionError" in refused
        assert "if it wants a token, set RAY_AUTH_MODE=token" in refused
        assert int(next(said).split()[1]) > 0
    pool.submit(job("far", LONG))
    *rows, done = until(pool)
    assert done.kind == "done"
    assert rows[0].row["real_episodes"] > 0
    assert same_run(folder / "far", undisturbed)


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("127.0.0.1:6379", "as ray start printed it"),
        ("ray://there:10001", "write local, or HOST:PORT"),
        ("auto", "write local, or HOST:PORT"),
        ("192.0.2.1:99999", "no Ray cluster answers"),
    ],
)
def test_addresses_that_cannot_be_reached(address, hint, tmp_path):
    with pytest.raises(UsageError, match=hint):
        RayPool(address, tmp_path)
