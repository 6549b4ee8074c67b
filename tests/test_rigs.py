"""Rigs: which of them does what when; on Ray itself they are in `test_cluster`."""

import copy
import dataclasses
import json
import random
import signal
import sys

import far
import gymnasium as gym
import jax
import numpy as np
import pytest
from conftest import SMALL
from test_environments import StopAt, same, stored

from dynasac import DynaSAC, UsageError, collecting, recording, rigs, training
from dynasac.agent import Silent
from dynasac.collecting import parts
from dynasac.rigs import Fleet, Lost, Rigs
from dynasac.runs import Run

PLANNED = dataclasses.replace(SMALL, updates_per_real_step=0)
MODEL_FREE = dataclasses.replace(SMALL, random_steps=4)


class InProcess:
    """Rigs in this process, each step a part, in an order that a seed decides."""

    def __init__(self, count, directory, timing=0, config=PLANNED, killed=None, **kinds):
        self.count, self.orders, self.dropped = count, [], []
        self._directory, self._config, self._kinds = directory, config, kinds
        self._timing, self._killed = random.Random(timing), killed or {}
        self._streams, self._given, self._stopped = {}, dict.fromkeys(range(count), 0), False
        self._envs = [self._env(number) for number in range(count)]

    def _env(self, number):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(rigs.NUMBER, str(number))
            return gym.make("TestRig-v0", log=str(self._directory), **self._kinds)

    def order(self, rig, order, actor):
        assert rig not in self._streams
        self.orders.append((rig, order, actor))
        retries = self._config.env_retries
        self._streams[rig] = parts(self._envs[rig], order, actor, retries, lambda: self._stopped)

    def heard(self, seconds):
        """As much as a random time brings."""
        return [self._heard() for _ in range(self._timing.randint(1, 30)) if self._streams]

    def _heard(self):
        rig = self._timing.choice(sorted(self._streams))
        if self._given[rig] == self._killed.get(rig):
            news = Lost("its process ended")
        else:
            try:
                news = next(self._streams[rig], None)
            except UsageError as error:
                news = Lost(str(error))
        if not isinstance(news, collecting.Part):
            del self._streams[rig]
        elif news.rows is not None:
            self._given[rig] += len(news.rows.reward)
        return rig, news

    def drop(self, rig):
        self.dropped.append(rig)

    def stop(self):
        self._stopped = True

    def close(self):
        for env in self._envs:
            env.close()


class StopsPlanning(Silent):
    """Ctrl-C in the middle of a phase of planning, after so many whole ones."""

    def __init__(self, planned):
        self.planned = planned

    def progress(self, state, phase):
        counts = state.counts
        if phase == "plan" and counts.phase_updates and counts.planned == self.planned:
            raise KeyboardInterrupt


@dataclasses.dataclass
class Fake:
    """What `Rigs` is, for rigs in this process."""

    line: InProcess
    in_order: bool = False

    def fleet(self, task, begun):
        return Fleet(self.line, self.in_order, begun)


@pytest.fixture
def by_step(monkeypatch):
    """Every step goes home at once; nobody waits between attempts."""
    monkeypatch.setattr(collecting, "SECONDS_HOME", 0.0)
    monkeypatch.setattr("dynasac.border.time.sleep", lambda seconds: None)


def agent_on(directory, config=PLANNED, model="none", **kinds):
    directory.mkdir(exist_ok=True)
    return DynaSAC(gym.make("TestRig-v0", log=str(directory), **kinds), model, config)


def given_away(directory):
    """The rows of each rig, in order: Float32[steps, 4] by number."""
    return {
        int(file.name.partition("-")[0]): np.array(
            [json.loads(line) for line in file.read_text().splitlines()], np.float32
        )
        for file in directory.iterdir()
    }


def rows_of(agent):
    """As `given_away` has them, in the order of the replay."""
    rows = stored(agent)
    fields = rows.observation[:, 0], 2 * rows.action[:, 0], rows.reward, rows.next_observation[:, 0]
    return np.stack(fields, axis=1)


def all_came_home(agent, directory):
    """Whether the replay holds exactly what was given away, each rig's rows in their order."""
    found, given = rows_of(agent), given_away(directory)
    assert len(found) == sum(map(len, given.values()))
    for rows in given.values():
        at = [np.flatnonzero((found == row).all(axis=1)) for row in rows]
        assert all(len(places) == 1 for places in at)
        assert (np.diff(np.concatenate(at)) > 0).all() if len(rows) > 1 else True
    return True


def test_one_rig_in_order_is_as_good_as_none(tmp_path, by_step):
    config = dataclasses.replace(PLANNED, random_steps=14)
    alone = agent_on(tmp_path / "alone", config).learn(real_episodes=3)
    line = InProcess(1, tmp_path)
    agent = agent_on(tmp_path / "one", config)
    agent.learn(real_episodes=3, rigs=Fake(line, in_order=True))
    same(agent.state, alone.state)
    assert [order.number for _, order, _ in line.orders] == [0, 1, 2]


@pytest.mark.parametrize("config", [PLANNED, MODEL_FREE], ids=["planned", "model-free"])
def test_in_order_no_timing_changes_anything(tmp_path, by_step, config):
    states = []
    for timing in range(3):
        line = InProcess(3, tmp_path, timing)
        agent = agent_on(tmp_path / "log", config)
        agent.learn(real_episodes=7, rigs=Fake(line, in_order=True))
        states.append(agent.state)
        assert [(rig, order.number) for rig, order, _ in line.orders] == [
            (number % 3, number) for number in range(7)
        ]
        assert agent.state.counts.planned == 8  # one phase before and one after each
        snapshots = [jax.tree.leaves(actor)[0].tobytes() for _, _, actor in line.orders]
        assert len(set(snapshots)) == 5  # the first three have the same
    for state in states[1:]:
        same(state, states[0])
    counts = states[0].counts
    assert (counts.real_episodes, counts.real_steps) == (7, 70)
    if config is MODEL_FREE:
        assert counts.gradient_updates == 70 - 4 + 6 + 7 * 4


def test_otherwise_what_has_arrived_is_taken(tmp_path, by_step):
    for timing in range(3):
        place = tmp_path / str(timing)
        agent = agent_on(place)
        line = InProcess(3, place, timing)
        agent.learn(real_episodes=7, rigs=Fake(line))
        assert agent.state.counts.real_episodes == 7
        assert [order.number for _, order, _ in line.orders] == list(range(7))
        assert all_came_home(agent, place)
        assert agent.state.counts.planned < 8  # more than one at a time


def test_at_least_so_many_steps(tmp_path, by_step):
    line = InProcess(3, tmp_path)
    agent = agent_on(tmp_path).learn(41, rigs=Fake(line))
    assert agent.state.counts.real_steps == 50 == 10 * len(line.orders)


def test_a_rig_that_dies_is_dropped_and_its_data_are_kept(tmp_path, by_step, caplog):
    states = []
    for timing in range(2):
        caplog.clear()
        place = tmp_path / str(timing)
        agent = agent_on(place)
        line = InProcess(3, place, timing, killed={1: 14})
        agent.learn(real_episodes=8, rigs=Fake(line, in_order=True))
        assert (agent.state.counts.real_episodes, agent.state.counts.real_steps) == (8, 74)
        assert all_came_home(agent, place)
        assert line.dropped == [1]
        assert caplog.messages == [
            "rig 1 is gone, in real episode 5, of which 4 steps are kept (its process ended); "
            "rigs left: 2"
        ]
        states.append(agent.state)
    same(*states)


def test_an_environment_that_fails_is_begun_again_and_then_given_up(tmp_path, by_step, caplog):
    config = dataclasses.replace(PLANNED, env_retries=2)
    agent = agent_on(tmp_path, config)
    line = InProcess(2, tmp_path, config=config, fails=0)
    agent.learn(real_episodes=3, rigs=Fake(line))
    counts = agent.state.counts
    assert (counts.real_episodes, counts.failures, counts.attempts) == (3, 3, 0)
    assert counts.real_steps == 3 * 2 + 2 * 10
    assert all_came_home(agent, tmp_path)
    said = "the environment failed (real episode 1, step 2): RuntimeError: the motor is hot"
    told = [message for message in caplog.messages if message.startswith("rig 0")]
    assert told == [
        f"rig 0: {said}; begun again",
        f"rig 0: {said}; begun again",
        f"rig 0 is gone, in real episode 1, of which 6 steps are kept ({said}); rigs left: 1",
    ]


def test_nothing_is_moved_again_once_it_is_to_stop(tmp_path, by_step):
    agent = agent_on(tmp_path, fails=9)
    stopped, sent = [], []
    order = training._order(agent.task, agent.state, 0)
    for part in parts(agent.env, order, agent.state.sac.actor, 5, lambda: bool(stopped)):
        sent.append(part)
        if part.failure:
            stopped.append(True)
    assert len([part for part in sent if part.failure]) == 1


def test_an_episode_without_a_step_is_none(tmp_path, by_step):
    line = InProcess(3, tmp_path, killed={0: 0, 2: 10})
    agent = agent_on(tmp_path).learn(real_episodes=5, rigs=Fake(line))
    assert (agent.state.counts.real_episodes, agent.state.counts.real_steps) == (5, 50)
    numbers = [order.number for _, order, _ in line.orders]
    assert numbers == list(range(len(numbers)))
    assert set(line.dropped) == {0, 2}


def test_when_all_are_gone_everything_is_kept(tmp_path, by_step):
    for in_order in (False, True):
        place = tmp_path / str(in_order)
        agent = agent_on(place)
        line = InProcess(2, place, killed={0: 13, 1: 25})
        with pytest.raises(UsageError) as error:
            agent.learn(real_episodes=9, rigs=Fake(line, in_order))
        assert str(error.value) == (
            "no rig is left (the last, rig 1: its process ended); what was learned is kept: put "
            "them right, then go on"
        )
        counts = agent.state.counts
        assert (counts.real_steps, counts.real_episodes) == (38, 5)
        assert all_came_home(agent, place)
        agent.learn(real_episodes=7, rigs=Fake(InProcess(2, place)))
        assert agent.state.counts.real_episodes == 7
        assert all_came_home(agent, place)


def test_what_was_under_way_comes_home_when_training_is_interrupted(tmp_path, by_step):
    agent = agent_on(tmp_path)
    line = InProcess(3, tmp_path, timing=1)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=9, observer=StopsPlanning(2), rigs=Fake(line))
    assert agent.state.counts.real_steps > 10 * agent.state.counts.planned
    assert all_came_home(agent, tmp_path)
    agent.learn(real_episodes=9, rigs=Fake(InProcess(3, tmp_path)))
    assert agent.state.counts.real_episodes == 9
    assert all_came_home(agent, tmp_path)


def test_what_comes_home_in_a_phase_of_planning_begins_that_anew(tmp_path, by_step):
    agent = agent_on(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=1, observer=StopsPlanning(0))
    state, task = agent.state, agent.task
    order = training._order(task, state, 0)
    episode = list(parts(agent.env, order, state.sac.actor, 0, lambda: False))
    after = training.take_in(task, state, [episode], Silent())
    assert after.counts.real_episodes == 1
    assert after.counts.phase_updates == 0
    assert training._same(after.sac, state.earlier)
    assert training._same(after.earlier, state.earlier)


def test_a_run_that_is_stopped_keeps_what_was_under_way(tmp_path, by_step):
    def stop(row):
        if row["real_episodes"]:
            signal.raise_signal(signal.SIGINT)

    place, config = tmp_path / "log", dataclasses.replace(PLANNED, real_episodes=9)
    agent, line = agent_on(place, config), InProcess(3, place)
    run = Run.create(tmp_path / "run", recording.asked_for(agent, "none", "default"))
    with pytest.raises(recording.Interrupted):
        recording.record_training(agent, run, 0, False, watch=stop, rigs=Fake(line))
    assert all_came_home(agent, place)
    again = agent_on(place, config)
    again.load_checkpoint(tmp_path / "run" / "checkpoints")
    same(again.state, agent.state)
    assert agent.state.counts.real_episodes == len(line.orders) > agent.state.counts.planned - 1


def test_an_episode_that_was_begun_here_ends_where_rigs_take_over(tmp_path, by_step):
    agent = agent_on(tmp_path, dataclasses.replace(PLANNED, checkpoint_every_steps=1))
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=StopAt(0, 6))
    agent.learn(real_episodes=3, rigs=Fake(InProcess(2, tmp_path)))
    assert (agent.state.counts.real_episodes, agent.state.counts.real_steps) == (3, 26)
    assert all_came_home(agent, tmp_path)


def test_rigs_that_cannot_be(tmp_path, monkeypatch):
    agent = agent_on(tmp_path)
    with pytest.raises(UsageError, match="--rigs 0: from 1 to 1,000"):
        agent.learn(real_episodes=1, rigs=Rigs(0))
    bare = DynaSAC(far.Rig(str(tmp_path)), "none", PLANNED)
    with pytest.raises(UsageError, match="register yours"):
        bare.learn(real_episodes=1, rigs=Rigs(1))
    monkeypatch.setitem(sys.modules, "ray", None)
    missing = r"needs Ray: install it with pip install 'dynasac\[scale\]'"
    with pytest.raises(UsageError, match=missing):
        agent.learn(real_episodes=1, rigs=Rigs(1))
    agent.learn(real_episodes=1)  # as before


class Otherwise(far.Rig):
    observation_space = gym.spaces.Box(-2.0, 2.0, (1,))


@pytest.mark.parametrize(
    ("seconds", "change", "told"),
    [
        (0.3, {"kwargs": {"hangs": [9, 4]}}, "step 3.*no answer within 0.3 s"),
        (None, {"entry_point": Otherwise}, "observation_space is not what training began with"),
        (None, {"kwargs": {"colour": 1}}, "its environment cannot be made: TypeError.*colour"),
    ],
)
def test_what_a_rig_cannot_do_is_told_and_its_environment_closed(tmp_path, seconds, change, told):
    agent = agent_on(tmp_path)
    spec = copy.deepcopy(agent.env.spec)
    spec.kwargs.update(change.pop("kwargs", {}))
    one = rigs._Rig(dataclasses.replace(spec, **change), seconds, 0)
    one.warm()
    order = training._order(agent.task, agent.state, 0)
    with pytest.raises(UsageError, match=told):
        list(one.episode(order, agent.state.sac.actor))
    assert one._env is None
