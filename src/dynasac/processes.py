"""Processes side by side, none of which can take another, or this one, down with it."""

import contextlib
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol, runtime_checkable

import jax

THREADS = {
    "NPROC": "1",  # what XLA takes for the number of processors
    "JAX_NUM_CPU_DEVICES": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}
"""one thread for each process that computes, so that they do not fight over processors"""


def processors() -> int:
    """How many of them this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor() -> str:
    """Its name, as far as the system tells."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return name


def machine() -> str:
    """The processor, how many of them, and the system."""
    return f"{processor()}, {processors()} cores, {platform.system()}"


def module_paths() -> list[str]:
    """Where this process finds modules; in the current directory, if at all, only in the end."""
    here = os.getcwd()
    elsewhere = [path for path in sys.path if path not in ("", here)]
    return elsewhere if len(elsewhere) == len(sys.path) else [*elsewhere, here]


@contextlib.contextmanager
def environment() -> Iterator[dict[str, str]]:
    """Variables for the processes: one thread, the modules we find, the programs we compiled."""
    with contextlib.ExitStack() as stack:
        compiled = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        if compiled is None:
            compiled = stack.enter_context(tempfile.TemporaryDirectory())
        yield {
            **THREADS,
            "PYTHONPATH": os.pathsep.join(module_paths()),
            "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"),
            "TF_CPP_MIN_LOG_LEVEL": os.environ.get("TF_CPP_MIN_LOG_LEVEL", "2"),
            "JAX_COMPILATION_CACHE_DIR": str(compiled),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        }


class Child(NamedTuple):
    """One process to run."""

    name: str
    command: tuple[str, ...]
    log: Path
    """where all that it prints goes"""
    after: str | None = None
    """the name of a child that must have ended before, well or not"""


@runtime_checkable
class Watch(Protocol):
    """Who looks on."""

    def started(self, name: str) -> None: ...

    def ended(self, name: str, error: str | None) -> None: ...

    def waiting(self) -> None:
        """Called several times a second."""
        ...


class Unwatched:
    """Looks the other way."""

    def started(self, name: str) -> None:
        pass

    def ended(self, name: str, error: str | None) -> None:
        pass

    def waiting(self) -> None:
        pass


def run(
    children: Sequence[Child],
    side_by_side: int,
    environment: dict[str, str],
    watch: Watch,
) -> dict[str, str | None]:
    """Run all of them, so many at a time; returns for each one its error, or None if it ended well.

    When this is left by an exception, Ctrl-C for one, those that still run are killed. Each finds
    its standard input closed when this process ends, however it ends (see `end_with_parent`).
    """
    names = {child.name for child in children}
    waiting = list(children)
    running: dict[str, tuple[Child, subprocess.Popen]] = {}
    errors: dict[str, str | None] = {}

    def ready(child: Child) -> bool:
        return child.after is None or child.after not in names or child.after in errors

    def over(name: str, error: str | None) -> None:
        errors[name] = error
        watch.ended(name, error)

    try:
        while waiting or running:
            for child in [child for child in waiting if ready(child)]:
                if len(running) >= side_by_side:
                    break
                waiting.remove(child)
                watch.started(child.name)
                try:
                    running[child.name] = (child, _start(child, environment))
                except OSError as error:
                    over(child.name, f"could not be started: {error.strerror}")
            for name, (child, process) in list(running.items()):
                code = process.poll()
                if code is not None:
                    del running[name]
                    _let_go(process)
                    over(name, None if code == 0 else why(code, child.log))
            watch.waiting()
            if running:
                time.sleep(0.1)
    finally:
        for _, process in running.values():
            process.kill()
            process.wait()
            _let_go(process)
    return errors


def _start(child: Child, environment: dict[str, str]) -> subprocess.Popen:
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with child.log.open("wb") as log:
        return subprocess.Popen(
            child.command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # Ctrl-C is for this process to act on
        )


def _let_go(process: subprocess.Popen) -> None:
    assert process.stdin is not None
    process.stdin.close()


def why(code: int, log: Path) -> str:
    """Why a process ended badly, in one line: the signal, or the last thing that it said."""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        memory = " (perhaps there was too little memory)" if name == "SIGKILL" else ""
        return f"killed by {name}{memory}"
    with log.open("rb") as file:
        said = _end(file).decode(errors="replace").strip().splitlines()
    last = said[-1].strip() if said else f"ended with exit code {code} and said nothing"
    return "".join(letter if letter.isprintable() else " " for letter in last)[:300]


def _end(file: IO[bytes]) -> bytes:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 10_000))
    return file.read()


def end_with_parent() -> None:
    """In a child: end at once when the parent has gone, however it went."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
