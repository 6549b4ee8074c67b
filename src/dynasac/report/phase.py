"""A policy and what its critics say over the whole plane of a system with two states."""

import ast
import inspect
import itertools
import textwrap
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import evaluation, sac
from ..agent import DynaSAC
from ..models import KNOWN_PHYSICS, PhysicsModel, Turned
from ..models.residual import LearnedModel
from ..spaces import Spaces

POINTS = 81
"""of the grid, along each axis"""
EPISODES = 5
"""drawn, from the first fixed starts"""
MARGIN = 0.15
"""beyond the states visited, where nothing else bounds an axis"""


class Path(NamedTuple):
    """The states of one episode."""

    seed: int
    states: np.ndarray
    """[steps + 1, 2]"""
    total: float
    """return"""


class PhaseMap(NamedTuple):
    """What the policy does and expects in each state, and where it leads."""

    names: tuple[str, str]
    axes: tuple[np.ndarray, np.ndarray]
    """the states of the grid along each axis, [POINTS]"""
    action: np.ndarray
    """[POINTS, POINTS], second state first: component 0, in the environment's unit"""
    bounds: tuple[float, float]
    """of that component"""
    actions: int
    """components of an action"""
    value: np.ndarray
    """[POINTS, POINTS]: the critics, of the policy's action, in the environment's unit of return"""
    discount: float
    paths: tuple[Path, ...]


def phase_map(agent: DynaSAC) -> PhaseMap | None:
    """Maps of an agent's policy; None if no physics with two states is known.

    Runs `EPISODES` fixed episodes in the agent's own environment.
    """
    physics = physics_of(agent)
    if physics is None or _state_shape(physics) != (2,):
        return None
    spaces = agent.spaces

    def policy(observations: np.ndarray) -> np.ndarray:
        return agent.predict(observations, deterministic=True)[0]

    paths = []
    for seed in range(evaluation.FIRST_SEED, evaluation.FIRST_SEED + EPISODES):
        steps = list(evaluation.episode(policy, agent.env, spaces.episode_steps, seed))
        seen = np.stack([step.observation for step in steps] + [steps[-1].next_observation])
        states = np.asarray(_states(physics, jnp.asarray(seen)))
        paths.append(Path(seed, states, sum(step.reward for step in steps)))
    low, high = ranges(physics, spaces, np.concatenate([path.states for path in paths]))
    axes = (np.linspace(low[0], high[0], POINTS), np.linspace(low[1], high[1], POINTS))
    grid = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2).astype(np.float32)
    observations = np.asarray(_observations(physics, jnp.asarray(grid)))
    action = policy(observations)[:, 0]
    value = np.asarray(
        _values(agent.state.sac, jnp.asarray(observations), spaces, agent.config.sac)
    )
    return PhaseMap(
        names=state_names(type(physics)),
        axes=axes,
        action=action.reshape(POINTS, POINTS),
        bounds=(float(spaces.action.low[0]), float(spaces.action.high[0])),
        actions=spaces.action.size,
        value=value.reshape(POINTS, POINTS),
        discount=sac.discount(agent.config.sac),
        paths=tuple(paths),
    )


def physics_of(agent: DynaSAC) -> PhysicsModel | None:
    """The equations behind the agent's model, or those known for its environment."""
    model = agent.model
    if isinstance(model, LearnedModel):
        model = model.base
    if isinstance(model, Turned):
        model = model.model
    if isinstance(model, PhysicsModel):
        return model
    known = KNOWN_PHYSICS.get(agent.env_id)
    return known() if known else None


def _state_shape(physics: PhysicsModel) -> tuple[int, ...]:
    return eqx.filter_eval_shape(physics.initial, jax.random.key(0)).shape


def ranges(
    physics: PhysicsModel, spaces: Spaces, visited: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where each state lies, [2] and [2].

    That of all observations, for the states that follow from bounded ones; where it was, `visited`
    [states, 2], for the others.
    """
    size, rng = spaces.observation.size, np.random.default_rng(0)
    corners = np.array(list(itertools.product((-1.0, 1.0), repeat=min(size, 8))))
    corners = np.pad(corners, [(0, 0), (0, size - corners.shape[1])])
    unit = np.concatenate([corners, rng.uniform(-1, 1, (4096, size))]).astype(np.float32)
    stretched = np.where(spaces.bounded, unit, 2 * unit)

    def states(points: np.ndarray) -> np.ndarray:
        return np.asarray(_states(physics, spaces.observation.from_unit(jnp.asarray(points))))

    found, other = states(unit), states(stretched)
    bounded = np.isfinite(found).all(0) & np.isclose(found, other, atol=1e-5).all(0)
    low, high = visited.min(0), visited.max(0)
    width = np.where(high > low, MARGIN * (high - low), 1.0)
    return (
        np.where(bounded, found.min(0), low - width),
        np.where(bounded, found.max(0), high + width),
    )


def unbroken(states: np.ndarray, axes: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """A path, [n, 2], with a row of NaN wherever an angle wraps from one end to the other."""
    span = np.array([axis[-1] - axis[0] for axis in axes])
    jumps = np.flatnonzero((np.abs(np.diff(states, axis=0)) > span / 2).any(1)) + 1
    return np.insert(states.astype(float), jumps, np.nan, axis=0)


def state_names(physics: type[PhysicsModel]) -> tuple[str, str]:
    """What the author of a model calls its states where `transition` takes them apart.

    From `angle, velocity = state`; "state 0" and "state 1" where it is written otherwise.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(physics.transition)))
    except (OSError, TypeError, SyntaxError):
        return "state 0", "state 1"
    arguments = [
        a.arg for node in ast.walk(tree) if isinstance(node, ast.arguments) for a in node.args
    ]
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)):
            continue
        target = node.targets[0]
        if node.value.id in arguments[1:2] and isinstance(target, ast.Tuple):
            names = [item.id for item in target.elts if isinstance(item, ast.Name)]
            if len(names) == len(target.elts) == 2 and "_" not in names:
                return names[0].replace("_", " "), names[1].replace("_", " ")
    return "state 0", "state 1"


@eqx.filter_jit
def _states(physics: PhysicsModel, observations):
    return jax.vmap(physics.state)(observations)


@eqx.filter_jit
def _observations(physics: PhysicsModel, states):
    return jax.vmap(lambda state: jnp.asarray(physics.observation(state), jnp.float32))(states)


@eqx.filter_jit
def _values(learner: sac.SACState, observations, spaces: Spaces, config: sac.SACConfig):
    x = spaces.observation.to_unit(observations)
    q = learner.critics(x, learner.averaged_actor.mode(x))
    return sac.reduced(q, config) / sac.reward_scale(config)
