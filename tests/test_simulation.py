"""Planning in a model that runs on the host: what is simulated, kept and begun anew."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL, SMALL_PLANNING, SMALL_SAC

from dynasac import DynaSAC, SACConfig, UsageError, sac, simulation
from dynasac.models import Called, HostModel, HostStep

SPACES = probes.probe_spaces()
CONFIG = dataclasses.replace(SMALL_PLANNING, simulations=4, simulated_transitions=2)


class Rail(HostModel):
    """The state is the observation: half of the action moves it; past 1 the episode is over."""

    observation_size = 1
    action_size = 1
    broken = False

    def reset(self, count, rng):
        states = rng.uniform(0.4, 0.5, (count, 1))
        return states, states.astype(np.float32)

    def step(self, states, actions):
        states = states + 0.5 * actions
        rewards = -(states[:, 0] ** 2)
        if self.broken:
            rewards = np.full(len(states), np.nan)
        return HostStep(states, states.astype(np.float32), rewards, np.abs(states[:, 0]) > 1)

    def state(self, observations):
        return np.asarray(observations, np.float64)


def advanced(model, updates, start=None, seed=0):
    learner = sac.create(SMALL_SAC, SPACES, 1)
    start = start or simulation.create(model, SPACES, CONFIG, 100, 0)
    key = jax.random.key(seed)
    rng = np.random.default_rng(seed)
    return simulation.advance(model, learner, start, updates, CONFIG, SPACES, rng, key)


def test_simulated_episodes_fill_the_replay():
    found = advanced(Rail(), 20)
    assert int(found.replay.size) == 20 * CONFIG.simulated_transitions
    rows = jax.tree.map(lambda a: np.asarray(a)[:40], found.replay.transitions)
    moved = rows.observation + 0.5 * 2 * rows.action
    np.testing.assert_allclose(rows.next_observation, moved, atol=1e-6)
    np.testing.assert_array_equal(rows.terminated, np.abs(rows.next_observation[:, 0]) > 1)
    assert rows.terminated.any()
    # what ended begins anew, what did not goes on
    first, second = rows.next_observation[:4, 0], rows.observation[4:8, 0]
    going = np.abs(first) <= 1
    np.testing.assert_array_equal(first[going], second[going])
    assert ((second[~going] >= 0.4) & (second[~going] <= 0.5)).all()


def test_few_updates_still_take_a_step():
    assert int(advanced(Rail(), 1).replay.size) == 4


def test_episodes_end_at_the_time_limit():
    assert SPACES.episode_steps == 10
    start = simulation.create(Rail(), SPACES, CONFIG, 100, 0)
    assert start.ages.tolist() == [0, 2, 5, 7]
    found = advanced(Rail(), 100, start)
    assert found.ages.max() < 10


def test_a_simulator_that_breaks_is_refused():
    model = Rail()
    start = simulation.create(model, SPACES, CONFIG, 100, 0)
    model.broken = True
    with pytest.raises(
        UsageError, match="no step of Rail gives finite numbers: look at its rewards"
    ):
        advanced(model, 10, start)


ODD = {
    r"step must return a HostStep, not tuple": lambda found: tuple(found),
    r"returned states as float64\[4, 2\]: .* of shape \[4, 1\]": lambda found: found._replace(
        states=np.zeros((4, 2))
    ),
    r"returned observations as float32\[4\]: .* of shape \[4, 1\]": lambda found: found._replace(
        observations=np.zeros(4, np.float32)
    ),
    r"returned rewards as float64\[\]: .* of shape \[4\]": lambda found: found._replace(
        rewards=np.zeros(())
    ),
    r"returned rewards as object\[4\]: they must be numbers": lambda found: found._replace(
        rewards=np.array([None] * 4)
    ),
    r"returned terminated as float64\[4\]: it must be bool\[4\]": lambda found: found._replace(
        terminated=np.zeros(4)
    ),
}
"""what a step returns instead of what it should, by what is told of it"""


@pytest.mark.parametrize("told", ODD)
def test_a_step_that_returns_what_it_must_not_is_named(told):
    class Odd(Rail):
        def step(self, states, actions):
            return ODD[told](super().step(states, actions))

    with pytest.raises(UsageError, match=rf"Odd\.{told}" if "must return" in told else told):
        advanced(Odd(), 10)


def test_the_check_of_a_model_names_it_too():
    class Odd(Rail):
        def step(self, states, actions):
            return super().step(states, actions)._replace(rewards=0.0)

    with pytest.raises(UsageError, match=r"Odd\.step returned rewards as float64\[\]"):
        Called(Odd())


def test_a_reset_that_returns_what_it_must_not_is_named():
    class Odd(Rail):
        found: object = None

        def reset(self, count, rng):
            return self.found

    for found, told in (
        (np.zeros((4, 1)), r"must return a tuple \(states, observations\)"),
        ((np.zeros(4), np.zeros((4, 1))), r"states as float64\[4\]: .* of shape \[4, any\]"),
        ((np.zeros((4, 1)), np.zeros((4, 3))), r"observations as float64\[4, 3\]"),
    ):
        model = Odd()
        model.found = found
        with pytest.raises(UsageError, match=rf"Odd\.reset .*{told}"):
            simulation.create(model, SPACES, CONFIG, 100, 0)


def test_rewards_beyond_single_precision_are_not_kept():
    class Rich(Rail):
        def step(self, states, actions):
            found = super().step(states, actions)
            return found._replace(rewards=1e300 * np.ones(len(states)))

    with pytest.raises(UsageError, match="no step of Rich gives finite numbers: look at its rew"):
        advanced(Rich(), 10)


@pytest.mark.parametrize("method", ["reset", "step"])
def test_a_simulator_that_raises_is_named(method):
    def fail(*_):
        raise ValueError("no contact\nat all")

    model = Rail()
    start = simulation.create(model, SPACES, CONFIG, 100, 0)
    setattr(model, method, fail)
    with pytest.raises(UsageError, match=rf"Rail\.{method} failed: ValueError: no contact"):
        advanced(model, 10, start) if method == "step" else DynaSAC("Rail-v0", model, SMALL)


def test_starts_that_are_no_numbers_are_named():
    class Nowhere(Rail):
        def reset(self, count, rng):
            return np.full((count, 1), np.nan), np.zeros((count, 1), np.float32)

    with pytest.raises(UsageError, match=r"Nowhere\.reset returned states that are not finite"):
        simulation.create(Nowhere(), SPACES, CONFIG, 100, 0)


@pytest.mark.parametrize("found", [np.zeros((3, 1)), np.full((1, 1), np.nan), None])
def test_states_that_cannot_be_are_told_in_the_decision(found):
    class Odd(Rail):
        def state(self, observations):
            if found is None:
                raise ValueError("no such state")
            return np.resize(found, (len(observations) + len(found) - 1, 1))

    config = dataclasses.replace(SMALL, planning=CONFIG, adapt="auto")
    agent = DynaSAC("Rail-v0", Odd(), config).learn(total_timesteps=20)
    assert "the simulator cannot be tried: Odd.state " in agent.state.adaptation.sentence


def test_what_a_simulator_writes_into_is_its_own():
    class Reused(Rail):
        def reset(self, count, rng):
            self.states = np.full((4, 1), 0.4)
            self.shown = np.full((4, 1), 0.4, np.float32)
            return self.states[:count], self.shown[:count]

        def step(self, states, actions):
            found = super().step(states, actions)
            states *= np.nan
            self.states[:], self.shown[:] = found.states, found.observations
            return found._replace(states=self.states, observations=self.shown)

    found, expected = advanced(Reused(), 1), advanced(Rail(), 1)
    rows = found.replay.transitions
    np.testing.assert_allclose(rows.observation[:4], 0.4)
    np.testing.assert_allclose(rows.next_observation[:4] - 0.4, rows.action[:4], atol=1e-6)
    assert int(found.replay.size) == int(expected.replay.size)


def test_the_box_of_what_is_unbounded_is_measured():
    free = SPACES._replace(bounded=(False,))
    found = simulation.visited_box(Rail(), free, 3).observation
    assert -4 < float(found.low[0]) < -0.5
    assert 0.6 < float(found.high[0]) < 4
    assert simulation.visited_box(Rail(), SPACES, 3) is SPACES
    with pytest.raises(UsageError, match="1 observations and 1 actions, the environment 4 and 2"):
        simulation.visited_box(Rail(), probes.probe_spaces(4, 2), 3)


def test_an_agent_plans_in_a_simulator_and_its_checkpoint_goes_on_alike(tmp_path):
    config = dataclasses.replace(SMALL, planning=dataclasses.replace(CONFIG, first_updates=6))
    agent = DynaSAC("Rail-v0", Rail(), config, seed=2)
    agent.learn(real_episodes=0)
    assert agent.state.counts.synthetic_transitions == 6 * SMALL_SAC.batch_size
    agent.save_checkpoint(tmp_path / "checkpoints")
    again = DynaSAC("Rail-v0", Rail(), config, seed=2)
    again.load_checkpoint(tmp_path / "checkpoints")
    np.testing.assert_array_equal(again.state.simulation.states, agent.state.simulation.states)
    assert again.state.simulation.states.dtype == np.float64
    agent.learn(real_episodes=1)
    again.learn(real_episodes=1)
    for ours, theirs in zip(
        jax.tree.leaves(agent.state.sac), jax.tree.leaves(again.state.sac), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(UsageError, match="lookahead needs a model that is equations or learned"):
        agent.predict(np.zeros(1, np.float32), lookahead=1)
    assert np.abs(jnp.asarray(agent.predict(np.zeros(1, np.float32))[0])).max() <= 2


class Cents(probes.Slide):
    def reward(self, state, action, next_state):
        return 100 * super().reward(state, action, next_state)


class Dear(Rail):
    def step(self, states, actions):
        found = super().step(states, actions)
        return found._replace(rewards=np.where(states[:, 0] > 0.5, np.inf, -50.0))


@pytest.mark.parametrize(
    ("model", "scale", "share"),
    [(Rail(), 0.1, 0.0), (Dear(), 0.02, 0.0), (probes.Slide(), 0.2, 0.3), (Cents(), 0.01, 0.3)],
)
def test_the_model_tells_how_large_rewards_are(model, scale, share):
    learner = DynaSAC("Rail-v0", model, dataclasses.replace(SMALL, sac=SACConfig())).config.sac
    assert (learner.reward_scale, learner.advantage_learning) == (scale, share)


@pytest.mark.parametrize(("model", "delta"), [(Rail(), None), (probes.Slide(), 1.0)])
def test_errors_are_squared_where_no_episode_begins_hopelessly(model, delta):
    config = dataclasses.replace(SMALL, sac=dataclasses.replace(SMALL_SAC, huber_delta=1.0))
    assert DynaSAC("Rail-v0", model, config).config.sac.huber_delta == delta
