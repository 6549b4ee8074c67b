"""Twenty ways in which neighbouring projects lost work or learned from wrong data.

Each test names where it was told of.
"""

import contextlib
import dataclasses
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import gymnasium as gym
import hostile
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL, SMALL_PLANNING, beside_tests
from safetensors.numpy import load_file

from dynasac import (
    DynaSAC,
    UsageError,
    checkpoint,
    comparison,
    planning,
    presets,
    processes,
    recording,
)
from dynasac.comparison import Design
from dynasac.models import KNOWN_PHYSICS, ensemble, residual
from dynasac.runs import Run, read_metrics


def collecting(env_id: str = "Clock-v0", episodes: int = 1) -> DynaSAC:
    return DynaSAC(env_id, "none", SMALL).learn(real_episodes=episodes)


def stored(agent: DynaSAC):
    size = int(agent.state.replay.size)
    return jax.tree.map(lambda ring: np.asarray(ring[:size]), agent.state.replay.transitions)


def same(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.fixture(scope="module")
def clocked() -> DynaSAC:
    """Two episodes of ten steps, which the time limit ends."""
    return collecting(episodes=2)


@pytest.fixture
def resumed(tmp_path) -> tuple[DynaSAC, DynaSAC]:
    """An agent after an episode, and what a new process makes of its checkpoint."""
    agent = collecting()
    agent.save_checkpoint(tmp_path)
    fresh = DynaSAC("Clock-v0", "none", SMALL)
    assert fresh.load_checkpoint(tmp_path) == []
    return agent, fresh


def record(directory, episodes: int, env_id: str = "Clock-v0", config=SMALL) -> DynaSAC:
    """Train into a new run directory, or go on with the one that is there."""
    if directory.exists():
        agent, run, _ = recording.resume(directory, env_id, "none", {"real_episodes": episodes})
    else:
        agent = DynaSAC(env_id, "none", presets.with_real_episodes(config, episodes))
        run = Run.create(directory, recording.asked_for(agent, "none", "default"))
    recording.record_training(agent, run, episodes=2, progress_bar=False)
    return agent


def test_01_the_replay_is_there_after_resuming(resumed):
    """stable-baselines3 #1916, ray #8151: the replay was empty, or another, after a restart."""
    agent, fresh = resumed
    assert int(fresh.state.replay.size) == 10
    same(fresh.state.replay, agent.state.replay)


def test_02_optimisers_and_random_numbers_go_on_after_resuming(resumed, clocked):
    """brax #655, stable-baselines3 #1526: moments of Adam, or the generator, began anew."""
    agent, fresh = resumed
    assert np.any(jax.tree.leaves(fresh.state.sac.critic_moments)[1])
    same(fresh.state, agent.state)
    same(fresh.learn(real_episodes=2).state.sac, clocked.state.sac)


def test_03_load_on_an_instance_is_refused(clocked, tmp_path):
    """stable-baselines3 #533: `agent.load(path)` returned another agent and left this untrained."""
    clocked.save(tmp_path)
    with pytest.raises(UsageError, match=r"load makes a new agent: agent = DynaSAC\.load\(path"):
        DynaSAC("Clock-v0", "none", SMALL).load(tmp_path, "Clock-v0")
    assert isinstance(DynaSAC.load(tmp_path, "Clock-v0"), DynaSAC)


def test_04_scales_of_observations_are_saved_with_the_policy(tmp_path):
    """IsaacLab #2635, stable-baselines3 #1256: the normaliser was another after loading."""
    agent = DynaSAC("Plane-v0", probes.Drift(), SMALL)
    agent.save(tmp_path)
    loaded = DynaSAC.load(tmp_path, "Plane-v0", "none")
    same(loaded.spaces.observation, agent.spaces.observation)
    there = np.ones(4, np.float32)
    same(loaded.predict(there, deterministic=True)[0], agent.predict(there, deterministic=True)[0])


def test_05_metrics_are_kept_on_resuming(tmp_path):
    """stable-baselines3 #1035: the log of the first part was overwritten."""
    record(tmp_path / "run", 1)
    before = (tmp_path / "run" / "metrics.csv").read_text()
    record(tmp_path / "run", 2)
    assert (tmp_path / "run" / "metrics.csv").read_text().startswith(before)
    assert [row["real_episodes"] for row in read_metrics(tmp_path / "run")] == ["0", "1", "2"]


def test_06_actions_in_the_replay_are_the_learners(clocked):
    """stable-baselines #573, stable-baselines3 #278: they were in the environment's scale."""
    played = np.array(clocked.env.unwrapped.actions, np.float32)
    assert np.abs(played).max() > 1
    np.testing.assert_allclose(2 * stored(clocked).action[:, 0], played, atol=1e-6)


def test_07_the_last_observation_of_an_episode_is_kept(clocked):
    """mujoco_playground #305: the next one was that after the reset."""
    np.testing.assert_allclose(stored(clocked).next_observation[9::10, 0], [1, 1], atol=1e-6)


def test_08_truncation_is_no_termination(clocked):
    """cleanrl #198, skrl #449: values were not bootstrapped past a time limit."""
    assert not stored(clocked).terminated.any()
    np.testing.assert_array_equal(
        stored(collecting("Timer-v0")).terminated, [False, False, False, True]
    )


def test_09_no_transition_leads_from_one_episode_to_the_next(clocked):
    """Gymnasium #1122, cleanrl #499: the step that resets was stored as one of the environment."""
    rows = stored(clocked)
    assert len(rows.reward) == clocked.state.counts.real_steps == 20
    np.testing.assert_allclose(rows.next_observation - rows.observation, 0.1, atol=1e-6)
    np.testing.assert_allclose(rows.observation[::10, 0], [0, 0])


@pytest.mark.parametrize("env_id", ["BrokenObservation-v0", "BrokenReward-v0"])
def test_10_what_is_no_number_never_reaches_the_learner(env_id):
    """rl-baselines-zoo #427, tianshou #596: NaN went on into networks and replay."""
    agent = DynaSAC(env_id, "none", SMALL)
    with pytest.raises(UsageError, match="step 2"):
        agent.learn(real_episodes=1)
    leaves = jax.tree.leaves((agent.state.sac, agent.state.replay))
    assert all(np.isfinite(leaf).all() for leaf in leaves)


QUICK = dataclasses.replace(SMALL.ensemble, updates=50, members=3, hidden=(4,))


def learned(column: float | None = None):
    """A model learned from `Slide`, one of whose observations may be a constant; and the rows."""
    rng = np.random.default_rng(0)
    x, unit = rng.uniform(-1, 1, (2, 60, 1)).astype(np.float32)
    after, ends = x + 0.5 * unit, np.zeros(60, bool)
    if column is not None:
        still = np.full_like(x, column)
        x, after = np.hstack([x, still]), np.hstack([after, still])
    fields = x, unit, -(after[:, 0] ** 2), after, ends
    rows = planning.Transition(*map(jnp.asarray, fields))
    spaces = probes.probe_spaces(observation=x.shape[1])
    return residual.fit(None, rows, spaces, QUICK, 0)[0], rows, spaces


def test_11_imagined_rewards_are_no_larger_than_real_ones():
    """MAX #1, mbrl-lib #137: planning went where a learned model promised rewards of 1e7."""
    model, rows, _ = learned()
    said = [
        float(model.step(jnp.asarray([far]), jnp.asarray([2.0]), jax.random.key(0)).reward)
        for far in (-1e6, -3.0, 3.0, 1e6)
    ]
    spread = float(rows.reward.max() - rows.reward.min())
    assert max(said) <= float(rows.reward.max()) + spread
    assert min(said) >= float(rows.reward.min()) - spread


def test_12_nothing_is_imagined_after_an_end(clocked):
    """mbrl-lib #138, d3rlpy #101: the wrong termination function; rollouts past the end."""
    _, happened = planning.rollout(
        probes.Countdown(),
        clocked.state.sac.actor,
        jnp.array([[1.0], [2.0], [9.0]]),
        4,
        0.0,
        probe := probes.probe_spaces(),
        planning.full_trust(dataclasses.replace(SMALL_PLANNING, horizon=4)),
        jax.random.key(0),
    )
    assert probe.episode_steps == 10
    np.testing.assert_array_equal(happened.sum(0), [1, 2, 4])
    car = KNOWN_PHYSICS["MountainCarContinuous-v0"]()
    env = gym.make("MountainCarContinuous-v0")
    env.reset(seed=0)
    for position in (-0.5, 0.3, 0.44, 0.46):
        env.unwrapped.state = np.array([position, 0.02])
        after, _, ended, _, _ = env.step(np.ones(1, np.float32))
        assert bool(car.terminal(car.state(jnp.asarray(after)))) == ended


def test_13_constant_observations_and_members_of_their_own():
    """mbrl-lib #110 and PR 61: division by a spread of 0; all members learned from equal data."""
    model, rows, _ = learned(column=0.7)
    step = model.step(rows.observation[0], 2 * rows.action[0], jax.random.key(0))
    assert abs(float(step.next_observation[1]) - 0.7) < 1e-3
    assert abs(float(step.next_observation[0]) - float(rows.next_observation[0, 0])) < 0.2
    bags = ensemble.bootstrap(60, 5, np.random.default_rng(0))
    assert len(np.unique(bags > 0, axis=0)) == 5
    assert ((bags == 0).sum(axis=0) == ensemble.HELD_OUT).all()


def test_14_memory_is_taken_at_the_start_and_not_many_times(tmp_path):
    """stable-baselines3 #885 and #37, dreamerv3 #103: zeros that took memory only when they were
    written to; a restart that needed more of it than training."""
    config = dataclasses.replace(SMALL, replay_capacity=3_000_000)
    # of 51 MB; in a process of its own, where nothing was freed before
    program = (
        "import hostile, probes; from dynasac import Config, DynaSAC; "
        "DynaSAC('Clock-v0', 'none', Config(replay_capacity=10)); "
        "before = hostile.kilobytes('VmRSS'); "
        "agent = DynaSAC('Clock-v0', 'none', Config(replay_capacity=3_000_000)); "
        "print(hostile.kilobytes('VmRSS') - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=beside_tests(),
        capture_output=True,
        text=True,
    )
    agent = DynaSAC("Clock-v0", "none", config)
    taken = sum(leaf.nbytes for leaf in jax.tree.leaves(agent.state.replay)) / 1e6
    assert float(done.stdout) > 900 * taken, done.stderr
    agent.save_checkpoint(tmp_path)
    with hostile.bounded(120, int(4.5 * taken)):
        agent.load_checkpoint(tmp_path)


def test_15_half_a_checkpoint_is_passed_over_and_a_copy_is_whole(tmp_path):
    """flax #1200, openpi #566, orbax #394: an interrupted write was restored, or a copy was not."""
    agent = collecting()
    agent.save_checkpoint(tmp_path / "here")
    agent.learn(real_episodes=2).save_checkpoint(tmp_path / "here")
    newest, before = checkpoint.numbered(tmp_path / "here")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / newest.name).write_bytes(newest.read_bytes())
    os.truncate(newest, newest.stat().st_size - 1)
    fresh = DynaSAC("Clock-v0", "none", SMALL)
    (said,) = fresh.load_checkpoint(tmp_path / "here")
    assert f"going on from {before.name}" in said
    assert fresh.state.counts.real_episodes == 1
    fresh.load_checkpoint(tmp_path / "there")
    assert fresh.state.counts.real_episodes == 2


def test_16_every_number_is_of_the_type_it_was(resumed, tmp_path):
    """asi PR 2714: numbers came back as another type, without a word."""
    agent, fresh = resumed
    ours, theirs = (
        [leaf.dtype for leaf in map(np.asarray, jax.tree.leaves(one.state))]
        for one in (fresh, agent)
    )
    assert ours == theirs
    checkpoint.save_tree(tmp_path / "file", {"a": np.ones(2)}, {})
    with (
        checkpoint.opened(tmp_path / "file") as saved,
        pytest.raises(UsageError, match=r"float64\[2\], not float32\[2\]"),
    ):
        saved.tree({"a": jnp.ones(2)})


class Loose(probes.Clock):
    """A cable that comes off in the second episode, until it is put back."""

    off = True
    episodes = 0

    def reset(self, **options):
        type(self).episodes += 1
        return super().reset(**options)

    def step(self, action):
        if self.off and self.time == 5 and self.episodes % 2 == 0:
            raise RuntimeError("no answer from the motor")
        return super().step(action)


def test_17_an_environment_that_raises_costs_no_more_than_its_episode(tmp_path, monkeypatch):
    """stable-baselines3 #2130: all that was learned was lost with the environment."""
    gym.register("Loose-v0", entry_point=Loose, max_episode_steps=10)
    monkeypatch.setattr(DynaSAC, "evaluate", lambda *_: recording.Evaluation(0, (0.0,)))
    try:
        with pytest.raises((RuntimeError, UsageError)):
            record(tmp_path / "run", 2, "Loose-v0")
        assert not (tmp_path / "run" / "summary.json").exists()
        agent, run, said = recording.resume(tmp_path / "run", "Loose-v0", "none")
        run.close()
        assert said == []
        assert agent.state.counts.real_episodes >= 1
        assert int(agent.state.replay.size) >= 10
        monkeypatch.setattr(Loose, "off", False)
        assert record(tmp_path / "run", 2, "Loose-v0").state.counts.real_episodes == 2
    finally:
        del gym.registry["Loose-v0"]


def test_18a_a_comparison_that_was_killed_repeats_nothing_that_is_finished(tmp_path, monkeypatch):
    """ray #24918, optuna #820: a sweep began again from its first trial."""
    design = Design("Rail-v0", ("sac",), seeds=3)
    began = []

    def killed(children, *_):
        began.append([child.name for child in children])
        first = tmp_path / "out" / children[0].name
        first.mkdir(parents=True)
        first.with_name(f"{first.name}.log").touch()
        (first / "summary.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(processes, "run", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            comparison.compare(design, tmp_path / "out", side_by_side=1)
    assert began == [["sac/seed-0", "sac/seed-1", "sac/seed-2"], ["sac/seed-1", "sac/seed-2"]]


@contextlib.contextmanager
def disk_of(size: int, directory: Path):
    """A file system of so many bytes, where tests may mount one."""
    directory.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory)]
    if shutil.which("mount") is None or subprocess.run(options, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_18b_on_a_full_disk_the_last_good_state_stays(tmp_path):
    """ray #24918: a full disk took with it what had been written before."""
    disk = tmp_path / "disk"
    with disk_of(400_000, disk):
        record(disk / "run", 1)
        _, run, _ = recording.resume(disk / "run", "Clock-v0", "none", {"real_episodes": 2})
        run.close()
        filling = disk / "filling"
        with filling.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for _ in range(2):
            with (
                hostile.bounded(60, 1000),
                pytest.raises(UsageError, match=r"No space left .*state .* after 10 real steps"),
            ):
                record(disk / "run", 2)
        filling.unlink()
        assert record(disk / "run", 2).state.counts.real_episodes == 2
        assert [row["real_episodes"] for row in read_metrics(disk / "run")] == ["0", "1", "2"]
        assert not list((disk / "run").rglob(f"*{checkpoint.PARTIAL}"))


@contextlib.contextmanager
def no_file_above(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_18c_where_nothing_more_can_be_written_the_last_good_state_stays(tmp_path):
    """The same under a quota."""
    large = dataclasses.replace(SMALL, replay_capacity=20_000)
    record(tmp_path / "run", 1, config=large)
    with (
        no_file_above(200_000),
        pytest.raises(UsageError, match=r"cannot write to .*last good state .* 10 real steps"),
    ):
        record(tmp_path / "run", 2)
    agent = record(tmp_path / "run", 2)
    assert agent.state.counts.real_episodes == 2
    assert not list((tmp_path / "run").rglob(f"*{checkpoint.PARTIAL}"))


def test_19_trainings_are_started_and_not_forked(tmp_path, monkeypatch):
    """jax #18852: a process that was forked after JAX had threads stood still."""
    monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
    program = "import sys; print('jax' in sys.modules)"
    log = tmp_path / "child.log"
    child = processes.Child("child", (sys.executable, "-c", program), log)
    assert processes.run([child], 1, {}, processes.Unwatched()) == {"child": None}
    assert log.read_text() == "False\n"
    (only,) = comparison.planned(
        tmp_path,
        Design("Rail-v0", ("sac",), seeds=1),
        [comparison.agents.agent("sac", Design("Rail-v0"), 10)],
    )
    assert only.command[0] == sys.executable


def test_20_no_file_is_a_pickle(tmp_path, monkeypatch):
    """stable-baselines3 #171 and #2115: pickles that another version could not read."""
    for name in ("dump", "dumps"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("pickled"))
    record(tmp_path / "run", 1)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = {path.name.partition(".")[0] for path in files}
    assert names >= {"config", "metrics", "summary", "policy"}
    for path in files:
        assert not zipfile.is_zipfile(path)
        if path.suffix == ".safetensors":
            assert load_file(path)  # whose length may begin as a pickle does
        else:
            assert path.read_bytes()[:1] != pickle.PROTO
        if path.suffix == ".json":
            json.loads(path.read_text())
