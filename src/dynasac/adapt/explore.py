"""Real transitions that reach the corners where models go wrong: walls, limits and goals."""

import itertools
from collections.abc import Callable, Iterator

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from .. import border
from ..errors import UsageError
from ..models import DynamicsModel, as_arrays
from ..spaces import Box, Spaces
from ..types import Transition


def explore(
    env: gym.Env, model: DynamicsModel, spaces: Spaces, steps: int, seed: int, retries: int = 0
) -> Transition:
    """Collect `steps` real transitions, in time order, where models go wrong: walls, limits, goals.

    Behaviours take turns. One holds random actions for random times. The others pump a component
    of the observation: they take the action that, says the model, moves it furthest the way it
    is going, which swings pendulums over and cars up hills.

    Arguments:
        retries: how often an episode that the environment fails in is begun again.

    Raises:
        UsageError: the environment failed, or returned what it must not.
    """
    if steps < 1:
        raise UsageError(f"{steps} steps in the environment: ask for at least 1")
    rng = np.random.default_rng((seed, 0))
    turns = _turns(rng, as_arrays(model), spaces)
    behaviour, left = next(turns), LONGEST_TURN
    observation, ended, episode, failed = np.zeros(0, np.float32), True, 0, 0
    rows = []
    while len(rows) < steps:
        where = f"exploring, step {len(rows)}"
        try:
            if ended or left == 0:
                behaviour, left = next(turns), LONGEST_TURN
            if ended:
                episode_seed = np.random.SeedSequence((seed, 1, episode)).generate_state(1)
                episode += 1
                observation, ended = border.reset(env, int(episode_seed[0]), where), False
            unit = behaviour(observation)
            action = np.asarray(_from_unit(spaces.action, unit))
            found = border.step(env, action, where, observation.shape)
        except border.Failure as error:
            border.begin_again(error, failed, retries)
            ended, failed = True, failed + 1
            continue
        reward = np.float32(found.reward)
        rows.append((observation, unit, reward, found.observation, found.terminated))
        observation, ended, left = found.observation, found.terminated or found.truncated, left - 1
        failed = 0 if ended else failed
    return Transition(*map(jax.device_put, map(np.stack, zip(*rows, strict=True))))


Behaviour = Callable[[np.ndarray], np.ndarray]
"""From an observation to an action in [-1, 1]."""

LONGEST_TURN = 200
"""steps after which another behaviour takes over, if no episode ends before"""


def _turns(rng: np.random.Generator, model: DynamicsModel, spaces: Spaces) -> Iterator[Behaviour]:
    """Of three turns, one holds and two pump, each component in its turn."""
    components = itertools.cycle(range(spaces.observation.size))
    while True:
        yield _holding(rng, spaces)
        yield _pumping(rng, model, spaces, next(components))
        yield _pumping(rng, model, spaces, next(components))


def _holding(rng: np.random.Generator, spaces: Spaces) -> Behaviour:
    """Random actions, each for between one step and a quarter of an episode."""
    draw = lambda: rng.choice(_candidates(rng, spaces.action.size))  # noqa: E731
    return _held(rng, draw, spaces.episode_steps / 4)


def wandering(rng: np.random.Generator, spaces: Spaces, strength: float = 1.0) -> Behaviour:
    """Random actions for where nothing is known, held for up to a sixteenth of an episode.

    Most are nearly as strong as `strength` in (0, 1] allows, to get somewhere; not all, so that
    their cost can be told from a constant.
    """

    def draw() -> np.ndarray:
        size = spaces.action.size
        strengths = strength * rng.random(size) ** (1 / 3)
        return (rng.choice([-1, 1], size) * strengths).astype(np.float32)

    return _held(rng, draw, spaces.episode_steps / 16)


def _held(rng: np.random.Generator, draw: Callable[[], np.ndarray], longest: float) -> Behaviour:
    """Actions that are drawn anew after times whose logarithms are uniform."""

    def actions() -> Iterator[np.ndarray]:
        most = np.log(max(longest, 1))
        while True:
            unit = draw()
            yield from itertools.repeat(unit, int(np.exp(rng.uniform(0, most))))

    stream = actions()
    return lambda observation: next(stream)


def _pumping(
    rng: np.random.Generator, model: DynamicsModel, spaces: Spaces, component: int
) -> Behaviour:
    """What the model says moves a component furthest the way it is going; at times, anything."""
    index = np.int32(component)
    going, before = rng.choice([-1e-9, 1e-9]), None  # from rest, either way

    def act(observation: np.ndarray) -> np.ndarray:
        nonlocal going, before
        if before is not None:  # averaged, because sensors' noise is no movement
            going = 0.7 * going + 0.3 * float(observation[component] - before)
        before = observation[component]
        candidates = _candidates(rng, spaces.action.size)
        if rng.random() < ASIDE:
            return rng.choice(candidates)
        way = np.float32(np.sign(going))
        found = _furthest(model, spaces.action, observation, candidates, index, way)
        return candidates[int(found)]

    return act


def _candidates(rng: np.random.Generator, size: int) -> np.ndarray:
    """Corners, the inside and the middle of the box of actions: Float32[candidates, size]."""
    candidates = rng.uniform(-1, 1, (CANDIDATES, size))
    candidates[: CANDIDATES // 2] = np.sign(candidates[: CANDIDATES // 2])
    candidates[-1] = 0
    return candidates.astype(np.float32)


CANDIDATES = 32
ASIDE = 0.2
"""share of the steps of pumping that try another action, because those of pumping are alike"""


@eqx.filter_jit
def _furthest(model, actions: Box, observation, candidates, component, way):
    """The index of the candidate that moves the component furthest, up or down as `way` says."""
    step = lambda action: model.step(observation, action, jax.random.key(0))  # noqa: E731
    predicted = jax.vmap(step)(actions.from_unit(candidates)).next_observation
    return jnp.argmax(way * predicted[:, component])


@jax.jit
def _from_unit(actions: Box, unit):
    return actions.from_unit(unit)
