"""Several real environments of the same kind feed one learner, through Ray, while it plans."""

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

from . import border, cluster, processes
from .collecting import Order, Part, parts
from .errors import UsageError, one_line
from .networks import Actor
from .training import Task

LOG = logging.getLogger(__name__)

NUMBER = "DYNASAC_RIG"
"""the environment variable in which a rig finds its number, from 0"""

RESOURCE = "rig"
"""Ray's name for what machines of a cluster have that rigs are attached to"""

MOST_RIGS = 1000
"""of one training, each of which is a process"""

CLOSE_SECONDS = 10.0
"""in which rigs have to end a step and close their environments when they are stopped"""


@dataclass(frozen=True)
class Rigs:
    """Real environments of the same kind, each in a process of its own, a Ray actor.

        DynaSAC("my_rig:Rig-v0", model).learn(real_episodes=12, rigs=Rigs(3))

    Each makes its own environment as the agent's was made, and finds its number, from 0, in the
    environment variable DYNASAC_RIG.

    Arguments:
        count: how many.
        in_order: episodes are taken one at a time in the order in which they were begun, whatever
            the timing, so that a seed leads to the same bytes each time.
        address: "local" for a Ray of this training alone, on this machine; HOST:PORT for one that
            is there.
    """

    count: int
    in_order: bool = False
    address: str = "local"

    def fleet(self, task: Task, begun: int) -> "Fleet":
        """Start them, for an agent that has had so many real episodes.

        Raises:
            UsageError: Ray is missing or cannot be reached, or cannot make the environment anew.
        """
        if not 1 <= self.count <= MOST_RIGS:
            raise UsageError(f"--rigs {self.count}: from 1 to {MOST_RIGS:,}")
        if task.env.spec is None:
            raise UsageError(
                "rigs make their own environments: register yours and make it by gymnasium.make"
            )
        return Fleet(_RayLine(self, task.env.spec, task), self.in_order, begun)


class Lost(NamedTuple):
    """A rig is gone."""

    why: str
    """one line"""


News = Part | Lost | None
"""from a rig: steps of its episode; it is gone; its episode has ended"""


@runtime_checkable
class Line(Protocol):
    """The connection with rigs, which are numbered from 0."""

    count: int

    def order(self, rig: int, order: Order, actor: Actor) -> None:
        """Have an episode collected by a rig that is doing nothing."""
        ...

    def heard(self, seconds: float) -> list[tuple[int, News]]:
        """What rigs have sent, in the order of each, as soon as there is anything, after `seconds`
        at most."""
        ...

    def drop(self, rig: int) -> None:
        """Be done with a rig that is gone."""
        ...

    def stop(self) -> None:
        """Ask all rigs to end their episodes; what they send can still be heard."""
        ...

    def close(self) -> None: ...


@dataclass
class _UnderWay:
    """An episode that a rig has begun."""

    rig: int
    parts: list[Part] = field(default_factory=list)
    ended: bool = False
    lost: str | None = None
    """why the rig is gone"""

    @property
    def steps(self) -> int:
        return sum(len(part.rows.reward) for part in self.parts if part.rows is not None)


class Fleet:
    """Which rig collects which episode, and which episode is handed over next: a `training.Fleet`.

    A rig counts as free from when its episode was handed over. So with `in_order`, where that is
    one at a time in the order of their numbers, nothing but counts decides who begins what when.
    """

    def __init__(self, line: Line, in_order: bool, begun: int):
        self._line, self._in_order = line, in_order
        self.begun = begun
        self._free = list(range(line.count))
        self._under_way: dict[int, _UnderWay] = {}
        self._last_words = ""

    @property
    def under_way(self) -> int:
        return len(self._under_way)

    @property
    def free(self) -> int:
        return len(self._free)

    def begin(self, order: Order, actor: Actor) -> None:
        rig = min(self._free)
        self._free.remove(rig)
        self._under_way[order.number] = _UnderWay(rig)
        self.begun = order.number + 1
        self._line.order(rig, order, actor)

    def arrived(self, seconds: float) -> list[list[Part]]:
        if not self._free and not self._under_way:
            raise UsageError(
                f"no rig is left ({self._last_words}); what was learned is kept: put them right, "
                "then go on"
            )
        self._listen(0.0 if self._ended() else seconds)
        return [self._handed_over(number) for number in self._ended()]

    def close(self) -> list[list[Part]]:
        try:
            self._line.stop()
            until = time.monotonic() + CLOSE_SECONDS
            while not all(episode.ended for episode in self._under_way.values()):
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._listen(left)
        finally:
            self._line.close()
        late = [self._under_way.pop(number).parts for number in sorted(self._under_way)]
        return [arrived for arrived in late if arrived]

    def _listen(self, seconds: float) -> None:
        for rig, news in self._line.heard(seconds):
            (episode,) = (e for e in self._under_way.values() if e.rig == rig)
            if isinstance(news, Lost):
                episode.lost = news.why
            elif episode.parts and episode.parts[-1].failure:
                LOG.warning("rig %d: %s; begun again", rig, episode.parts[-1].failure)
            if isinstance(news, Part):
                episode.parts.append(news)
            else:
                episode.ended = True

    def _ended(self) -> list[int]:
        """The episodes whose turn it is, by number."""
        numbers = sorted(self._under_way)
        if self._in_order:
            numbers = numbers[:1]
        return [number for number in numbers if self._under_way[number].ended]

    def _handed_over(self, number: int) -> list[Part]:
        episode = self._under_way.pop(number)
        if episode.lost is None:
            self._free.append(episode.rig)
            return episode.parts
        self._line.drop(episode.rig)
        left = len(self._free) + len(self._under_way)
        self._last_words = f"the last, rig {episode.rig}: {episode.lost}"
        LOG.warning(
            "rig %d is gone, in real episode %d, of which %d steps are kept (%s); rigs left: %d",
            episode.rig,
            number + 1,
            episode.steps,
            episode.lost,
            left,
        )
        return episode.parts


class _Rig:
    """One real environment, in a process of its own."""

    def __init__(self, spec: EnvSpec, step_seconds: float | None, retries: int):
        self._spec, self._seconds, self._retries = spec, step_seconds, retries
        self._env: gym.Env | None = None
        self._stopped = threading.Event()

    def warm(self) -> None:
        """Make the environment while there is time; what is wrong is told by the first episode."""
        with contextlib.suppress(Exception):
            self._made()

    def episode(self, order: Order, actor: Actor) -> Iterator[Part]:
        """As `collecting.parts`; where it fails for good, the environment is closed."""
        try:
            yield from parts(self._made(), order, actor, self._retries, self._stopped.is_set)
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        self._stopped.set()

    def close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            border.close(env)

    def _made(self) -> gym.Env:
        # in the thread that uses it, which `__init__` is not in
        if self._env is None:
            try:
                env = gym.make(self._spec, disable_env_checker=True)
            except Exception as error:
                raise UsageError(f"its environment cannot be made: {one_line(error)}") from error
            self._env = border.timed(env, self._seconds)
        return self._env


class _RayLine:
    """Rigs that are Ray actors; the parts of an episode are a stream, which ends when they die."""

    def __init__(self, rigs: Rigs, spec: EnvSpec, task: Task):
        self.count = rigs.count
        self._streams: dict[int, Any] = {}
        self._ended = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._ray = stack.enter_context(_ray(rigs.address))
            attached = self._ray.cluster_resources().get(RESOURCE)
            if attached is not None and attached < rigs.count:
                raise UsageError(
                    f"--rigs {rigs.count}: the machines of this Ray have {attached:g} of the "
                    f"resource {RESOURCE!r}; start more with it, or ask for fewer rigs"
                )
            variables = {**processes.THREADS, "JAX_PLATFORMS": "cpu"}
            if rigs.address == "local":
                variables = stack.enter_context(processes.environment())
            actor = self._ray.remote(
                num_cpus=0,
                resources={} if attached is None else {RESOURCE: 1},
                scheduling_strategy="SPREAD",
                concurrency_groups={"stop": 1},
            )(_Rig)
            self._rigs = [
                actor.options(runtime_env={"env_vars": {**variables, NUMBER: str(number)}}).remote(
                    spec, task.config.step_seconds, task.config.env_retries
                )
                for number in range(rigs.count)
            ]
            for rig in self._rigs:
                rig.warm.remote()
            self._ended = stack.pop_all()

    def order(self, rig: int, order: Order, actor: Actor) -> None:
        self._streams[rig] = self._rigs[rig].episode.remote(order, actor)

    def heard(self, seconds: float) -> list[tuple[int, News]]:
        news: list[tuple[int, News]] = []
        while self._streams:
            ready, _ = self._ray.wait(list(self._streams.values()), timeout=0 if news else seconds)
            if not ready:
                break
            (rig,) = (rig for rig, stream in self._streams.items() if stream is ready[0])
            news.append((rig, self._next(rig)))
            if not isinstance(news[-1][1], Part):
                del self._streams[rig]
        return news

    def _next(self, rig: int) -> News:
        errors = self._ray.exceptions
        try:
            return self._ray.get(next(self._streams[rig]))
        except StopIteration:
            return None
        except errors.RayTaskError as error:
            cause = error.cause
            return Lost(str(cause) if isinstance(cause, UsageError) else one_line(cause))
        except errors.ActorDiedError:
            return Lost("its process ended, or its machine is gone")
        except errors.RayError as error:
            return Lost(one_line(error))

    def drop(self, rig: int) -> None:
        self._ray.kill(self._rigs[rig])

    def stop(self) -> None:
        for rig in self._rigs:
            rig.stop.options(concurrency_group="stop").remote()

    def close(self) -> None:
        with self._ended:
            closing = [rig.close.remote() for rig in self._rigs]
            self._ray.wait(closing, num_returns=len(closing), timeout=CLOSE_SECONDS)
            for rig in self._rigs:
                self._ray.kill(rig)


@contextlib.contextmanager
def _ray(address: str) -> Iterator[Any]:
    """Ray; a connection that this process has already is used, and left as it is."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield ray
    else:
        with cluster.connected(address) as ray:
            yield ray
