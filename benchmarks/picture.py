"""The README's picture: what a policy does over the whole state space, and where it leads.

Run as `python -m benchmarks.picture RUN_DIRECTORY`, after `dynasac train Pendulum-v1`.
"""

import sys
from pathlib import Path

import gymnasium as gym
import matplotlib as mpl
import numpy as np

from dynasac.recording import load_run

mpl.use("Agg")
import matplotlib.pyplot as plt

OUTPUT = Path(__file__).parents[1] / "docs" / "pendulum.png"


def main(directory: Path) -> None:
    """Draw the torque for each state, and the path of five fixed episodes on top."""
    agent, _ = load_run(directory)
    angles, speeds = np.linspace(-np.pi, np.pi, 241), np.linspace(-8, 8, 201)
    angle, speed = np.meshgrid(angles, speeds)
    observations = np.stack([np.cos(angle), np.sin(angle), speed], axis=-1).reshape(-1, 3)
    torque = agent.predict(observations, deterministic=True)[0].reshape(angle.shape)

    figure, axes = plt.subplots(figsize=(7.2, 4.2), layout="constrained")
    image = axes.pcolormesh(angle, speed, torque, cmap="RdBu_r", vmin=-2, vmax=2, alpha=0.55)
    figure.colorbar(image, label="torque, N m")
    env = gym.make("Pendulum-v1")
    for seed in (10_002, 10_005, 10_007, 10_011, 10_013):
        path = episode(agent, env, seed)
        jumps = np.flatnonzero(np.abs(np.diff(path[:, 0])) > np.pi) + 1
        axes.plot(*np.insert(path, jumps, np.nan, axis=0).T, color="black", linewidth=1.1)
        axes.plot(*path[0], "o", color="black", markersize=5)
    axes.set(xlabel="angle from upright, rad", ylabel="angular velocity, rad/s")
    axes.set(xlim=(-np.pi, np.pi), ylim=(-8, 8))
    axes.set_title("Pendulum-v1: the learned policy, and five episodes from their starts (dots)")
    figure.savefig(OUTPUT, dpi=130)
    print(f"wrote {OUTPUT}")


def episode(agent, env: gym.Env, seed: int) -> np.ndarray:
    """Angle and angular velocity at each step, [steps, 2]."""
    observation, _ = env.reset(seed=seed)
    path, ended = [], False
    while not ended:
        path.append((np.arctan2(observation[1], observation[0]), observation[2]))
        action, _ = agent.predict(observation, deterministic=True)
        observation, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return np.array(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
