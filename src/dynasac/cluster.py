"""Ray, for sweeps and for rigs: one of our own on this machine, or a cluster that is there."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from . import processes, runs
from .errors import UsageError, one_line

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
"""that a cluster may take to be reached, and a machine of it to say what is installed there"""
STORE_BYTES = 200_000_000
"""of shared memory that a Ray of our own takes; what is larger it keeps on disk"""


@contextlib.contextmanager
def connected(address: str) -> Iterator[ModuleType]:
    """Ray, connected. Its workers compute with one thread each.

    Arguments:
        address: `local` starts a Ray on this machine that nobody else can reach; HOST:PORT is
            that of a cluster that this machine is part of.

    Raises:
        UsageError: Ray is not installed, the cluster cannot be reached or refuses us, or its
            machines have other versions.
    """
    local = address == "local"
    # Ray reads some of these variables once, when it is imported
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was")
    if not local:
        _check_reachable(address)
        os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", str(int(CONNECT_SECONDS)))
    else:
        # all ports on loopback, as it has them on other systems than Linux
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # it would write one to the home directory
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # workers that it starts beforehand lack our environment, so none would ever be used
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--ray-address needs Ray: install it with pip install 'dynasac[scale]'"
        ) from None
    if ray.is_initialized():
        raise UsageError("this process is connected to Ray already: call ray.shutdown() first")
    with contextlib.ExitStack() as held:
        variables = dict(held.enter_context(processes.environment()))
        del variables["PYTHONPATH"]  # other machines have other places
        folder = held.enter_context(
            tempfile.TemporaryDirectory(prefix="dynasac-", ignore_cleanup_errors=True)
        )
        options: dict[str, Any] = {}
        if local:
            variables["TMPDIR"] = folder  # what workers leave behind that were killed
            options = {
                "num_cpus": processes.processors(),
                "include_dashboard": False,
                "object_store_memory": STORE_BYTES,
                "_temp_dir": folder,
            }
        # without it workers look for modules in our current directory before all other places
        empty = Path(folder) / "empty"
        empty.mkdir()
        held.callback(ray.shutdown)
        told, before = logging.getLogger("ray").level, signal.getsignal(signal.SIGTERM)
        try:
            with warnings.catch_warnings():
                # what Ray forks becomes another program at once, without a use of JAX
                warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
                ray.init(
                    address,
                    runtime_env={"env_vars": variables, "working_dir": str(empty)},
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **options,
                )
        except Exception as error:
            raise UsageError(f"cannot work on --ray-address {address}: {said(error)}") from None
        finally:
            logging.getLogger("ray").setLevel(told)
            if signal.getsignal(signal.SIGTERM) is not before:
                signal.signal(signal.SIGTERM, before)  # what it does is the driver's business
        check_versions(ray)
        yield ray


def on(node: str) -> Any:
    """Where a task or actor is to run: on the machine with that number of Ray's, or not at all."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node, soft=False)


def check_versions(ray: ModuleType) -> None:
    """Raises `UsageError` if a machine has others than this one."""
    ask, ours = ray.remote(num_cpus=0, max_retries=0)(installed), installed()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    answers = [ask.options(scheduling_strategy=on(node["NodeID"])).remote() for node in nodes]
    for node, answer in zip(nodes, answers, strict=True):
        host = node["NodeManagerHostname"]
        try:
            theirs = ray.get(answer, timeout=ANSWER_SECONDS)
        except ray.exceptions.RayError as error:
            raise UsageError(
                f"dynasac does not run on {host}, which is part of the cluster: {said(error)}"
            ) from None
        for name in sorted(ours):
            if theirs.get(name) != ours[name]:
                raise UsageError(
                    f"{host}, which is part of the cluster, has {name} {theirs.get(name)}, not "
                    f"{ours[name]} as here: install the same versions on all machines"
                )


def installed() -> dict[str, str]:
    """The versions that decide what comes out; Ray compares Python's and its own."""
    return {name: version for name, version in runs.versions().items() if name != "python"}


def _check_reachable(address: str) -> None:
    """Ray itself waits for two minutes and then ends the process."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise UsageError(
            f"--ray-address {address}: write local, or HOST:PORT as ray start printed it on the "
            "head of the cluster that this machine is part of"
        )
    if host in ("localhost", "127.0.0.1", "[::1]"):  # Ray takes it for the machine's own address
        raise UsageError(
            f"--ray-address {address}: write HOST:PORT as ray start printed it, or local"
        )
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster answers at {address} ({error}): start one with ray start --head, or "
            "train on this machine alone with --ray-address local"
        ) from None


def said(error: Exception) -> str:
    """An error of Ray in one line, and what to do where it does not say that itself."""
    cause = getattr(error, "cause", None)  # what a task raised, without the traceback
    said = one_line(cause if isinstance(cause, Exception) else error)
    if isinstance(error, ConnectionError) and "connect to Ray cluster" in said:
        said += (
            "; if it wants a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH, or "
            "RAY_AUTH_TOKEN, as on its machines"
        )
    if "Version mismatch" in said:
        said = " ".join(str(error).split()) + " Install the same versions"
    return said
