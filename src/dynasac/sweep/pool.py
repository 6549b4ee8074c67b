"""Workers that do the trainings of a sweep: the contract, and those of this machine."""

import collections
import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from .. import processes
from ..errors import UsageError
from .work import Job, Row


class Event(NamedTuple):
    """What became known of a training."""

    name: str
    """`Job.name`"""
    kind: Literal["row", "done", "failed", "stopped", "lost"]
    """a row of its learning curve; it is complete; an error of its own, which would come again; it
    stopped because it was asked to; whoever did it is gone, and another may go on with it"""
    row: Row | None = None
    """of metrics.csv; for `done`, what summary.json holds"""
    why: str | None = None
    """one line, for `failed` and `lost`"""


@runtime_checkable
class Pool(Protocol):
    """Who does trainings, so many at a time. Whatever was submitted ends in one of the events but
    `row`, and by then the run directory is as whole in the sweep's directory as it will be."""

    slots: int
    """trainings that go on at a time; more that are submitted wait"""

    def submit(self, job: Job) -> None:
        """Do it, or go on with it where its directory is."""
        ...

    def stop(self, name: str) -> None:
        """Let it come to an early end at a point where it can be gone on with."""
        ...

    def events(self, seconds: float) -> list[Event]:
        """What has happened since the last call, as soon as anything has, after `seconds` at
        most."""
        ...

    def close(self) -> None:
        """End everything at once; what goes on can be gone on with later."""
        ...


SETTINGS_OF_A_WORKER = 10
"""after which another one takes its place: what was compiled for settings that are over stays in
the memory of a process, about 30 MB each; other seeds of the same ones take none"""
SECONDS_BETWEEN_LOOKS = 0.5
"""at whether workers are there still, which their silence alone does not always tell"""


class LocalPool:
    """Processes of this machine, each with one thread to compute, and one training at a time.

    They stay for the next training, so that Python, JAX and what it compiled are there already.
    What a training prints goes to OUTPUT/NAME.log.
    """

    def __init__(self, output: Path, slots: int | None = None):
        """Start nothing yet.

        Arguments:
            output: the directory of the sweep.
            slots: how many processes; None for the number of processors.

        Raises:
            UsageError: less than one.
        """
        if slots is not None and slots < 1:
            raise UsageError(f"--jobs {slots}: at least 1")
        self.slots = processes.processors() if slots is None else slots
        self._output = output
        self._held = contextlib.ExitStack()
        self._environment = self._held.enter_context(processes.environment())
        self._selector = self._held.enter_context(selectors.DefaultSelector())
        self._workers: list[_Worker] = []
        self._waiting: collections.deque[Job] = collections.deque()
        self._known: list[Event] = []

    def submit(self, job: Job) -> None:
        self._waiting.append(job)
        self._hand_out()

    def stop(self, name: str) -> None:
        for job in [job for job in self._waiting if job.name == name]:
            self._waiting.remove(job)
            self._known.append(Event(name, "stopped"))
        for worker in self._workers:
            if worker.job is not None and worker.job.name == name:
                worker.send({"stop": name})

    def events(self, seconds: float) -> list[Event]:
        deadline = time.monotonic() + seconds
        while not self._known:
            left = deadline - time.monotonic()
            heard = self._selector.select(max(0.0, min(left, SECONDS_BETWEEN_LOOKS)))
            for worker in [key.data for key, _ in heard]:
                self._known += worker.read()
            for worker in [worker for worker in self._workers if worker.gone()]:
                self._known += worker.read() + worker.lost()
                self._dismiss(worker)
            self._hand_out()
            if left <= 0:
                break
        known, self._known = self._known, []
        return known

    def close(self) -> None:
        for worker in list(self._workers):
            self._dismiss(worker)
        self._held.close()

    def _hand_out(self) -> None:
        """Give what waits to workers that have nothing to do, or to new ones."""
        while self._waiting:
            free = [worker for worker in self._workers if worker.job is None]
            if not free and len(self._workers) >= self.slots:
                return
            job = self._waiting.popleft()
            kind = _kind(job)
            idle = next((worker for worker in free if kind in worker.kinds), None)
            if idle is None and free:
                idle = free[0]
                if len(idle.kinds) >= SETTINGS_OF_A_WORKER:
                    self._dismiss(idle)
                    idle = None
            log = self._output / f"{job.name}.log"
            try:
                log.parent.mkdir(parents=True, exist_ok=True)
                worker = idle or self._employ(log)
            except OSError as error:
                why = f"could not be started: {error.strerror}"
                self._known.append(Event(job.name, "failed", why=why))
                continue
            worker.begin(job, self._output / job.name, log)

    def _employ(self, log: Path) -> "_Worker":
        worker = _Worker(self._environment, log)
        self._workers.append(worker)
        self._selector.register(worker.output, selectors.EVENT_READ, worker)
        return worker

    def _dismiss(self, worker: "_Worker") -> None:
        self._selector.unregister(worker.output)
        self._workers.remove(worker)
        worker.end()


def _kind(job: Job) -> str:
    """Trainings of the same kind run the same compiled programs."""
    return json.dumps([job.env, job.model, job.preset, job.settings], sort_keys=True)


class _Worker:
    """A process, and what it is at; `python -m dynasac.sweep` is its side of it."""

    def __init__(self, environment: dict[str, str], log: Path):
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                # -P: `python -m` would look into the current directory before all packages
                (sys.executable, "-P", "-m", "dynasac.sweep"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is for the sweep to act on
            )
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        os.set_blocking(self.output, False)
        self._said = b""
        self._log = log
        self.job: Job | None = None
        self.kinds: set[str] = set()
        """of trainings that it has compiled programs for"""

    def begin(self, job: Job, directory: Path, log: Path) -> None:
        self.job, self._log = job, log
        self.kinds.add(_kind(job))
        asked = {"job": dataclasses.asdict(job), "directory": str(directory), "log": str(log)}
        self.send(asked)

    def send(self, order: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it is gone is seen elsewhere
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def read(self) -> list[Event]:
        """What it has said."""
        with contextlib.suppress(BlockingIOError):
            while part := os.read(self.output, 1 << 16):
                self._said += part
        *lines, self._said = self._said.split(b"\n")
        events = [Event(**json.loads(line)) for line in lines]
        if any(event.kind != "row" for event in events):
            self.job = None
        return events

    def gone(self) -> bool:
        return self._process.poll() is not None

    def lost(self) -> list[Event]:
        """What its end means for the training that it was at."""
        if self.job is None:
            return []
        why = processes.why(self._process.returncode, self._log)
        return [Event(self.job.name, "lost", why=why)]

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # and what the environment has started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
