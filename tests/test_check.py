"""A model that equals the environment is let through; each way of being wrong is named."""

import json

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import DynamicsModel, ModelStep, MountainCar, Pendulum, PhysicsModel, UsageError
from dynasac.adapt.check import HORIZONS, check, prediction_error
from dynasac.adapt.explore import explore
from dynasac.evaluation import make
from dynasac.models import mountain_car
from dynasac.spaces import spaces_of

PENDULUM, CAR = "Pendulum-v1", "MountainCarContinuous-v0"
STEPS = {PENDULUM: 2000, CAR: 4000}


class Noisy(gym.ObservationWrapper):
    """Sensors that add normal noise of 1% of each component's range."""

    def __init__(self, env, seed):
        super().__init__(env)
        box = env.observation_space
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, box.shape, np.float32)
        self.deviation, self.rng = 0.01 * (box.high - box.low), np.random.default_rng(seed)

    def observation(self, observation):
        noise = self.deviation * self.rng.normal(size=observation.shape)
        return (observation + noise).astype(np.float32)


class Gusts(gym.Wrapper):
    """A pendulum in the wind: its speed changes at random, and no sensor is wrong."""

    def step(self, action):
        pendulum = self.unwrapped
        angle, velocity = pendulum.state
        pendulum.state = np.array([angle, velocity + 0.05 * pendulum.np_random.normal()])
        return self.env.step(action)


_explored = {}


def explored(env_id, seed=0, wrap=None):
    """Real transitions and spaces; the same ones for every test that asks for them."""
    if (env_id, seed, wrap) not in _explored:
        env = make(env_id)
        if wrap is Noisy:
            env = Noisy(env, seed)
        elif wrap:
            env = wrap(env)
        model = Pendulum() if env_id == PENDULUM else MountainCar()
        spaces = spaces_of(env)
        transitions = explore(env, model, spaces, STEPS[env_id], seed)
        _explored[env_id, seed, wrap] = transitions, spaces
    return _explored[env_id, seed, wrap]


def rows(transitions, first, last):
    return jax.tree.map(lambda field: jnp.asarray(np.asarray(field)[first:last]), transitions)


# --- where explore gets to ---


@pytest.mark.parametrize("seed", range(2))
def test_exploring_the_pendulum_reaches_the_limit_of_speed(seed):
    transitions, _ = explored(PENDULUM, seed)
    velocity = np.asarray(transitions.next_observation)[:, 2]
    assert (velocity >= 8).sum() >= 10
    assert (velocity <= -8).sum() >= 10


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("wrap", [None, Noisy])
def test_exploring_the_mountain_reaches_wall_and_goal(seed, wrap):
    transitions, _ = explored(CAR, seed, wrap)
    position = np.asarray(transitions.next_observation)[:, 0]
    assert (position <= mountain_car.LEFT_WALL).sum() >= 5
    assert np.asarray(transitions.terminated).sum() >= 5


def test_exploring_with_a_wrong_model_gets_there_too():
    env = make(CAR)
    transitions = explore(env, NoWall(power=0.003), spaces_of(env), STEPS[CAR], 0)
    assert (np.asarray(transitions.next_observation)[:, 0] <= mountain_car.LEFT_WALL).any()
    assert np.asarray(transitions.terminated).any()


def test_what_explore_returns():
    env = make(CAR)
    first, second = (explore(env, MountainCar(), spaces_of(env), 600, 3) for _ in range(2))
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, other)
    assert first.observation.shape == first.next_observation.shape == (600, 2)
    assert first.observation.dtype == jnp.float32
    assert first.action.shape == (600, 1)
    assert np.abs(first.action).max() == 1
    assert len(np.unique(np.asarray(first.action))) > 30  # the inside of the box too
    goes_on = (np.asarray(first.next_observation)[:-1] == first.observation[1:]).all(1)
    ended = np.asarray(first.terminated)[:-1]
    assert ended.any()
    assert not (goes_on & ended).any()
    assert goes_on.mean() > 0.9
    other_seed = explore(env, MountainCar(), spaces_of(env), 600, 4)
    assert (np.asarray(other_seed.observation) != first.observation).any()


def test_explore_stops_at_what_is_no_number():
    env = make("BrokenReward-v0")
    with pytest.raises(UsageError, match=r"reward inf \(exploring, step 2\)"):
        explore(env, probes.Slide(), spaces_of(env), 20, 0)
    with pytest.raises(UsageError, match="0 steps in the environment"):
        explore(env, probes.Slide(), spaces_of(env), 0, 0)


# --- exact models ---


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("env_id", "model", "wrap"),
    [
        (PENDULUM, Pendulum(), None),
        (CAR, MountainCar(), None),
        (PENDULUM, Pendulum(), Noisy),
        (CAR, MountainCar(), Noisy),
        (PENDULUM, Pendulum(), Gusts),
    ],
)
def test_exact_models_agree(env_id, model, wrap, seed):
    report = check(model, *explored(env_id, seed, wrap))
    assert report.agrees, report.verdict
    assert report.mismatches == ()
    assert report.transitions == STEPS[env_id]
    assert "agrees with the environment" in report.verdict
    if wrap is None:
        assert max(d.one_step for d in (*report.dimensions, report.reward)) < 1e-5
        assert max(d.k_step[16] for d in report.dimensions) < 1e-4
    else:
        assert report.dimensions[-1].noise > 0.05


# --- wrong ones ---


def wrong(model, env_id, *says, seed=0, wrap=None):
    """The report on a wrong model, whose verdict holds all that it should say."""
    report = check(model, *explored(env_id, seed, wrap))
    assert not report.agrees
    assert report.verdict.startswith(type(model).__name__) or "are not inverses" in report.verdict
    for text in says:
        assert text in report.verdict
    assert "\n" not in report.verdict
    return report


@pytest.mark.parametrize("g", [10.1, 10.2, 14.0])
def test_another_gravity(g):
    report = wrong(Pendulum(g=g), PENDULUM, "wrong about observation[2]", "parameters")
    found = report.dimensions[2]
    # g enters as 0.75 (g - 10) sin(angle) a step
    transitions, _ = explored(PENDULUM)
    sine = np.asarray(transitions.observation)[:, 1]
    moved = np.asarray(transitions.next_observation - transitions.observation)[:, 2]
    free = np.abs(np.asarray(transitions.next_observation)[:, 2]) < 7.9
    expected = 0.075 * (g - 10) * np.sqrt((sine[free] ** 2).mean() / (moved[free] ** 2).mean())
    assert found.one_step == pytest.approx(expected, rel=0.1)
    assert found.systematic == pytest.approx(found.one_step, rel=0.05)
    assert found.k_step[1] == pytest.approx(found.one_step, rel=1e-4)
    assert found.k_step[16] > found.k_step[1]


@pytest.mark.parametrize("wrap", [Noisy, Gusts])
@pytest.mark.parametrize("seed", range(2))
def test_another_gravity_behind_noise(wrap, seed):
    report = wrong(
        Pendulum(g=14.0), PENDULUM, "observation[2]", "noise apart", seed=seed, wrap=wrap
    )
    clean = check(Pendulum(g=14.0), *explored(PENDULUM, seed)).dimensions[2].systematic
    assert report.dimensions[2].systematic == pytest.approx(clean, rel=0.2)
    assert report.dimensions[2].noise > 0.05


def test_another_power_of_the_car():
    wrong(MountainCar(power=0.00153), CAR, "wrong about observation[1]", "parameters")


class OldVelocity(MountainCar):
    """The seed document's: the car moves with the velocity that it had."""

    def transition(self, state, action):
        velocity = super().transition(state, action)[1]
        return jnp.stack([jnp.clip(state[0] + state[1], -1.2, 0.6), velocity])


class NoWall(MountainCar):
    def transition(self, state, action):
        position, velocity = state
        velocity += jnp.clip(action[0], -1, 1) * self.power - self.gravity * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -0.07, 0.07)
        return jnp.stack([jnp.clip(position + velocity, -1.2, 0.6), velocity])


class LateGoal(MountainCar):
    def terminal(self, state):
        return (state[0] >= 0.5) & (state[1] >= 0)


class NoGoal(MountainCar):
    def terminal(self, state):
        return jnp.zeros((), bool)


class EarlyGoal(MountainCar):
    def terminal(self, state):
        return state[0] >= 0.3


class NoLimit(Pendulum):
    def transition(self, state, action):
        angle, velocity = state
        torque = jnp.clip(action[0], -2, 2)
        velocity += 0.05 * (1.5 * self.g * jnp.sin(angle) + 3 * torque)
        return jnp.stack([angle + 0.05 * velocity, velocity])


def test_the_old_velocity():
    report = wrong(OldVelocity(), CAR, "wrong about observation[0]", "equation")
    assert not report.dimensions[1].wrong


@pytest.mark.parametrize("seed", range(2))
def test_no_wall(seed):
    report = wrong(NoWall(), CAR, "observation[1] in", "look for a wall", seed=seed)
    shown = [row for row in report.mismatches if row.kind == "observation[1]"]
    assert 0 < len(shown) <= 3
    assert report.dimensions[1].mismatches >= len(shown)
    transitions, _ = explored(CAR, seed)
    for row in shown:
        assert row.found == 0 > row.predicted
        assert row.observation == tuple(np.asarray(transitions.observation)[row.index].tolist())
        assert row.action == tuple(np.asarray(transitions.action)[row.index].tolist())


def test_no_wall_behind_noise():
    wrong(NoWall(), CAR, "observation[1] in", "look for a wall", wrap=Noisy)


def test_no_limit_of_speed():
    report = wrong(NoLimit(), PENDULUM, "wrong about observation[2] in", "limit")
    for row in report.mismatches:
        if row.kind == "observation[2]":
            assert abs(row.found) == 8 < abs(row.predicted)
    wrong(NoLimit(), PENDULUM, "wrong about observation[2]", wrap=Noisy)


@pytest.mark.parametrize("model", [LateGoal(), NoGoal()])
@pytest.mark.parametrize("seed", range(2))
def test_a_goal_that_is_missed(model, seed):
    report = wrong(model, CAR, "when episodes end", "invents 0", seed=seed)
    assert report.missed_ends > 0 == report.invented_ends
    shown = [row for row in report.mismatches if row.kind == "termination"]
    assert shown
    assert all(row.found and not row.predicted for row in shown)
    # paid on arrival, so the reward is as wrong as if nothing were known of its variation
    assert report.reward.wrong
    assert prediction_error(model, *explored(CAR, seed)).terminations > 0


def test_no_goal_behind_noise():
    wrong(NoGoal(), CAR, "when episodes end", wrap=Noisy)


def test_a_goal_that_is_invented():
    report = wrong(EarlyGoal(), CAR, "when episodes end", "misses 0")
    assert report.invented_ends > 0 == report.missed_ends


class Swapped(Pendulum):
    def state(self, observation):
        return jnp.stack([jnp.arctan2(observation[0], observation[1]), observation[2]])


class HalfCircle(Pendulum):
    """The arc tangent of the quotient: right in front, wrong behind."""

    def state(self, observation):
        return jnp.stack([jnp.arctan(observation[1] / observation[0]), observation[2]])


class Scaled(MountainCar):
    def state(self, observation):
        return observation / jnp.array([1.0, 0.07])


@pytest.mark.parametrize("wrap", [None, Noisy])
@pytest.mark.parametrize(
    ("model", "env_id"), [(Swapped(), PENDULUM), (HalfCircle(), PENDULUM), (Scaled(), CAR)]
)
def test_observation_and_state_that_are_not_inverses(model, env_id, wrap):
    pair = f"observation and state of {type(model).__name__} are not inverses"
    report = wrong(
        model, env_id, pair, "observation(state(o)) gives (", "put state() right", wrap=wrap
    )
    assert report.not_inverse > 0.1 * report.transitions
    row = next(row for row in report.mismatches if row.kind == "inverse")
    np.testing.assert_allclose(model.project(jnp.array(row.found)), row.predicted, rtol=1e-4)


class Strong(gym.Wrapper):
    """The mountain car, which may be asked for twice the force, and charges for what is asked."""

    action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def __init__(self, env):
        super().__init__(env)


class Cheap(MountainCar):
    def reward(self, state, action, next_state):
        return super().reward(state, jnp.clip(action, -1.0, 1.0), next_state)


class Steep(MountainCar):
    def reward(self, state, action, next_state):
        return jnp.where(self.terminal(next_state), 90.0, 0.0) - 0.1 * action[0] ** 2


def test_a_reward_that_charges_less_than_is_asked():
    assert check(MountainCar(), *explored(CAR, 0, Strong)).agrees
    report = wrong(Cheap(), CAR, "wrong about the reward, by up to 0.3", "limited", wrap=Strong)
    assert not any(dimension.wrong for dimension in report.dimensions)


def test_a_prize_of_another_size():
    report = wrong(Steep(), CAR, "wrong about the reward, by up to 10:")
    assert {row.kind for row in report.mismatches} == {"reward"}
    row = report.mismatches[0]
    assert row.found == pytest.approx(row.predicted + 10, rel=1e-5)


class NotANumber(Pendulum):
    def transition(self, state, action):
        angle, velocity = super().transition(state, action)
        return jnp.stack([angle, jnp.where(velocity > 7, jnp.sqrt(7 - velocity), velocity)])


class Nowhere(Pendulum):
    def transition(self, state, action):
        return jnp.full(2, jnp.nan)


@pytest.mark.parametrize("model", [NotANumber(), Nowhere()])
def test_predictions_that_are_no_numbers(model):
    report = wrong(model, PENDULUM, "not finite", "of 2,000 transitions")
    assert report.not_finite > 0
    json.dumps(report.summary(), allow_nan=False)
    assert prediction_error(model, *explored(PENDULUM)).systematic == np.inf


class Off(DynamicsModel):
    """The bare contract, with a `project` that moves what is possible."""

    shift: float

    def initial_observation(self, key):
        return MountainCar().initial_observation(key)

    def step(self, observation, action, key):
        return MountainCar().step(observation, action, key)

    def project(self, observation):
        return observation + self.shift


def test_models_that_are_not_physics():
    assert check(Off(0.0), *explored(CAR)).agrees
    wrong(Off(0.1), CAR, "project moves real observations: project(o) gives (")


class Dice(PhysicsModel):
    """Predicts with `Slide` and chance, and is right on average."""

    def initial(self, key):
        return probes.Slide().initial(key)

    def transition(self, state, action):
        return state + 0.5 * action

    def reward(self, state, action, next_state):
        return probes.Slide().reward(state, action, next_state)

    def terminal(self, state):
        return jnp.abs(state[0]) > 1

    def step(self, observation, action, key) -> ModelStep:
        moved = observation + 0.01 * jax.random.normal(key, (1,))
        return super().step(moved, action, key)


# --- what is told ---


def test_a_report_for_people_and_for_json():
    report = check(NoWall(), *explored(CAR))
    lines = report.lines()
    assert lines[-1] == report.verdict
    assert lines[0].split()[:4] == ["error", "of", "1", "step"]
    table = lines[: 2 + len(report.dimensions)]
    assert [line.split()[0] for line in table[1:]] == ["observation[0]", "observation[1]", "reward"]
    assert any("predicted -0.0" in line and line.endswith("found 0") for line in lines)
    assert not any("\n" in line for line in lines)
    summary = json.loads(json.dumps(report.summary(), allow_nan=False))
    assert summary["agrees"] is False
    assert summary["verdict"] == report.verdict
    assert set(summary["dimensions"][0]["k_step"]) == {str(k) for k in HORIZONS}
    assert summary["mismatches"][0]["kind"] == "observation[1]"


def test_too_few_transitions():
    transitions, spaces = explored(PENDULUM)
    with pytest.raises(UsageError, match=r"150 transitions, 149 .* at least 200 must follow"):
        check(Pendulum(), rows(transitions, 0, 150), spaces)


# --- the numbers that adaptation decides by ---


def test_prediction_error():
    exact = prediction_error(Pendulum(), *explored(PENDULUM))
    assert exact.systematic < 1e-5
    assert exact.reward < 1e-5
    assert exact.terminations == 0
    assert set(exact.k_step) == set(HORIZONS)
    heavy = prediction_error(Pendulum(g=14.0), *explored(PENDULUM))
    squares = np.square(heavy.systematic_by_dimension)
    assert heavy.systematic == pytest.approx(np.sqrt(squares.mean()))
    assert heavy.systematic > 0.1
    assert heavy.k_step[16] > heavy.k_step[4] > heavy.systematic


@pytest.mark.parametrize("count", [60, 100, 200])
def test_noise_is_no_error_after_a_few_steps_already(count):
    transitions, spaces = explored(PENDULUM, 0, Noisy)
    few = rows(transitions, 0, count)
    exact = prediction_error(Pendulum(), few, spaces)
    heavy = prediction_error(Pendulum(g=14.0), few, spaces)
    assert max(exact.one_step) > 0.1
    assert exact.systematic < 0.03
    assert heavy.systematic > 0.1


def test_with_a_handful_of_transitions_all_error_is_the_models():
    transitions, spaces = explored(PENDULUM, 0, Noisy)
    found = prediction_error(Pendulum(), rows(transitions, 0, 5), spaces)
    assert found.systematic == pytest.approx(np.sqrt(np.mean(np.square(found.one_step))))
    assert set(found.k_step) == {1, 2, 4}
    assert np.isfinite(prediction_error(Pendulum(), rows(transitions, 0, 1), spaces).systematic)


def test_steps_ahead_stop_where_episodes_do():
    env = make("Rail-v0")
    spaces = spaces_of(env)
    transitions = explore(env, probes.Slide(), spaces, 300, 0)
    assert np.asarray(transitions.terminated).any()
    found = prediction_error(probes.Slide(), transitions, spaces)
    assert max(found.k_step.values()) < 1e-5
    assert max(found.k_step) < 16  # no episode is as long as that
    assert found.terminations == 0


def test_a_model_that_rolls_dice():
    env = make("Rail-v0")
    spaces = spaces_of(env)
    transitions = explore(env, probes.Slide(), spaces, 600, 0)
    first, second = (prediction_error(Dice(), transitions, spaces) for _ in range(2))
    assert first == second
    assert first.one_step[0] > 0.005
    assert first.systematic < 0.5 * first.one_step[0]


def test_more_data_and_other_parameters_seldom_compile(compilations):
    transitions, spaces = explored(PENDULUM)
    few, more = rows(transitions, 0, 600), rows(transitions, 0, 900)
    prediction_error(Pendulum(g=9.0), few, spaces)
    before = compilations.count
    prediction_error(Pendulum(g=11.0), more, spaces)
    assert compilations.count == before
