"""A real environment that rigs of the tests drive; it writes down what it gives away."""

import json
import os
import random
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import probes


class Rig(probes.Probe):
    """A position that the action moves a little, from a start that the seed decides.

    Arguments:
        log: directory of a file for each device, NUMBER-PID, with a line for each step.
        pause: seconds that a step takes on average.
        hangs: at this step of its first episode the rig of this number does not go on.
        fails: the rig of this number raises an error at every third step.
        waits: no rig but number 0 goes on from its fifth step before this file is there.
    """

    def __init__(
        self,
        log: str,
        pause: float = 0.0,
        hangs: tuple = (),
        fails: int | None = None,
        waits: str | None = None,
    ):
        self.number = int(os.environ.get("DYNASAC_RIG", "9"))
        self.place = Path(log) / f"{self.number}-{os.getpid()}"
        self.pause, self.hangs, self.fails, self.waits = pause, hangs, fails, waits

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.5, 0.5, 1).astype(np.float32)
        return self.position, {}

    def step(self, action):
        time.sleep(random.uniform(0, 2 * self.pause))
        self.time += 1
        if self.fails == self.number and self.time == 3:
            raise RuntimeError("the motor is hot")
        if tuple(self.hangs) == (self.number, self.time):
            time.sleep(3600)
        while self.waits and self.number and self.time == 5 and not Path(self.waits).exists():
            time.sleep(0.01)
        before = self.position
        self.position = (0.9 * before + 0.04 * action).astype(np.float32)
        reward = -float(self.position[0] ** 2)
        row = [float(before[0]), float(action[0]), reward, float(self.position[0])]
        with self.place.open("a") as file:
            file.write(json.dumps(row) + "\n")
        return self.position, reward, False, False, {}


if "TestRig-v0" not in gym.registry:
    gym.register("TestRig-v0", entry_point="far:Rig", max_episode_steps=10)
