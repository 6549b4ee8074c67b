"""Gymnasium's MountainCarContinuous-v0 as known physics."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .base import PhysicsModel


class MountainCar(PhysicsModel):
    """A car in a valley, too weak to climb out without swinging.

    State and observation: (position, -1.2 to 0.6; velocity, at most 0.07 in size), both in the
    environment's units a step. Action: (force, at most 1 in size). Reward: 100 on reaching the
    goal, less 0.1 force² each step, of the force that was asked for. The left end is a wall that
    stops the car; the goal is a position of at least 0.45 at a velocity of at least 0.
    Source: `gymnasium/envs/classic_control/continuous_mountain_car.py`.

    The seed document writes the dynamics with x[t+1] = x[t] + v[t]. The real environment moves the
    car with the new velocity, x[t+1] = x[t] + v[t+1], limits speed and position, and stops the car
    at the wall. This class follows the environment.
    """

    power: float = 0.0015  # change of velocity a step at full force
    gravity: float = 0.0025  # change of velocity a step on the steepest slope

    def initial(self, key: PRNGKeyArray) -> Float[Array, "2"]:
        return jnp.stack([jax.random.uniform(key, minval=-0.6, maxval=-0.4), jnp.zeros(())])

    def transition(self, state: Array, action: Array) -> Float[Array, "2"]:
        position, velocity = state
        force = jnp.clip(action[0], -1.0, 1.0)
        velocity = velocity + force * self.power - self.gravity * jnp.cos(3 * position)
        velocity = jnp.clip(velocity, -MAX_SPEED, MAX_SPEED)
        position = jnp.clip(position + velocity, LEFT_WALL, RIGHT_END)
        at_wall = (position == LEFT_WALL) & (velocity < 0)
        return jnp.stack([position, jnp.where(at_wall, 0.0, velocity)])

    def reward(self, state: Array, action: Array, next_state: Array) -> Float[Array, ""]:
        del state
        return jnp.where(self.terminal(next_state), 100.0, 0.0) - 0.1 * action[0] ** 2

    def terminal(self, state: Array) -> Bool[Array, ""]:
        position, velocity = state
        return (position >= GOAL) & (velocity >= 0)


LEFT_WALL = -1.2
RIGHT_END = 0.6
GOAL = 0.45
MAX_SPEED = 0.07
