"""What a training and a trial are worth.

Of one task it is the mean return of the final policy, never of the best one seen; a trial has the
mean over its seeds. Returns of several tasks cannot be averaged as they are: there each counts from
0, what uniformly random actions get, to 1, the optimum where it is known and otherwise what the
environment calls solved. Both are known before the first trial, so that no trial moves them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from .. import border, evaluation
from ..agent import resolved
from ..errors import UsageError
from ..spaces import spaces_of
from .spec import Sweep, task_name


class Scale(NamedTuple):
    """Of a task's returns."""

    random: float
    """what counts as 0"""
    solved: float
    """what counts as 1"""

    def score(self, value: float) -> float:
        return (value - self.random) / (self.solved - self.random)


PLAIN = Scale(0.0, 1.0)
"""of a task alone: returns as they are"""


def check_tasks(sweep: Sweep) -> None:
    """Refuse tasks that there are not, before anything is written.

    Raises:
        UsageError: there is no such environment, or the model is none of it.
    """
    for env_id in sweep.envs:
        env = evaluation.make(env_id)
        try:
            resolved(sweep.model, env, spaces_of(env))
        finally:
            border.close(env)


def scales(sweep: Sweep, earlier: Mapping[str, Any]) -> dict[str, Scale]:
    """How the returns of each task count, by its name.

    Arguments:
        earlier: what was found when the sweep began, if it did.

    Raises:
        UsageError: it is not known what solves a task, or random actions do.
    """
    if len(sweep.envs) == 1:
        return {task_name(sweep.envs[0]): PLAIN}
    return {task_name(env): _scale(sweep, env, earlier.get(task_name(env))) for env in sweep.envs}


def _scale(sweep: Sweep, env_id: str, earlier: Any) -> Scale:
    name = task_name(env_id)
    env = evaluation.make(env_id)
    try:
        assert env.spec is not None
        solved = sweep.solved.get(name)
        if solved is None and env.spec.id in evaluation.OPTIMAL_RETURN:
            solved = evaluation.OPTIMAL_RETURN[env.spec.id]
        if solved is None and env.spec.reward_threshold is not None:
            solved = float(env.spec.reward_threshold)
        if solved is None:
            raise UsageError(
                f"returns of several tasks are only comparable where it is known what solves them: "
                f"say it with solved = {{{name} = MEAN_RETURN}} in the file"
            )
        random = _number(earlier[0]) if isinstance(earlier, list) and len(earlier) == 2 else None
        random = _of_random_actions(env_id, env, sweep) if random is None else random
    finally:
        border.close(env)
    if not random < solved:
        raise UsageError(
            f"{name}: random actions get {random:.4g}, which is no less than the {solved:.4g} that "
            "solve it: say another mean return with solved"
        )
    return Scale(random, solved)


def _of_random_actions(env_id: str, env: gym.Env, sweep: Sweep) -> float:
    spaces, rng = spaces_of(env), np.random.default_rng(0)
    low, high = np.asarray(spaces.action.low), np.asarray(spaces.action.high)
    return evaluation.evaluate(
        lambda observations: rng.uniform(low, high, (len(observations), len(low))).astype(
            np.float32
        ),
        lambda: evaluation.make(env_id),
        sweep.evaluation_episodes,
        spaces.episode_steps,
    ).mean_return


def final_return(summary: Mapping[str, Any]) -> float:
    """The mean return that summary.json tells of.

    Raises:
        UsageError: it tells of none.
    """
    measured = summary.get("evaluation")
    value = _number(measured.get("mean_return")) if isinstance(measured, dict) else None
    if value is None:
        raise UsageError("summary.json tells of no mean return")
    return value


def _number(value: Any) -> float | None:
    good = type(value) in (int, float) and math.isfinite(value)
    return float(value) if good else None


def curve(trainings: Sequence[Mapping[int, float]], length: int) -> list[float]:
    """What a trial seems to be worth, step after step, as far as it is known without a gap.

    The trainings follow one another, whatever goes on at a time, so that a step is about the same
    of every trial: the mean of the final scores before, and of the present one as far as it is.

    Arguments:
        trainings: the score after so many real episodes, of each training in its order.
        length: of the learning curve of a training.
    """
    values: list[float] = []
    finals: list[float] = []
    for scores in trainings:
        for episode in range(length):
            if episode not in scores:
                return values
            values.append(float(np.mean([*finals, scores[episode]])))
        finals.append(scores[length - 1])
    return values
