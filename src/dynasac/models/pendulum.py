"""Gymnasium's Pendulum-v1 as known physics."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .base import PhysicsModel


class Pendulum(PhysicsModel):
    """A rod that swings about one end, driven by a torque too weak to lift it in one go.

    State: (angle from upright, rad, not wrapped; angular velocity, rad/s, at most 8 in size).
    Action: (torque, N m, at most 2 in size). Observation: (cos angle, sin angle, angular velocity).
    Reward: -(angle² + 0.1 velocity² + 0.001 torque²), of the state that is left, angle wrapped.
    Source: `gymnasium/envs/classic_control/pendulum.py`, with the same g, m and l as the seed
    document's ModelEnv.
    """

    g: float = 10.0  # m/s²
    m: float = 1.0  # kg
    l: float = 1.0  # m  # noqa: E741  (the physicist's and the environment's name)

    def initial(self, key: PRNGKeyArray) -> Float[Array, "2"]:
        high = jnp.array([jnp.pi, 1.0])
        return jax.random.uniform(key, (2,), minval=-high, maxval=high)

    def transition(self, state: Array, action: Array) -> Float[Array, "2"]:
        angle, velocity = state
        gravity = 3 * self.g / (2 * self.l) * jnp.sin(angle)
        drive = 3 / (self.m * self.l**2) * _limited(action)
        velocity = jnp.clip(velocity + (gravity + drive) * TIME_STEP, -MAX_SPEED, MAX_SPEED)
        return jnp.stack([angle + velocity * TIME_STEP, velocity])

    def observation(self, state: Array) -> Float[Array, "3"]:
        angle, velocity = state
        return jnp.stack([jnp.cos(angle), jnp.sin(angle), velocity])

    def state(self, observation: Array) -> Float[Array, "2"]:
        cosine, sine, velocity = observation
        return jnp.stack([jnp.arctan2(sine, cosine), velocity])

    def reward(self, state: Array, action: Array, next_state: Array) -> Float[Array, ""]:
        del next_state
        angle, velocity = state
        angle -= 2 * jnp.pi * jnp.round(angle / (2 * jnp.pi))
        return -(angle**2 + 0.1 * velocity**2 + 0.001 * _limited(action) ** 2)


TIME_STEP = 0.05  # s
MAX_SPEED = 8.0  # rad/s
MAX_TORQUE = 2.0  # N m


def _limited(action: Array) -> Array:
    return jnp.clip(action[0], -MAX_TORQUE, MAX_TORQUE)
