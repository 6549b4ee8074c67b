"""Real environments that misbehave, each in a run directory: is anything lost, or let in?

Each way of misbehaving is tried at several moments of a training. Where it has to be refused, the
error has to name the episode and step; then the environment is put right and the run gone on with.
In the end the replay has to hold exactly the transitions that the environment gave away while it
behaved, in their order.
"""

import dataclasses
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np

from dynasac import DynaSAC, PlanningConfig, SACConfig, UsageError, evaluation, presets, recording
from dynasac.runs import Run

EPISODES, STEPS = 3, 20
ENV_ID = "Misbehaving-v0"


class Machine(gym.Env):
    """A position on a rail that an action pushes; misbehaves once, while it is trained with."""

    observation_space = gym.spaces.Box(-4.0, 4.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    way: ClassVar[str] = ""
    moment: ClassVar[int] = 0
    """the step, or for resets the episode, that it misbehaves in"""
    lived: ClassVar[int] = 0
    begun: ClassVar[int] = 0
    open: ClassVar[int] = 0
    given: ClassVar[list[tuple[float, float, float]]] = []
    """position before and after, and reward, of each step that was as it should be"""

    def __init__(self):
        Machine.open += 1
        self.shown = np.zeros(1, np.float32)
        self.position, self.trained = 0.0, False

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        first = evaluation.FIRST_SEED
        self.trained = seed is not None and not first <= seed < first + 100
        if self.trained:
            Machine.begun += 1
        due = self.trained and Machine.begun == Machine.moment
        if due and self.way == "raises an error in a reset":
            raise RuntimeError("not at rest yet")
        if due and self.way == "changes its spaces":
            self.action_space = gym.spaces.Box(-2.0, 2.0, (1,))
        self.position = self.np_random.uniform(-1, 1)
        if self.way == "ignores seeds":
            self.position = np.random.default_rng().uniform(-1, 1)
        return self._observation(), {}

    def step(self, action):
        before, due = float(np.float32(self.position)), False
        if self.trained:
            Machine.lived += 1
            due = Machine.lived == Machine.moment
        if due and self.way == "raises an error":
            raise RuntimeError("no answer from the motor")
        if due and self.way == "does not answer":
            threading.Event().wait()
        self.position = 0.9 * self.position + 0.3 * float(action[0])
        reward, ends = -(self.position**2), self.way == "ends at once" and self.trained
        found = self._observation(), reward, ends, False, {}
        if due and self.way in WRONG:
            return WRONG[self.way](*found)
        if self.trained:
            Machine.given.append((before, float(np.float32(self.position)), reward))
        return found

    def close(self):
        Machine.open -= 1

    def _observation(self):
        if self.way != "returns the same array always":
            self.shown = np.zeros(1, np.float32)
        self.shown[:] = self.position
        return self.shown


def _instead(index: int, value: Any) -> Callable:
    return lambda *found: (*found[:index], value, *found[index + 1 :])


WRONG: dict[str, Callable] = {
    "returns NaN": _instead(0, np.array([np.nan], np.float32)),
    "returns an infinite reward": _instead(1, float("inf")),
    "returns another shape": _instead(0, np.zeros(2, np.float32)),
    "returns what is no number": _instead(0, np.array([None])),
    "returns a flag that is none": _instead(2, None),
    "returns four values": lambda *found: found[:4],
}
IN_RESET = ("raises an error in a reset", "changes its spaces")
REFUSED = ("raises an error", "does not answer", *IN_RESET, *WRONG)
BORNE = ("ends at once", "returns the same array always", "ignores seeds", "needs to be closed")
RETRIED = ("raises an error", "does not answer", "returns NaN")
"""tried with `--env-retries 1` too"""

CONFIG = dataclasses.replace(
    presets.MODEL_FREE,
    sac=SACConfig(hidden=(8, 8), batch_size=16),
    planning=PlanningConfig(first_updates=0, updates=0),
    random_steps=0,
    real_episodes=EPISODES,
    replay_capacity=1000,
    step_seconds=1.0,
)


def tried(moments: int) -> dict:
    """Try every way at so many moments."""
    gym.register(ENV_ID, Machine, max_episode_steps=STEPS)
    rng = np.random.default_rng(0)
    cases = [(way, 0, "refused") for way in REFUSED]
    cases += [(way, 1, "begun again") for way in RETRIED]
    cases += [(way, 0, "borne") for way in BORNE]
    table = []
    try:
        for way, retries, expected in cases:
            last = EPISODES if way in IN_RESET else EPISODES * STEPS
            # an episode is never the first one whose spaces change: they are those at the beginning
            first = 1 + (way == "changes its spaces")
            chosen = rng.integers(first, last + 1, moments)
            right = sum(_tried(way, int(moment), retries, expected) for moment in chosen)
            table.append({"way": way, "expected": expected, "tried": moments, "right": right})
    finally:
        del gym.registry[ENV_ID]
    tries, right = (sum(row[name] for row in table) for name in ("tried", "right"))
    print(f"  {len(cases)} ways to misbehave: {right} of {tries} as they should be")
    return {"tried": tries, "as_expected": right, "ways": table}


def _tried(way: str, moment: int, retries: int, expected: str) -> bool:
    """Whether a training with an environment that misbehaves went as it should."""
    Machine.way, Machine.moment = way, moment
    Machine.lived = Machine.begun = Machine.open = 0
    Machine.given = []
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "run"
        config = dataclasses.replace(CONFIG, env_retries=retries)
        agent = DynaSAC(ENV_ID, "none", config)
        run = Run.create(directory, recording.asked_for(agent, "none", "default"))
        said, hung = "", way == "does not answer"
        try:
            recording.record_training(agent, run, 2, progress_bar=False)
        except UsageError as error:
            said = str(error)
        agent.close()
        if expected == "refused":
            where = f"(real episode {_episode(way, moment)}"
            if where not in said or "\n" in said:
                print(f"  {way} at {moment}: {said!r}")
                return False
            Machine.way = ""
            if not directory.exists():  # there was nothing in it yet
                run = Run.create(directory, recording.asked_for(agent, "none", "default"))
                agent = DynaSAC(ENV_ID, "none", config)
            else:
                agent, run, _ = recording.resume(directory, ENV_ID, "none")
            recording.record_training(agent, run, 2, progress_bar=False)
            agent.close()
        kept = agent.state.replay
        size = int(kept.size)
        rows = kept.transitions
        ours = np.stack(
            [rows.observation[:size, 0], rows.next_observation[:size, 0], rows.reward[:size]], 1
        )
        whole = np.array_equal(ours, np.array(Machine.given, np.float32).reshape(-1, 3))
        done = agent.state.counts.real_episodes == EPISODES
        closed = Machine.open == hung  # what hangs cannot be closed
        if not (whole and done and closed and bool(said) == (expected == "refused")):
            print(f"  {way} at {moment}: {whole=} {done=} {closed=} {said!r}")
            return False
        return True


def _episode(way: str, moment: int) -> int:
    """The real episode that the moment is in."""
    if way in IN_RESET:
        return moment
    return (moment - 1) // STEPS + 1
