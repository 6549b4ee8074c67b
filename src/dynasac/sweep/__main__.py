"""A worker of this machine: does one training after another, as it is told on standard input.

Lines of JSON go in and out. What the code of others prints goes to the log of the training, and
what it reads is empty.
"""

import json
import os
import queue
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any

from ..errors import UsageError, one_line
from ..recording import Interrupted
from .work import Job, work


class Orders:
    """What the sweep says; when it has gone, however it went, this process ends at once."""

    def __init__(self, lines: IO[str]):
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self._lines = lines
        self._stop: set[str] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._lines:
            order = json.loads(line)
            if "stop" in order:
                self._stop.add(order["stop"])
            else:
                self._stop.discard(order["job"]["name"])
                self.jobs.put(order)
        os._exit(1)

    def stopped(self, name: str) -> bool:
        return name in self._stop


def _apart(descriptor: int, mode: str) -> IO[str]:
    """A standard stream as one of our own, which neither user code nor its processes have."""
    own = os.fdopen(os.dup(descriptor), mode, buffering=1, encoding="utf-8")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, descriptor)
    os.close(null)
    return own


def _log_to(path: str) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    log = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)


def _train(job: Job, directory: Path, orders: Orders, say: Any) -> None:
    """Do it, and say what came of it."""
    try:
        summary = work(
            job,
            directory,
            watch=lambda row: say(job.name, "row", row=row),
            stopped=lambda: orders.stopped(job.name),
        )
    except Interrupted:
        if not orders.stopped(job.name):
            sys.exit("ended by SIGTERM")
        say(job.name, "stopped")
    except UsageError as error:
        print(error, file=sys.stderr)
        say(job.name, "failed", why=str(error))
    except Exception as error:  # the environment and the model are somebody else's code
        traceback.print_exc()
        say(job.name, "failed", why=one_line(error))
    else:
        say(job.name, "done", row=summary)


def main() -> None:
    told, orders = _apart(1, "w"), Orders(_apart(0, "r"))

    def say(name: str, kind: str, **more: Any) -> None:
        print(json.dumps({"name": name, "kind": kind, **more}, default=float), file=told)

    while True:
        order = orders.jobs.get()
        _log_to(order["log"])
        _train(Job(**order["job"]), Path(order["directory"]), orders, say)


if __name__ == "__main__":
    main()
