"""Gymnasium's functional environments, written in JAX, as models."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.experimental.functional import FuncEnv
from jaxtyping import Array, PRNGKeyArray

from ..errors import UsageError, one_line
from .base import ModelStep, PhysicsModel


class FuncEnvModel(PhysicsModel):
    """A `gymnasium.experimental.functional.FuncEnv` as known physics.

    Planning starts from observations, so the state must be recoverable from one: by the
    environment's own method `state(observation)`, or because the observation is the state. The
    environment's parameters are leaves of this model. Noise that the environment draws is drawn by
    `step`; `transition` and `reward`, called on their own, always draw the same.
    """

    params: Any
    """the environment's parameters as a pytree, floats as Python floats and arrays as float32; a
    dataclass that JAX does not know is held as a dictionary of its fields; None if there are none
    """
    env: FuncEnv = eqx.field(static=True)
    inverse: bool = eqx.field(static=True)
    """whether the environment has a method `state`; if not, the observation is the state"""

    @property
    def name(self) -> str:
        return type(self.env).__name__

    template: Any = eqx.field(static=True)
    """the dataclass that `params` holds the fields of, if it does"""

    def __init__(self, env: FuncEnv, params: Any = None):
        """Take `params`, or what `env.get_default_params()` returns.

        Raises:
            UsageError: the environment does not tell the state from an observation.
        """
        params = env.get_default_params() if params is None else params
        self.template = None
        if dataclasses.is_dataclass(params) and jax.tree_util.all_leaves([params]):
            self.template = type(params)  # of a kind that is no pytree
            params = {
                field.name: getattr(params, field.name) for field in dataclasses.fields(params)
            }
        self.params = jax.tree.map(_as_parameter, params)
        self.env = env
        self.inverse = callable(getattr(env, "state", None))
        if not (self.inverse or self._shows_its_state()):
            name = type(env).__name__
            raise UsageError(
                f"{name} does not tell the state from an observation: write "
                "state(self, observation) in it"
            )

    def initial(self, key: PRNGKeyArray) -> Array:
        return self._ask("initial", key)

    def transition(self, state: Array, action: Array) -> Array:
        return self._ask("transition", state, action, _same_key())

    def observation(self, state: Array) -> Array:
        return jnp.asarray(self._ask("observation", state, _same_key()))

    def state(self, observation: Array) -> Array:
        if not self.inverse:
            return observation
        return self.env.state(observation)  # type: ignore[attr-defined]

    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        return jnp.asarray(self._ask("reward", state, action, next_state, _same_key()))

    def terminal(self, state: Array) -> Array:
        return jnp.asarray(self._ask("terminal", state, _same_key()))

    def step(self, observation: Array, action: Array, key: PRNGKeyArray) -> ModelStep:
        keys = jax.random.split(key, 4)
        state = self.state(observation)
        reached = self._ask("transition", state, action, keys[0])
        reward = self._ask("reward", state, action, reached, keys[1])
        return ModelStep(
            next_observation=jnp.asarray(self._ask("observation", reached, keys[2]), jnp.float32),
            reward=jnp.asarray(reward, jnp.float32).reshape(()),
            terminated=jnp.asarray(self._ask("terminal", reached, keys[3]), bool).reshape(()),
        )

    def _ask(self, method: str, *arguments: Any) -> Any:
        """Call a method of the environment with the parameters that this model holds."""
        params = self.params if self.template is None else self.template(**self.params)
        known = {} if params is None else {"params": params}
        return getattr(self.env, method)(*arguments, **known)

    def _shows_its_state(self) -> bool:
        """Whether observations of a few states after a reset are these states."""
        try:
            states = jax.vmap(self.initial)(jax.random.split(jax.random.key(0), 8))
            shown = jax.vmap(self.observation)(states)
        except Exception as error:  # the environment is somebody else's code
            raise UsageError(f"{type(self.env).__name__} fails: {one_line(error)}") from None
        return getattr(states, "shape", None) == shown.shape and bool(jnp.allclose(states, shown))


def _as_parameter(value: Any) -> Any:
    """A float as a Python float, an array of floats as float32, anything else as it is."""
    if not eqx.is_inexact_array_like(value):
        return value
    return float(value) if np.ndim(value) == 0 else jnp.asarray(value, jnp.float32)


def _same_key() -> PRNGKeyArray:
    return jax.random.key(0)
