"""Planning with a model that runs on the host: episodes in it fill a synthetic replay.

A simulator cannot be compiled into the planning loop. So between two calls of that loop many
episodes go on side by side in the simulator under the current policy, as they would in reality, and
updates draw from all that they have led to.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PRNGKeyArray

from . import planning, replay
from .errors import UsageError
from .models import HostModel
from .models.simulator import host_reset, host_step
from .planning import PlanningConfig
from .replay import ReplayState
from .sac import SACState
from .spaces import Spaces
from .types import Transition


class Simulation(NamedTuple):
    """Episodes under way in a host model, and what they and those before them have led to."""

    replay: ReplayState
    """synthetic transitions"""
    states: np.ndarray
    """Float64[episodes, state], the host model's own"""
    observations: np.ndarray
    """Float32[episodes, observation]"""
    ages: np.ndarray
    """Int64[episodes], steps since each began"""


def create(
    model: HostModel, spaces: Spaces, config: PlanningConfig, capacity: int, seed: int
) -> Simulation:
    """Episodes that have just begun, and an empty replay."""
    states, observations = host_reset(model, config.simulations, np.random.default_rng((seed, 0)))
    empty = replay.create(capacity, spaces.observation.size, spaces.action.size)
    # at different ages, so that the time limit does not end all of them at once
    ages = np.arange(config.simulations) * spaces.episode_steps // config.simulations
    return Simulation(empty, states, observations, ages)


def advance(
    model: HostModel,
    learner: SACState,
    simulation: Simulation,
    updates: int,
    config: PlanningConfig,
    spaces: Spaces,
    rng: np.random.Generator,
    key: PRNGKeyArray,
) -> Simulation:
    """Make the synthetic transitions for some updates, and at least one step of each episode.

    Consumes `key`.

    Raises:
        UsageError: no step of any episode is finite.
    """

    def act(step, observations):
        draw = jnp.asarray(np.int32(step))
        return _act(learner, spaces, jnp.asarray(observations), draw, key)

    steps = max(1, updates * config.simulated_transitions // config.simulations)
    return follow(model, act, simulation, steps, spaces, rng)


def follow(
    model: HostModel,
    act: Callable[[int, np.ndarray], tuple[ArrayLike, ArrayLike]],
    simulation: Simulation,
    steps: int,
    spaces: Spaces,
    rng: np.random.Generator,
) -> Simulation:
    """Take `steps` steps in each episode, and keep what they led to.

    A step to numbers that are not finite ends its episode and is not kept.

    Arguments:
        act: from the number of a step and the observations to actions, in [-1, 1] and in the
            environment's unit.

    Raises:
        UsageError: no step of any episode is finite.
    """
    memory, states, observations, ages = simulation
    kept, broken = 0, set()
    for step in range(steps):
        unit, action = act(step, observations)
        result = host_step(model, states, np.asarray(action))
        finite = (
            np.isfinite(result.states).all(1)
            & np.isfinite(result.observations).all(1)
            & np.isfinite(result.rewards)
        )
        kept += int(finite.sum())
        broken |= {field for field in NUMBERS if not np.isfinite(getattr(result, field)).all()}
        rows = Transition(
            observation=jnp.asarray(observations),
            action=jnp.asarray(unit),
            reward=jnp.asarray(result.rewards),
            next_observation=jnp.asarray(result.observations),
            terminated=jnp.asarray(result.terminated),
        )
        memory = _add(memory, rows, jnp.asarray(finite))
        states, observations, ages = result.states, result.observations, ages + 1
        over = np.flatnonzero(~finite | result.terminated | (ages >= spaces.episode_steps))
        if len(over):
            states[over], observations[over] = host_reset(model, len(over), rng)
            ages[over] = 0
    if not kept:
        raise UsageError(
            f"no step of {model.name} gives finite numbers: look at its "
            f"{' and '.join(sorted(broken))}"
        )
    return Simulation(memory, states, observations, ages)


NUMBERS = ("states", "observations", "rewards")
"""fields of a `HostStep`"""

EXPLORATION = 0.1
"""share of actions in simulated episodes that are uniform, not the policy's"""


@eqx.filter_jit
def _act(learner: SACState, spaces: Spaces, observations, draw, key):
    """Stochastic actions, in the learner's unit and in the environment's."""
    keys = jax.random.split(jax.random.fold_in(key, draw), 3)
    shape = (len(observations), spaces.action.size)
    x = spaces.observation.to_unit(observations)
    unit, _ = learner.actor.sample(x, jax.random.normal(keys[0], shape))
    uniform = jax.random.uniform(keys[1], shape, minval=-1.0)
    unit = jnp.where(jax.random.uniform(keys[2], (shape[0], 1)) < EXPLORATION, uniform, unit)
    return unit, spaces.action.from_unit(unit)


_add = eqx.filter_jit(replay.add)


def visited_box(model: HostModel, spaces: Spaces, seed: int, rollouts: int = 32) -> Spaces:
    """`planning.visited_box` for a model that runs on the host.

    Raises:
        UsageError: the model's sizes are not the environment's, or its numbers are not finite.
    """
    sizes = (model.observation_size, model.action_size)
    if sizes != (spaces.observation.size, spaces.action.size):
        raise UsageError(
            f"the simulator has {sizes[0]} observations and {sizes[1]} actions, the environment "
            f"{spaces.observation.size} and {spaces.action.size}"
        )
    if all(spaces.bounded):
        return spaces
    rng = np.random.default_rng((seed, 1))
    states, starts = host_reset(model, rollouts, rng)
    steps = _random_steps(model, spaces, states, LONGEST_VISIT, rng)
    seen = np.concatenate([observations for observations, _ in steps])
    return planning.box_around(starts, seen, spaces, model.name)


def reward_size(model: HostModel, spaces: Spaces, rollouts: int = 32) -> float:
    """`planning.reward_size` for a model that runs on the host: over a few random steps."""
    rng = np.random.default_rng(0)
    states, _ = host_reset(model, rollouts, rng)
    steps = _random_steps(model, spaces, states, SHORT_VISIT, rng)
    return planning.mean_size(np.concatenate([rewards for _, rewards in steps]))


def _random_steps(
    model: HostModel, spaces: Spaces, states: np.ndarray, most: int, rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Finite observations and the rewards that random actions lead to in episodes side by side."""
    low, high = np.asarray(spaces.action.low), np.asarray(spaces.action.high)
    for _ in range(min(spaces.episode_steps, most)):
        actions = rng.uniform(low, high, (len(states), len(low))).astype(np.float32)
        result = host_step(model, states, actions)
        states = result.states
        finite = np.isfinite(result.observations).all(1) & np.isfinite(states).all(1)
        yield result.observations[finite], result.rewards
        over = np.flatnonzero(result.terminated | ~finite)
        if len(over):
            states[over], _ = host_reset(model, len(over), rng)


LONGEST_VISIT, SHORT_VISIT = 200, 25
"""steps of random actions: simulators are slow"""
