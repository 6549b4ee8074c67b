"""Fixed-seed episodes in the real environment: what a policy is worth."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import numpy as np

from . import border
from .errors import UsageError, one_line

OPTIMAL_RETURN = {"Pendulum-v1": -125.9, "MountainCarContinuous-v0": 99.64}
"""Mean return of the optimal policy over the 100 episodes `reset(seed=10000 + k)`, by dynamic
programming over the 200 or 999 steps of an episode (`benchmarks/optimum.py` computes it)."""

FIRST_SEED = 10_000

MOST_EPISODES = 1_000_000
"""of one evaluation"""
SIDE_BY_SIDE = 100
"""environments that an evaluation makes at most"""

EXTRAS = ("classic-control", "mujoco")
"""of this package, which Gymnasium has under the same names"""

Policy = Callable[[np.ndarray], np.ndarray]
"""From a batch of observations to a batch of actions, both in the environment's units."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; episode k started from `reset(seed=first_seed + k)`."""

    first_seed: int
    returns: tuple[float, ...]
    """the undiscounted return of each episode"""
    beyond: str = ""
    """the first observation that lay outside of the environment's own bounds, in words"""
    unseeded: str = ""
    """that the same seed led to different beginnings, in words"""

    @property
    def mean_return(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std_return(self) -> float:
        return float(np.std(self.returns))

    def summary(self) -> dict:
        return {
            "episodes": len(self.returns),
            "first_seed": self.first_seed,
            "mean_return": self.mean_return,
            "std_return": self.std_return,
            "returns": list(self.returns),
        }


def evaluate(
    policy: Policy,
    make_env: Callable[[], gym.Env],
    episodes: int,
    episode_steps: int,
    first_seed: int = FIRST_SEED,
    retries: int = 0,
    spare: gym.Env | None = None,
) -> Evaluation:
    """Run `episodes` episodes and add up their rewards.

    As many go on side by side as environments can be made, so that the policy sees batches.

    Arguments:
        retries: how often an episode that the environment fails in is begun again.
        spare: an environment to use where none can be made.

    Raises:
        UsageError: the environment cannot be made, failed, or returned what it must not.
    """
    if not 1 <= episodes <= MOST_EPISODES:
        raise UsageError(f"{episodes} evaluation episodes: ask for 1 to {MOST_EPISODES:,}")
    returns, failed, beyond = np.zeros(episodes), np.zeros(episodes, int), ""

    def begin(env: gym.Env, episode: int) -> np.ndarray:
        returns[episode] = 0.0
        while True:
            try:
                return border.reset(env, first_seed + episode, f"evaluation episode {episode}")
            except border.Failure as error:
                begin_again(error, episode)

    def begin_again(error: border.Failure, episode: int) -> None:
        border.begin_again(error, int(failed[episode]), retries)
        failed[episode] += 1

    with contextlib.ExitStack() as stack:
        envs = _several(stack, make_env, episodes, spare)
        earlier = begin(envs[0], 0)
        observations = np.stack([begin(env, k) for k, env in enumerate(envs)])
        unseeded = "" if (earlier == observations[0]).all() else UNSEEDED
        episode_of, steps = np.arange(len(envs)), np.zeros(len(envs), int)
        alive, waiting = np.ones(len(envs), bool), iter(range(len(envs), episodes))
        while alive.any():
            actions = policy(observations)
            observations = observations.copy()  # the policy may not have looked at them yet
            ended = []
            for k in np.flatnonzero(alive):
                episode = int(episode_of[k])
                try:
                    where = f"evaluation episode {episode}, step {steps[k]}"
                    found = border.step(envs[k], actions[k], where, observations[k].shape)
                except border.Failure as error:
                    begin_again(error, episode)
                    observations[k], steps[k] = begin(envs[k], episode), 0
                    continue
                observations[k] = found.observation
                returns[episode] += found.reward
                steps[k] += 1
                if found.terminated or found.truncated or steps[k] == episode_steps:
                    ended.append(k)
            beyond = beyond or _beyond(observations, envs[0].observation_space)
            for k in ended:
                following = next(waiting, None)
                if following is None:
                    alive[k] = False
                else:
                    episode_of[k], steps[k] = following, 0
                    observations[k] = begin(envs[k], following)
    return Evaluation(first_seed, tuple(returns.tolist()), beyond, unseeded)


def _several(
    stack: contextlib.ExitStack,
    make_env: Callable[[], gym.Env],
    wanted: int,
    spare: gym.Env | None,
) -> list[gym.Env]:
    """As many environments as can be made, up to so many; at least the spare one.

    What stands for a device may be there only once.
    """
    made: list[gym.Env] = []
    while len(made) < min(wanted, SIDE_BY_SIDE):
        try:
            env = make_env()
        except Exception as error:  # the constructor is somebody else's code
            if not made and spare is None:
                raise UsageError(f"the environment cannot be made: {one_line(error)}") from error
            break
        stack.callback(border.close, env)
        made.append(env)
    return made or ([] if spare is None else [spare])


UNSEEDED = (
    "two resets with the same seed began differently: episodes cannot be repeated, so policies are "
    "not compared on the same ones; draw what is random from self.np_random, as Gymnasium does"
)


def _beyond(observations: np.ndarray, space: gym.Space) -> str:
    """Which of the observations, [n, size], lies outside of `space` by more than rounding."""
    if not isinstance(space, gym.spaces.Box):
        return ""
    with np.errstate(over="ignore"):
        margin = 1e-3 * (space.high - space.low)
        outside = (observations < space.low - margin) | (observations > space.high + margin)
    if not outside.any():
        return ""
    row, k = np.argwhere(outside)[0]
    return (
        f"observation[{k}] was {observations[row, k]:.6g}, but the environment's observation_space "
        f"is from {space.low[k]:.6g} to {space.high[k]:.6g} there: put its bounds right, since "
        "what is learned from is scaled by them"
    )


class Step(NamedTuple):
    """One step of an episode, in the environment's units."""

    observation: np.ndarray
    """[observation], before the action"""
    action: np.ndarray
    """[action]"""
    reward: float
    next_observation: np.ndarray
    """[observation]"""


def episode(policy: Policy, env: gym.Env, episode_steps: int, seed: int) -> Iterator[Step]:
    """One episode from `reset(seed=seed)`, a step at a time, so that `env` can be looked at.

    Raises:
        UsageError: the environment failed, or returned what it must not.
    """
    observation = border.reset(env, seed, f"episode from seed {seed}")
    for step in range(episode_steps):
        action = policy(observation[None])[0]
        where = f"episode from seed {seed}, step {step}"
        found = border.step(env, action, where, observation.shape)
        yield Step(observation, action, found.reward, found.observation)
        if found.terminated or found.truncated:
            return
        observation = found.observation


def regret(env_id: str, evaluation: Evaluation) -> float | None:
    """The optimal mean return less the one measured; None where the optimum is not known.

    The optimum is that of the standard 100 episodes, so only these give a regret.
    """
    standard = (evaluation.first_seed, len(evaluation.returns)) == (FIRST_SEED, 100)
    if env_id not in OPTIMAL_RETURN or not standard:
        return None
    return OPTIMAL_RETURN[env_id] - evaluation.mean_return


def registered() -> Iterator[str]:
    """Ids that exist without importing anything more."""
    return iter(gym.registry)


def environments(env_id: str) -> Iterator[str]:
    """Ids in Gymnasium's registry that look like `env_id`, nearest first."""
    import difflib

    yield from difflib.get_close_matches(env_id, list(gym.registry), n=3, cutoff=0.5)


def not_installed(env_id: str, error: gym.error.DependencyNotInstalled) -> UsageError:
    """What to install for an environment, by the extra of this package if it has one."""
    said = str(error).replace("_", "-")
    extra = next((name for name in EXTRAS if f"gymnasium[{name}]" in said), None)
    how = one_line(error) if extra is None else f"pip install 'dynasac[{extra}]'"
    return UsageError(f"{env_id} needs a package that is not installed: {how}")


def make(env_id: str) -> gym.Env:
    """`gymnasium.make`, without its per-step checker, with errors that people can act on.

    Raises:
        UsageError: the environment does not exist or its dependencies are missing.
    """
    try:
        return gym.make(env_id, disable_env_checker=True)
    except gym.error.DependencyNotInstalled as error:
        raise not_installed(env_id, error) from None
    except ModuleNotFoundError as error:
        missing = error.name or env_id.partition(":")[0]
        raise UsageError(f"{env_id}: there is no module {missing}") from None
    except gym.error.Error as error:
        near = ", ".join(environments(env_id))
        hint = "write MODULE:ID for one of your own"
        hint = f"did you mean {near}? If not, {hint}" if near else hint
        reason = "is not known" if isinstance(error, gym.error.UnregisteredEnv) else str(error)
        raise UsageError(f"the environment {env_id} {reason}; {hint}") from None
    except Exception as error:  # the constructor and the module are somebody else's code
        raise UsageError(f"{env_id} cannot be made: {one_line(error)}") from None
