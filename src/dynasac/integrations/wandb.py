"""Weights & Biases: `agent.learn(callback=WandbCallback(run))`."""

from typing import Any

from ..agent import DynaSAC
from ..runs import plain
from .rows import EVALUATION_EPISODES, evaluated, numbers


class WandbCallback:
    """Logs each row of metrics, and the settings once, to a run of Weights & Biases.

    Arguments:
        run: what `wandb.init()` returned; the caller finishes it.
        evaluation_episodes: evaluate the policy on so many fixed episodes each time; 0: not at all.
    """

    def __init__(self, run: Any, evaluation_episodes: int = EVALUATION_EPISODES):
        self._run, self._episodes = run, evaluation_episodes

    def __call__(self, agent: DynaSAC, row: dict[str, Any]) -> None:
        if not row["real_episodes"]:
            asked = {"env_id": agent.env_id, "seed": agent.seed, **plain(agent.config)}
            self._run.config.update(asked, allow_val_change=True)
        row = evaluated(agent, row, self._episodes)
        shown = {f"dynasac/{name}": value for name, value in numbers(row).items()}
        said = {"dynasac/decision": row["decision"], "dynasac/adapt_rung": row["adapt_rung"]}
        self._run.log({**shown, **said}, step=row["real_steps"])
