"""Replay: a ring of transitions, as an immutable pytree and three pure functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, PRNGKeyArray

from .types import Transition


class ReplayState(eqx.Module):
    """The last `capacity` transitions, in the order in which they overwrite each other."""

    transitions: Transition
    """every field with a leading axis of `capacity` rows; rows from `size` on mean nothing"""
    position: Int[Array, ""]
    """the row that is written next"""
    size: Int[Array, ""]
    """how many rows hold something"""

    @property
    def capacity(self) -> int:
        return self.transitions.reward.shape[0]

    @property
    def possible(self) -> bool:
        """Whether its two counts can be true, as those from a file need not be."""
        size, position = int(self.size), int(self.position)
        if size < self.capacity:
            return 0 <= size == position
        return size == self.capacity and 0 <= position < self.capacity


def create(capacity: int, observation_size: int, action_size: int) -> ReplayState:
    """An empty replay; all of its memory is allocated here."""

    def zeros(*shape: int) -> Array:
        # written: the pages of NumPy's zeros are there only once they are, which may be too late
        return jax.device_put(np.full(shape, 0, np.float32))

    return ReplayState(
        transitions=Transition(
            observation=zeros(capacity, observation_size),
            action=zeros(capacity, action_size),
            reward=zeros(capacity),
            next_observation=zeros(capacity, observation_size),
            terminated=jax.device_put(np.full(capacity, False)),
        ),
        position=jax.device_put(np.int32(0)),
        size=jax.device_put(np.int32(0)),
    )


@jax.jit
def add(replay: ReplayState, rows: Transition, keep: Array | None = None) -> ReplayState:
    """Write a batch of rows, the oldest rows giving way.

    Arguments:
        rows: a batch along one leading axis, no longer than the capacity.
        keep: which of the rows to write, Bool[rows]; all of them if None.
    """
    count = rows.reward.shape[0]
    if count > replay.capacity:
        raise ValueError(f"{count} rows do not fit a replay of {replay.capacity}")
    keep = jnp.ones(count, bool) if keep is None else keep
    order = jnp.cumsum(keep) - 1
    index = jnp.where(keep, (replay.position + order) % replay.capacity, replay.capacity)
    written = keep.sum(dtype=jnp.int32)
    return ReplayState(
        transitions=jax.tree.map(
            lambda ring, new: ring.at[index].set(new, mode="drop"), replay.transitions, rows
        ),
        position=(replay.position + written) % replay.capacity,
        size=jnp.minimum(replay.size + written, replay.capacity),
    )


def sample(replay: ReplayState, key: PRNGKeyArray, count: int) -> Transition:
    """Draw `count` rows uniformly, with replacement. An empty replay gives rows of zeros.

    Consumes `key`.
    """
    # a float32 tells 2^23 rows apart, and is one draw where `randint` is two
    index = (jax.random.uniform(key, (count,)) * replay.size).astype(jnp.int32)
    return jax.tree.map(lambda ring: ring[index], replay.transitions)


def in_order(replay: ReplayState) -> Transition:
    """All rows that hold something, oldest first, as NumPy arrays."""
    size = int(replay.size)
    first = int(replay.position) if size == replay.capacity else 0
    return jax.tree.map(lambda ring: np.roll(ring, -first, axis=0)[:size], replay.transitions)
