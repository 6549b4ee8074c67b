"""A model some of whose actions act the other way round."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .base import PhysicsModel


class Turned(PhysicsModel):
    """Physics behind leads that may be swapped: each action is multiplied by a sign of its own."""

    model: PhysicsModel
    signs: Float[Array, " action"]
    """1, or -1 where the action acts against what `model` says"""

    def initial(self, key: PRNGKeyArray) -> Array:
        return self.model.initial(key)

    def transition(self, state: Array, action: Array) -> Array:
        return self.model.transition(state, jnp.asarray(self.signs, action.dtype) * action)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        return self.model.reward(state, action, next_state)

    def observation(self, state: Array) -> Array:
        return self.model.observation(state)

    def state(self, observation: Array) -> Array:
        return self.model.state(observation)

    def terminal(self, state: Array) -> Array:
        return self.model.terminal(state)
