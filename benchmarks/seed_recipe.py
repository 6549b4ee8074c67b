"""The recipe of the seed document with stable-baselines3: real and synthetic steps by turns.

In each real episode: act by the policy, remember, two gradient updates a step. After it: a hundred
synthetic transitions from reset states of the pendulum's equations into the same replay, and a
hundred times two updates. All else is the default of stable-baselines3, its batch of 64 for
updates that are asked for by hand included. One thing is put right: the replay gets actions as the
learner means them, in [-1, 1].

`python -m benchmarks.seed_recipe` does it and prints when it was done and what came out, as JSON.
"""

import argparse
import json
import time

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.classic_control import PendulumEnv
from stable_baselines3 import SAC
from stable_baselines3.common.logger import Logger

UPDATES = 2
SYNTHETIC = 100


def make_learner(env: gym.Env, seed: int, hidden: list[int] | None = None) -> SAC:
    """An SAC agent that knows nothing and writes no log."""
    learner = SAC(
        "MlpPolicy",
        env,
        buffer_size=10_000,
        seed=seed,
        device="cpu",
        policy_kwargs={"net_arch": hidden} if hidden else None,
    )
    learner.set_logger(Logger(folder=None, output_formats=[]))
    return learner


def remember(learner: SAC, observation, following, action, reward, terminated: bool) -> None:
    """Write one transition to the replay, its action in the learner's own scale."""
    unit = learner.policy.scale_action(action)
    learner.replay_buffer.add(observation, following, unit, reward, terminated, [{}])


def real_episode(learner: SAC, env: gym.Env) -> None:
    """Collect one episode, with updates at each step."""
    observation, _ = env.reset()
    over = False
    while not over:
        action, _ = learner.predict(observation)
        following, reward, terminated, truncated, _ = env.step(action)
        remember(learner, observation, following, action, reward, terminated)
        learner.train(gradient_steps=UPDATES)
        observation, over = following, terminated or truncated


def synthesise(learner: SAC, physics: gym.Env, count: int) -> None:
    """Imagine `count` single steps, each from a reset state, under the current policy."""
    for _ in range(count):
        observation, _ = physics.reset()
        action, _ = learner.policy.predict(observation)
        following, reward, terminated, _, _ = physics.step(action)
        remember(learner, observation, following, action, reward, terminated)


def train(seed: int, episodes: int) -> SAC:
    """The whole recipe."""
    env, physics = gym.make("Pendulum-v1"), PendulumEnv(g=10.0)
    learner = make_learner(env, seed)
    env.reset(seed=seed)
    physics.reset(seed=seed)
    for _ in range(episodes):
        real_episode(learner, env)
        synthesise(learner, physics, SYNTHETIC)
        for _ in range(SYNTHETIC):
            learner.train(gradient_steps=UPDATES)
    return learner


def mean_return(learner, episodes: int = 100) -> float:
    """Over the standard episodes, as everybody here is measured; for agents of SB3 and SBX."""
    from dynasac import evaluation

    def policy(observations: np.ndarray) -> np.ndarray:
        return learner.predict(observations, deterministic=True)[0]

    found = evaluation.evaluate(policy, lambda: gym.make("Pendulum-v1"), episodes, 200)
    return found.mean_return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threads", type=int, help="of torch; its own default if not given")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    learner = train(arguments.seed, arguments.episodes)
    trained_at = time.time()
    found = {
        "trained_at": trained_at,
        "threads": torch.get_num_threads(),
        "mean_return": mean_return(learner),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
