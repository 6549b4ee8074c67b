"""Replay: every field of row i carries the number i, so a row that is torn apart shows."""

from collections import deque

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynasac import replay
from dynasac.types import Transition

CAPACITY = 5
add = eqx.filter_jit(replay.add)
sample = eqx.filter_jit(replay.sample)


def rows(*ids: int) -> Transition:
    """Transitions whose every field is a function of the row's number."""
    number = jnp.asarray(np.array(ids, np.float32))
    return Transition(
        observation=jnp.stack([number, number + 0.25, -number], axis=1),
        action=jnp.stack([number / 1024, -number / 1024], axis=1),
        reward=10 * number,
        next_observation=jnp.stack([number + 1, number + 1.25, -number - 1], axis=1),
        terminated=number % 2 == 1,
    )


def ids(transitions: Transition) -> list[int]:
    """The row numbers, after checking that every field of a row says the same."""
    numbers = np.asarray(transitions.observation[:, 0]).astype(int).tolist()
    if numbers:
        jax.tree.map(np.testing.assert_array_equal, transitions, rows(*numbers))
    return numbers


def held(state: replay.ReplayState) -> list[int]:
    """The row numbers held, the oldest first."""
    size, position = int(state.size), int(state.position)
    order = (position - size + np.arange(size)) % state.capacity
    return ids(jax.tree.map(lambda ring: ring[order], state.transitions))


def empty(capacity: int = CAPACITY) -> replay.ReplayState:
    return replay.create(capacity, observation_size=3, action_size=2)


def test_a_new_replay_is_empty():
    state = empty()
    assert (state.capacity, int(state.size), int(state.position)) == (CAPACITY, 0, 0)


def test_rows_are_kept_in_order():
    state = add(add(empty(), rows(1, 2)), rows(3))
    assert held(state) == [1, 2, 3]
    assert int(state.size) == int(state.position) == 3


def test_the_oldest_rows_give_way():
    state = empty()
    for first in range(1, 13, 2):
        state = add(state, rows(first, first + 1))
    assert held(state) == [8, 9, 10, 11, 12]


def test_exactly_full_wraps_to_row_zero():
    state = add(empty(), rows(1, 2, 3, 4, 5))
    assert (int(state.size), int(state.position)) == (5, 0)
    state = add(state, rows(6))
    assert int(state.transitions.observation[0, 0]) == 6
    assert held(state) == [2, 3, 4, 5, 6]


def test_keep_writes_only_its_rows_without_gaps():
    state = add(empty(), rows(1, 2, 3, 4), jnp.array([True, False, False, True]))
    assert held(state) == [1, 4]
    state = add(state, rows(5, 6, 7, 8), jnp.array([False, True, True, True]))
    assert held(state) == [1, 4, 6, 7, 8]
    state = add(state, rows(9, 10), jnp.array([False, True]))
    assert held(state) == [4, 6, 7, 8, 10]


def test_keeping_nothing_changes_nothing():
    before = add(empty(), rows(1, 2))
    after = add(before, rows(3, 4), jnp.zeros(2, bool))
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_more_rows_than_fit_are_refused():
    with pytest.raises(ValueError, match="6 rows do not fit a replay of 5"):
        replay.add(empty(), rows(1, 2, 3, 4, 5, 6))


def test_samples_are_rows_that_were_written_and_each_of_them():
    state = add(empty(), rows(1, 2, 3))
    drawn = ids(sample(state, jax.random.key(0), 600))
    counts = {number: drawn.count(number) for number in set(drawn)}
    assert set(counts) == {1, 2, 3}
    assert min(counts.values()) > 150


def test_samples_of_a_full_replay_reach_every_row():
    state = add(empty(), rows(1, 2, 3, 4, 5))
    state = add(state, rows(6, 7))
    assert set(ids(sample(state, jax.random.key(1), 600))) == {3, 4, 5, 6, 7}


def test_other_keys_give_other_samples():
    state = add(empty(), rows(1, 2, 3, 4, 5))
    first, again, other = (ids(sample(state, jax.random.key(k), 50)) for k in (0, 0, 1))
    assert first == again
    assert first != other


batches = st.lists(st.lists(st.booleans(), min_size=CAPACITY, max_size=CAPACITY), max_size=8)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(batches)
def test_any_sequence_of_adds_equals_a_deque(masks):
    expected: deque[int] = deque(maxlen=CAPACITY)
    state, number = empty(), 1
    for mask in masks:
        numbers = range(number, number + CAPACITY)
        number += CAPACITY
        state = add(state, rows(*numbers), jnp.array(mask))
        expected.extend(n for n, kept in zip(numbers, mask, strict=True) if kept)
        assert held(state) == list(expected)
