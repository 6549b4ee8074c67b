"""The optimum of both tasks: dynamic programming backward over the steps of an episode.

V[t](s) = max over a of r(s, a) + V[t+1](s'), on a grid of states with linear interpolation, from
V[T] = 0; no discount. The greedy policy is then run in the real environment from the standard 100
starts, so the return is one that can be earned, and the grid's error can only make it smaller.
"""

import time
from typing import NamedTuple

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from dynasac import evaluation
from dynasac.models import PhysicsModel, known_model

from . import report


class Grid(NamedTuple):
    """Evenly spaced states of a two-dimensional system."""

    low: tuple[float, float]
    high: tuple[float, float]
    points: tuple[int, int]
    circular: bool
    """whether the first component is an angle, whose upper end is the lower end again"""

    def states(self) -> jax.Array:
        axes = [
            np.linspace(low, high, n, endpoint=not (self.circular and axis == 0))
            for axis, (low, high, n) in enumerate(
                zip(self.low, self.high, self.points, strict=True)
            )
        ]
        return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1), jnp.float32)

    def interpolate(self, values: jax.Array, state: jax.Array) -> jax.Array:
        """The value at any states [..., 2], linear between the four grid points around each."""
        rows, columns = self.points
        cells = jnp.array([rows if self.circular else rows - 1, columns - 1], jnp.float32)
        at = (state - jnp.array(self.low)) / (jnp.array(self.high) - jnp.array(self.low)) * cells
        x, y = at[..., 0], at[..., 1]
        if self.circular:
            i = jnp.floor(x)
            dx = x - i
            i = i.astype(jnp.int32) % rows
            following = jnp.where(i + 1 == rows, 0, i + 1)
        else:
            i = jnp.clip(jnp.floor(x), 0, rows - 2)
            dx = x - i
            i = i.astype(jnp.int32)
            following = i + 1
        j = jnp.clip(jnp.floor(y), 0, columns - 2)
        dy = y - j
        flat, j = values.reshape(-1), j.astype(jnp.int32)
        here, there = i * columns + j, following * columns + j
        lower = flat[here] * (1 - dx) + flat[there] * dx
        upper = flat[here + 1] * (1 - dx) + flat[there + 1] * dx
        return lower * (1 - dy) + upper * dy


class Problem(NamedTuple):
    """One task and how finely to look at it."""

    env_id: str
    grid: Grid
    actions: np.ndarray
    """tried at each grid point"""
    fine_actions: np.ndarray
    """tried at each step of an episode"""
    steps: int
    tolerance: float
    """how far from the number in FINDINGS the result may be"""


def problems(quick: bool) -> list[Problem]:
    """The two tasks; the optimum on the mountain needs tiny forces, so they lie closer there."""
    pendulum = Grid((-np.pi, -8.0), (np.pi, 8.0), (101, 81) if quick else (601, 481), True)
    mountain = Grid((-1.2, -0.07), (0.6, 0.07), (91, 71) if quick else (241, 181), False)
    count = 11 if quick else 41
    return [
        Problem(
            "Pendulum-v1", pendulum, np.linspace(-2, 2, count), np.linspace(-2, 2, 201), 200, 0.3
        ),
        Problem("MountainCarContinuous-v0", mountain, squeezed(count), squeezed(201), 999, 0.1),
    ]


def squeezed(count: int) -> np.ndarray:
    """Numbers from -1 to 1, closer to each other around 0."""
    even = np.linspace(-1, 1, count)
    return np.sign(even) * even**2


def action_value(model: PhysicsModel, grid: Grid, values, state, action):
    """r + V(s') for one state and action."""
    following = model.transition(state, action)
    ahead = jnp.where(model.terminal(following), 0.0, grid.interpolate(values, following))
    return model.reward(state, action, following) + ahead


def values_of_stages(problem: Problem) -> jax.Array:
    """V[t] for t = 1 … T, by rows of the grid: [T, rows, columns]."""
    model, states = known_model(gym.make(problem.env_id)), problem.grid.states()
    actions = jnp.asarray(problem.actions, jnp.float32)[:, None]

    def backward(values, _):
        def of_action(best, action):
            over_grid = jax.vmap(
                jax.vmap(lambda s: action_value(model, problem.grid, values, s, action))
            )
            return jnp.maximum(best, over_grid(states)), None

        worst = jnp.full(problem.grid.points, -jnp.inf)
        return jax.lax.scan(of_action, worst, actions)[0], values

    start = jnp.zeros(problem.grid.points)
    return jax.jit(lambda v: jax.lax.scan(backward, v, None, problem.steps, reverse=True)[1])(start)


def greedy_episodes(problem: Problem, values: jax.Array) -> evaluation.Evaluation:
    """The standard 100 episodes in the real environment under the greedy policy."""
    model = known_model(gym.make(problem.env_id))
    actions = jnp.asarray(problem.fine_actions, jnp.float32)[:, None]

    @jax.jit
    def best(values, step, observations):
        def of_state(observation):
            state = model.state(observation)
            worth = jax.vmap(
                lambda action: action_value(model, problem.grid, values[step], state, action)
            )(actions)
            return actions[jnp.argmax(worth)]

        return jax.vmap(of_state)(observations)

    steps = iter(range(problem.steps))

    def policy(observations):
        return np.asarray(best(values, jnp.asarray(next(steps)), jnp.asarray(observations)))

    return evaluation.evaluate(policy, lambda: gym.make(problem.env_id), 100, problem.steps)


def run(quick: bool) -> dict:
    tasks, targets = {}, []
    for problem in problems(quick):
        started = time.perf_counter()
        values = jax.block_until_ready(values_of_stages(problem))
        measured = greedy_episodes(problem, values)
        expected = evaluation.OPTIMAL_RETURN[problem.env_id]
        tasks[problem.env_id] = {
            "grid": problem.grid.points,
            "actions": len(problem.actions),
            "stages": problem.steps,
            "seconds": round(time.perf_counter() - started, 1),
            "expected": expected,
            **measured.summary(),
        }
        off = abs(measured.mean_return - expected)
        what = f"{problem.env_id}: optimum {measured.mean_return:.2f}, distance from {expected}"
        targets.append(report.target(what, off, problem.tolerance, problem.tolerance, higher=False))
        del values
    return {"tasks": tasks, "targets": targets}
