"""Known physics equals the real environments; models of one's own are checked before they run."""

import dataclasses
import textwrap

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import MountainCar, Pendulum, PhysicsModel, UsageError
from dynasac.models import check_contract, known_model, model_from_file

COUNT = 12_000
TOLERANCE = 1e-5  # of a quantity's range


def real_steps(env_id, states, actions, observe=lambda state: state, **parameters):
    """Each state and action through the real environment: observations, rewards, terminations."""
    env = gym.make(env_id, disable_env_checker=True, **parameters).unwrapped
    env.reset(seed=0)
    observations, rewards, ends = [], [], []
    for state, action in zip(states, actions, strict=True):
        env.state = state.copy()
        env.last_u = None
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        observations.append(observation)
        rewards.append(float(reward))
        ends.append(terminated)
    env.close()
    return np.array(observations), np.array(rewards), np.array(ends)


@eqx.filter_jit
def model_steps(model, observations, actions):
    step = lambda o, a: model.step(o, a, jax.random.key(0))  # noqa: E731
    return jax.vmap(step)(observations, actions)


def assert_equal(result, observations, rewards, ends, ranges, reward_range):
    error = np.abs(np.asarray(result.next_observation) - observations) / ranges
    assert error.max() < TOLERANCE
    assert (np.abs(np.asarray(result.reward) - rewards) / reward_range).max() < TOLERANCE
    np.testing.assert_array_equal(result.terminated, ends)


def pendulum_cases(count):
    rng = np.random.default_rng(1)
    states = rng.uniform([-np.pi, -8], [np.pi, 8], (count, 2))
    actions = rng.uniform(-3, 3, (count, 1)).astype(np.float32)  # beyond the limit of 2
    seen = np.stack([np.cos(states[:, 0]), np.sin(states[:, 0]), states[:, 1]], axis=1)
    return states, actions, seen.astype(np.float32)


def test_pendulum_equals_the_real_one():
    states, actions, seen = pendulum_cases(COUNT)
    observations, rewards, ends = real_steps("Pendulum-v1", states, actions)
    result = model_steps(Pendulum(), seen, actions)
    reward_range = np.pi**2 + 0.1 * 64 + 0.001 * 4
    assert_equal(result, observations, rewards, ends, np.array([2, 2, 16]), reward_range)
    assert (np.abs(observations[:, 2]) == 8).sum() > 100  # the limit of speed was hit
    assert (np.abs(actions) > 2).sum() > 1000  # and that of torque
    assert not ends.any()


def test_pendulum_equals_the_real_one_with_another_gravity():
    states, actions, seen = pendulum_cases(1000)
    observations, _, _ = real_steps("Pendulum-v1", states, actions, g=5.0)
    right = model_steps(Pendulum(g=5.0), seen, actions).next_observation
    wrong = model_steps(Pendulum(), seen, actions).next_observation
    assert np.abs(np.asarray(right) - observations).max() < 16 * TOLERANCE
    assert np.abs(np.asarray(wrong) - observations).max() > 0.1


@pytest.mark.parametrize("parameters", [{"g": 5.0}, {"m": 2.0}, {"l": 0.5}])
def test_pendulum_parameters_enter_as_in_the_seed_document(parameters):
    states, actions, seen = pendulum_cases(500)
    g, m, length = ({"g": 10.0, "m": 1.0, "l": 1.0} | parameters).values()
    torque = np.clip(actions[:, 0], -2, 2)
    gravity = 3 * g / (2 * length) * np.sin(states[:, 0])
    speed = states[:, 1] + (gravity + 3.0 / (m * length**2) * torque) * 0.05
    speed = np.clip(speed, -8, 8)
    angle = states[:, 0] + speed * 0.05
    result = model_steps(Pendulum(**parameters), seen, actions).next_observation
    expected = np.stack([np.cos(angle), np.sin(angle), speed], axis=1)
    np.testing.assert_allclose(result, expected, atol=2e-5)


def mountain_car_cases(count):
    rng = np.random.default_rng(2)
    states = rng.uniform([-1.2, -0.07], [0.6, 0.07], (count, 2)).astype(np.float32)
    states[: count // 10, 0] = rng.uniform(-1.2, -1.1, count // 10)  # near the wall
    states[count // 10 : count // 5, 0] = rng.uniform(0.38, 0.46, count // 10)  # near the goal
    actions = rng.uniform(-1.5, 1.5, (count, 1)).astype(np.float32)  # beyond the limit of 1
    return states, actions


def test_mountain_car_equals_the_real_one():
    states, actions = mountain_car_cases(COUNT)
    observations, rewards, ends = real_steps("MountainCarContinuous-v0", states, actions)
    result = model_steps(MountainCar(), states, actions)
    assert_equal(result, observations, rewards, ends, np.array([1.8, 0.14]), 100.1)
    # the large reward of the goal must not hide an error in the small one of the force
    small = ~ends
    np.testing.assert_allclose(result.reward[small], rewards[small], atol=0.1 * TOLERANCE)
    position, velocity = observations.T
    assert ((position <= -1.2) & (velocity == 0)).sum() > 100  # stopped at the wall
    assert (np.abs(velocity) >= 0.07 - 1e-8).sum() > 50  # the limit of speed
    assert (position >= 0.6).sum() > 50  # the right end
    assert ends.sum() > 100
    assert ((position >= 0.45) & (velocity < 0) & ~ends).sum() > 50  # going back is no arrival


def test_mountain_car_parameters_matter():
    state, action = jnp.array([-0.5, 0.0]), jnp.array([1.0])
    plain = MountainCar().transition(state, action)[1]
    stronger = MountainCar(power=0.0025).transition(state, action)[1]
    assert float(stronger - plain) == pytest.approx(0.001, rel=1e-4)
    weightless = MountainCar(gravity=0.0).transition(state, action)[1]
    assert float(weightless) == pytest.approx(0.0015, rel=1e-4)


@pytest.mark.parametrize(
    ("env_id", "model"), [("Pendulum-v1", Pendulum()), ("MountainCarContinuous-v0", MountainCar())]
)
def test_episodes_begin_where_real_ones_do(env_id, model):
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.asarray(jax.jit(lambda keys: jax.vmap(model.initial_observation)(keys))(keys))
    env = gym.make(env_id, disable_env_checker=True)
    real = np.array([env.reset(seed=seed)[0] for seed in range(2000)])
    spread = np.ptp(real, axis=0) + 1e-6
    assert (np.abs(drawn.min(0) - real.min(0)) / spread).max() < 0.02
    assert (np.abs(drawn.max(0) - real.max(0)) / spread).max() < 0.02
    assert (np.abs(drawn.mean(0) - real.mean(0)) / spread).max() < 0.05


def test_project_puts_a_vector_on_the_circle_and_leaves_possible_ones():
    model = Pendulum()
    projected = np.asarray(model.project(jnp.array([3.0, 4.0, -2.0])))
    np.testing.assert_allclose(projected, [0.6, 0.8, -2], rtol=1e-5)
    np.testing.assert_allclose(model.project(jnp.asarray(projected)), projected, atol=1e-6)
    np.testing.assert_allclose(MountainCar().project(jnp.array([0.3, -0.02])), [0.3, -0.02])


def test_known_models():
    assert isinstance(known_model(gym.make("Pendulum-v1")), Pendulum)
    assert isinstance(known_model(gym.make("MountainCarContinuous-v0")), MountainCar)
    with pytest.raises(UsageError, match=r"no physics is known for Rail-v0 .*--model none"):
        known_model(gym.make("Rail-v0"))


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        (Pendulum(), (3, 1)),
        (MountainCar(), (2, 1)),
        (probes.Drift(), (4, 2)),
        (probes.Raw(), (2, 2)),
    ],
)
def test_the_contract_holds(model, sizes):
    check_contract(model, *sizes)


class Good(PhysicsModel):
    """Two numbers and one force; each class below breaks one method."""

    def initial(self, key):
        return jax.random.uniform(key, (2,))

    def transition(self, state, action):
        return state + action[0]

    def reward(self, state, action, next_state):
        return -(next_state @ next_state)


class LongState(Good):
    def initial(self, key):
        return jax.random.uniform(key, (3,))


class TupleState(Good):
    def initial(self, key):
        return (jnp.zeros(()), jnp.zeros(()))


class ShortTransition(Good):
    def transition(self, state, action):
        return state[:1]


class TupleTransition(Good):
    def transition(self, state, action):
        return state[0], state[1]


class VectorReward(Good):
    def reward(self, state, action, next_state):
        return state**2


class VectorTerminal(Good):
    def terminal(self, state):
        return state > 0


class WithNumpy(Good):
    def transition(self, state, action):
        return np.sin(np.asarray(state))


class WithFloat(Good):
    def reward(self, state, action, next_state):
        return -float(state[0])


class WithBranch(Good):
    def terminal(self, state):
        return True if state[0] > 1 else False  # noqa: SIM210


class WithMistake(Good):
    def transition(self, state, action):
        return state + jnp.zeros(7)


class WithMissingName(Good):
    def reward(self, state, action, next_state):
        return self.mass


class RawWithoutStep(probes.Raw):
    def step(self, observation, action, key):
        return observation


class RawLongStep(probes.Raw):
    def step(self, observation, action, key):
        return dataclasses.replace(
            super().step(observation, action, key), next_observation=jnp.zeros(5)
        )


class RawVectorReward(probes.Raw):
    def step(self, observation, action, key):
        return dataclasses.replace(super().step(observation, action, key), reward=jnp.zeros(2))


def raw_kind(changes):
    """A model that overwrites fields of its steps."""

    class RawKind(probes.Raw):
        def step(self, observation, action, key):
            found = super().step(observation, action, key)
            for field, value in changes.items():  # as the tests' type checker would not let it
                found = eqx.tree_at(lambda step, name=field: getattr(step, name), found, value)
            return found

    return RawKind()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": jnp.zeros((), jnp.int32)}, r"reward is int32: write jnp\.asarray\(reward, jnp"),
        ({"reward": jnp.zeros((), jnp.complex64)}, r"reward is complex64"),
        ({"reward": jnp.zeros((), jnp.float16)}, r"reward is float16"),
        ({"reward": jnp.zeros((1,))}, r"reward has shape \(1,\), not that of a single number"),
        ({"next_observation": jnp.zeros(2, jnp.int32)}, r"next_observation is int32"),
        ({"next_observation": jnp.zeros(2, jnp.complex64)}, r"next_observation is complex64"),
        ({"terminated": jnp.zeros(())}, r"terminated is float32: .*terminated, jnp\.bool\)"),
    ],
)
def test_the_contract_names_the_field_of_another_kind_of_number(changes, message):
    with pytest.raises(UsageError, match=r"RawKind\.step returns a ModelStep whose " + message):
        check_contract(raw_kind(changes), 2, 2)


def test_numbers_of_double_precision_are_named():
    with jax.enable_x64(True):
        observed = jnp.zeros(2, jnp.float32)
        changes = {"next_observation": observed, "reward": jnp.zeros((), jnp.float64)}
        with pytest.raises(UsageError, match="reward is float64"):
            check_contract(raw_kind(changes), 2, 2)


class ComplexReward(Good):
    def reward(self, state, action, next_state):
        return jnp.sqrt(state[0] + 0j)


class ComplexTransition(Good):
    def transition(self, state, action):
        return jnp.sqrt(state + 0j)


class CountedReward(Good):
    def reward(self, state, action, next_state):
        return jnp.ones((), jnp.int32)


def test_physics_is_converted_to_the_learners_kind_of_number():
    check_contract(CountedReward(), 2, 1)
    for model in (ComplexReward(), ComplexTransition()):
        with pytest.raises(UsageError, match=r"(reward|transition) returns complex64: .*jnp\.real"):
            check_contract(model, 2, 1)


def test_each_method_is_traced_once_by_itself_and_once_in_a_step():
    called = []

    class Noted(Good):
        def reward(self, state, action, next_state):
            called.append(action.shape)
            return super().reward(state, action, next_state)

    check_contract(Noted(), 2, 1)
    assert called == [(1,), (1,)]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            LongState,
            r"state of shape \(3,\), not shape \(2,\) .*: write observation\(self, state\)",
        ),
        (TupleState, r"TupleState\.initial must return one array"),
        (ShortTransition, r"ShortTransition\.transition returns shape \(1,\), not shape \(2,\)"),
        (TupleTransition, r"TupleTransition\.transition returns .* not shape \(2,\)"),
        (VectorReward, r"VectorReward\.reward returns shape \(2,\), not a single number"),
        (VectorTerminal, r"VectorTerminal\.terminal returns shape \(2,\), not a single number"),
        (WithNumpy, r"WithNumpy\.transition uses NumPy .* jax\.numpy"),
        (WithFloat, r"WithFloat\.reward .*"),
        (WithBranch, r"WithBranch\.terminal branches on a value .* jnp\.where"),
        (WithMistake, r"WithMistake\.transition does not run: .*"),
        (WithMissingName, r"WithMissingName\.reward does not run: .*mass"),
        (RawWithoutStep, r"RawWithoutStep\.step .*ModelStep"),
        (RawLongStep, r"RawLongStep\.step .*\(5,\).*"),
        (RawVectorReward, r"RawVectorReward\.step .*"),
    ],
)
def test_the_contract_names_the_method_that_breaks_it(model, message):
    with pytest.raises(UsageError, match=message) as error:
        check_contract(model(), 2, 2 if issubclass(model, probes.Raw) else 1)
    assert "\n" not in str(error.value)


def test_a_reward_of_shape_one_will_do():
    class Cart(Good):
        def reward(self, state, action, next_state):
            return -(action**2)

    check_contract(Cart(), 2, 1)
    assert Cart().step(jnp.zeros(2), jnp.ones(1), jax.random.key(0)).reward.shape == ()


MODEL = """
import jax, jax.numpy as jnp
from dynasac import PhysicsModel

class Cart(PhysicsModel):
    mass: float = 2.0

    def initial(self, key):
        return jax.random.uniform(key, (2,))

    def transition(self, state, action):
        return state + action[0] / self.mass

    def reward(self, state, action, next_state):
        return -(state @ state)
"""


def written(tmp_path, text, name="cart.py"):
    (tmp_path / name).write_text(textwrap.dedent(text))
    return f"{tmp_path / name}:Cart"


def test_a_model_from_a_file(tmp_path):
    model = model_from_file(written(tmp_path, MODEL))
    assert isinstance(model, PhysicsModel)
    assert model.mass == 2.0
    check_contract(model, 2, 1)


def test_a_file_that_registers_its_environment_may_be_read_twice(tmp_path):
    text = MODEL + "\nimport gymnasium, probes\ngymnasium.register('Twice-v0', probes.Clock)\n"
    for _ in range(2):  # as `train cart:Cart-v0 --model cart.py:Cart` does; warnings are errors
        model_from_file(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def broken(:", r"cart\.py does not import: SyntaxError: invalid syntax \(line 1\)$"),
        ("import json\n\njson.loads('')", r"JSONDecodeError: .* \(line 3\)$"),
        ("\nimport no_such_module_here", r"ModuleNotFoundError: .*no_such_module_here.*\(line 2\)"),
        ("x = 1\ny = x / 0", r"ZeroDivisionError: division by zero \(line 2\)"),
        ("raise ValueError('two\\nlines')", r"ValueError: two"),
        ("class Car: pass\nclass Bus: pass", r"has no class Cart; it has Car, Bus"),
        ("x = 1", r"has no class Cart; it has none"),
        ("Cart = 3", r"Cart in .* must be a subclass of dynasac\.PhysicsModel"),
        ("class Cart: pass", r"Cart in .* must be a subclass of dynasac\.PhysicsModel"),
        (MODEL.replace("def reward", "def prize"), r"Cart in .* lacks the method reward"),
        (MODEL.replace("def initial", "def begin"), r"lacks the method initial"),
        (
            "import dynasac\nclass Cart(dynasac.PhysicsModel): ...",
            r"methods initial, reward, trans",
        ),
        (MODEL.replace(" = 2.0", ""), r"parameters without a value: mass; give each a default"),
        (
            MODEL + "\n    def __check_init__(self):\n        raise ValueError('mass is odd')\n",
            r"Cart.*mass is odd",
        ),
    ],
)
def test_what_is_wrong_with_a_model_file(tmp_path, text, message):
    with pytest.raises(UsageError, match=message) as error:
        model_from_file(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_the_line_is_named_of_a_file_beside_too(tmp_path, monkeypatch):
    written(tmp_path, "x = 1\ny = x / 0")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"by zero \(line 2\)"):
        model_from_file("cart.py:Cart")


@pytest.mark.parametrize("reference", ["cart", "cart.py", "cart.txt:Cart", "cart.py:", ":Cart"])
def test_a_reference_that_is_none(reference):
    with pytest.raises(UsageError, match=r"write it as FILE\.py:Class"):
        model_from_file(reference)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UsageError, match=r"there is no file .*gone\.py"):
        model_from_file(f"{tmp_path}/gone.py:Cart")
