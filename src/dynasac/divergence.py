"""Learners that have diverged: how they are told, whether the model did it, what to go on with."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from . import planning, sac
from .models import DynamicsModel
from .planning import PlanningConfig, Trust
from .replay import ReplayState
from .sac import Metrics, SACConfig, SACState
from .spaces import Box, Spaces

BEYOND = 100.0
"""how far beyond all possible returns mean values are before they count as diverged: a learner may
overrate what it has not tried, and a return may be built on a reward that is rare in batches"""
PROBES = 8192
"""transitions of a model that are looked at, half of them with uniform actions"""


def found(
    learner: SACState, learning: Metrics, replay: ReplayState, config: SACConfig
) -> str | None:
    """What is wrong with a learner after some updates, in words; None if nothing is.

    Its numbers are not finite, or the critics' mean is further from 0 than a hundred times the sum
    of the largest reward, bonus for entropy included, over all steps that the discount counts. The
    1 added to that, in the learner's unit of return, is what critics say before they have learned.

    Arguments:
        learning: of the last updates.
    """
    if not (finite(learning) and finite(learner)):
        return "numbers are not finite"
    value = abs(float(learning.q_value))
    if value <= BEYOND:
        return None
    size, held = float(learning.largest_reward), int(replay.size)
    if held:
        logged = np.asarray(replay.transitions.reward)[:held]
        size = max(size, sac.reward_scale(config) * float(np.abs(logged).max()))
    if config.entropy_in_target:
        # before it learns it has the entropy of a uniform policy, or more bonus for less of it
        nats = abs(float(learning.entropy)) + replay.transitions.action.shape[-1]
        size += max(float(learning.temperature), config.initial_temperature) * nats
    gamma = sac.discount(config)
    possible = size / (1 - gamma) if gamma < 1 else np.inf
    if value <= BEYOND * (1 + possible):
        return None
    return f"values of {value:.2g} where no return can be beyond {possible:.2g}"


def finite(tree: Any) -> bool:
    """Whether all numbers of a pytree of arrays are."""
    return all(bool(np.isfinite(np.asarray(leaf)).all()) for leaf in jax.tree.leaves(tree))


def safer(config: SACConfig) -> SACConfig:
    """Settings under which a learner that has diverged gets another chance."""
    return dataclasses.replace(
        config,
        learning_rate=config.learning_rate / 10,
        final_learning_rate=config.final_learning_rate / 10,
        huber_delta=config.huber_delta or 1.0,
    )


def fault_of(
    model: DynamicsModel,
    learner: SACState,
    replay: ReplayState,
    visited: Box,
    config: PlanningConfig,
    spaces: Spaces,
    trust: Trust,
    key: PRNGKeyArray,
) -> str | None:
    """Which of a model's numbers is not finite where planning goes, with an example; None if all
    are.

    Arguments:
        learner: whose policy is followed, in half of the rollouts; the others begin with a uniform
            action.
        visited: as in `planning.plan`.
    """
    config = dataclasses.replace(config, exploration=0.5)
    observation, action, reward, following, counts = (
        np.asarray(rows)
        for rows in _probed(model, learner, replay, visited, config, spaces, trust, key)
    )
    began = np.asarray(np.isfinite(observation).all(axis=1))
    if not began[: PROBES // config.horizon].all():
        return (
            f"{model.name} begins at observations that are not finite: check project(), and "
            f"initial_observation() or initial(): {_shown(observation[~began][0])}"
        )
    for field, values in (("next_observation", following), ("reward", reward[:, None])):
        bad = np.argwhere(~np.isfinite(values) & (began & counts)[:, None])
        if len(bad):
            row, column = bad[0]
            index = f"[{column}]" if field == "next_observation" else ""
            return (
                f"{model.name}.step gives {field}{index} = {values[row, column]} to the "
                f"observation {_shown(observation[row])} and the action {_shown(action[row])}"
            )
    return None


@eqx.filter_jit
def _probed(
    model, learner, replay, visited, config, spaces, trust, key
) -> tuple[Array, Array, Array, Array, Array]:
    rows, happened = planning.synthetic_batch(
        learner, model, replay, PROBES, config, spaces, visited, trust, key
    )
    action = spaces.action.from_unit(rows.action)
    reward = jnp.asarray(rows.reward)
    return rows.observation, action, reward, rows.next_observation, happened


def _shown(values: np.ndarray) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"
