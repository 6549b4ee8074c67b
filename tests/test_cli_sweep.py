"""`dynasac sweep` as it is used: files and flags, kills of all kinds, going on."""

import csv
import importlib.util
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from conftest import beside_tests

from dynasac import UsageError, cli, runs, sweep
from dynasac.cli import parse
from dynasac.cli.train import Train

RIG = """
import os, pathlib
import gymnasium as gym
import probes


class Rig(probes.Rail):
    def reset(self, *, seed=None, options=None):
        file, me = pathlib.Path("pid"), str(os.getpid())
        if not file.exists() or file.read_text() != me:
            file.write_text(me)
        return super().reset(seed=seed)


gym.register("Rig-v0", entry_point=Rig, max_episode_steps=10)
"""
TINY = [
    "--set=sac.hidden=[16]",
    "--set=sac.batch-size=8",
    "--set=replay-capacity=500",
    "--evaluation-episodes=2",
    "--model=none",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rig.py").write_text(RIG)


def begun(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dynasac.cli", "sweep", *arguments],
        env=beside_tests(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 90
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_whoever_is_killed_finished_runs_stay_and_others_are_gone_on_with(tmp_path):
    out, asked = tmp_path / "out", ["rig:Rig-v0", *TINY, "--seeds=2", "--jobs=1", "--output=out"]
    asked += ["--set=real-episodes=50"]
    last = out / "trial-0000" / "seed-101"

    def worker() -> int:
        return int((tmp_path / "pid").read_text() or 0)

    driver = begun(*asked)
    wait_until(lambda: len(runs.read_metrics(last)) > 2)
    first = worker()
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: worker() not in (0, first))
    rows = len(runs.read_metrics(last))
    wait_until(lambda: len(runs.read_metrics(last)) > rows + 1)
    driver.send_signal(signal.SIGKILL)
    said, _ = driver.communicate(timeout=60)
    assert "1 setting × 2 seeds: 2 trainings in out/" in said
    assert "seed-101 lost: killed by SIGKILL (perhaps there was too little memory)" in said
    wait_until(lambda: gone(worker()))
    assert not (last / "summary.json").exists()
    finished = (out / "trial-0000" / "seed-100" / "summary.json").stat().st_mtime_ns

    driver = begun(*asked)
    said, error = driver.communicate(timeout=120)
    assert (driver.returncode, error) == (0, "")
    assert "[2 of 2] trial-0000/seed-101: mean return" in said
    assert "2 done, 1 resumed" in said
    assert (out / "trial-0000" / "seed-100" / "summary.json").stat().st_mtime_ns == finished
    done, resumed = csv.DictReader(io.StringIO((out / "results.csv").read_text()))
    assert (done["attempts"], done["happened"]) == ("1", "")
    assert resumed["attempts"] == "3"
    lost, *ended = resumed["happened"].split("; ")
    assert lost.startswith("lost: killed by SIGKILL")
    assert ended == ["the sweep ended"]
    assert not list(out.rglob("*.partial"))


def test_a_search_from_a_file(tmp_path, capsys):
    if importlib.util.find_spec("optuna") is None:
        pytest.skip("a search needs Optuna")
    (tmp_path / "rails.toml").write_text(
        """
        env = "probes:Rail-v0"
        seeds = 2
        model = "none"
        evaluation-episodes = 2
        [settings]
        sac.hidden = [16]
        sac.batch-size = 8
        replay-capacity = 500
        real-episodes = 1
        [search]
        trials = 2
        sac.learning-rate = {low = 1e-4, high = 1e-2, log = true}
        """
    )
    assert cli.run(["sweep", "rails.toml"]) == 0
    said = capsys.readouterr().out
    assert "2 settings × 2 seeds: 4 trainings in runs/sweep-rails/" in said
    assert "the best of 2 was chosen on these seeds, so its value is optimistic" in said
    content = json.loads((tmp_path / "runs" / "sweep-rails" / "sweep.json").read_text())
    best = max(content["trials"], key=lambda trial: trial["value"])
    (line,) = (line for line in said.splitlines() if line.startswith("  dynasac train"))
    command = parse.parse(shlex.split(line)[1:])
    assert isinstance(command, Train)
    assert (command.env, command.model, command.seed) == ("probes:Rail-v0", "none", 102)
    assert command.settings.sac.learning_rate == best["settings"]["sac.learning_rate"]
    assert command.settings.sac.hidden == (16,)

    assert cli.run(["sweep", "rails.toml"]) == 0
    assert "trial-0000/seed-100: mean return" not in capsys.readouterr().out
    pytest.importorskip("jinja2")
    assert cli.run(["report", "runs/sweep-rails"]) == 0
    assert "trial-0001/seed-101" in (tmp_path / "runs/sweep-rails/report.html").read_text()


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep, "sweep", stopped)
    assert cli.run(["sweep", "Pendulum-v1"]) == 130
    assert capsys.readouterr().err.endswith("kept\ngo on with the same command\n")


def test_what_fails_is_told_and_the_exit_code_says_it(capsys):
    asked = ["sweep", "probes:BrokenReward-v0", *TINY, "--seeds=1", "--output=out"]
    assert cli.run([*asked, "--set=real-episodes=1"]) == 1
    said = capsys.readouterr().out
    assert "1 training failed:" in said
    assert "reward" in said.partition("1 training failed:")[2]
    assert "asked for again, they are tried again" in said


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ([], "name a TOML file, or at least one environment"),
        (["none.toml"], r"cannot read none\.toml"),
        (["Pendulum-v9"], "Pendulum-v1"),
        (["Pendulum-v1", "--jobs=0"], "--jobs 0: at least 1"),
        (["Pendulum-v1", "--jobs=2", "--ray-address=auto"], "the cluster decides"),
        (["Pendulum-v1", "--set=sac.learning-rat=1"], "did you mean sac.learning-rate"),
        (["Pendulum-v1", "--trials=3"], "nothing is searched"),
        (["Pendulum-v1", "--model=nowhere.py:Model"], "nowhere.py"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(tmp_path, capsys, asked, said):
    with pytest.raises(UsageError, match=said):
        cli.run(["sweep", *asked])
    assert not (tmp_path / "runs").exists()
    assert capsys.readouterr().out == ""


def test_without_ray_there_is_a_line(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs Ray: pip install 'dynasac\[scale\]'"):
        cli.run(["sweep", "Pendulum-v1", "--ray-address=auto"])


def test_without_optuna_there_is_a_line_and_nothing_else(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *_: None if name == "optuna" else found(name)
    )
    asked = ["Pendulum-v1", "--search=sac.learning-rate=1e-4:1e-2", "--trials=2"]
    with pytest.raises(UsageError, match="a search needs Optuna"):
        cli.run(["sweep", *asked])
    assert capsys.readouterr().out == ""
