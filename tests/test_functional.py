"""A functional environment of Gymnasium, taken as a model, does what it does by itself."""

import dataclasses
from typing import NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.experimental.functional import FuncEnv

from dynasac import Pendulum, UsageError
from dynasac.models import check_contract
from dynasac.models.functional import FuncEnvModel


class CartParams(NamedTuple):
    mass: float = 2.0
    wind: np.ndarray = np.array([0.5, 0.25])  # float64
    wheels: int = 4


class Cart(FuncEnv):
    """Position and velocity, both shown; pushed by the action and by random gusts."""

    gust = 0.0

    def initial(self, rng, params=None):
        return jax.random.uniform(rng, (2,))

    def transition(self, state, action, rng, params=None):
        push = action[0] / params.mass + self.gust * jax.random.normal(rng)
        return state + 0.1 * jnp.stack([state[1], push]) + params.wind

    def observation(self, state, rng, params=None):
        return state

    def reward(self, state, action, next_state, rng, params=None):
        return -(next_state[0] ** 2)

    def terminal(self, state, rng, params=None):
        return state[0] > 1.0

    def get_default_params(self, **kwargs):
        return CartParams(**kwargs)


class Gusty(Cart):
    gust = 1.0


class Short(Cart):
    """Shows less than there is."""

    def observation(self, state, rng, params=None):
        return state[:1]


class Scaled(Cart):
    """Shows something else of the same shape."""

    def observation(self, state, rng, params=None):
        return 2 * state


class Unscaled(Scaled):
    def state(self, observation):
        return observation / 2


class Plain(FuncEnv):
    """No parameters at all, in any signature."""

    def initial(self, rng):
        return jax.random.uniform(rng, (1,))

    def transition(self, state, action, rng):
        return state + action

    def observation(self, state, rng):
        return state

    def reward(self, state, action, next_state, rng):
        return -(state @ state)

    def terminal(self, state, rng):
        return False


@dataclasses.dataclass
class Opaque:
    """A dataclass that JAX knows nothing of."""

    mass: float = 4.0


class OpaqueCart(Cart):
    def transition(self, state, action, rng, params=None):
        assert isinstance(params, Opaque)
        return state + action[0] / params.mass

    def get_default_params(self, **kwargs):
        return Opaque(**kwargs)


STATE, ACTION = jnp.array([0.2, -0.3]), jnp.array([0.8])


def test_a_step_is_that_of_the_environment():
    env = Cart()
    model = FuncEnvModel(env)
    check_contract(model, 2, 1)
    step = eqx.filter_jit(model.step)(STATE, ACTION, jax.random.key(3))
    expected = [0.2 - 0.03 + 0.5, -0.3 + 0.04 + 0.25]
    np.testing.assert_allclose(step.next_observation, expected, atol=1e-6)
    assert float(step.reward) == pytest.approx(-(0.67**2))
    assert not step.terminated
    assert model.step(STATE.at[0].set(0.9), ACTION, jax.random.key(3)).terminated
    np.testing.assert_array_equal(model.project(STATE), STATE)
    drawn = model.initial_observation(jax.random.key(5))
    np.testing.assert_array_equal(drawn, env.initial(jax.random.key(5)))


def test_parameters_are_leaves_and_matter():
    model = FuncEnvModel(Cart())
    floats, rest = eqx.partition(model, eqx.is_inexact_array_like)
    mass, wind = jax.tree.leaves(floats)
    assert (type(mass), mass) == (float, 2.0)
    assert wind.dtype == jnp.float32
    assert jax.tree.leaves(rest) == [4]

    def velocity(floats):
        return eqx.combine(floats, rest).transition(STATE, ACTION)[1]

    slope = jax.grad(velocity)(jax.tree.map(jnp.asarray, floats)).params.mass
    assert float(slope) == pytest.approx(-0.1 * 0.8 / 2.0**2)
    assert FuncEnvModel(Cart(), CartParams(mass=np.float64(3))).params.mass == 3.0


def test_a_dataclass_unknown_to_jax_and_no_parameters():
    model = FuncEnvModel(OpaqueCart())
    assert jax.tree.leaves(model) == [4.0]
    check_contract(model, 2, 1)
    np.testing.assert_allclose(model.transition(STATE, ACTION), STATE + 0.2)
    plain = FuncEnvModel(Plain())
    check_contract(plain, 1, 1)
    assert jax.tree.leaves(plain) == []


def test_noise_is_drawn_by_steps():
    model = FuncEnvModel(Gusty())
    drawn = [model.step(STATE, ACTION, jax.random.key(k)).next_observation[1] for k in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    np.testing.assert_array_equal(*[model.transition(STATE, ACTION) for _ in range(2)])


@pytest.mark.parametrize("env", [Short, Scaled])
def test_the_state_must_be_told_by_the_observation(env):
    with pytest.raises(UsageError, match=rf"{env.__name__} .* write state\(self, observation\)"):
        FuncEnvModel(env())


def test_a_method_of_the_environment_recovers_the_state():
    model = FuncEnvModel(Unscaled())
    check_contract(model, 2, 1)
    moved = model.step(2 * STATE, ACTION, jax.random.key(0)).next_observation
    np.testing.assert_allclose(moved, 2 * FuncEnvModel(Cart()).transition(STATE, ACTION), rtol=1e-6)


def test_an_environment_that_fails_says_how():
    class Broken(Cart):
        def initial(self, rng, params=None):
            raise RuntimeError("no floor")

    with pytest.raises(UsageError, match=r"Broken fails: RuntimeError: no floor"):
        FuncEnvModel(Broken())


def phys2d():
    pytest.importorskip("flax")
    return pytest.importorskip("gymnasium.envs.phys2d.pendulum")


def test_gymnasiums_own_pendulum():
    class WithState(phys2d().PendulumFunctional):
        def state(self, observation):
            cosine, sine, velocity = observation
            return jnp.stack([jnp.arctan2(sine, cosine), velocity])

    model = FuncEnvModel(WithState())
    check_contract(model, 3, 1)
    assert model.params.g == 10.0
    lighter = eqx.tree_at(lambda m: m.params.m, model, 0.5)
    for ours, theirs in ((Pendulum(), model), (Pendulum(m=0.5), lighter)):
        for seed in range(20):
            key = jax.random.key(seed)
            seen = ours.project(4 * jax.random.normal(key, (3,)))
            action = jax.random.uniform(key, (1,), minval=-3, maxval=3)
            expected, found = ours.step(seen, action, key), theirs.step(seen, action, key)
            np.testing.assert_allclose(found.next_observation, expected.next_observation, atol=1e-5)
            np.testing.assert_allclose(found.reward, expected.reward, rtol=1e-5, atol=1e-5)
            assert found.terminated == expected.terminated


def test_gymnasiums_own_pendulum_does_not_tell_its_state():
    with pytest.raises(UsageError, match=r"PendulumFunctional does not tell the state"):
        FuncEnvModel(phys2d().PendulumFunctional())


def test_gymnasiums_own_cart_pole_shows_its_state():
    pytest.importorskip("flax")
    cartpole = pytest.importorskip("gymnasium.envs.phys2d.cartpole")
    model = FuncEnvModel(cartpole.CartPoleFunctional())
    state = model.initial(jax.random.key(0))
    pushed = model.step(state, jnp.ones(()), jax.random.key(1))
    real = gym.make("CartPole-v1", disable_env_checker=True).unwrapped
    real.reset(seed=0)
    real.state = np.asarray(state, np.float64)
    assert not pushed.terminated
    assert float(pushed.reward) == 1.0
    np.testing.assert_allclose(pushed.next_observation[0], real.step(1)[0][0], rtol=1e-5)
