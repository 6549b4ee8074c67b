"""The one record that flows through everything: a transition, or a batch of them."""

import equinox as eqx
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
