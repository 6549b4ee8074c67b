"""Real environments as they are: interrupted, failing, hanging and returning what they must not."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import ClassVar

import gymnasium as gym
import jax
import numpy as np
import probes
import pytest
from conftest import SMALL

from dynasac import DynaSAC, StartWeights, UsageError, border, evaluation
from dynasac.adapt.explore import explore
from dynasac.agent import Silent
from dynasac.cli.words import worth
from dynasac.presets import from_plain
from dynasac.spaces import spaces_of


def stored(agent):
    """The rows that the replay holds, oldest first up to where it has wrapped."""
    size = int(agent.state.replay.size)
    return jax.tree.map(lambda ring: np.asarray(ring[:size]), agent.state.replay.transitions)


def made(env, steps=10):
    """With a time limit, as gymnasium.make leaves it."""
    return gym.wrappers.TimeLimit(env, steps)


class Rail(probes.Probe):
    """A position that the action moves a little, from a start that the seed decides."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.5, 0.5, 1)
        return self.position.astype(np.float32), {}

    def step(self, action):
        self.position = 0.9 * self.position + 0.04 * action
        reward = -float(self.position[0] ** 2)
        return self.position.astype(np.float32), reward, False, False, {}


class Unseeded(Rail):
    """Begins elsewhere each time, as real systems do."""

    def __init__(self):
        self.begun = 0

    def reset(self, *, seed=None, options=None):
        self.begun += 1
        return super().reset(seed=self.begun)


class Odd(Rail):
    """Returns at its third step, or when it is reset, what `change` makes of what it should."""

    def __init__(self, change, at=3):
        self.change, self.at = change, at

    def reset(self, *, seed=None, options=None):
        self.time = 0
        found = super().reset(seed=seed)
        return self.change(*found) if self.at == 0 else found

    def step(self, action):
        self.time += 1
        found = super().step(action)
        return self.change(*found) if self.time == self.at else found


def replaced(index, value):
    def change(*found):
        return (*found[:index], value, *found[index + 1 :])

    return change


class StopAt(Silent):
    """Interrupts when so many steps of a real episode are kept; remembers all states."""

    def __init__(self, episode: int = -1, steps: int = -1):
        self.at, self.seen = (episode, steps), []

    def progress(self, state, phase):
        self.seen.append((state.counts.real_episodes, state.counts.episode_steps))
        if self.seen[-1] == self.at:
            raise KeyboardInterrupt


QUICK = dataclasses.replace(SMALL.ensemble, updates=5, members=3, hidden=(4,))
STARTS = StartWeights(replay=1.0, space=1.0, visited=0.0)
KEPT = dataclasses.replace(SMALL, checkpoint_every_steps=1)
WAYS = {
    "model-free": ("none", dataclasses.replace(KEPT, random_steps=4)),
    "model": (probes.Slide(), KEPT),
    "wrapped": ("none", dataclasses.replace(KEPT, replay_capacity=13)),
    "ensemble": (
        "ensemble",
        dataclasses.replace(
            KEPT,
            adapt="ensemble",
            ensemble=QUICK,
            planning=dataclasses.replace(SMALL.planning, starts=STARTS),
        ),
    ),
}
"""model and settings"""


def same(ours, theirs):

    assert ours.counts == theirs.counts
    assert ours.adaptation.sentence == theirs.adaptation.sentence
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("way", WAYS)
def test_an_episode_that_was_interrupted_is_gone_on_with_to_the_same_bytes(way):
    model, config = WAYS[way]
    whole = DynaSAC(made(Rail()), model, config).learn(real_episodes=2)
    often = dataclasses.replace(config, checkpoint_every_steps=0)
    same(DynaSAC(made(Rail()), model, often).learn(real_episodes=2).state, whole.state)
    for episode, steps in [(0, 1), (0, 5), (0, 9), (0, 10), (1, 1), (1, 4), (1, 10)]:
        agent = DynaSAC(made(Rail()), model, config)
        with pytest.raises(KeyboardInterrupt):
            agent.learn(real_episodes=2, observer=StopAt(episode, steps))
        assert agent.state.counts.real_steps == 10 * episode + steps
        agent.learn(real_episodes=2)
        same(agent.state, whole.state)


def test_an_episode_is_interrupted_more_than_once():
    whole = DynaSAC(made(Rail()), "none", KEPT).learn(real_episodes=1)
    agent = DynaSAC(made(Rail()), "none", KEPT)
    for steps in range(1, 11):
        with pytest.raises(KeyboardInterrupt):
            agent.learn(1, observer=StopAt(0, steps))
        assert agent.state.counts.episode_steps == steps
    agent.learn(1)  # of which more than one are there already: the episode is gone on with
    same(agent.state, whole.state)


def test_an_episode_is_gone_on_with_from_a_checkpoint(tmp_path):
    model, config = WAYS["model-free"]
    whole = DynaSAC(made(Rail()), model, config).learn(real_episodes=2)
    agent = DynaSAC(made(Rail()), model, config)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=StopAt(1, 6))
    agent.save_checkpoint(tmp_path / "checkpoints")
    fresh = DynaSAC(made(Rail()), model, config)
    fresh.load_checkpoint(tmp_path / "checkpoints")
    same(fresh.learn(real_episodes=2).state, whole.state)


def test_what_is_kept_of_an_episode_does_not_change_any_more():
    class Keep(Silent):
        def __init__(self):
            self.kept = []

        def progress(self, state, phase):
            self.kept.append(state)

    keep = Keep()
    config = dataclasses.replace(KEPT, checkpoint_every_steps=4)
    agent = DynaSAC(made(Rail(), 12), "none", config).learn(real_episodes=1, observer=keep)
    rows = stored(agent)
    told = [s for s in keep.kept if s.counts.episode_steps]
    assert [s.counts.episode_steps for s in told] == [4, 8, 8, 12]  # a look after 11 sees the last
    for state in told:
        steps = state.counts.episode_steps
        assert int(state.replay.size) == steps == state.counts.real_steps
        np.testing.assert_array_equal(state.replay.transitions.reward[:steps], rows.reward[:steps])
        assert state.train_return == pytest.approx(rows.reward[:steps].sum(), rel=1e-5)


@pytest.mark.parametrize("way", ["model-free", "ensemble"])
def test_where_seeds_are_ignored_an_interrupted_episode_ends_where_it_was(way):
    model, config = WAYS[way]
    agent = DynaSAC(made(Unseeded()), model, config)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=StopAt(0, 7))
    before = stored(agent)
    agent.learn(real_episodes=2)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps, counts.episode_steps) == (2, 17, 0)
    rows = stored(agent)
    assert len(rows.reward) == 17
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:7], b), rows, before)


def test_an_environment_that_goes_another_way_on_the_way():
    class Worn(Rail):
        """Moves less each time it is used, from the same start."""

        used = 0

        def step(self, action):
            self.used += 1
            return super().step(action * (1 if self.used < 9 else 0.5))

    agent = DynaSAC(made(Worn()), "none", KEPT)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=1, observer=StopAt(0, 6))
    agent.learn(real_episodes=1)
    assert agent.state.counts.real_steps == 6
    assert not stored(agent).terminated.any()


def test_logged_transitions_end_the_episode_under_way():
    agent = DynaSAC(made(Rail()), "none", KEPT)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=StopAt(0, 3))
    logged = jax.tree.map(lambda ring: ring[:2], agent.state.replay.transitions)
    agent.remember(logged).learn(real_episodes=2)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps, counts.logged_transitions) == (2, 13, 2)


ODD_STEPS = {
    "observation of shape (2,)": replaced(0, np.zeros(2)),
    "observation of shape ()": replaced(0, 0.5),
    "observation of shape (1, 1)": replaced(0, np.zeros((1, 1), np.float32)),
    "an observation that is no numbers": replaced(0, np.array([None])),
    "an observation that is no numbers ": replaced(0, ["high"]),
    "an observation that is no numbers  ": replaced(0, [[1.0], [1.0, 2.0]]),
    "non-finite observation": replaced(0, np.array([np.nan])),
    "inf at [0]": replaced(0, np.array([1e300])),
    "the reward nan": replaced(1, float("nan")),
    "the reward inf": replaced(1, 1e300),
    "a reward of shape (2,)": replaced(1, np.zeros(2)),
    "a reward that is no numbers": replaced(1, None),
    "terminated as a int": replaced(2, 1),
    "terminated as a NoneType": replaced(2, None),
    "truncated as a str": replaced(3, "no"),
    "4 values": lambda o, r, terminated, truncated, info: (o, r, terminated, info),
    "a list": lambda *found: list(found),
    "a NoneType": lambda *found: None,
}
"""by what is told of them"""


@pytest.mark.parametrize("told", ODD_STEPS)
def test_a_step_that_returns_what_it_must_not_is_named_and_nothing_before_is_lost(told):
    def odd():
        env = Odd(ODD_STEPS[told])
        env.spec = gym.envs.registration.EnvSpec("Odd-v0", entry_point=odd, max_episode_steps=10)
        return env

    agent = DynaSAC(odd(), "none", dataclasses.replace(SMALL, updates_per_real_step=0))
    with pytest.raises(UsageError) as error:
        agent.learn(real_episodes=1)
    said = str(error.value)
    assert told.strip() in said
    assert "(real episode 1, step 2)" in said
    assert "\n" not in said
    assert len(stored(agent).reward) == agent.state.counts.real_steps == 2
    policy = lambda observations: np.zeros((len(observations), 1), np.float32)  # noqa: E731
    with pytest.raises(UsageError, match=r"\(evaluation episode 0, step 2\)"):
        evaluation.evaluate(policy, odd, 2, 10)
    with pytest.raises(UsageError, match=r"\(episode from seed 5, step 2\)"):
        list(evaluation.episode(policy, odd(), 10, 5))


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("observation of shape (3,)", replaced(0, np.zeros(3))),
        ("non-finite observation", replaced(0, np.array([-np.inf]))),
        ("a ndarray (real episode 1, reset): it must return (observation, info)", lambda o, _: o),
    ],
)
def test_a_reset_that_returns_what_it_must_not(told, change):
    with pytest.raises(UsageError) as error:
        DynaSAC(Odd(change, at=0), "none", SMALL).learn(real_episodes=1)
    assert told in str(error.value)
    assert "(real episode 1, reset)" in str(error.value)


def test_a_reset_that_takes_no_seed_or_options():
    class Old(Rail):
        def reset(self):
            return super().reset()

    class Half(Rail):
        def reset(self, *, seed=None):
            return super().reset(seed=seed)

    with pytest.raises(UsageError, match=r"reset takes no options \(real episode 1, reset\)"):
        DynaSAC(made(Half()), "none", SMALL).learn(real_episodes=1)
    with pytest.raises(
        UsageError, match=r"reset takes no seed \(real episode 1, reset\): write def"
    ):
        DynaSAC(Old(), "none", SMALL).learn(real_episodes=1)


def test_one_number_in_an_array_is_a_reward_and_numpys_truth_is_truth():
    change = lambda o, *_: (o.astype(np.float64), np.array([2.5]), np.False_, np.True_, {})  # noqa: E731
    agent = DynaSAC(Odd(change), "none", SMALL).learn(real_episodes=1)
    assert stored(agent).reward[-1] == 2.5
    assert agent.state.counts.real_steps == 3


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("action_space", gym.spaces.Box(-3.0, 3.0, (1,))),
        ("observation_space", gym.spaces.Box(-1.0, 9.0, (1,))),
        ("observation_space", gym.spaces.Box(-np.inf, np.inf, (1,))),
    ],
)
def test_spaces_that_change(name, space):
    class Changing(Rail):
        begun = 0

        def reset(self, *, seed=None, options=None):
            self.begun += 1
            if self.begun == 2:
                setattr(self, name, space)
            return super().reset(seed=seed)

    agent = DynaSAC(made(Changing()), "none", dataclasses.replace(SMALL, updates_per_real_step=0))
    with pytest.raises(UsageError, match=rf"{name} is not what .* \(real episode 2\)"):
        agent.learn(real_episodes=2)
    assert agent.state.counts.real_episodes == 1


class Reused(probes.Probe):
    """Returns the same array each time, writes into it later, and into the actions it is given."""

    def reset(self, *, seed=None, options=None):
        self.shown = getattr(self, "shown", np.zeros(1, np.float32))
        self.shown[:] = 0
        return self.shown, {}

    def step(self, action):
        self.shown += 0.0625
        action *= 0
        return self.shown, float(self.shown[0]), False, False, {}


def test_an_environment_that_writes_into_the_arrays_it_returned():
    env = made(Reused(), 16)
    agent = DynaSAC(env, "none", SMALL).learn(real_episodes=2)
    rows, expected = stored(agent), np.tile(np.arange(16, dtype=np.float32) / 16, 2)
    np.testing.assert_array_equal(rows.observation[:, 0], expected)
    np.testing.assert_array_equal(rows.next_observation[:, 0], expected + 0.0625)
    assert (rows.action != 0).all()
    seen = []

    def policy(observations):
        seen.append(observations)
        return np.ones((len(observations), 1), np.float32)

    steps = list(evaluation.episode(policy, env, 16, 0))
    assert [float(step.observation[0]) for step in steps] == expected[:16].tolist()
    assert [float(step.action[0]) for step in steps] == [1.0] * 16
    seen.clear()
    evaluation.evaluate(policy, Reused, 2, 16)
    assert [batch[1, 0] for batch in seen] == expected[:16].tolist()


class Failing(Rail):
    """Raises at the steps of its life that are given, or at resets, which are steps too."""

    def __init__(self, *at, error=None):
        self.at, self.error = at, error or RuntimeError("the cable\ncame off")
        self.life, self.seeds = 0, []

    def lived(self):
        self.life += 1
        if self.life in self.at:
            raise self.error

    def reset(self, *, seed=None, options=None):
        self.lived()
        self.seeds.append(seed)
        return super().reset(seed=seed)

    def step(self, action):
        self.lived()
        return super().step(action)


def test_what_was_collected_before_a_failure_is_kept_and_gone_on_from(tmp_path):
    class Watch(Silent):
        def progress(self, state, phase):
            self.last = state, phase

    watch, env = Watch(), Failing(16)  # the fourth step of the second episode
    agent = DynaSAC(made(env), "none", SMALL)
    with pytest.raises(UsageError) as error:
        agent.learn(real_episodes=2, observer=watch)
    assert str(error.value) == (
        "the environment failed (real episode 2, step 3): RuntimeError: the cable"
    )
    state, phase = watch.last
    assert phase == "collect"
    counts = state.counts
    assert (counts.real_episodes, counts.real_steps, counts.episode_steps) == (1, 13, 0)
    assert counts.failures == counts.attempts == 1
    assert int(state.replay.size) == 13
    assert agent.state is state
    agent.learn(real_episodes=2)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps, counts.attempts) == (2, 23, 0)
    assert len(set(env.seeds)) == 3


def test_a_failing_episode_is_begun_again_as_often_as_asked():
    config = dataclasses.replace(KEPT, env_retries=2)
    env = Failing(5, 6)  # the fourth step, then the reset after it
    agent = DynaSAC(made(env), "none", config).learn(real_episodes=1)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps, counts.attempts) == (1, 13, 0)
    assert len(stored(agent).reward) == 13
    again = DynaSAC(made(Failing(5, 6)), "none", config).learn(real_episodes=1)
    same(again.state, agent.state)
    agent = DynaSAC(made(Failing(5, 6, 8)), "none", config)
    with pytest.raises(UsageError, match="real episode 1, step 0"):
        agent.learn(real_episodes=1)
    assert agent.state.counts.failures == 3


def test_an_attempt_that_was_interrupted_is_gone_on_with():
    config = dataclasses.replace(KEPT, env_retries=1)
    whole = DynaSAC(made(Failing(5)), "none", config).learn(real_episodes=2)
    agent = DynaSAC(made(Failing(5)), "none", config)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=StopAt(0, 4))  # only the second attempt gets there
    agent.learn(real_episodes=2)
    same(agent.state, whole.state)


def test_a_failure_while_catching_up():
    agent = DynaSAC(made(Failing(9)), "none", dataclasses.replace(KEPT, env_retries=1))
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=1, observer=StopAt(0, 5))
    agent.learn(real_episodes=1)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps, counts.attempts) == (1, 15, 0)


def test_the_keyboard_is_no_failure():
    config = dataclasses.replace(KEPT, env_retries=5)
    agent = DynaSAC(made(Failing(4, error=KeyboardInterrupt())), "none", config)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=1)
    assert agent.state.counts.episode_steps == 2
    assert agent.learn(real_episodes=1).state.counts.real_steps == 10


def test_an_observer_that_fails_is_no_failure_of_the_environment():
    class Full(Silent):
        def progress(self, state, phase):
            if state.counts.episode_steps == 3:
                raise UsageError("the disk is full")

    agent = DynaSAC(made(Rail()), "none", dataclasses.replace(KEPT, env_retries=5))
    with pytest.raises(UsageError, match="disk"):
        agent.learn(real_episodes=1, observer=Full())
    assert agent.state.counts.failures == 0


class Brief(Rail):
    """Over at its first step, wherever it begins."""

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, True, False, {}


@pytest.mark.parametrize("way", WAYS)
def test_episodes_that_end_at_once(way):
    model, config = WAYS[way]
    agent = DynaSAC(made(Brief()), model, config).learn(real_episodes=4)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps, counts.episode_steps) == (4, 4, 0)
    assert stored(agent).terminated.all()
    found = evaluation.evaluate(lambda o: np.zeros_like(o), Brief, 3, 10)
    assert len(found.returns) == 3
    stopped = DynaSAC(made(Brief()), model, config)
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(real_episodes=4, observer=StopAt(2, 1))
    same(stopped.learn(real_episodes=4).state, agent.state)


def test_evaluation_tells_of_seeds_that_are_ignored():
    class Shuffled(Rail):
        begun = 0

        def reset(self, *, seed=None, options=None):
            Shuffled.begun += 1
            return super().reset(seed=Shuffled.begun)

    zeros = lambda observations: np.zeros_like(observations)  # noqa: E731
    found = evaluation.evaluate(zeros, Shuffled, 2, 5)
    assert found.unseeded.startswith("two resets with the same seed began differently")
    assert found.unseeded in worth("Shuffled-v0", found, None).splitlines()[1]
    seeded = evaluation.evaluate(zeros, Rail, 2, 5)
    assert seeded.unseeded == ""
    assert "\n" not in worth("Rail-v0", seeded, None)


class Hanging(Rail):
    """The first of them that gets to its fourth step never answers; tells of all threads."""

    hung = 0
    threads: ClassVar[list[str]] = []

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return super().reset(seed=seed)

    def step(self, action):
        self.threads.append(threading.current_thread().name)
        self.time += 1
        if self.time == 4 and not Hanging.hung:
            Hanging.hung += 1
            threading.Event().wait()
        return super().step(action)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(Hanging, "hung", 0)
    monkeypatch.setattr(Hanging, "threads", [])
    gym.register("Hanging-v0", entry_point=Hanging, max_episode_steps=10)
    yield "Hanging-v0"
    del gym.registry["Hanging-v0"]


LIMITED = dataclasses.replace(SMALL, updates_per_real_step=0, step_seconds=1.0)


def test_an_environment_that_hangs_is_made_anew(hanging):
    config = dataclasses.replace(LIMITED, env_retries=1)
    agent = DynaSAC(hanging, "none", config).learn(real_episodes=2)
    counts = agent.state.counts
    assert (counts.real_episodes, counts.real_steps) == (2, 23)
    first, second = Hanging.threads[:4], Hanging.threads[4:]
    assert len(set(first)) == len(set(second)) == 1
    assert {*first, *second}.isdisjoint({"MainThread"})
    assert first[0] != second[0]


def test_an_environment_that_hangs_is_closed_once_it_answers():
    class Late(Rail):
        answer, closed = threading.Event(), threading.Event()

        def step(self, action):
            self.answer.wait()
            return super().step(action)

        def close(self):
            self.closed.set()

    env = border.Timed(gym.wrappers.TimeLimit(Late(), 10), 0.1)
    border.reset(env, 0, "here")
    with pytest.raises(border.Unusable):
        border.step(env, np.zeros(1), "here", (1,))
    env.close()  # which does not wait
    assert not Late.closed.is_set()
    Late.answer.set()
    assert Late.closed.wait(10)


def test_an_environment_is_closed_where_it_was_used():
    class Motor(Rail):
        closed: ClassVar[list[str]] = []

        def close(self):
            self.closed.append(threading.current_thread().name)

    for config in (SMALL, LIMITED):
        DynaSAC(made(Motor()), "none", config).learn(real_episodes=1).close()
    assert Motor.closed[0] == "MainThread" != Motor.closed[1]
    assert len(Motor.closed) == 2


def test_an_environment_that_hangs_is_told_of_and_can_be_gone_on_with(hanging):
    agent = DynaSAC(hanging, "none", LIMITED)
    with pytest.raises(UsageError) as error:
        agent.learn(real_episodes=1)
    assert str(error.value) == (
        "the environment failed (real episode 1, step 3): TimeoutError: no answer within 1 s"
    )
    assert len(stored(agent).reward) == 3
    assert agent.learn(real_episodes=1).state.counts.real_steps == 13


def test_an_environment_that_hangs_and_cannot_be_made_anew(hanging):
    agent = DynaSAC(made(Hanging()), "none", dataclasses.replace(LIMITED, env_retries=9))
    for _ in range(2):
        with pytest.raises(UsageError, match=r"within 1 s and cannot be made anew: make it by"):
            agent.learn(real_episodes=1)
    assert len(stored(agent).reward) == 3
    assert agent.state.counts.failures == 2


def test_a_limit_changes_nothing_else():
    free = DynaSAC(made(Rail()), "none", SMALL).learn(real_episodes=1)
    limited = dataclasses.replace(SMALL, step_seconds=60.0)
    same(DynaSAC(made(Rail()), "none", limited).learn(real_episodes=1).state, free.state)
    with pytest.raises(UsageError, match="RuntimeError: the cable"):
        DynaSAC(made(Failing(4)), "none", limited).learn(real_episodes=1)
    with pytest.raises(KeyboardInterrupt):
        DynaSAC(made(Failing(4, error=KeyboardInterrupt())), "none", limited).learn(real_episodes=1)


def test_threads_are_there_for_a_limit_alone_and_end_with_the_environment():
    before = set(threading.enumerate())  # those of earlier tests may end at any moment

    def ours():
        return {t for t in threading.enumerate() if t.name.endswith("(_serve)")} - before

    agent = DynaSAC(made(Rail()), "none", SMALL).learn(real_episodes=1)
    assert not ours()
    agent = DynaSAC(made(Rail()), "none", LIMITED).learn(real_episodes=1)
    (thread,) = ours()
    del agent
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_an_answer_that_comes_late_is_not_the_next_ones():
    class Slow(Rail):
        def reset(self, *, seed=None, options=None):
            self.time = 0
            return super().reset(seed=seed)

        def step(self, action):
            self.time += 1
            if self.time == 1:
                main = threading.main_thread().ident
                signal.pthread_kill(main, signal.SIGINT)  # which interrupts the wait for us
                time.sleep(0.3)
            return np.full(1, self.time / 10, np.float32), float(self.time), False, False, {}

    env = border.Timed(Slow(), 60.0)
    border.reset(env, 0, "here")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            border.step(env, np.zeros(1), "here", (1,))
    finally:
        signal.signal(signal.SIGINT, before)
    assert border.step(env, np.zeros(1), "here", (1,)).reward == 2


def test_an_environment_that_hangs_does_not_hold_up_the_end_of_the_program():
    program = """
import threading, probes
from dynasac import border
class Stuck(probes.Clock):
    def step(self, action):
        threading.Event().wait()
env = border.Timed(Stuck(), 0.1)
border.reset(env, 0, "here")
try:
    border.step(env, None, "here", (1,))
except border.Unusable:
    print("told")
"""
    ran = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=False,
    )
    assert ran.stdout == "told\n", ran.stderr
    assert ran.returncode == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"env_retries": -1}, "--env-retries -1: must be at least 0"),
        ({"checkpoint_every_steps": -1}, "--checkpoint-every-steps -1: must be at least 0"),
        ({"step_seconds": 0.0}, "--step-seconds 0.0: must be more than 0"),
    ],
)
def test_settings_that_make_no_sense(given, told):
    with pytest.raises(UsageError, match=told):
        DynaSAC(Rail(), "none", dataclasses.replace(SMALL, **given))


def test_settings_are_read_as_they_were_written():
    for config in (SMALL, LIMITED, dataclasses.replace(KEPT, env_retries=3)):
        assert from_plain(json.loads(json.dumps(dataclasses.asdict(config)))) == config


@pytest.fixture
def quick(monkeypatch):
    """No pauses; how long they would have been."""
    pauses: list[float] = []
    monkeypatch.setattr(border.time, "sleep", pauses.append)
    return pauses


def zeros(observations):
    return np.zeros((len(observations), 1), np.float32)


def test_pauses_between_attempts_grow(quick, caplog):
    error = border.Failure("the motor is hot")
    for failed in range(8):
        border.begin_again(error, failed, 8)
    assert quick == [0, 1, 2, 4, 8, 16, 30, 30]
    assert caplog.messages[0] == "the motor is hot; begun again, retry 1 of 8"
    assert caplog.messages[3] == "the motor is hot; begun again in 4 s, retry 4 of 8"
    with pytest.raises(border.Failure):
        border.begin_again(error, 8, 8)
    with pytest.raises(border.Unusable):
        border.begin_again(border.Unusable("gone"), 0, 8)


def test_evaluations_begin_failed_episodes_again(quick):
    whole = evaluation.evaluate(zeros, Rail, 3, 10)
    made_of = []

    def make():
        made_of.append(Failing(*((1, 4, 9) if len(made_of) == 1 else ())))
        return made_of[-1]

    found = evaluation.evaluate(zeros, make, 3, 10, retries=3)
    assert found.returns == whole.returns
    assert len(quick) == 3
    made_of.clear()
    with pytest.raises(UsageError, match=r"evaluation episode 1, step 3\)"):
        evaluation.evaluate(zeros, make, 3, 10, retries=2)


def test_a_device_that_is_there_once_is_evaluated_in_turn():
    whole = evaluation.evaluate(zeros, Rail, 5, 10)
    devices = []

    def make(there=2):
        if len(devices) == there:
            raise OSError("device or resource busy")
        devices.append(Rail())
        return devices[-1]

    assert evaluation.evaluate(zeros, make, 5, 10).returns == whole.returns
    devices.clear()
    alone = evaluation.evaluate(zeros, lambda: make(0), 5, 10, spare=Rail())
    assert alone.returns == whole.returns
    with pytest.raises(UsageError, match="cannot be made: OSError: device or resource busy"):
        evaluation.evaluate(zeros, lambda: make(0), 5, 10)


def test_what_hangs_in_an_evaluation_is_not_waited_for(hanging):
    config = dataclasses.replace(LIMITED, env_retries=1)
    agent = DynaSAC(hanging, "none", config)
    assert len(agent.evaluate(2).returns) == 2
    Hanging.hung = 0
    with pytest.raises(UsageError, match=r"evaluation episode 0, step 3\): TimeoutError"):
        DynaSAC(hanging, "none", LIMITED).evaluate(1)


class Strange:
    """Fails when it is looked at."""

    def __array__(self, *_, **__):
        raise RuntimeError("on another device")


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("an observation that is no numbers", replaced(0, Strange())),
        ("a reward that is no numbers", replaced(1, Strange())),
        ("terminated as a Strange", replaced(2, Strange())),
    ],
)
def test_objects_that_fail_are_no_numbers(told, change):
    agent = DynaSAC(made(Odd(change)), "none", SMALL)
    with pytest.raises(UsageError, match=rf"{told} .*\(real episode 1, step 2\)"):
        agent.learn(real_episodes=1)
    assert agent.state.counts.real_steps == 2


def test_an_environment_that_wants_to_exit_has_failed():
    class Window(Rail):
        time = 0

        def step(self, action):
            self.time += 1
            if self.time == 4:
                sys.exit(0)
            return super().step(action)

    agent = DynaSAC(made(Window()), "none", SMALL)
    with pytest.raises(UsageError, match=r"asked to exit with 0 \(real episode 1, step 3\)"):
        agent.learn(real_episodes=1)
    assert agent.state.counts.real_steps == 3


def test_observations_that_change_in_mid_episode():
    class Growing(Rail):
        time = 0

        def step(self, action):
            self.time += 1
            found = super().step(action)
            if self.time < 4:
                return found
            self.observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
            return (np.zeros(2, np.float32), *found[1:])

    agent = DynaSAC(made(Growing()), "none", SMALL)
    with pytest.raises(UsageError, match=r"changed from 1 numbers to shape \(2,\) .*step 3\)"):
        agent.learn(real_episodes=1)
    assert agent.state.counts.real_steps == 3
    with pytest.raises(UsageError, match=r"to shape \(2,\) \(evaluation episode 0, step 3\)"):
        evaluation.evaluate(zeros, Growing, 2, 10, retries=2)
    with pytest.raises(UsageError, match=r"to shape \(2,\) \(episode from seed 5, step 3\)"):
        list(evaluation.episode(zeros, Growing(), 10, 5))
    env = made(Growing())
    with pytest.raises(UsageError, match=r"to shape \(2,\) \(exploring, step 3\)"):
        explore(env, probes.Slide(), spaces_of(env), 40, 0)


def test_an_environment_that_cannot_be_closed_is_told_of(caplog):
    class Stuck(Rail):
        def close(self):
            raise OSError("the port\nis gone")

    DynaSAC(made(Stuck()), "none", SMALL).close()
    assert len(evaluation.evaluate(zeros, Stuck, 1, 10).returns) == 1
    said = "the environment could not be closed: OSError: the port"
    assert caplog.messages == [said, said]


def test_checks_begin_failed_episodes_again(quick):

    env = made(Failing(5, 6, 20))
    rows = explore(env, probes.Slide(), spaces_of(env), 40, 0, retries=2)
    assert len(rows.reward) == 40
    assert len(set(env.unwrapped.seeds)) == len(env.unwrapped.seeds)
    env = made(Failing(5, 6, 7))
    with pytest.raises(UsageError, match=r"exploring, step 3, reset\)"):
        explore(env, probes.Slide(), spaces_of(env), 40, 0, retries=2)
