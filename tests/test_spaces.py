"""Scales change in one place, both ways; what cannot be controlled is refused."""

import gymnasium as gym
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import UsageError
from dynasac.spaces import DEFAULT_EPISODE_STEPS, Box, spaces_of

UNIT = gym.spaces.Box(-1.0, 1.0, (2,))


def test_from_unit_maps_ends_and_middle():
    box = Box(jnp.array([-2.0, 10.0]), jnp.array([2.0, 30.0]))
    np.testing.assert_allclose(box.from_unit(jnp.array([-1.0, -1.0])), [-2, 10])
    np.testing.assert_allclose(box.from_unit(jnp.array([1.0, 1.0])), [2, 30])
    np.testing.assert_allclose(box.from_unit(jnp.array([0.0, 0.5])), [0, 25])


def test_to_unit_is_the_inverse_over_batches():
    box = Box(jnp.array([-1.2, -0.07]), jnp.array([0.6, 0.07]))
    values = np.random.default_rng(0).uniform(box.low, box.high, (5, 7, 2)).astype(np.float32)
    unit = box.to_unit(jnp.asarray(values))
    assert np.abs(unit).max() <= 1 + 1e-6
    np.testing.assert_allclose(box.from_unit(unit), values, atol=1e-6)


def test_spaces_of_pendulum():
    spaces = spaces_of(gym.make("Pendulum-v1"))
    np.testing.assert_allclose(spaces.observation.low, [-1, -1, -8])
    np.testing.assert_allclose(spaces.observation.high, [1, 1, 8])
    np.testing.assert_allclose(spaces.action.low, [-2])
    np.testing.assert_allclose(spaces.action.high, [2])
    assert spaces.bounded == (True, True, True)
    assert spaces.episode_steps == 200


def test_unbounded_components_are_marked_and_get_a_finite_stand_in():
    observation = gym.spaces.Box(
        np.float32([-5, -np.inf, np.finfo(np.float32).min]),
        np.float32([5, np.inf, np.finfo(np.float32).max]),
    )
    spaces = spaces_of(probes.Shaped(observation, UNIT))
    assert spaces.bounded == (True, False, False)
    np.testing.assert_array_equal(spaces.observation.low, [-5, -1, -1])
    np.testing.assert_array_equal(spaces.observation.high, [5, 1, 1])


def test_an_observation_that_never_changes_does_not_divide_by_zero():
    observation = gym.spaces.Box(np.float32([3, 0]), np.float32([3, 1]))
    spaces = spaces_of(probes.Shaped(observation, UNIT))
    assert np.isfinite(spaces.observation.to_unit(jnp.array([3.0, 0.5]))).all()


def test_an_environment_without_time_limit_gets_one():
    assert spaces_of(probes.Shaped(UNIT, UNIT)).episode_steps == DEFAULT_EPISODE_STEPS


@pytest.mark.parametrize(
    ("observation", "action", "advice"),
    [
        (UNIT, gym.spaces.Discrete(3), "continuous actions"),
        (UNIT, gym.spaces.MultiDiscrete([2, 2]), "continuous actions"),
        (UNIT, gym.spaces.Box(-1.0, 1.0, (2, 2)), "one-dimensional"),
        (UNIT, gym.spaces.Box(-np.inf, np.inf, (1,)), "RescaleAction"),
        (gym.spaces.Box(0, 255, (8, 8, 3), np.uint8), UNIT, "FlattenObservation"),
        (gym.spaces.Dict({"speed": UNIT}), UNIT, "FlattenObservation"),
        (gym.spaces.Discrete(4), UNIT, "FlattenObservation"),
    ],
)
def test_spaces_that_cannot_be_controlled(observation, action, advice):
    with pytest.raises(UsageError, match=advice) as error:
        spaces_of(probes.Shaped(observation, action))
    assert str(error.value).startswith("Shaped ")
