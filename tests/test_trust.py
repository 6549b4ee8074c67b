"""What SECURITY.md promises of every command: no network, and no pickles."""

import os
import subprocess
import sys

import pytest
from conftest import SMALL, untrained_run
from test_cli import TINY

from dynasac import DynaSAC

WATCH = """
import socket, sys

NETWORK = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
           "socket.bind", "urllib.Request", "http.client.connect")
seen = []

def hook(event, arguments):
    if event == "pickle.find_class" or event == "socket.__new__":
        seen.append((event, *map(str, arguments[1:])))
    if event in NETWORK:
        if getattr(arguments[0], "family", None) == socket.AF_UNIX:
            return
        seen.append((event, str(arguments)))
        raise RuntimeError(f"network: {event} {arguments}")

sys.addaudithook(hook)
"""
TOLD = """
# the hook is there, whatever the code above made of its errors
told = list(seen)
try:
    socket.getaddrinfo("localhost", 1)
    raise SystemExit("nobody watches")
except RuntimeError:
    pass
raise SystemExit(f"seen: {told}" if told else 0)
"""


def watched(code: str, folder) -> None:
    """Run Python code in a process of its own, in which nothing that is promised may happen."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH + code + TOLD],
        cwd=folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "deed", ["__import__('pickle').loads(b'cos\\ngetcwd\\n.')", "socket.socket()"]
)
def test_what_is_watched_for_is_seen(deed, tmp_path):
    with pytest.raises(AssertionError, match=r"seen: \[\('(pickle|socket)"):
        watched(deed, tmp_path)


def test_importing_opens_no_socket_and_unpickles_nothing(tmp_path):
    watched("import dynasac, dynasac.cli.parse, gc; assert gc.isenabled()", tmp_path)


def test_loading_a_run_unpickles_nothing(tmp_path):
    untrained_run(tmp_path / "run", DynaSAC("Pendulum-v1", config=SMALL))
    watched(
        "from pathlib import Path; from dynasac import recording; "
        "agent, _ = recording.load_run(Path('run')); agent.predict([0.0, 1.0, 0.0])",
        tmp_path,
    )


def test_commands_need_no_network(tmp_path):
    train = ["train", "Pendulum-v1", "--output=run", "--real-episodes=1", *TINY]
    watched(
        f"""
from dynasac.cli import run
def quiet(arguments):
    assert run(arguments) == 0
    # a socket that connects to nothing is no network
    seen[:] = [event for event in seen if event[0] != "socket.__new__"]
quiet({train!r})
quiet(["evaluate", "run", "--episodes=2"])
quiet(["report", "run"])
quiet(["export", "run"])
""",
        tmp_path,
    )
