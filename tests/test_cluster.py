"""Ray itself: trainings and rigs on it, what travels, what faults cost, who can reach it."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import pytest
from conftest import beside_tests, same_run
from test_environments import same
from test_rigs import MODEL_FREE, agent_on, all_came_home, given_away, rows_of

import dynasac
from dynasac import UsageError, checkpoint, cli, cluster, collecting, runs
from dynasac.agent import Silent
from dynasac.rigs import Rigs
from dynasac.runs import read_metrics
from dynasac.sweep.pool import Pool
from dynasac.sweep.ray_pool import RayPool, check_files, read_files, write_files
from dynasac.sweep.work import Job, work

# not imported: before it is, a pool says where it has to listen
pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")

SETTINGS = {
    "sac.hidden": [16, 16],
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
    """One Ray for the module; its name for the processor is what it has seen of the machine."""
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        pool = RayPool("local", folder)
        assert signal.getsignal(signal.SIGTERM) is handler
        yield pool
        pool.close()
    assert not pool._ray.is_initialized()


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


# --- rigs


class Planning(Silent):
    """Lets rigs go on in a phase of planning alone, which does not end before they have."""

    def __init__(self, place, until):
        self.place, self.until, self.seen = place, until, False

    def progress(self, state, phase):
        if phase == "plan" and state.counts.planned == 1 and state.counts.phase_updates:
            assert len(given_away(self.place).get(1, ())) < 5
            self.until.touch()
            while len(given_away(self.place).get(1, ())) < 5:
                time.sleep(0.01)
            self.seen = True


def test_three_rigs_feed_one_learner_to_the_same_bytes(pool, tmp_path):
    states = []
    for name in "ab":
        place, until = tmp_path / name, tmp_path / f"{name} plans"
        agent = agent_on(place, MODEL_FREE, pause=0.01, waits=str(until))
        planning = Planning(place, until)
        agent.learn(real_episodes=5, observer=planning, rigs=Rigs(3, in_order=True))
        assert planning.seen
        states.append(agent.state)
        assert (agent.state.counts.real_episodes, agent.state.counts.real_steps) == (5, 50)
        assert all_came_home(agent, place)
        assert {n: len(rows) for n, rows in given_away(place).items()} == {0: 20, 1: 20, 2: 10}
    same(*states)


def kill(place, until):
    """Let rig 1 go on from its fifth step once that goes home at once, and kill it in its ninth."""

    def steps():
        return len(given_away(place).get(1, ()))

    while steps() < 4:
        time.sleep(0.01)
    time.sleep(2 * collecting.SECONDS_HOME)
    until.touch()
    while steps() < 8:
        time.sleep(0.01)
    time.sleep(collecting.SECONDS_HOME)
    (file,) = place.glob("1-*")
    os.kill(int(file.name.partition("-")[2]), signal.SIGKILL)


def test_a_rig_that_is_killed_is_dropped(pool, tmp_path, caplog, capfd):
    place, until = tmp_path / "log", tmp_path / "on"
    agent = agent_on(place, hangs=(1, 9), waits=str(until))
    killer = threading.Thread(target=kill, args=(place, until))
    killer.start()
    agent.learn(real_episodes=6, rigs=Rigs(2))
    killer.join()
    counts, found, given = agent.state.counts, rows_of(agent), given_away(place)
    home = [bool((found == row).all(axis=1).any()) for row in given[1]]
    steps = sum(home)
    assert steps >= 5
    assert home == [True] * steps + [False] * (8 - steps)  # the last had not been sent yet
    assert (counts.real_episodes, counts.real_steps) == (6, len(given[0]) + steps)
    assert len(given[0]) == 50
    (said,) = caplog.messages
    assert said == (
        f"rig 1 is gone, in real episode 2, of which {steps} steps are kept (its process ended, or "
        "its machine is gone); rigs left: 1"
    )
    assert "worker died" not in "".join(capfd.readouterr())


def test_a_training_at_the_command_line(pool, tmp_path, caplog):
    place, output = tmp_path / "log", str(tmp_path / "run")
    place.mkdir()
    gym.register("Hot-v0", "far:Rig", max_episode_steps=10, kwargs={"log": str(place), "fails": 1})
    words = ["train", "Hot-v0", "--model=none", "--rigs=2", "--real-episodes=3"]
    small = ["--sac.hidden=16", "--sac.batch-size=16", "--evaluation-episodes=0"]
    try:
        assert cli.run([*words, *small, "--output", output]) == 0
    finally:
        del gym.registry["Hot-v0"]
    assert given_away(place)[0].shape == (20, 4)
    assert caplog.messages == [
        "rig 1 is gone, in real episode 2, of which 2 steps are kept (the environment failed (real "
        "episode 2, step 2): RuntimeError: the motor is hot); rigs left: 1"
    ]
    asked = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (asked["rigs"], asked["rigs_in_order"]) == (2, False)
    rows = read_metrics(tmp_path / "run")
    assert float(rows[-1]["real_steps"]) == 22
    assert float(rows[-1]["failures"]) == 1


# --- what comes from strangers, and machines that go


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
