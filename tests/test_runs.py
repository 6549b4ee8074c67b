"""The run directory: plain files that any reader takes."""

import csv
import errno
import fcntl
import json
import resource
import shutil
import struct
from pathlib import Path

import hostile
import probes
import pytest
from conftest import SMALL

from dynasac import Config, DynaSAC, UsageError, presets, recording
from dynasac.runs import METRICS, CompileClock, Run, flat, plain, read_metrics, versions

DOCUMENTED = Path(__file__).parents[1] / "docs" / "metrics.md"
ROW = {
    "real_episodes": 0,
    "real_steps": 0,
    "logged_transitions": 0,
    "failures": 0,
    "synthetic_transitions": 256,
    "gradient_updates": 10,
    "train_return": None,
    "eval_mean_return": -130.5,
    "eval_regret": float("nan"),
    "model_error": None,
    "adapt_rung": "exact",
}


@pytest.fixture
def run(tmp_path):
    run = Run.create(tmp_path / "deep" / "run", {"env_id": "Pendulum-v1", "seed": 3})
    yield run
    run.close()


def test_config_says_what_was_asked_for_and_with_what(run):
    config = json.loads((run.directory / "config.json").read_text())
    assert (config["env_id"], config["seed"]) == ("Pendulum-v1", 3)
    assert config["versions"] == versions()
    assert {"python", "dynasac", "jax", "equinox", "optax", "gymnasium", "numpy"} <= set(versions())


def test_metrics_has_a_header_and_a_row_each(run):
    run.append(ROW)
    run.append({**ROW, "real_episodes": 1, "real_steps": 200, "train_return": -900.0})
    with (run.directory / "metrics.csv").open(newline="") as file:
        header, first, second = list(csv.reader(file))
    assert tuple(header) == METRICS
    assert first[:11] == ["0", "0", "0", "0", "256", "10", "", "-130.5", "", "", "exact"]
    assert second[:7] == ["1", "200", "0", "0", "256", "10", "-900.0"]
    assert 0 <= float(first[-1]) <= float(second[-1])


def test_tensorboard_gets_an_events_file(run):
    run.append(ROW)
    assert len(list(run.directory.glob("events.*"))) == 1


def log_much(run):
    for updates in range(1, 1000):
        run.log_learning({"q_value": 1.0}, updates)


def test_where_no_events_can_be_written_nobody_waits_for_them(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with hostile.bounded(20, 100), pytest.raises(OSError, match="File too large"):
            log_much(run)
        run.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tags(directory) -> dict[str, list[int]]:
    """The steps of each scalar in an events file (TFRecord framing: length, CRC, event, CRC)."""
    from tensorboardX.proto.event_pb2 import Event  # once a run has, which keeps torch out

    found = {}
    for path in directory.glob("events.*"):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_tensorboard_shows_every_metric_under_a_documented_name(tmp_path):
    run = Run.create(tmp_path / "run", {})
    agent = DynaSAC("Rail-v0", probes.Slide(), presets.with_real_episodes(SMALL, 1))
    recording.record_training(agent, run, episodes=2, progress_bar=False)
    shown = tags(tmp_path / "run")
    documented = DOCUMENTED.read_text()
    for tag in shown:
        group, _, name = tag.partition("/")
        assert group in ("dynasac", "learning")
        assert f"`{name}`" in documented
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        *_, row = csv.DictReader(file)
    numbers = {name for name, cell in row.items() if cell.replace(".", "").strip("-").isdigit()}
    assert {f"dynasac/{name}" for name in numbers} <= set(shown)
    assert shown["learning/q_value"] == sorted(set(shown["learning/q_value"])) != []


def test_every_metric_is_defined():
    documented = DOCUMENTED.read_text()
    assert [name for name in METRICS if f"`{name}`" not in documented] == []


def test_a_resumed_run_appends_and_its_clock_goes_on(run):
    run.append(ROW)
    run.close()
    again = Run(run.directory)
    again.go_on(rows=1)
    again._earlier_seconds = 50.0
    assert again.wall_seconds >= 50
    again.append({**ROW, "real_episodes": 1})
    again.close()
    assert [row["real_episodes"] for row in read_metrics(run.directory)] == ["0", "1"]
    assert float(read_metrics(run.directory)[1]["wall_seconds"]) >= 50
    last = Run(run.directory)
    last.go_on(rows=2)
    assert last.wall_seconds >= 50


def test_an_episode_that_is_trained_again_replaces_its_row(run):
    """Killed between the row and the checkpoint, a resumed run repeats the episode."""
    for count, worth in ((0, -130.5), (1, -120.0)):
        run.append({**ROW, "real_episodes": count, "eval_mean_return": worth})
    run.close()
    again = Run(run.directory)
    again.go_on(rows=1)
    assert again.evaluated_at == int(ROW["real_steps"])
    again.append({**ROW, "real_episodes": 1, "eval_mean_return": -119.0})
    again.close()
    rows = read_metrics(run.directory)
    assert [row["eval_mean_return"] for row in rows] == ["-130.5", "-119.0"]


def test_a_run_with_something_in_it_is_not_discarded(run):
    run.append(ROW)
    run.discard_if_empty()
    assert len(read_metrics(run.directory)) == 1


def test_two_processes_do_not_write_to_one_directory(run):
    for begin in (Run, lambda directory: Run.create(directory, {})):
        with pytest.raises(UsageError, match="is being written by another process"):
            begin(run.directory)
    run.close()
    Run(run.directory).close()


def test_a_file_system_without_locks_is_written_to(run, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    Run(run.directory).close()


def test_what_was_left_half_written_is_removed(run):
    left = run.directory / "checkpoints" / ".state-00000001.safetensors.x1y2.partial"
    left.parent.mkdir()
    left.write_bytes(b"half")
    run.go_on(rows=0)
    assert not left.exists()


def test_a_directory_that_holds_a_run_is_refused(run):
    run.close()
    with pytest.raises(UsageError, match=r"already holds something: .*--resume"):
        Run.create(run.directory, {})


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(UsageError, match="already holds something"):
        Run.create(tmp_path / "run", {})
    with pytest.raises(UsageError, match="cannot write to"):
        Run.create(tmp_path / "run" / "below", {})
    assert (tmp_path / "run").read_text() == "mine"


def test_an_empty_directory_will_do(tmp_path):
    Run.create(tmp_path, {}).close()
    assert (tmp_path / "config.json").exists()


def test_the_summary_never_holds_nan(run):
    run.write_summary({"model": {"error": None}})
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_summary({"model": {"error": float("nan")}})
    assert json.loads((run.directory / "summary.json").read_text()) == {"model": {"error": None}}


def test_settings_are_plain():
    content = json.loads(json.dumps(plain(Config()), allow_nan=False))
    assert content["planning"]["starts"] == plain(Config())["planning"]["starts"]


def test_nested_settings_get_dotted_names():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": (3,)}}}) == {"a": 1, "b.c": 2, "b.d.e": (3,)}


def test_no_metrics_is_no_error(tmp_path):
    assert read_metrics(tmp_path) == []


def test_the_compile_clock_counts_compiling():
    import jax
    import jax.numpy as jnp

    clock = CompileClock()
    jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(7))
    first = clock.seconds
    assert first > 0


def test_a_directory_that_was_moved_is_not_made_anew(run):
    moved = run.directory.with_name("moved")
    run.directory.rename(moved)
    with pytest.raises(UsageError, match="was moved or removed while it was written"):
        run.check_place()
    run.directory.mkdir()
    with pytest.raises(UsageError, match="was moved or removed"):
        run.check_place()
    run.directory.rmdir()
    moved.rename(run.directory)
    run.check_place()


def test_a_training_whose_directory_is_moved_stops(tmp_path):
    agent = DynaSAC("Clock-v0", "none", presets.with_real_episodes(SMALL, 3))
    run = Run.create(tmp_path / "run", recording.asked_for(agent, "none", "default"))

    def move(agent, row):
        if row["real_episodes"] == 1:
            (tmp_path / "run").rename(tmp_path / "moved")

    recorder = recording.Recorder(agent, run, episodes=2)
    with pytest.raises(UsageError, match="was moved"):
        agent.learn(callback=move, observer=recorder)
    run.close()
    assert not (tmp_path / "run").exists()
    resumed, again, _ = recording.resume(tmp_path / "moved", "Clock-v0", "none")
    again.close()
    assert resumed.state.counts.real_episodes == 1


def test_a_run_that_was_resumed_is_never_discarded(run):
    run.close()
    again = Run(run.directory)
    again.discard_if_empty()
    again.close()
    assert (run.directory / "config.json").exists()


def test_a_run_that_has_lost_its_checkpoints_is_not_begun_anew(tmp_path):
    agent = DynaSAC("Clock-v0", "none", presets.with_real_episodes(SMALL, 1))
    run = Run.create(tmp_path / "run", recording.asked_for(agent, "none", "default"))
    recording.record_training(agent, run, episodes=2, progress_bar=False)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    for lost in ("summary.json", "policy"):
        with pytest.raises(UsageError, match="has results, but no checkpoint to go on from"):
            recording.resume(tmp_path / "run", "Clock-v0", "none")
        path = tmp_path / "run" / lost
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_without_evaluation_the_environment_is_for_training_alone(tmp_path):
    agent = DynaSAC("Clock-v0", "none", presets.with_real_episodes(SMALL, 2))
    run = Run.create(tmp_path / "run", recording.asked_for(agent, "none", "default", None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DynaSAC, "evaluate", lambda *_: pytest.fail("evaluated"))
        assert recording.record_training(agent, run, episodes=0, progress_bar=False) is None
    rows = read_metrics(tmp_path / "run")
    assert [row["eval_mean_return"] for row in rows] == ["", "", ""]
    assert rows[-1]["train_return"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["evaluation"] is None
