"""Trackers of experiments: the real ones, offline."""

from types import SimpleNamespace

import pytest

from dynasac import UsageError
from dynasac.integrations.mlflow import MlflowCallback
from dynasac.integrations.rows import numbers
from dynasac.integrations.wandb import WandbCallback


def test_rows_give_their_numbers_and_nothing_else():
    row = {"a": 1, "b": 2.5, "c": None, "d": "text", "e": float("nan"), "f": float("inf")}
    assert numbers(row) == {"a": 1.0, "b": 2.5}


def test_weights_and_biases(rail, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    logged = []
    with wandb.init(mode="offline", dir=tmp_path, settings=wandb.Settings(silent=True)) as run:
        monkeypatch.setattr(run, "log", lambda row, step: logged.append((step, row)))
        rail.learn(real_episodes=1, callback=WandbCallback(run, evaluation_episodes=2))
        assert run.config["env_id"] == "Rail-v0"
        assert run.config["sac"]["hidden"] == [16, 16]
    assert [step for step, _ in logged] == [0, rail.state.counts.real_steps]
    assert logged[1][1]["dynasac/real_episodes"] == 1
    assert logged[1][1]["dynasac/eval_mean_return"] == rail.evaluate(2).mean_return
    assert logged[1][1]["dynasac/decision"] == ""


def test_mlflow(rail, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # a database needs all of MLflow
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    with pytest.raises(UsageError, match="no run is active"):
        MlflowCallback()
    with mlflow.start_run() as run:
        rail.learn(real_episodes=1, callback=MlflowCallback(evaluation_episodes=2))
    kept = mlflow.get_run(run.info.run_id).data
    assert kept.params["sac.hidden"] == "(16, 16)"
    assert kept.metrics["real_episodes"] == 1
    assert kept.metrics["eval_mean_return"] == pytest.approx(rail.evaluate(2).mean_return)
    assert kept.tags["adapt_rung"] == "exact"


def test_settings_are_logged_with_the_first_row_whichever_it_is(rail, tmp_path, monkeypatch):
    """An agent that goes on has real episodes behind it."""
    mlflow = pytest.importorskip("mlflow")
    rail.learn(real_episodes=1)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri(f"file://{tmp_path}/mlruns")
    with mlflow.start_run() as run:
        rail.learn(real_episodes=3, callback=MlflowCallback(evaluation_episodes=0))
    assert mlflow.get_run(run.info.run_id).data.params["env_id"] == "Rail-v0"

    updates = []
    kept = SimpleNamespace(config=SimpleNamespace(update=lambda s, **_: updates.append(s)))
    kept.log = lambda row, step: None
    rail.learn(real_episodes=5, callback=WandbCallback(kept, evaluation_episodes=0))
    assert [asked["sac"]["hidden"] for asked in updates] == [(16, 16)]
