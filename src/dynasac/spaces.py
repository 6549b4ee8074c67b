"""The one place where actions and observations change scale.

Environments and dynamics models speak the environment's own units. The learner and the replay hold
actions in [-1, 1]; the networks see observations scaled to about [-1, 1].
"""

from typing import NamedTuple

import equinox as eqx
import gymnasium as gym
import jax
import numpy as np
from jaxtyping import Array, Float

from .errors import UsageError

UNBOUNDED = 1e6
"""A bound beyond this says "no bound" (classic environments write float32's maximum)."""


class Box(eqx.Module):
    """An interval for each component, in the environment's own units."""

    low: Float[Array, " size"]
    high: Float[Array, " size"]

    @property
    def size(self) -> int:
        return self.low.shape[-1]

    def to_unit(self, value: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """From the environment's units to [-1, 1]."""
        return (value - self._centre) / self._half_width

    def from_unit(self, unit: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        """From [-1, 1] to the environment's units."""
        return self._centre + self._half_width * unit

    @property
    def _centre(self) -> Float[Array, " size"]:
        return (self.high + self.low) / 2

    @property
    def _half_width(self) -> Float[Array, " size"]:
        return (self.high - self.low) / 2


class Spaces(NamedTuple):
    """What the learner must know about an environment: two boxes and the length of an episode."""

    observation: Box
    """where observations lie; components that the environment leaves unbounded are [-1, 1] here
    until `planning.visited_box` has measured them, or `training.spaces_at` finds them seen"""
    action: Box
    bounded: tuple[bool, ...]
    """for each component of the observation, whether the environment itself bounds it"""
    episode_steps: int
    """the time limit of an episode"""


DEFAULT_EPISODE_STEPS = 1000


def spaces_of(env: gym.Env) -> Spaces:
    """Read the spaces of an environment, or say why this program cannot control it."""
    name = env.spec.id if env.spec else type(env.unwrapped).__name__
    steps = env.spec.max_episode_steps if env.spec else None
    return spaces_between(env.observation_space, env.action_space, name, steps)


def spaces_between(
    observation: gym.Space, action: gym.Space, name: str, episode_steps: int | None
) -> Spaces:
    """The same, from the two spaces and the time limit of whatever is called `name`.

    Raises:
        UsageError: they are not what this program can control.
    """
    if not isinstance(action, gym.spaces.Box) or len(action.shape) != 1:
        raise UsageError(
            f"{name} has actions {action}; dynasac controls continuous actions: "
            "a one-dimensional gymnasium.spaces.Box"
        )
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        raise UsageError(
            f"{name} has unbounded actions {action}; wrap it in gymnasium.wrappers.RescaleAction"
        )
    if not isinstance(observation, gym.spaces.Box) or len(observation.shape) != 1:
        raise UsageError(
            f"{name} has observations {observation}; dynasac needs a vector: wrap it in "
            "gymnasium.wrappers.FlattenObservation (pictures are not supported)"
        )
    bounded = (np.abs(observation.low) < UNBOUNDED) & (np.abs(observation.high) < UNBOUNDED)
    low = np.where(bounded, observation.low, -1.0).astype(np.float32)
    high = np.where(bounded, observation.high, 1.0).astype(np.float32)
    return Spaces(
        observation=Box(*jax.device_put((low, np.where(high > low, high, low + 1)))),
        action=Box(*jax.device_put((np.float32(action.low), np.float32(action.high)))),
        bounded=tuple(bool(b) for b in bounded),
        episode_steps=episode_steps or DEFAULT_EPISODE_STEPS,
    )
