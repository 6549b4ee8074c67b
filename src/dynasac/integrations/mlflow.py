"""MLflow: `agent.learn(callback=MlflowCallback())` inside `with mlflow.start_run():`."""

from typing import Any

from ..agent import DynaSAC
from ..errors import UsageError
from ..runs import flat
from .rows import EVALUATION_EPISODES, evaluated, numbers, settings


class MlflowCallback:
    """Logs each row of metrics, and the settings once, to the active run of MLflow.

    Arguments:
        evaluation_episodes: evaluate the policy on so many fixed episodes each time; 0: not at all.

    Raises:
        UsageError: MLflow is not installed, or no run is active.
    """

    def __init__(self, evaluation_episodes: int = EVALUATION_EPISODES):
        try:
            import mlflow
        except ModuleNotFoundError:
            raise UsageError("MLflow is missing: pip install 'dynasac[mlflow]'") from None
        if mlflow.active_run() is None:
            raise UsageError("no run is active: train inside `with mlflow.start_run():`")
        self._mlflow, self._episodes = mlflow, evaluation_episodes
        self._settings_logged = False

    def __call__(self, agent: DynaSAC, row: dict[str, Any]) -> None:
        if not self._settings_logged:
            self._mlflow.log_params(flat(settings(agent)))
            self._settings_logged = True
        row = evaluated(agent, row, self._episodes)
        self._mlflow.log_metrics(numbers(row), step=row["real_steps"])
        self._mlflow.set_tags({"decision": row["decision"], "adapt_rung": row["adapt_rung"]})
