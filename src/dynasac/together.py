"""Several learners side by side in one process, each with an environment of its own.

Each learner's loop is `training.train`, unchanged, in a thread of its own; JAX computes without
holding Python's lock, and compiles once what several threads ask for at the same time. What takes
long goes through `Task.compute`, which all of them share: on CPUs they take turns (`Turns`), since
matrix products for eight learners take eight times as long there, one call or not; on accelerators
one call computes for all (`OneCall`). The steps of a real episode and the updates between them do
not go through it: no real system waits for another.
"""

import contextlib
import inspect
import threading
import traceback
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core.primitives import random_bits_p
from jax.interpreters import batching

from . import memory, planning, recording, training
from .agent import DynaSAC, Silent
from .errors import UsageError, one_line
from .evaluation import Evaluation
from .models import HostModel
from .processes import processors
from .recording import Interrupted, Stop
from .runs import Run
from .training import Phase, TrainingState


def learn_together(
    agents: Sequence[DynaSAC],
    total_timesteps: int | None = None,
    *,
    real_episodes: int | None = None,
    progress_bar: bool = False,
    one_call: bool | None = None,
) -> list[DynaSAC]:
    """Train several agents side by side, each as its `learn` would alone; returns them.

        agents = learn_together([DynaSAC("Pendulum-v1", seed=k) for k in range(8)])

    A model of one's own is best made once and given to all: of each class read from a file anew,
    and each `FuncEnv`, the programs are compiled anew.

    Arguments:
        total_timesteps, real_episodes: of each agent, as for `DynaSAC.learn`.
        progress_bar: one bar for all in terminals and notebooks, a line now and then elsewhere.
        one_call: compute for all agents in one call of a program; None: on accelerators. Each
            result is then as if it had learned alone up to rounding, else to the byte.

    Raises:
        UsageError: two agents share what only one can use, or there is too little memory for all;
            or some have failed, which the others are trained in spite of.
        KeyboardInterrupt: Ctrl-C or SIGTERM; each agent has what it learned.
    """

    def work(index: int, stop: Stop) -> None:
        agents[index].learn(
            total_timesteps, real_episodes=real_episodes, observer=_UntilAsked(stop)
        )

    def episodes_of(agent: DynaSAC) -> int:
        if total_timesteps is not None:
            return -(-total_timesteps // agent.spaces.episode_steps)
        return agent.config.real_episodes if real_episodes is None else real_episodes

    outcomes = _side_by_side(agents, work, episodes_of, progress_bar, one_call)
    if any(isinstance(outcome, KeyboardInterrupt) for outcome in outcomes):
        raise KeyboardInterrupt
    failed = [
        f"that with the seed {agent.seed}: {outcome}"
        for agent, outcome in zip(agents, outcomes, strict=True)
        if isinstance(outcome, UsageError)
    ]
    if failed:
        raise UsageError(f"{len(failed)} of {len(agents)} agents failed; {'; '.join(failed)}")
    return list(agents)


def record_together(
    agents: Sequence[DynaSAC],
    runs: Sequence[Run],
    episodes: int,
    progress_bar: bool,
    one_call: bool | None = None,
) -> list[Evaluation | UsageError | Interrupted | None]:
    """`recording.record_training` for several agents side by side, as their settings say.

    Returns for each what its policy is worth, or by what its training ended before: an error of its
    own, or Ctrl-C or SIGTERM, which stop all. Seconds in a run are by the clock on the wall, those
    of waiting for the others included.

    Raises:
        UsageError: as for `learn_together`, but for agents that fail; nothing has begun then.
    """

    def work(index: int, stop: Stop) -> Evaluation | None:
        return recording.record_training(
            agents[index],
            runs[index],
            episodes,
            progress_bar=False,
            stopped=lambda: stop.asked,
        )

    return _side_by_side(
        agents, work, lambda agent: agent.config.real_episodes, progress_bar, one_call
    )


class _UntilAsked(Silent):
    """Stops training when that is asked for."""

    def __init__(self, stop: Stop):
        self._stop = stop

    def progress(self, state: TrainingState, phase: Phase) -> None:
        if self._stop.asked:
            raise KeyboardInterrupt


def _side_by_side(
    agents: Sequence[DynaSAC],
    work: Callable[[int, Stop], Any],
    episodes_of: Callable[[DynaSAC], int],
    progress_bar: bool,
    one_call: bool | None,
) -> list[Any]:
    """Do the work of each agent in a thread of its own; returns what came of it, or its error."""
    _check(agents)
    in_one = jax.default_backend() != "cpu" if one_call is None else one_call
    compute = OneCall(len(agents)) if in_one else Turns()
    outcomes: list[Any] = [None] * len(agents)

    def thread_of(index: int, stop: Stop) -> None:
        try:
            outcomes[index] = work(index, stop)
        except (UsageError, Interrupted, KeyboardInterrupt) as error:
            outcomes[index] = error
        except Exception as error:  # environment and model are the user's code
            traceback.print_exception(error)
            outcomes[index] = UsageError(one_line(error))
        except SystemExit:
            outcomes[index] = UsageError("its environment or model ended the program")
        finally:
            compute.leave()

    def tell_all() -> None:
        alive = [k for k, thread in enumerate(threads) if thread.is_alive()]
        counts = [agent.state.counts for agent in agents]
        to_come = [
            training.updates_to_come(agents[k].task, counts[k], episodes_of(agents[k]))
            for k in alive
        ]
        done = sum(count.gradient_updates for count in counts)
        tell(done, sum(to_come), len(agents) - len(alive))

    bar = contextlib.nullcontext(lambda *_: None)
    if progress_bar:
        from .progress import counted  # rich takes a while to import

        bar = counted(len(agents))
    with recording.stopping() as stop, bar as tell:
        # daemons: a second Ctrl-C does not wait for them
        threads = [
            threading.Thread(target=thread_of, args=(index, stop), daemon=True)
            for index in range(len(agents))
        ]
        for agent in agents:
            agent.task = agent.task._replace(compute=compute)
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    tell_all()
        finally:
            for agent in agents:
                agent.task = agent.task._replace(compute=training.at_once)
    return outcomes


def _check(agents: Sequence[DynaSAC]) -> None:
    """Refuse agents that cannot learn side by side."""
    for name, owned in (
        ("environment", [agent.env.unwrapped for agent in agents]),
        ("simulator", [m for agent in agents if isinstance(m := agent.task.model, HostModel)]),
    ):
        if len({id(one) for one in owned}) < len(owned):
            raise UsageError(f"two agents share one {name}: make one for each of them")
    memory.check_together([agent.memory for agent in agents], memory.available())


class Turns:
    """Computes for as many learners at a time as there are processors."""

    def __init__(self):
        self._free = threading.Semaphore(processors())

    def __call__(self, program: Callable[..., Any], *arguments: Any) -> Any:
        with self._free:
            return jax.block_until_ready(program(*arguments))

    def leave(self) -> None:
        """Called once by each learner, when it will compute no more."""


class _Call(NamedTuple):
    program: Callable[..., Any]
    arguments: tuple
    alike: Hashable
    """equal for calls that can be made in one"""
    answer: Future


class OneCall(Turns):
    """Computes for all learners that ask for the same in one call of the program.

    Whoever comes last computes: the call is made when each learner that has not left waits in here.
    None of them can wait for ever then, however the others end, but each waits for the slowest, a
    real episode under way included.
    """

    PROGRAMS = (planning.plan, planning.episodes)
    """others are called as by `Turns`"""

    def __init__(self, learners: int):
        super().__init__()
        batching.fancy_primitive_batchers[random_bits_p] = _bits
        self._learners = self._here = learners
        self._waiting: list[_Call] = []
        self._lock = threading.Lock()

    def __call__(self, program: Callable[..., Any], *arguments: Any) -> Any:
        if not any(program is one for one in self.PROGRAMS):
            return super().__call__(program, *arguments)
        arguments = jax.tree.map(
            lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, arguments
        )
        program = inspect.unwrap(program)
        call = _Call(program, arguments, _alike(program, arguments), Future())
        with self._lock:
            self._waiting.append(call)
            due = self._due()
        self._make(due)
        return call.answer.result()

    def leave(self) -> None:
        with self._lock:
            self._here -= 1
            due = self._due()
        self._make(due)

    def _due(self) -> list[_Call]:
        """The calls that are waiting, once nobody is left to wait for."""
        due: list[_Call] = []
        if len(self._waiting) == self._here:
            due, self._waiting = self._waiting, []
        return due

    def _make(self, due: list[_Call]) -> None:
        for alike in dict.fromkeys(call.alike for call in due):
            calls = [call for call in due if call.alike == alike]
            lanes = [call.arguments for call in calls]
            # always as many, or another program would have to be compiled
            lanes += lanes[:1] * (self._learners - len(lanes))
            try:
                found = jax.block_until_ready(_in_one(calls[0].program, lanes))
                for call, answer in zip(calls, found, strict=False):
                    call.answer.set_result(answer)
            except BaseException as error:
                for call in calls:
                    call.answer.set_exception(error)


SPAN = "span"
"""the parameter of a program that is the same for all: the bounds of its loops stay scalars"""


def _alike(program: Callable[..., Any], arguments: tuple) -> Hashable:
    arrays, static = eqx.partition(arguments, eqx.is_array)
    leaves, structure = jax.tree.flatten(static)
    shapes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arrays))
    names = inspect.signature(program).parameters
    span = dict(zip(names, arguments, strict=False)).get(SPAN, ())
    return program, structure, tuple(leaves), shapes, tuple(int(count) for count in span)


AXIS = "learners"


@eqx.filter_jit(compiler_options=planning.COMPILER_OPTIONS)  # pyright: ignore[reportCallIssue]
def _in_one(program: Callable[..., Any], lanes: list[tuple]) -> list[Any]:
    """What the program returns for each lane's arguments."""

    def stacked(*leaves):
        return jnp.stack(leaves) if eqx.is_array(leaves[0]) else leaves[0]

    names = list(inspect.signature(program).parameters)[: len(lanes[0])]
    arguments = [
        same[0] if name == SPAN else jax.tree.map(stacked, *same)
        for name, same in zip(names, zip(*lanes, strict=True), strict=True)
    ]
    axes = tuple(None if name == SPAN else eqx.if_array(0) for name in names)
    found = eqx.filter_vmap(program, in_axes=axes, axis_name=AXIS)(*arguments)
    return [
        jax.tree.map(lambda rows, lane=lane: rows[lane] if eqx.is_array(rows) else rows, found)
        for lane in range(len(lanes))
    ]


_usual_bits = batching.fancy_primitive_batchers[random_bits_p]


def _bits(axis, keys, dims, **parameters):
    """Random bits by each learner's own key: XLA's generator draws a batch from its first key."""
    if axis.name != AXIS or dims[0] is None:
        return _usual_bits(axis, keys, dims, **parameters)
    (keys,), (dim,) = keys, dims
    return jax.lax.map(lambda key: random_bits_p.bind(key, **parameters), keys), dim
