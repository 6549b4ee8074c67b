"""`dynasac compare` as it is used: processes, a contender that dies, going on, Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import beside_tests

from dynasac import UsageError, cli
from dynasac.cli.compare import Compare, _directory, _print_result
from dynasac.comparison import NAMES

RIG = """
import os, pathlib, signal, sys, time
import gymnasium as gym
import probes


class Rig(probes.Rail):
    def step(self, action):
        if "torch" in sys.modules and not pathlib.Path("mended").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        if pathlib.Path("slow").exists():
            pathlib.Path("pid").write_text(str(os.getpid()))
            time.sleep(60)
        return super().step(action)


gym.register("Rig-v0", entry_point=Rig, max_episode_steps=10)
"""
MODEL = "import probes\n\n\nclass Model(probes.Slide):\n    pass\n"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """A directory of the test's own, with a rig that nobody has installed."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rig.py").write_text(RIG)
    (tmp_path / "model.py").write_text(MODEL)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "dynasac.cli", "compare", "rig:Rig-v0", *arguments]


def compare(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run(
        command(*arguments), env=beside_tests(), capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout, done.stderr


def test_one_contender_dies_and_the_comparison_is_completed_later(tmp_path):
    pytest.importorskip("stable_baselines3")
    size = [
        "--threshold=-1000",
        "--real-steps=4",
        "--evaluation-episodes=2",
        "--seeds=1",
        "--output=out",
    ]
    asked = ["--agents", "dynasac", "sb3-sac", "--preset=seed", "--model=model.py:Model", *size]
    code, said, error = compare(*asked)
    assert (code, error) == (1, "")
    assert "1 of 2 trainings failed" in said
    assert "sb3-sac seed 0: killed by SIGKILL" in said
    assert "probability" not in said
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)
    assert max(map(len, said.partition("Rig-v0")[2].splitlines())) <= 80
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    (ours,), (theirs,) = (content["agents"][name]["runs"] for name in ("dynasac", "sb3-sac"))
    assert ours["error"] is None
    assert ours["gradient_updates"] > 0
    assert ours["steps"][0] == 0
    assert ours["steps"][-1] >= 4
    assert ours["steps_to_threshold"] == 0
    assert theirs["final"] is None
    assert (tmp_path / "out" / "curves.png").exists()
    summary = tmp_path / "out" / "dynasac" / "seed-0" / "summary.json"
    assert json.loads(summary.read_text())["model"]["name"] == "Model"

    before = summary.stat().st_mtime_ns
    (tmp_path / "mended").touch()
    code, said, error = compare(*asked)
    assert (code, error) == (0, "")
    assert "[2 of 2] sb3-sac seed 0: mean return" in said
    assert "probability that dynasac is better than sb3-sac: " in said
    assert "dynasac report out" in said
    assert "1 of 2 trainings failed" not in said
    assert summary.stat().st_mtime_ns == before
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert content["agents"]["sb3-sac"]["runs"][0]["steps"] == [0, 4]


HEEDS_CTRL_C = (
    "import os, signal, sys; signal.signal(2, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
)
"""what was started in the background of a shell ignores Ctrl-C, and so does all that it starts"""


def test_ctrl_c_leaves_nothing_behind_that_runs(tmp_path):
    (tmp_path / "slow").touch()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HEEDS_CTRL_C,
            *command("--agents", "sac", "--seeds=1", "--evaluation-episodes=1", "--output=out"),
        ],
        env=beside_tests(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 90
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    trainer = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on with the same command" in error
    assert "Traceback" not in error
    with pytest.raises(ProcessLookupError):
        os.kill(trainer, 0)
    assert not (tmp_path / "out" / "comparison.json").exists()


def test_a_missing_package_is_said_before_anything_is_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    with pytest.raises(UsageError, match=r"sb3-ppo need .*pip install 'dynasac\[sb3\]'"):
        cli.run(["compare", "Pendulum-v1"])
    with pytest.raises(UsageError, match=r"sb3-sac needs stable-baselines3"):
        cli.run(["compare", "Pendulum-v1", "--agents", "dynasac", "sb3-sac"])
    with pytest.raises(UsageError, match="--jobs 0: at least 1"):
        cli.run(["compare", "Pendulum-v1", "--jobs=0"])
    with pytest.raises(UsageError, match="--seeds 0"):
        cli.run(["compare", "Pendulum-v1", "--agents", "sac", "--seeds=0"])
    assert not (tmp_path / "runs").exists()


def test_the_agents_of_the_command_are_those_that_there_are():
    tuples, _ = get_args(get_type_hints(Compare)["agents"])
    assert get_args(get_args(tuples)[0]) == NAMES


def test_the_directory_is_called_after_the_beside_tests():
    assert _directory("crane_env:Crane-v0", "default") == Path("runs/compare-Crane-v0")
    assert _directory("rigs:dock/Crane-v0", "seed") == Path("runs/compare-dock-Crane-v0-seed")


def result(agents: dict[str, tuple[int, int]], improvement: tuple = ()) -> dict:
    """What comparison.json holds of agents with so many seeds and so many real steps each."""
    interval = {"value": -140.0, "low": -150.0, "high": -130.0}
    return {
        "env_id": "Pendulum-v1",
        "threshold": None,
        "evaluation": {"episodes": 100},
        "agents": {
            name: {
                "runs": [{"seed": k, "steps": [0, steps], "error": None} for k in range(seeds)],
                "iqm": interval if seeds >= 5 else {**interval, "low": None, "high": None},
                "steps": {"median": float(steps)},
                "gradient_updates": {"median": 900.0},
                "seconds": {"median": 9.0},
            }
            for name, (seeds, steps) in agents.items()
        },
        "improvement": [
            dict(zip(("better", "better_steps", "than", "than_steps"), each, strict=True))
            | {"probability": 0.72, "low": None, "high": None}
            for each in improvement
        ],
    }


def test_equal_real_steps_are_said_once(capsys):
    content = result({"dynasac": (5, 4000), "sac": (5, 4000)}, (("dynasac", 4000, "sac", 4000),))
    assert _print_result(content) == 0
    said = capsys.readouterr().out
    assert "5 seeds: mean return of 100 fixed episodes after 4,000 real steps" in said
    assert "probability that dynasac is better than sac: 0.72" in said
    assert "-140.0 [-150.0, -130.0]" in said
    assert "too few" not in said


def test_unequal_real_steps_are_said_wherever_they_count(capsys):
    pairs = ("dynasac", 4000, "sac", 8000), ("dynasac", 4000, "sac", 4000)
    content = result({"dynasac": (3, 4000), "sac": (4, 8000)}, pairs)
    content["agents"]["sac-matched"] = content["agents"]["sac"] | {
        "updates_to_dynasac": {"median": 1.05}
    }
    _print_result(content)
    said = " ".join(capsys.readouterr().out.split())
    assert "up to 4 seeds: mean return of 100 fixed episodes agent IQM steps" in said
    assert "dynasac after 4,000 real steps is better than sac after 8,000: 0.72" in said
    assert "dynasac is better than sac, both after 4,000 real steps: 0.72" in said
    assert said.count("fewer than 5 seeds: too few for an interval") == 1
    assert "sac-matched made 1.05 times as many updates as dynasac" in said
