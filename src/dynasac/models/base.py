"""The model contract: what planning asks of dynamics, and the class to write physics in."""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ..errors import UsageError, one_line


class ModelStep(eqx.Module):
    """What a model predicts for one step."""

    next_observation: Float[Array, " observation"]
    """in the environment's own units"""
    reward: Float[Array, ""]
    """in the environment's own unit"""
    terminated: Bool[Array, ""]
    """whether the state reached is terminal; truncation is not the model's business"""
    uncertainty: Float[Array, ""] = eqx.field(converter=jnp.asarray, default=0.0)
    """how far the model doubts this prediction: 0 for physics, about 1 at the edge of what a
    learned model has seen; planning cuts rollouts where it is more than its `Trust` allows"""


class DynamicsModel(eqx.Module):
    """What planning sees of a model: where episodes begin, one step, and what can be observed.

    Models are pytrees of arrays and pure methods over single, unbatched states; planning compiles,
    batches and differentiates them as they are.
    """

    @property
    def name(self) -> str:
        """What messages call it."""
        return type(self).__name__

    @abc.abstractmethod
    def initial_observation(self, key: PRNGKeyArray) -> Float[Array, " observation"]:
        """Draw what is observed after a reset, in the environment's units. Consumes `key`."""

    @abc.abstractmethod
    def step(
        self,
        observation: Float[Array, " observation"],
        action: Float[Array, " action"],
        key: PRNGKeyArray,
    ) -> ModelStep:
        """Predict one step; action in the environment's own unit. Consumes `key`."""

    @abc.abstractmethod
    def project(self, observation: Float[Array, " observation"]) -> Float[Array, " observation"]:
        """The possible observation nearest to any vector of the observation space.

        A random (cos, sin) pair lies off the unit circle: this puts it on.
        """


class PhysicsModel(DynamicsModel):
    """Known physics. Write one small class, with the method names of Gymnasium's `FuncEnv`.

    Float fields are the physical parameters; give each a unit. Methods take and return JAX arrays,
    so write them with `jax.numpy`. `initial`, `transition` and `reward` are required; the others
    have defaults for systems whose observation is the state and which never end.

        class Cart(PhysicsModel):
            mass: float = 1.0  # kg

            def initial(self, key):
                return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0)

            def transition(self, state, action):
                position, velocity = state
                velocity = velocity + 0.05 * action[0] / self.mass
                return jnp.array([position + 0.05 * velocity, velocity])

            def reward(self, state, action, next_state):
                return -(state @ state)
    """

    @abc.abstractmethod
    def initial(self, key: PRNGKeyArray) -> Array:
        """Draw a state from the reset distribution. Consumes `key`."""

    @abc.abstractmethod
    def transition(self, state: Array, action: Array) -> Array:
        """The next state. The action comes in the environment's own unit, within its bounds."""

    @abc.abstractmethod
    def reward(self, state: Array, action: Array, next_state: Array) -> Array:
        """The reward of a step."""

    def observation(self, state: Array) -> Array:
        """What the environment shows of a state; the state itself unless written otherwise."""
        return state

    def state(self, observation: Array) -> Array:
        """The inverse of `observation`; the observation itself unless written otherwise."""
        return observation

    def terminal(self, state: Array) -> Array:
        """Whether the episode ends in this state; never unless written otherwise."""
        del state
        return jnp.zeros((), bool)

    def initial_observation(self, key: PRNGKeyArray) -> Array:
        return jnp.asarray(self.observation(self.initial(key)), jnp.float32)

    def step(self, observation: Array, action: Array, key: PRNGKeyArray) -> ModelStep:
        del key
        state = self.state(observation)
        next_state = self.transition(state, action)
        return ModelStep(
            next_observation=jnp.asarray(self.observation(next_state), jnp.float32),
            reward=jnp.asarray(self.reward(state, action, next_state), jnp.float32).reshape(()),
            terminated=jnp.asarray(self.terminal(next_state), bool).reshape(()),
        )

    def project(self, observation: Array) -> Array:
        return jnp.asarray(self.observation(self.state(observation)), jnp.float32)


def as_arrays(model: DynamicsModel) -> DynamicsModel:
    """The same model; as Python numbers its parameters would be compiled in."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.float32(leaf)) if isinstance(leaf, float) else leaf, model
    )


def check_contract(model: DynamicsModel, observation_size: int, action_size: int) -> None:
    """Trace every method of a model once, without running it; compare shapes and kinds of number.

    Raises:
        UsageError: naming the method, what it returned and what to write instead.
    """
    name = model.name
    key = jax.eval_shape(lambda: jax.random.key(0))
    action = jax.ShapeDtypeStruct((action_size,), jnp.float32)
    observation = jax.ShapeDtypeStruct((observation_size,), jnp.float32)
    if isinstance(model, PhysicsModel):
        state = _traced(model, "initial", key)
        if getattr(state, "shape", None) is None:
            raise UsageError(f"{name}.initial must return one array (use jnp.array), not {state}")
        written = type(model).observation is not PhysicsModel.observation
        if not written and state.shape != (observation_size,):
            raise UsageError(
                f"{name}.initial returns a state of shape {state.shape}, not shape "
                f"({observation_size},) as the environment observes: write observation(self, "
                "state) for this model, and its inverse, state(self, observation)"
            )
        hint = "; the state must be recoverable: write state(self, observation) for this model"
        found = {
            "initial": state,
            "observation": _expect(model, "observation", (state,), (observation_size,)),
            "state": _expect(model, "state", (observation,), state.shape, hint),
            "transition": _expect(model, "transition", (state, action), state.shape),
            "reward": _expect(model, "reward", (state, action, state), ()),
            "terminal": _expect(model, "terminal", (state,), ()),
        }
        for method, result in found.items():
            _is_real(f"{name}.{method}", result)
    _expect(model, "initial_observation", (key,), (observation_size,))
    _expect(model, "project", (observation,), (observation_size,))
    step = _traced(model, "step", observation, action, key)
    if not isinstance(step, ModelStep):
        raise UsageError(f"{name}.step must return a ModelStep, not {type(step).__name__}")
    _has_shape(model, "step", step.next_observation, (observation_size,))
    for field, kind in (
        ("next_observation", jnp.float32),
        ("reward", jnp.float32),
        ("terminated", jnp.bool_),
    ):
        found = getattr(step, field)
        said = f"{name}.step returns a ModelStep whose {field}"
        if field != "next_observation" and jnp.shape(found) != ():
            raise UsageError(f"{said} has shape {jnp.shape(found)}, not that of a single number")
        if jnp.result_type(found) != kind:
            raise UsageError(
                f"{said} is {jnp.result_type(found)}: write jnp.asarray({field}, "
                f"jnp.{jnp.dtype(kind).name})"
            )


def _expect(model: DynamicsModel, method: str, arguments, shape: tuple[int, ...], hint=""):
    found = _traced(model, method, *arguments)
    _has_shape(model, method, found, shape, hint)
    return found


def _is_real(method: str, result) -> None:
    """Integers and double precision are converted; what has an imaginary part cannot be."""
    if jnp.issubdtype(jnp.result_type(result), jnp.complexfloating):
        raise UsageError(
            f"{method} returns {jnp.result_type(result)}: take what is real of it, as with jnp.real"
        )


def _traced(model: DynamicsModel, method: str, *arguments):
    """What a method returns, as shapes; or an error that says how to write it."""
    name = f"{model.name}.{method}"
    try:
        return eqx.filter_eval_shape(getattr(model, method), *arguments)
    except jax.errors.TracerArrayConversionError:
        raise UsageError(
            f"{name} uses NumPy or Python functions on its arguments; write it with jax.numpy, so "
            "that it can be compiled"
        ) from None
    except jax.errors.ConcretizationTypeError:
        raise UsageError(
            f"{name} branches on a value (if, and, or, float()); write it with jnp.where, so that "
            "it can be compiled"
        ) from None
    except UsageError:
        raise
    except Exception as error:  # the method is somebody else's code
        raise UsageError(f"{name} does not run: {one_line(error)}") from None


def _has_shape(model: DynamicsModel, method: str, result, shape: tuple[int, ...], hint="") -> None:
    found = getattr(result, "shape", None) if not isinstance(result, tuple | list) else "a tuple"
    if found == shape or (shape == () and found in ((), (1,))):
        return
    wanted = f"shape {shape}" if shape else "a single number"
    raise UsageError(
        f"{model.name}.{method} returns "
        f"{f'shape {found}' if isinstance(found, tuple) else result}, not {wanted}{hint}"
    )
