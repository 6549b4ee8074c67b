"""Weights & Biases: `agent.learn(callback=WandbCallback(run))`."""

from typing import Any

from ..agent import DynaSAC
from .rows import EVALUATION_EPISODES, evaluated, numbers, settings


class WandbCallback:
    """Logs each row of metrics, and the settings once, to a run of Weights & Biases.

    Arguments:
        run: what `wandb.init()` returned; the caller finishes it.
        evaluation_episodes: evaluate the policy on so many fixed episodes each time; 0: not at all.
    """

    def __init__(self, run: Any, evaluation_episodes: int = EVALUATION_EPISODES):
        self._run, self._episodes = run, evaluation_episodes
        self._settings_logged = False

    def __call__(self, agent: DynaSAC, row: dict[str, Any]) -> None:
        if not self._settings_logged:
            self._run.config.update(settings(agent), allow_val_change=True)
            self._settings_logged = True
        row = evaluated(agent, row, self._episodes)
        shown = {f"dynasac/{name}": value for name, value in numbers(row).items()}
        said = {"dynasac/decision": row["decision"], "dynasac/adapt_rung": row["adapt_rung"]}
        self._run.log({**shown, **said}, step=row["real_steps"])
