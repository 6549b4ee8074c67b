"""A model some of whose actions act the other way round."""

from jaxtyping import Array, Float, PRNGKeyArray

from ..spaces import Box
from .base import PhysicsModel


class Turned(PhysicsModel):
    """Physics behind leads that may be swapped: actions are mirrored in the middle of their box."""

    model: PhysicsModel
    signs: Float[Array, " action"]
    """1, or -1 where the action acts against what `model` says"""
    actions: Box
    """the environment's"""

    @property
    def name(self) -> str:
        return self.model.name

    def transition(self, state: Array, action: Array) -> Array:
        unit = self.signs * self.actions.to_unit(action)
        return self.model.transition(state, self.actions.from_unit(unit))

    def initial(self, key: PRNGKeyArray) -> Array:
        return self.model.initial(key)

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        return self.model.reward(state, action, next_state)

    def observation(self, state: Array) -> Array:
        return self.model.observation(state)

    def state(self, observation: Array) -> Array:
        return self.model.state(observation)

    def terminal(self, state: Array) -> Array:
        return self.model.terminal(state)

    def initial_observation(self, key: PRNGKeyArray) -> Array:
        return self.model.initial_observation(key)

    def project(self, observation: Array) -> Array:
        return self.model.project(observation)
