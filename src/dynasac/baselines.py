"""stable-baselines3's SAC and PPO with tuned settings, evaluated as everything here is.

The settings are those that rl-baselines3-zoo publishes (`hyperparams/sac.yml` and `ppo.yml` of
github.com/DLR-RM/rl-baselines3-zoo; Raffin 2020), by the name of Gymnasium's environment without
its version.
"""

# pyright: reportMissingImports=false
# stable-baselines3 is installed by `make sb3` alone, and types are checked without it too

import contextlib
import importlib.metadata
import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from . import evaluation
from .errors import UsageError

NAMES = ("sb3-sac", "sb3-ppo")


@dataclass(frozen=True)
class Baseline:
    """An algorithm of stable-baselines3 with all of its settings that are not its defaults."""

    algorithm: Literal["SAC", "PPO"]
    source: str
    """where the settings come from"""
    settings: dict[str, Any] = field(default_factory=dict)
    """keyword arguments of the algorithm"""
    policy: dict[str, Any] = field(default_factory=dict)
    """its `policy_kwargs`; activation_fn is the name of one in torch.nn"""
    environments: int = 1
    """copies of the environment that it steps side by side"""
    normalize: bool = False
    """whether observations and rewards are normalised by what has been seen (`VecNormalize`)"""


PUBLISHED = "as published in rl-baselines3-zoo for {}"

_LARGE = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": "ReLU",
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}

_SAC: dict[str, dict[str, Any]] = {
    "Pendulum": {"settings": {"learning_rate": 1e-3}},
    "MountainCarContinuous": {
        "settings": {
            "learning_rate": 3e-4,
            "buffer_size": 50_000,
            "batch_size": 512,
            "ent_coef": 0.1,
            "train_freq": 32,
            "gradient_steps": 32,
            "gamma": 0.9999,
            "tau": 0.01,
            "learning_starts": 0,
            "use_sde": True,
        },
        "policy": {"log_std_init": -3.67, "net_arch": [64, 64]},
    },
}


def _mujoco(policy: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    return {"settings": settings, "normalize": True, "policy": policy or {}}


_PPO: dict[str, dict[str, Any]] = {
    "Pendulum": {
        "settings": {
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 1e-3,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
        "environments": 4,
    },
    "MountainCarContinuous": {
        "settings": {
            "batch_size": 256,
            "n_steps": 8,
            "gamma": 0.9999,
            "learning_rate": 7.77e-05,
            "ent_coef": 0.00429,
            "clip_range": 0.1,
            "n_epochs": 10,
            "gae_lambda": 0.9,
            "max_grad_norm": 5,
            "vf_coef": 0.19,
            "use_sde": True,
        },
        "policy": {"log_std_init": -3.29, "ortho_init": False},
        "normalize": True,
    },
    "HalfCheetah": _mujoco(
        _LARGE,
        batch_size=64,
        n_steps=512,
        gamma=0.98,
        learning_rate=2.0633e-05,
        ent_coef=0.000401762,
        clip_range=0.1,
        n_epochs=20,
        gae_lambda=0.92,
        max_grad_norm=0.8,
        vf_coef=0.58096,
    ),
    "Hopper": _mujoco(
        _LARGE,
        batch_size=32,
        n_steps=512,
        gamma=0.999,
        learning_rate=9.80828e-05,
        ent_coef=0.00229519,
        clip_range=0.2,
        n_epochs=5,
        gae_lambda=0.99,
        max_grad_norm=0.7,
        vf_coef=0.835671,
    ),
    "Walker2d": _mujoco(
        _LARGE,
        batch_size=32,
        n_steps=512,
        gamma=0.99,
        learning_rate=5.05041e-05,
        ent_coef=0.000585045,
        clip_range=0.1,
        n_epochs=20,
        gae_lambda=0.95,
        max_grad_norm=1,
        vf_coef=0.871923,
    ),
    "InvertedPendulum": _mujoco(
        batch_size=64,
        n_steps=32,
        gamma=0.999,
        learning_rate=0.000222425,
        ent_coef=1.37976e-07,
        clip_range=0.4,
        n_epochs=5,
        gae_lambda=0.9,
        max_grad_norm=0.3,
        vf_coef=0.19816,
    ),
    "InvertedDoublePendulum": _mujoco(
        batch_size=512,
        n_steps=128,
        gamma=0.98,
        learning_rate=0.000155454,
        ent_coef=1.05057e-06,
        clip_range=0.4,
        n_epochs=10,
        gae_lambda=0.8,
        max_grad_norm=0.5,
        vf_coef=0.695929,
    ),
    "Reacher": _mujoco(
        batch_size=32,
        n_steps=512,
        gamma=0.9,
        learning_rate=0.000104019,
        ent_coef=7.52585e-08,
        clip_range=0.3,
        n_epochs=5,
        gae_lambda=1.0,
        max_grad_norm=0.9,
        vf_coef=0.950368,
    ),
}

DEFAULT_ROLLOUT, DEFAULT_BATCH = 2048, 64
"""PPO's own `n_steps` and `batch_size`"""

LEEWAY = 1.05
"""PPO may use so many times the real steps it is given before its rollouts are made shorter"""


def baseline(name: str, env_id: str, real_steps: int) -> Baseline:
    """The tuned settings for an environment, for a budget of real steps.

    PPO learns from whole rollouts alone. Where the last of them would go far beyond the budget, as
    its published ones do in few steps, they are shortened so that the budget is used up exactly.
    """
    family = env_id.rpartition("-v")[0]  # MODULE:ID is somebody else's environment
    if name == "sb3-sac":
        if family in _SAC:
            return Baseline("SAC", PUBLISHED.format(family), **_SAC[family])
        return Baseline("SAC", "stable-baselines3's defaults")
    if family in _PPO:
        found = Baseline("PPO", PUBLISHED.format(family), **_PPO[family])
    else:
        found = Baseline(
            "PPO",
            "stable-baselines3's defaults, with observations and rewards normalised as "
            "rl-baselines3-zoo does for MuJoCo",
            normalize=True,
        )
    return _fitted(found, real_steps)


def _fitted(found: Baseline, real_steps: int) -> Baseline:
    published = found.settings.get("n_steps", DEFAULT_ROLLOUT)
    rollouts = math.ceil(real_steps / (published * found.environments))
    if rollouts * published * found.environments <= LEEWAY * real_steps:
        return found
    # the algorithm normalises advantages, which takes two of them
    steps = max(2, math.ceil(real_steps / (rollouts * found.environments)))
    return Baseline(
        found.algorithm,
        f"{found.source}; n_steps {steps} instead of {published}, to end with the real steps",
        {**found.settings, "n_steps": steps},
        found.policy,
        found.environments,
        found.normalize,
    )


def check_installed(names: list[str]) -> None:
    """Say how to get stable-baselines3, if it is asked for and missing.

    Raises:
        UsageError: it cannot be imported.
    """
    if names and importlib.util.find_spec("stable_baselines3") is None:
        they, them = ("needs", "it") if len(names) == 1 else ("need", "them")
        raise UsageError(
            f"{' and '.join(names)} {they} stable-baselines3: pip install 'dynasac[sb3]', "
            f"or leave {them} out of --agents"
        )


def versions() -> dict[str, str]:
    """Of the packages that the baselines come from."""
    found = {}
    for package in ("stable-baselines3", "torch"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def train(
    which: Baseline,
    env_id: str,
    seed: int,
    real_steps: int,
    record: Callable[[dict[str, Any]], None],
    evaluation_episodes: int = 100,
) -> dict[str, Any]:
    """Train for at least so many real steps, evaluating the deterministic policy on the way.

    Arguments:
        record: called with a row of metrics, by the names of metrics.csv, before the first real
            step, after about each `episode_steps` of them, or after each rollout where that is
            longer, and at the end. `wall_seconds` counts `evaluate_seconds` in.

    Returns:
        the last row.

    Raises:
        UsageError: the environment cannot be made or returned what is no number.
    """
    import torch
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.logger import Logger

    from .spaces import spaces_of

    torch.set_num_threads(1)
    with contextlib.closing(evaluation.make(env_id)) as env:
        episode_steps = spaces_of(env).episode_steps
        name = env.spec.id if env.spec else env_id
    learner = _learner(which, env_id, seed, real_steps)
    learner.set_logger(Logger(folder=None, output_formats=[]))
    normalizer = learner.get_vec_normalize_env()

    def policy(observations: np.ndarray) -> np.ndarray:
        if normalizer is not None:
            observations = normalizer.normalize_obs(observations)
        return learner.predict(observations, deterministic=True)[0]

    class Recorder(BaseCallback):
        """Evaluates between rollouts, with the policy as it then is."""

        def __init__(self):
            super().__init__()
            self.started = time.perf_counter()
            self.evaluating = 0.0
            self.last: dict[str, Any] = {}
            self.episodes = 0

        def _on_rollout_start(self) -> None:
            steps = self.model.num_timesteps
            if not self.last or steps - self.last["real_steps"] >= episode_steps:
                self._measure()

        def _on_step(self) -> bool:
            self.episodes += int(np.sum(self.locals["dones"]))
            return True

        def _on_training_end(self) -> None:
            self._measure()

        def _measure(self) -> None:
            began = time.perf_counter()
            measured = evaluation.evaluate(
                policy, lambda: evaluation.make(env_id), evaluation_episodes, episode_steps
            )
            ended = time.perf_counter()
            self.evaluating += ended - began
            episodes = self.model.ep_info_buffer
            self.last = {
                "real_episodes": self.episodes,
                "real_steps": self.model.num_timesteps,
                "gradient_updates": _gradient_updates(self.model),
                "train_return": float(episodes[-1]["r"]) if episodes else None,
                "eval_mean_return": measured.mean_return,
                "eval_regret": evaluation.regret(name, measured),
                "evaluate_seconds": round(self.evaluating, 3),
                "wall_seconds": round(ended - self.started, 3),
            }
            record(self.last)

    recorder = Recorder()
    learner.learn(real_steps, callback=recorder)
    return recorder.last


def _learner(which: Baseline, env_id: str, seed: int, real_steps: int):
    import stable_baselines3
    import torch
    from stable_baselines3.common.monitor import Monitor
    from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

    env: Any = DummyVecEnv([lambda: Monitor(evaluation.make(env_id))] * which.environments)
    settings, policy = dict(which.settings), dict(which.policy)
    if which.normalize:
        env = VecNormalize(env, gamma=settings.get("gamma", 0.99))
    if "activation_fn" in policy:
        policy["activation_fn"] = getattr(torch.nn, policy["activation_fn"])
    if which.algorithm == "SAC":
        # never more than are collected, the last batch of them included: none is overwritten
        needed = real_steps + settings.get("train_freq", 1)
        settings["buffer_size"] = min(settings.get("buffer_size", 1_000_000), needed)
    with warnings.catch_warnings():
        # PPO's last batch of an epoch is smaller, with published settings too
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        algorithm = getattr(stable_baselines3, which.algorithm)
        return algorithm(
            "MlpPolicy", env, seed=seed, device="cpu", policy_kwargs=policy, **settings
        )


def _gradient_updates(learner: Any) -> int:
    """Steps of the optimiser; PPO counts epochs instead."""
    if not hasattr(learner, "n_epochs"):
        return learner._n_updates
    return learner._n_updates * math.ceil(learner.n_steps * learner.n_envs / learner.batch_size)
