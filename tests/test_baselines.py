"""stable-baselines3's agents: their settings, their budget, how they are measured."""

import sys

import gymnasium as gym
import numpy as np
import probes
import pytest

from dynasac import UsageError, baselines

assert probes.Rail  # registers the environments


def test_the_settings_are_those_that_are_published():
    pendulum = baselines.baseline("sb3-ppo", "Pendulum-v1", 100_000)
    assert (pendulum.algorithm, pendulum.environments, pendulum.normalize) == ("PPO", 4, False)
    assert pendulum.settings["n_steps"] == 1024
    assert pendulum.settings["gamma"] == 0.9
    assert pendulum.settings["sde_sample_freq"] == 4
    assert pendulum.source == "as published in rl-baselines3-zoo for Pendulum"
    car = baselines.baseline("sb3-sac", "MountainCarContinuous-v0", 20_000)
    assert (car.settings["ent_coef"], car.settings["train_freq"]) == (0.1, 32)
    assert car.policy == {"log_std_init": -3.67, "net_arch": [64, 64]}
    assert baselines.baseline("sb3-ppo", "MountainCarContinuous-v0", 20_000).normalize
    assert baselines.baseline("sb3-ppo", "Hopper-v5", 20_000).settings["gamma"] == 0.999


@pytest.mark.parametrize("env_id", ["Ant-v5", "Rail-v0", "rig:Pendulum-v1"])
def test_other_environments_get_defaults_and_it_is_said(env_id):
    plain = baselines.baseline("sb3-sac", env_id, 10_000)
    assert plain.settings == {}
    assert "defaults" in plain.source
    normalized = baselines.baseline("sb3-ppo", env_id, 2048)
    assert normalized.normalize
    assert normalized.settings == {}
    assert "defaults" in normalized.source


@pytest.mark.parametrize("real_steps", [20, 200, 5000, 9000, 50_000, 100_000])
def test_ppo_uses_its_budget_and_hardly_more(real_steps):
    found = baselines.baseline("sb3-ppo", "Pendulum-v1", real_steps)
    rollout = found.settings["n_steps"] * found.environments
    used = -(-real_steps // rollout) * rollout
    assert real_steps <= used <= 1.05 * real_steps + found.environments
    if found.settings["n_steps"] != 1024:
        assert f"n_steps {found.settings['n_steps']} instead of 1024" in found.source


def test_without_the_package_it_is_said_what_to_install(monkeypatch):
    baselines.check_installed([])
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    baselines.check_installed([])
    with pytest.raises(UsageError, match=r"sb3-ppo.*pip install 'dynasac\[sb3\]'"):
        baselines.check_installed(["sb3-ppo"])


class Steered(probes.Recall):
    """Counts the steps that all of its copies take, those of evaluations apart."""

    taken = 0

    def reset(self, *, seed=None, options=None):
        self.evaluating = seed is not None and seed >= 10_000
        return super().reset(seed=seed, options=options)

    def step(self, action):
        Steered.taken += not self.evaluating
        return super().step(action)


@pytest.fixture
def steered(monkeypatch):
    pytest.importorskip("stable_baselines3")
    Steered.taken = 0
    spec = gym.envs.registration.EnvSpec("Steered-v0", Steered, max_episode_steps=10)
    monkeypatch.setitem(gym.registry, "Steered-v0", spec)
    return "Steered-v0"


def test_sac_is_trained_and_measured_on_the_way(steered):
    rows = []
    which = baselines.Baseline("SAC", "", {"learning_starts": 10, "batch_size": 8})
    last = baselines.train(which, steered, 3, 35, rows.append, evaluation_episodes=2)
    assert [row["real_steps"] for row in rows] == [0, 10, 20, 30, 35]
    assert Steered.taken == 35
    assert [row["gradient_updates"] for row in rows] == [0, 0, 10, 20, 25]
    assert [row["real_episodes"] for row in rows] == [0, 1, 2, 3, 3]
    assert rows[0]["train_return"] is None
    assert rows[-1] is last
    assert all(row["wall_seconds"] >= row["evaluate_seconds"] > 0 for row in rows)

    again = []
    baselines.train(which, steered, 3, 35, again.append, evaluation_episodes=2)
    returns = [row["eval_mean_return"] for row in rows]
    assert [row["eval_mean_return"] for row in again] == returns
    assert len(set(returns)) > 1


def test_ppo_sees_normalised_observations_and_its_updates_are_counted(steered):
    rows = []
    which = baselines.Baseline(
        "PPO",
        "",
        {"n_steps": 12, "batch_size": 16, "n_epochs": 3},
        {"activation_fn": "ReLU", "net_arch": {"pi": [8], "vf": [8]}},
        environments=2,
        normalize=True,
    )
    last = baselines.train(which, steered, 0, 48, rows.append, evaluation_episodes=2)
    assert [row["real_steps"] for row in rows] == [0, 24, 48]
    assert Steered.taken == 48
    assert last["gradient_updates"] == 2 * 3 * 2  # rollouts, epochs, batches of 16 and 8
    assert np.isfinite([row["eval_mean_return"] for row in rows]).all()


def test_an_environment_that_breaks_says_where(steered):
    with pytest.raises(UsageError, match="non-finite observation"):
        baselines.train(
            baselines.baseline("sb3-sac", "BrokenObservation-v0", 20),
            "BrokenObservation-v0",
            0,
            20,
            lambda row: None,
            evaluation_episodes=1,
        )
