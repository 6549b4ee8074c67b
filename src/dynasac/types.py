"""The one record that flows through everything: a transition, or a batch of them."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float


class Transition(eqx.Module):
    """One step of experience, or a batch of them along any leading axes.

    `terminated` is a fact about the state that was reached: nothing comes after it, so its value is
    zero. Truncation by a time limit is a fact about the clock and is not stored: values are
    bootstrapped through it.
    """

    observation: Float[Array, "*batch observation"]
    """in the environment's own units"""
    action: Float[Array, "*batch action"]
    """in [-1, 1], the learner's unit (see `dynasac.spaces`)"""
    reward: Float[Array, "*batch"]
    """in the environment's own unit"""
    next_observation: Float[Array, "*batch observation"]
    """in the environment's own units; the state reached, never the one after a reset"""
    terminated: Bool[Array, "*batch"]
    """whether the state reached is terminal"""


def follows(transitions: Transition) -> np.ndarray:
    """Whether each of some rows, in the order of time, begins where the one before it arrived.

    Bool[rows]; the first does not. Where one does not, an episode begins.
    """
    observation, arrived, terminated = (
        np.asarray(field)
        for field in (
            transitions.observation,
            transitions.next_observation,
            transitions.terminated,
        )
    )
    found = np.zeros(len(terminated), bool)
    found[1:] = (arrived[:-1] == observation[1:]).all(axis=1) & ~terminated[:-1]
    return found


def padded(values: np.ndarray, least: int, axis: int = 0) -> np.ndarray:
    """Zeros behind the rows up to a power of two, `least` or more: growing data seldom compile."""
    rows = values.shape[axis]
    size = max(least, 1 << max(rows - 1, 0).bit_length())
    return np.pad(values, [(0, size - rows if i == axis else 0) for i in range(values.ndim)])
