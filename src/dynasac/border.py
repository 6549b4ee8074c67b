"""Where the real environment is called: what it returns is checked and copied, and it may fail."""

import functools
import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from .errors import UsageError, one_line

LOG = logging.getLogger(__name__)


class Failure(UsageError):
    """An environment raised an error or returned what it must not; another reset may help."""


class Unusable(Failure):
    """Another reset cannot help."""


class Arrival(NamedTuple):
    """What a step led to."""

    observation: np.ndarray
    """Float32[observation], nobody else's memory"""
    reward: float
    terminated: bool
    truncated: bool


def reset(env: gym.Env, seed: int, where: str) -> np.ndarray:
    """The observation that an episode begins with, Float32[observation], nobody else's memory.

    Arguments:
        where: the episode in words, for errors.

    Raises:
        Failure: naming what is wrong with it.
    """
    where = f"{where}, reset"
    try:
        found = env.reset(seed=seed)
    except Failure:
        raise
    except SystemExit as error:
        raise _left(error, where) from error
    except TypeError as error:
        for name in ("seed", "options"):
            if f"unexpected keyword argument '{name}'" in str(error):
                raise Failure(
                    f"the environment's reset takes no {name} ({where}): write "
                    "def reset(self, *, seed=None, options=None)"
                ) from error
        raise _raised(error, where) from error
    except Exception as error:
        raise _raised(error, where) from error
    observation, _ = _parts(found, 2, "(observation, info)", where)
    return _observation(observation, env.observation_space.shape, where)


def step(env: gym.Env, action: np.ndarray, where: str, shape: tuple[int, ...]) -> Arrival:
    """What an action, [action] in the environment's units, leads to.

    Arguments:
        where: the episode and the step in words, for errors.
        shape: of the observation that the episode began with.

    Raises:
        Failure: naming what is wrong with it.
    """
    try:
        found = env.step(np.array(action))  # which it may write into
    except Failure:
        raise
    except SystemExit as error:
        raise _left(error, where) from error
    except Exception as error:
        raise _raised(error, where) from error
    form = "(observation, reward, terminated, truncated, info)"
    observation, reward, terminated, truncated, _ = _parts(found, 5, form, where)
    observation = _observation(observation, env.observation_space.shape, where)
    if observation.shape != shape:  # and the environment's space has it too, by now
        raise Unusable(
            f"the environment's observations have changed from {shape[0]} numbers to shape "
            f"{observation.shape} ({where}): spaces must not change"
        )
    return Arrival(
        observation,
        _reward(reward, where),
        _flag("terminated", terminated, where),
        _flag("truncated", truncated, where),
    )


def _raised(error: Exception, where: str) -> Failure:
    return Failure(f"the environment failed ({where}): {one_line(error)}")


def _left(error: SystemExit, where: str) -> Failure:
    """Of an environment that would have ended the program, as one whose window was closed does."""
    return Failure(f"the environment asked to exit with {error.code!r} ({where})")


def _parts(found: Any, count: int, form: str, where: str) -> tuple:
    if not isinstance(found, tuple) or len(found) != count:
        what = f"{len(found)} values" if isinstance(found, tuple) else f"a {type(found).__name__}"
        raise Failure(f"the environment returned {what} ({where}): it must return {form}")
    return found


def _numbers(name: str, value: Any, where: str) -> np.ndarray:
    """A copy in single precision, which is what is learned from."""
    try:
        array = np.asarray(value)
    except Exception:  # rows of different lengths, or an object of somebody else's class
        array = np.asarray(None)
    if array.dtype.kind not in "fiub":
        raise Failure(f"the environment returned {name} that is no numbers ({where})")
    with np.errstate(over="ignore"):
        return np.array(array, np.float32)


def _observation(value: Any, shape: tuple[int, ...] | None, where: str) -> np.ndarray:
    observation = _numbers("an observation", value, where)
    if observation.shape != shape:
        raise Failure(
            f"the environment returned an observation of shape {observation.shape} ({where}): its "
            f"observation_space has {shape}"
        )
    wrong = np.argwhere(~np.isfinite(observation))
    if len(wrong):
        k = tuple(wrong[0].tolist())
        raise Failure(
            f"the environment returned a non-finite observation ({where}): "
            f"{observation[k]} at {list(k)}"
        )
    return observation


def _reward(value: Any, where: str) -> float:
    reward = _numbers("a reward", value, where)
    if reward.size != 1:
        raise Failure(
            f"the environment returned a reward of shape {reward.shape} ({where}): it must be one "
            "number"
        )
    if not np.isfinite(reward).all():
        raise Failure(f"the environment returned the reward {reward.item()} ({where})")
    return float(np.asarray(value).item())


def _flag(name: str, value: Any, where: str) -> bool:
    try:
        flag = np.asarray(value)
    except Exception:
        flag = np.asarray(None)
    if flag.dtype != bool or flag.size != 1:
        raise Failure(
            f"the environment returned {name} as a {type(value).__name__} ({where}): it must be "
            "True or False"
        )
    return bool(flag.item())


LONGEST_PAUSE = 30.0
"""seconds before another attempt, at most"""


LOOK_SECONDS = 0.1
"""between two looks whether to stop, in a pause"""


def begin_again(
    error: Failure, failed: int, retries: int, stopped: Callable[[], bool] | None = None
) -> None:
    """Tell of a failure and wait a moment, longer each time; or raise it, where that is enough.

    Arguments:
        failed: how often the same episode failed before.
        retries: how often it may be begun again.
        stopped: ends the wait.
    """
    if failed >= retries or isinstance(error, Unusable):
        raise error
    pause = min(2.0 ** (failed - 1), LONGEST_PAUSE) if failed else 0.0
    waits = f" in {pause:g} s" if pause else ""
    LOG.warning("%s; begun again%s, retry %d of %d", error, waits, failed + 1, retries)
    if stopped is None:
        time.sleep(pause)
        return
    for _ in range(round(pause / LOOK_SECONDS)):
        if not stopped():
            time.sleep(LOOK_SECONDS)


def close(env: gym.Env) -> None:
    """Close an environment; one that fails in that is told of."""
    try:
        env.close()
    except Exception as error:
        LOG.warning("the environment could not be closed: %s", one_line(error))


def timed(env: gym.Env, seconds: float | None) -> gym.Env:
    """The environment itself, or `Timed` where there is a limit."""
    return env if seconds is None else Timed(env, seconds)


class Timed(gym.Wrapper):
    """An environment whose resets and steps fail where they take longer than `seconds`.

    They run in one thread of their own, since nothing else ends a call that hangs. After it the
    environment cannot be used again: the next reset makes another from its spec, in another thread.
    """

    def __init__(self, env: gym.Env, seconds: float):
        super().__init__(env)
        self._seconds = seconds
        self._calls: queue.SimpleQueue | None = None
        self._hung = False

    @property
    def spec(self) -> EnvSpec | None:
        return self.env.spec

    def reset(self, **given: Any) -> Any:
        if self._hung:
            spec = self._spec_to_make()
            self.env = self._within(None, gym.make, spec, disable_env_checker=True)
            self._hung = False
        return self._within(self._seconds, self.env.reset, **given)

    def step(self, action: np.ndarray) -> Any:
        return self._within(self._seconds, self.env.step, action)

    def close(self) -> None:
        if not self._hung:  # if it did, it is closed once it answers
            self._within(self._seconds, self.env.close)

    def _within(self, seconds: float | None, call: Callable, *given: Any, **named: Any) -> Any:
        calls = self._calls
        if calls is None:
            self._calls = calls = queue.SimpleQueue()
            # at exit Python waits for all threads but daemons
            threading.Thread(target=_serve, args=(calls,), daemon=True).start()
            weakref.finalize(self, calls.put, None)
        # of this call alone: an interrupted one may answer late
        answer: queue.SimpleQueue = queue.SimpleQueue()
        calls.put((functools.partial(call, *given, **named), answer))
        try:
            found, error = answer.get(timeout=seconds)
        except queue.Empty:
            self._hung, self._calls = True, None
            calls.put((self.env.close, queue.SimpleQueue()))
            calls.put(None)
            self._spec_to_make()
            raise TimeoutError(f"no answer within {self._seconds:g} s") from None
        if error is not None:
            raise error
        return found

    def _spec_to_make(self) -> EnvSpec:
        if self.env.spec is None:
            raise Unusable(
                f"the environment did not answer within {self._seconds:g} s and cannot be made "
                "anew: make it by gymnasium.make, or raise --step-seconds"
            )
        return self.env.spec


def _serve(calls: queue.SimpleQueue) -> None:
    """Make one call after another, until None is among them."""
    for call, answer in iter(calls.get, None):
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))
