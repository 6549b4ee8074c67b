"""Rows of metrics as trackers of experiments take them."""

import math
from typing import Any

from .. import evaluation
from ..agent import DynaSAC
from ..runs import plain

EVALUATION_EPISODES = 100


def settings(agent: DynaSAC) -> dict[str, Any]:
    """All that an agent was asked for."""
    return {"env_id": agent.env_id, "seed": agent.seed, **plain(agent.config)}


def evaluated(agent: DynaSAC, row: dict[str, Any], episodes: int) -> dict[str, Any]:
    """The row with what the policy is worth over `episodes` fixed episodes, if there are any."""
    if not episodes:
        return row
    found = agent.evaluate(episodes)
    regret = evaluation.regret(agent.env_id, found)
    return {**row, "eval_mean_return": found.mean_return, "eval_regret": regret}


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """What of a row is a finite number."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
