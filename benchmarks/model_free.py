"""Plain SAC without a model on Pendulum-v1, against stable-baselines3 with the same settings."""

import dataclasses
import time

import gymnasium as gym
import numpy as np
import scipy.stats

from dynasac import DynaSAC, presets

from . import report

STEPS = 5000
SEEDS = range(5)


def run(quick: bool) -> dict:
    steps, seeds = (400, SEEDS[:2]) if quick else (STEPS, SEEDS)
    runs: dict[str, list[dict]] = {"ours": [], "sb3": []}
    for seed in seeds:
        for name, train in (("ours", ours), ("sb3", sb3)):
            runs[name].append({"seed": seed, **train(seed, steps)})
            last = runs[name][-1]
            print(
                f"  {name}, seed {seed}: {last['return']:.1f}, {last['seconds']:.0f} s", flush=True
            )
    returns = {name: [one["return"] for one in group] for name, group in runs.items()}
    difference = difference_of_means(returns["ours"], returns["sb3"])
    return {
        "real_steps": steps,
        "settings": dataclasses.asdict(presets.MODEL_FREE),
        "runs": runs,
        "returns": {name: report.mean_interval(values) for name, values in returns.items()},
        "difference": difference,
        "targets": [goal(difference)],
    }


def ours(seed: int, steps: int) -> dict:
    """`--model none`."""
    started = time.perf_counter()
    agent = DynaSAC("Pendulum-v1", model="none", config=presets.MODEL_FREE, seed=seed)
    agent.learn(total_timesteps=steps)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "return": agent.evaluate(100).mean_return}


def sb3(seed: int, steps: int) -> dict:
    """stable-baselines3 with the settings of the preset."""
    import torch

    from .seed_recipe import mean_return

    torch.set_num_threads(1)  # never much slower, and not lost when the machine is busy
    started = time.perf_counter()
    learner = sb3_learner(seed, presets.MODEL_FREE)
    learner.learn(steps)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "return": mean_return(learner)}


def sb3_learner(seed: int, config: presets.Config):
    """Its SAC with the settings of ours; fails where it has none like it."""
    import torch
    from stable_baselines3 import SAC

    losses = config.sac
    fixed = (losses.critic_reduction, losses.entropy_in_target, losses.reward_scale)
    if fixed != ("min", True, 1.0) or losses.final_learning_rate != losses.learning_rate:
        raise ValueError("the model-free preset asks for what stable-baselines3 does not have")
    env = gym.make("Pendulum-v1")
    return SAC(
        "MlpPolicy",
        env,
        learning_rate=losses.learning_rate,
        buffer_size=config.replay_capacity,
        learning_starts=config.random_steps,
        batch_size=losses.batch_size,
        tau=losses.target_rate,
        gamma=losses.discount,
        train_freq=1,
        gradient_steps=config.updates_per_real_step,
        ent_coef=f"auto_{losses.initial_temperature}",
        target_entropy=losses.target_entropy * env.action_space.shape[0],
        policy_kwargs={
            "net_arch": list(losses.hidden),
            "activation_fn": {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}[losses.activation],
        },
        device="cpu",
        seed=seed,
    )


def difference_of_means(ours: list[float], theirs: list[float]) -> dict:
    """How much higher our mean is, with a 95% bootstrap interval; seeds are not paired."""

    def statistic(a, b, axis):
        return np.mean(a, axis=axis) - np.mean(b, axis=axis)

    interval = scipy.stats.bootstrap(
        (ours, theirs), statistic, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return {
        "mean": float(np.mean(ours) - np.mean(theirs)),
        "interval_95": [float(interval.low), float(interval.high)],
    }


def goal(difference: dict) -> dict:
    """Not worse beyond the noise: the interval reaches 0. Better: the mean is higher."""
    low, high = difference["interval_95"]
    return {
        "what": f"plain SAC: mean return less SB3's (95%: {low:.1f} to {high:.1f})",
        "value": difference["mean"],
        "must": "0 in the interval or below it",
        "aim": "≥ 0",
        "reached": "aim" if difference["mean"] >= 0 else "must" if high >= 0 else "no",
    }
