"""Trainings as tasks of a Ray cluster, whose machines need not share a file system.

A training is done in a directory of its own where its worker runs. What changes in there travels
to the driver through a queue that lives on the driver's machine, after each checkpoint and in the
end; what the driver has of a run travels to whoever goes on with it.
"""

import contextlib
import dataclasses
import itertools
import os
import re
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from .. import checkpoint, cluster, processes, recording
from ..errors import UsageError, one_line
from .pool import Event
from .work import Job, Row, work

Files = dict[str, bytes | None]
"""by their names in a run directory, as `checkpoints/state-00000001.safetensors`: what they hold;
None where there is no such file any more"""

CHECKPOINTS, SUMMARY = "checkpoints/", "summary.json"
PLAIN = re.compile(r"(?:[\w-]+/)?\w[\w.-]*")
"""names that files may have"""
LOOK_SECONDS = 0.25
"""between two looks of a worker for a new checkpoint"""
WAIT_SECONDS = 0.1
"""between two looks of the driver for what came"""
MOST_FILES, MOST_BYTES = 1000, 4_000_000_000
"""that may come at a time from one training"""
TASKS_OF_A_WORKER = 50
"""after which another process takes its place: what it compiled stays in its memory"""
STOP_SECONDS = 10.0
"""after which a training that was asked to stop is asked again"""
LETTERS = 100
"""that wait for the driver at most; who writes more waits too"""


class Letter(NamedTuple):
    """What a worker has to say while it trains."""

    attempt: int
    row: Row | None
    files: Files


class Outcome(NamedTuple):
    """How a task ended, by the words of `Event`."""

    kind: Literal["done", "failed", "stopped"]
    summary: dict[str, Any] | None = None
    why: str | None = None
    traceback: str | None = None


class Attempt(NamedTuple):
    """A task that the driver waits for."""

    number: int
    name: str
    """of the job"""
    task: Any
    """Ray's reference to what it will return"""


class RayPool:
    """Trains on a Ray cluster, as `Pool` says; of what failed the traceback is in OUTPUT/NAME.log.

    Arguments:
        address: `local` starts a Ray on this machine that nobody else can reach; HOST:PORT is
            that of a cluster that this machine is part of.
        output: the sweep's directory, in which run directories appear.

    Raises:
        UsageError: Ray is not installed, the cluster cannot be reached or refuses us, or its
            machines have other versions.
    """

    def __init__(self, address: str, output: Path):
        self._output = output
        self._attempts: dict[str, Attempt] = {}
        """by the names of their jobs"""
        self._asked: dict[str, float] = {}
        """to stop, and when last"""
        self._numbers = itertools.count()
        self._held = contextlib.ExitStack()
        try:
            self._ray = self._held.enter_context(cluster.connected(address))
            self._task = self._ray.remote(num_cpus=1, max_retries=0, max_calls=TASKS_OF_A_WORKER)(
                train
            )
            self._queue = self._new_queue()
        except BaseException:
            self.close()
            raise
        self.slots = self._processors()

    def submit(self, job: Job) -> None:
        """See `Pool`."""
        shipped, model = _with_model(job)
        number, files = next(self._numbers), read_files(self._output / job.name)
        paths = processes.module_paths()
        task = self._task.remote(shipped, model, files, paths, self._queue, number)
        self._attempts[job.name] = Attempt(number, job.name, task)
        self._asked.pop(job.name, None)

    def stop(self, name: str) -> None:
        """See `Pool`."""
        if name in self._attempts and name not in self._asked:
            self._ask(name)

    def _ask(self, name: str) -> None:
        self._asked[name] = time.monotonic()
        # not what the worker is sending just now
        self._ray.cancel(self._attempts[name].task, recursive=False)

    def events(self, seconds: float) -> list[Event]:
        """See `Pool`.

        Raises:
            UsageError: what came cannot be written.
        """
        deadline = time.monotonic() + seconds
        while not (found := self._look()) and time.monotonic() < deadline:
            time.sleep(WAIT_SECONDS)
        for name, when in list(self._asked.items()):
            # an interrupt can come to nothing, as where Python is just deleting an object
            if name in self._attempts and time.monotonic() - when > STOP_SECONDS:
                self._ask(name)
        self.slots = self._processors()
        return found

    def close(self) -> None:
        """See `Pool`."""
        self._held.close()

    def _new_queue(self) -> Any:
        """On this machine: what has come is here, whichever other machine is lost."""
        from ray.util.queue import Queue

        here = cluster.on(self._ray.get_runtime_context().get_node_id())
        return Queue(LETTERS, actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def _processors(self) -> int:
        # with none for a moment, tasks wait for a machine
        return max(1, int(self._ray.cluster_resources().get("CPU", 0)))

    def _look(self) -> list[Event]:
        """What has happened."""
        tasks = {attempt.task: attempt for attempt in self._attempts.values()}
        # first who is through, then the letters, so that all of theirs are among them
        ready = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[0] if tasks else []
        try:
            letters = self._queue.get_nowait_batch(self._queue.qsize())
        except self._ray.exceptions.RayActorError:
            return self._without_queue()
        found = [event for letter in letters for event in self._read(letter)]
        for task in ready:
            if tasks[task].name in self._attempts:  # was not refused meanwhile
                del self._attempts[tasks[task].name]
                found.append(self._ended(tasks[task]))
        return found

    def _without_queue(self) -> list[Event]:
        """The process that held it is gone, and what was in it."""
        lost, self._attempts = list(self._attempts.values()), {}
        for attempt in lost:
            self._ray.cancel(attempt.task, force=True, recursive=False)
        self._queue = self._new_queue()
        why = "the process that held what had come from the workers is gone"
        return [Event(attempt.name, "lost", why=why) for attempt in lost]

    def _read(self, letter: Letter) -> Iterator[Event]:
        attempt = next((a for a in self._attempts.values() if a.number == letter.attempt), None)
        if attempt is None:  # of one that was given up
            return
        try:
            check_files(letter.files)
        except UsageError as error:
            del self._attempts[attempt.name]
            self._ray.cancel(attempt.task, force=True, recursive=False)
            yield Event(attempt.name, "failed", why=str(error))
            return
        write_files(self._output / attempt.name, letter.files)
        if letter.row is not None:
            yield Event(attempt.name, "row", letter.row)

    def _ended(self, attempt: Attempt) -> Event:
        exceptions = self._ray.exceptions
        try:
            outcome: Outcome = self._ray.get(attempt.task)
        except exceptions.TaskCancelledError:
            outcome = Outcome("stopped")
        except exceptions.RayError as error:
            cause = error.cause if isinstance(error, exceptions.RayTaskError) else error
            own = not isinstance(cause, exceptions.RayError)
            return Event(attempt.name, "failed" if own else "lost", why=cluster.said(error))
        if outcome.kind == "stopped" and attempt.name not in self._asked:
            return Event(attempt.name, "lost", why="its worker was told to end")
        if outcome.traceback is not None:
            log = self._output / f"{attempt.name}.log"
            checkpoint.write_bytes(log, outcome.traceback.encode())
        return Event(attempt.name, outcome.kind, outcome.summary, outcome.why)


def _with_model(job: Job) -> tuple[Job, bytes | None]:
    """The job as it is where the file of its model lies in the current directory; and that file."""
    path, _, class_name = job.model.rpartition(":")
    if not path.endswith(".py") or not Path(path).is_file():
        return job, None
    here = dataclasses.replace(job, model=f"{Path(path).name}:{class_name}")
    return here, Path(path).read_bytes()


def train(
    job: Job, model: bytes | None, files: Files, paths: list[str], queue: Any, attempt: int
) -> Outcome:
    """The task: do a job in a directory that is gone afterwards.

    Arguments:
        model: the file of the job's model, if it has one.
        files: of the run directory, if it is there already.
        paths: where the driver finds modules, which may be here too; what is installed goes first.
        queue: of letters.
        attempt: what they are to be signed with.
    """
    sys.path += [path for path in paths if path not in sys.path]
    place = tempfile.TemporaryDirectory(prefix="dynasac-", ignore_cleanup_errors=True)
    with place as folder, contextlib.chdir(folder):
        if model is not None:
            Path(job.model.rpartition(":")[0]).write_bytes(model)
        directory = Path(folder) / "run"
        write_files(directory, files)
        courier = Courier(directory, queue, attempt)
        try:
            with courier:
                outcome = _worked(job, directory, courier.row)
        except KeyboardInterrupt:  # asked to stop before there was anything to stop, or after
            outcome = Outcome("stopped")
        courier.send()
        return outcome


def _worked(job: Job, directory: Path, watch: Callable[[Row], None]) -> Outcome:
    try:
        return Outcome("done", work(job, directory, watch))
    except recording.Interrupted:
        return Outcome("stopped")
    except UsageError as error:
        return Outcome("failed", why=str(error), traceback=traceback.format_exc())
    except Exception as error:  # environment and model are the user's code
        from ray.exceptions import RayError

        if isinstance(error, RayError):
            raise
        return Outcome("failed", why=one_line(error), traceback=traceback.format_exc())


class Courier:
    """Sends what changes in a run directory, beside the training that changes it.

    A letter holds the directory as a process that was killed could have left it.
    """

    def __init__(self, directory: Path, queue: Any, attempt: int):
        self._directory, self._queue, self._attempt = directory, queue, attempt
        self._sent = _stamps(directory)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def row(self, row: Row) -> None:
        self._queue.put(Letter(self._attempt, row, {}))

    def send(self) -> None:
        """All that has changed."""
        now = _stamps(self._directory)
        changed = [name for name in now if now[name] != self._sent.get(name)]
        found = read_files(self._directory, changed)
        if _newest(changed) in (None, _newest(found)):
            gone: Files = dict.fromkeys(self._sent.keys() - now.keys())
            self._queue.put(Letter(self._attempt, None, found | gone))
            self._sent = now

    def _look(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
            # without a checkpoint there is nothing to go on from
            if _newest(_stamps(self._directory)) != _newest(self._sent):
                self.send()


def _newest(names: Iterable[str]) -> str | None:
    """Of the checkpoints."""
    return max((name for name in names if name.startswith(CHECKPOINTS)), default=None)


def _late(name: str) -> int:
    """Files are written in this order and read in the opposite one, so that a summary comes with
    the last checkpoint, and a checkpoint with all that training wrote before it."""
    return 2 if name == SUMMARY else name.startswith(CHECKPOINTS)


def _stamps(directory: Path) -> dict[str, tuple[int, int]]:
    """Of each file that is whole: when it was written, and its size."""
    found = {}
    for folder, _, names in os.walk(directory):  # the directory itself before those in it
        for name in names:
            path = Path(folder) / name
            with contextlib.suppress(FileNotFoundError):
                if not name.startswith(".") and not path.is_symlink():
                    status = path.stat()
                    named = path.relative_to(directory).as_posix()
                    found[named] = status.st_mtime_ns, status.st_size
    return found


def read_files(directory: Path, names: Iterable[str] | None = None) -> Files:
    """The files of a run directory, or those of these names that are still there."""
    found: Files = {}
    for name in sorted(_stamps(directory) if names is None else names, key=_late, reverse=True):
        with contextlib.suppress(FileNotFoundError), checkpoint.regular(directory / name) as file:
            found[name] = file.read()
    return found


def check_files(files: Files) -> None:
    """Raises `UsageError` if what came is not what a run directory may hold."""
    for name in files:
        if not PLAIN.fullmatch(name):
            raise UsageError(f"a worker sent a file by the name {name!r}: it was refused")
    size = sum(len(content or b"") for content in files.values())
    if len(files) > MOST_FILES or size > MOST_BYTES:
        raise UsageError(f"a worker sent {len(files):,} files of {size:,} bytes: they were refused")


def write_files(directory: Path, files: Files) -> None:
    """Write each as a whole, and the last checkpoint before those that it replaces are gone.

    Raises:
        UsageError: they cannot be written.
    """
    try:
        for name in sorted(files, key=_late):
            content = files[name]
            if content is not None:
                checkpoint.write_bytes(directory / name, content)
        for name, content in files.items():
            if content is None:
                (directory / name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot write to {directory}: {error.strerror}: make room and go on with the sweep"
        ) from None
