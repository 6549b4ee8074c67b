"""Simulators as models: a step from a state that was set is the step of the real environment."""

import contextlib
import subprocess
import sys

import gymnasium as gym
import numpy as np
import probes
import pytest

from dynasac import UsageError
from dynasac.models.simulator import HostStep, MujocoModel, SimulatorModel, simulator

CLASSIC = ["Pendulum-v1", "MountainCarContinuous-v0"]
FAST = ["InvertedPendulum-v5", "InvertedDoublePendulum-v5", "Reacher-v5", "Hopper-v5"]


class Spring(probes.Probe):
    """A mass on a spring, only whose position is shown, always in the same array."""

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-0.5, 0.5)
        self.speed = self.np_random.uniform(-0.5, 0.5)
        self.shown = np.zeros(1, np.float32)
        return self.look(), {}

    def look(self):
        self.shown[0] = self.place
        return self.shown

    def step(self, action):
        self.speed += 0.1 * (float(action[0]) - self.place)
        self.place += 0.1 * self.speed
        return self.look(), np.float64(-(self.place**2)), np.abs(self.place) > 0.6, False, {}


class Settable(Spring):
    def get_state(self):
        return [self.place, self.speed]

    def set_state(self, state):
        self.place, self.speed = state
        state[:] = np.nan  # what is done to the argument must not matter


class Open(Settable):
    """Shows all."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def look(self):
        return np.array([self.place, self.speed], np.float32)


class Mirrored(Open):
    """Shows all, in its own way."""

    def look(self):
        return -super().look()

    def state_of(self, observation):
        return -observation


class Forgetful(Settable):
    """`get_state` leaves out the speed."""

    def get_state(self):
        return [self.place]

    def set_state(self, state):
        self.place = state[0]


class Noisy(Settable):
    def step(self, action):
        self.speed += self.np_random.normal()
        return super().step(action)


class Failing(Settable):
    def set_state(self, state):
        raise RuntimeError("the door\nis shut")


def unit_actions(model, count, seed=0):
    space = model.env.action_space
    shape = (count, model.action_size)
    return np.random.default_rng(seed).uniform(space.low, space.high, shape).astype(np.float32)


def test_steps_are_those_of_an_environment_of_ones_own():
    with contextlib.closing(simulator(Settable())) as model:
        assert isinstance(model, SimulatorModel)
        assert (model.observation_size, model.action_size) == (1, 1)
        states, observations = model.reset(50, np.random.default_rng(1))
        assert states.shape == (50, 2)
        assert (states.dtype, observations.dtype) == (np.float64, np.float32)
        assert len(np.unique(observations)) == 50  # copies
        np.testing.assert_array_equal(states[:, :1].astype(np.float32), observations)
        actions = unit_actions(model, 50)
        before = states.copy()
        step = model.step(states, actions)
        np.testing.assert_array_equal(states, before)
        speed = states[:, 1] + 0.1 * (actions[:, 0].astype(float) - states[:, 0])
        place = states[:, 0] + 0.1 * speed
        np.testing.assert_allclose(step.states, np.stack([place, speed], axis=1), rtol=1e-12)
        np.testing.assert_array_equal(step.observations, place[:, None].astype(np.float32))
        np.testing.assert_allclose(step.rewards, -(place**2), rtol=1e-12)
        np.testing.assert_array_equal(step.terminated, np.abs(place) > 0.6)


def test_no_steps_at_all():
    step = SimulatorModel(Settable()).step(np.zeros((0, 2)), np.zeros((0, 1)))
    assert [part.shape for part in step] == [(0, 2), (0, 1), (0,), (0,)]


def test_resets_follow_the_generator():
    model = SimulatorModel(Settable())
    first, again, other = (model.reset(3, np.random.default_rng(k))[0] for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.isclose(first, other).any()


def test_a_clock_is_no_part_of_the_model():
    inner = gym.wrappers.TimeLimit(gym.wrappers.OrderEnforcing(Settable()), 3)
    env = gym.wrappers.TransformReward(gym.wrappers.RescaleAction(inner, -1, 1), lambda r: 10 * r)
    model, plain = SimulatorModel(env), SimulatorModel(Settable())
    states, _ = model.reset(20, np.random.default_rng(1))
    actions = unit_actions(model, 20)
    wrapped, expected = model.step(states, actions), plain.step(states, 2 * actions)
    np.testing.assert_allclose(wrapped.states, expected.states, rtol=1e-6)
    np.testing.assert_allclose(wrapped.rewards, 10 * expected.rewards, rtol=1e-5)
    assert "TimeLimit" not in str(model.env)
    assert SimulatorModel(gym.wrappers.TimeLimit(Settable(), 3)).env is not None


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Spring, r"the state of Spring cannot be set: write get_state\(\) and set_state\(state\)"),
        (Forgetful, r"of Forgetful leads elsewhere: write get_state\(\) and set_state\(state\)"),
        (Noisy, r"of Noisy leads elsewhere"),
        (lambda: gym.wrappers.NormalizeObservation(Settable()), r"leads elsewhere: .* wrappers"),
        (lambda: gym.wrappers.DelayObservation(Settable(), 2), r"leads elsewhere: .* wrappers"),
        (Failing, r"setting the state of Failing fails: RuntimeError: the door$"),
    ],
)
def test_what_cannot_be_set(env, message):
    with pytest.raises(UsageError, match=message) as error:
        simulator(env())
    assert "\n" not in str(error.value)


def test_states_from_observations():
    states = np.random.default_rng(0).uniform(-0.5, 0.5, (5, 2))
    for model, sign in ((SimulatorModel(Open()), 1), (SimulatorModel(Mirrored()), -1)):
        np.testing.assert_array_equal(model.state(sign * states), states)
    hidden = SimulatorModel(Settable())
    with pytest.raises(UsageError, match=r"of Settable cannot be recovered .* state_of"):
        hidden.state(states[:, :1])
    scaled = gym.wrappers.TransformObservation(Open(), lambda o: 2 * o, Open.observation_space)
    with pytest.raises(UsageError, match="cannot be recovered"):
        SimulatorModel(scaled).state(states)


def assert_same(step, expected, tolerance=1e-6):
    observations, rewards, terminated = expected
    np.testing.assert_allclose(step.observations, observations, tolerance, tolerance)
    np.testing.assert_allclose(step.rewards, rewards, tolerance, tolerance)
    np.testing.assert_array_equal(step.terminated, terminated)


def real_walk(env, look, count, seed=0):
    """Uninterrupted episodes under random actions, often pushed on after they ended.

    Returns:
        states [n, s] by `look`, what was observed of them, the actions, and what `step` returned.
    """
    rng = np.random.default_rng(seed)
    space = env.action_space
    seen, _ = env.reset(seed=seed)
    states, shown, actions, results = [], [], [], []
    for _ in range(count):
        action = rng.uniform(space.low, space.high).astype(np.float32)
        states.append(look(env.unwrapped))
        shown.append(np.array(seen, np.float32))
        seen, reward, terminated, _, _ = env.unwrapped.step(action)
        actions.append(action)
        results.append((seen.copy(), reward, terminated))
        if rng.random() < (0.3 if terminated else 0.02):
            seen, _ = env.reset()
    expected = [np.array(part) for part in zip(*results, strict=True)]
    return np.array(states), np.array(shown), np.array(actions), expected


@pytest.mark.parametrize("env_id", CLASSIC)
def test_classic_control(env_id):
    model = simulator(gym.make(env_id))
    env = gym.make(env_id, disable_env_checker=True)
    states, shown, actions, expected = real_walk(env, lambda core: np.array(core.state, float), 500)
    assert_same(model.step(states, actions), expected)
    assert_same(model.step(model.state(shown), actions), expected, 1e-5)


def physics(core):
    """MuJoCo's full physics state."""
    mujoco = pytest.importorskip("mujoco")
    parts = mujoco.mjtState.mjSTATE_FULLPHYSICS.value
    state = np.empty(mujoco.mj_stateSize(core.model, parts))
    mujoco.mj_getState(core.model, core.data, state, parts)
    return state


def heavier(env_id, **parameters):
    """An environment with the masses of its bodies changed."""
    pytest.importorskip("mujoco")
    env = gym.make(env_id, disable_env_checker=True, **parameters)
    env.unwrapped.model.body_mass[1:] *= 1.3
    return env


@pytest.mark.parametrize("make", [gym.make, heavier])
@pytest.mark.parametrize("env_id", FAST)
def test_mujoco_in_parallel(env_id, make):
    pytest.importorskip("mujoco")
    states, shown, actions, expected = real_walk(make(env_id), physics, 600)
    with contextlib.closing(simulator(make(env_id))) as model:
        assert isinstance(model, MujocoModel)
        step = model.step(states, actions)
        assert_same(step, expected)
        goes_on = (states[1:, 0] > states[:-1, 0]).nonzero()[0]  # by the time: no reset between
        np.testing.assert_allclose(step.states[goes_on], states[goes_on + 1], 1e-6, 1e-6)
        # clipped velocities are lost, and so are angles beyond half a turn where a joint has limits
        told = (np.abs(shown).max(axis=1) < 10) & (np.abs(states[:, 2]) < np.pi)
        assert told.sum() > 200
        again = model.step(model.state(shown[told]), actions[told])
        # an observation is a float32, and what follows from it as inexact
        assert_same(again, [part[told] for part in expected], 2e-3)
        if env_id != "Reacher-v5":
            assert 20 < expected[2].sum() < 580
        starts, observations = model.reset(4, np.random.default_rng(0))
        assert_same(model.step(starts, actions[:4]), model.step(starts, actions[:4])[1:])
        assert observations.shape == (4, model.observation_size)
        assert model.step(starts[:0], actions[:0]).rewards.shape == (0,)


def test_changed_masses_matter():
    pytest.importorskip("mujoco")
    plain, heavy = (simulator(make("Hopper-v5")) for make in (gym.make, heavier))
    states, _ = plain.reset(5, np.random.default_rng(0))
    actions = unit_actions(plain, 5)
    one, other = (model.step(states, actions) for model in (plain, heavy))
    assert np.abs(one.observations - other.observations).max() > 1e-2


@pytest.mark.parametrize(
    ("env_id", "parameters"),
    [
        ("Hopper-v5", {"exclude_current_positions_from_observation": False}),
        ("Hopper-v5", {"terminate_when_unhealthy": False, "healthy_reward": 3.0, "frame_skip": 1}),
        ("Reacher-v5", {"frame_skip": 1, "reward_control_weight": 5.0}),
        ("InvertedDoublePendulum-v5", {"healthy_reward": 2.0}),
    ],
)
def test_parameters_of_the_environment_matter(env_id, parameters):
    states, _, actions, expected = real_walk(heavier(env_id, **parameters), physics, 200)
    model = simulator(heavier(env_id, **parameters))
    assert isinstance(model, MujocoModel)
    assert_same(model.step(states, actions), expected)


@pytest.mark.parametrize("env_id", ["Hopper-v5", "Walker2d-v5", "Swimmer-v5"])
def test_any_mujoco_environment(env_id):
    pytest.importorskip("mujoco")
    model = SimulatorModel(gym.make(env_id))
    states, _ = model.reset(3, np.random.default_rng(0))
    actions = unit_actions(model, 60).reshape(20, 3, -1)
    walked = []
    for each in actions:
        walked.append(model.step(states, each))
        states = walked[-1].states
    model.env.reset(seed=int(np.random.default_rng(0).integers(2**31)))
    for k in range(20):
        seen, reward, terminated, _, _ = model.env.step(actions[k, 0])
        first = HostStep(*(part[0] for part in walked[k]))
        assert_same(first, (seen, reward, terminated))


def test_an_environment_that_was_changed_steps_itself():
    pytest.importorskip("mujoco")
    env = gym.make("Hopper-v5")
    env.unwrapped._get_rew = lambda velocity, action: (velocity, {})
    assert type(simulator(env)) is SimulatorModel
    with pytest.raises(UsageError, match="does not step as its class does"):
        MujocoModel(env)
    doubled = gym.wrappers.TransformReward(gym.make("Hopper-v5"), lambda r: 2 * r)
    assert type(simulator(doubled)) is SimulatorModel
    with pytest.raises(UsageError, match="no formulas are known"):
        MujocoModel(gym.make("Pendulum-v1"))


def test_a_state_that_mujoco_does_not_show():
    pytest.importorskip("mujoco")
    model = simulator(gym.make("Pusher-v5"))
    _, observations = model.reset(2, np.random.default_rng(0))
    with pytest.raises(UsageError, match=r"Pusher-v5 cannot be recovered"):
        model.state(observations)


def test_mujoco_is_imported_for_those_who_use_it():
    program = (
        "import sys; sys.modules['mujoco'] = None; import gymnasium as gym; "
        "from dynasac.models.simulator import simulator; simulator(gym.make('Pendulum-v1'))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
