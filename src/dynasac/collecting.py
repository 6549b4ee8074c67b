"""A real episode, step by step, wherever it is collected: here, or on a rig."""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from . import border
from .adapt.explore import wandering
from .networks import Actor
from .spaces import Box, Spaces, spaces_of
from .types import Transition

COLLECT = 0
"""what this module's stream of random numbers is for (`random_key`)"""

SECONDS_HOME = 0.5
"""what was collected in so long goes home together: no more is lost when a rig dies"""


def random_key(seed: int, purpose: int, count: int, attempt: int = 0) -> jax.Array:
    """The random key of the `count`-th use of a purpose: nothing but the seed and counts decide.

    A use that failed is tried again with the key of another attempt. Of XLA's own generator, which
    is faster than JAX's default on CPUs. Made on the host: there is nothing to compile then.
    """
    words = np.random.SeedSequence((seed, purpose, count, attempt)).generate_state(4)
    return jax.random.wrap_key_data(jax.device_put(words), impl="rbg")


class Order(NamedTuple):
    """What decides an episode, beside the policy and the environment."""

    seed: int
    """of the training"""
    number: int
    """of the episode, from 0"""
    attempt: int
    """at it, from 0; seed, number and attempt decide everything random"""
    spaces: Spaces
    """as the policy sees them"""
    random_steps: int
    """so many of its first actions are uniform"""
    wandering: float | None
    """strength of actions that wander instead of following a policy, where nothing is known yet"""


class Step(NamedTuple):
    """What an action led to."""

    row: Transition
    """what the replay holds of it: a batch of one"""
    reward: float
    """in the environment's precision"""


class Episode:
    """A real episode under way, from its reset on.

    Raises:
        border.Failure: the environment failed, or its spaces are not the order's.
    """

    def __init__(self, env: gym.Env, order: Order):
        attempt = order.number, order.attempt
        self._env, self._order = env, order
        self._key = random_key(order.seed, COLLECT, *attempt)
        self._wander = None
        if order.wandering is not None:
            # noise at every step would cancel itself
            rng = np.random.default_rng((order.seed, COLLECT, *attempt))
            self._wander = wandering(rng, order.spaces, strength=order.wandering)
        self._where = f"real episode {order.number + 1}"
        env_seed = np.random.SeedSequence((order.seed, *attempt)).generate_state(1)
        self.observation = border.reset(env, int(env_seed[0]), self._where)
        _check_spaces(env, order.spaces, self._where)
        self.steps = 0
        self.over = False

    def act(self, actor: Actor) -> np.ndarray:
        """The next action, Float32[action] in [-1, 1]; NaN of a policy that has diverged."""
        if self._wander is not None:
            return self._wander(self.observation)
        spaces, uniform = self._order.spaces, np.bool_(self.steps < self._order.random_steps)
        boxes = spaces.observation, spaces.action
        return np.asarray(
            _act(actor, *boxes, self.observation, uniform, np.int32(self.steps), self._key)
        )

    def repeat(self, unit: np.ndarray) -> Step:
        """Take an action, [action] in [-1, 1], that was decided on before."""
        if self._wander is not None:
            self._wander(self.observation)
        return self.step(unit)

    def step(self, unit: np.ndarray) -> Step:
        """Take an action, [action] in [-1, 1]."""
        before, here = self.observation, f"{self._where}, step {self.steps}"
        played = _played(unit, self._order.spaces)
        arrival = border.step(self._env, played, here, before.shape)
        self.observation, self.steps = arrival.observation, self.steps + 1
        self.over = (
            arrival.terminated
            or arrival.truncated
            or self.steps >= self._order.spaces.episode_steps
        )
        return Step(_row(before, unit, arrival), arrival.reward)


class Part(NamedTuple):
    """Some steps of a real episode that was collected elsewhere, in order."""

    rows: Transition | None
    """along one leading axis, as NumPy arrays; None if there are none"""
    returned: float
    """the return up to here, of this attempt at the episode"""
    failure: str | None = None
    """why the attempt ended here, where the environment failed"""


def parts(
    env: gym.Env, order: Order, actor: Actor, retries: int, stopped: Callable[[], bool]
) -> Iterator[Part]:
    """A whole real episode under one policy, a part every `SECONDS_HOME`.

    Where the environment fails, the episode is begun again, with the next attempt's random numbers.

    Arguments:
        retries: how often it may be begun again.
        stopped: looked at before each step; the episode ends where it says so.

    Raises:
        border.Failure: the environment failed once more; all that it gave away has been yielded.
    """
    failed = 0
    while True:
        steps: list[Step] = []
        returned, taken, sent = 0.0, 0, time.monotonic()
        try:
            episode = Episode(env, order)
            while not (episode.over or stopped()):
                unit = episode.act(actor)
                if not np.isfinite(unit).all():
                    break  # nothing real is moved by it
                steps.append(episode.step(unit))
                returned, taken = returned + steps[-1].reward, episode.steps
                if time.monotonic() - sent >= SECONDS_HOME:
                    yield Part(_stacked(steps), returned)
                    steps, sent = [], time.monotonic()
            yield Part(_stacked(steps), returned)
            return
        except border.Failure as error:
            yield Part(_stacked(steps), returned, str(error))
            border.begin_again(error, failed, retries, stopped)
            if stopped():  # nothing real is moved any more
                return
            failed += 1
            order = order._replace(
                attempt=order.attempt + 1, random_steps=max(0, order.random_steps - taken)
            )


def _stacked(steps: list[Step]) -> Transition | None:
    if not steps:
        return None
    return jax.tree.map(lambda *rows: np.concatenate(rows), *(step.row for step in steps))


def _row(observation: np.ndarray, unit: np.ndarray, arrival: border.Arrival) -> Transition:
    """What the replay holds of a step: a batch of one.

    It may be in the same memory as the arguments, which nobody writes into (`border`).
    """
    reward, terminated = np.array([arrival.reward], np.float32), np.array([arrival.terminated])
    fields = observation[None], unit[None], reward, arrival.observation[None], terminated
    return Transition(*jax.device_put(fields))


def _played(unit: np.ndarray, spaces: Spaces) -> np.ndarray:
    """The environment's action for one in [-1, 1], the same bits whenever it is asked for."""
    low, high = np.asarray(spaces.action.low), np.asarray(spaces.action.high)
    action = (high + low) / 2 + (high - low) / 2 * unit
    return np.clip(action, low, high)  # what rounding has put outside


def _check_spaces(env: gym.Env, then: Spaces, where: str) -> None:
    """Refuse spaces that are not those which training began with."""
    now = spaces_of(env)
    measured = ~np.array(then.bounded)  # which the environment says nothing about
    for name, ours, theirs, free in (
        ("observation_space", then.observation, now.observation, measured),
        ("action_space", then.action, now.action, False),
    ):
        same = ours.size == theirs.size and all(
            (free | np.isclose(bound, other)).all()
            for bound, other in ((ours.low, theirs.low), (ours.high, theirs.high))
        )
        if not same or now.bounded != then.bounded:
            raise border.Unusable(
                f"the environment's {name} is not what training began with ({where}): spaces must "
                "stay as they are"
            )


@jax.jit
def _act(actor: Actor, observations: Box, actions: Box, observation, random, draw, key):
    """A stochastic action in [-1, 1]."""
    policy_key, uniform_key = jax.random.split(jax.random.fold_in(key, draw))
    noise = jax.random.normal(policy_key, (actions.size,))
    unit, _ = actor.sample(observations.to_unit(observation), noise)
    return jnp.where(random, jax.random.uniform(uniform_key, unit.shape, minval=-1.0), unit)
