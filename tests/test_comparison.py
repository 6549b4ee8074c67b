"""Comparisons: statistics worked out by hand, processes that fail, and what is written down."""

import dataclasses
import io
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import probes
import pytest
from conftest import SMALL
from rich.console import Console

from dynasac import DynaSAC, UsageError, processes, runs
from dynasac.comparison import (
    Design,
    agents,
    claim,
    compare,
    display,
    picture,
    planned,
    results,
)
from dynasac.comparison import statistics as stats
from dynasac.comparison.statistics import Learning
from dynasac.processes import Child, Unwatched
from dynasac.runs import held

assert probes.Rail  # registers the environments

RAIL = Design("Rail-v0", ("sac", "sac-matched", "dynasac"), model="ensemble", seeds=2)


# --- statistics


def test_the_interquartile_mean_leaves_out_a_quarter_on_either_side():
    assert stats.iqm(np.array([100.0, 1, 3, 4, 5, 6, 7, -50])) == 4.5
    assert stats.iqm(np.array([1.0, 2, 6])) == 3


def test_intervals_hold_the_estimate_and_shrink_with_more_seeds():
    few, many = [0.0, 0.75, 1.5, 2.25, 3.0], list(np.linspace(0, 3, 64))
    narrow, wide = stats.estimate(many, stats.mean), stats.estimate(few, stats.mean)
    assert wide.low < wide.value == 1.5 < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 2
    assert stats.estimate(few, stats.mean) == wide
    # of the mean of n values of variance v the 95% interval is about ±1.96 √(v/n)
    half = 1.96 * np.std(many) / np.sqrt(64)
    assert (narrow.high - narrow.low) / 2 == pytest.approx(half, rel=0.1)


def test_few_seeds_have_no_interval_and_equal_ones_have_one_without_width():
    assert stats.estimate([4.0, 2.0, 3.0, 3.0], stats.mean) == (3.0, None, None)
    assert stats.estimate(5 * [4.0], stats.iqm) == (4.0, 4.0, 4.0)
    assert stats.improvement([1.0, 1.0, 1.0, 1.0], 5 * [0.0]) == (1.0, None, None)
    assert stats.curve(4 * [Learning([0], [1.0])]).low == [None]


def test_probability_of_improvement_counts_pairs_and_halves_of_ties():
    assert stats.improvement([3.0, 2.0], [1.0, 2.0]).value == 3.5 / 4
    assert stats.improvement([1.0, 2.0], [3.0, 2.0]).value == 0.5 / 4
    ours, theirs = [5.0, 4.0, 4.0, 3.0, 1.0], [0.0, 1.0, 2.0, 3.0, 4.0]
    value, low, high = stats.improvement(ours, theirs)
    assert low < value == 19 / 25 < high < 1
    mirrored = stats.improvement(theirs, ours)
    assert mirrored == pytest.approx((1 - value, 1 - high, 1 - low))


def test_always_better_in_few_seeds_is_not_certain():
    worse, better = list(np.arange(0.0, 5)), list(np.arange(5.0, 10))
    value, low, high = stats.improvement(better, worse)
    assert (value, high) == (1, 1)
    assert low == pytest.approx(0.643, abs=0.001)  # worked out by hand from Newcombe's formula
    assert stats.improvement(worse, better) == (0, 0, pytest.approx(1 - low))
    assert low < stats.improvement(4 * better, 4 * worse).low < 1


@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.5), (1.5, 0.856), (3.0, 0.983)])
def test_nineteen_of_twenty_intervals_hold_the_probability(shift, truth):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(shift, 1, (600, 5)).tolist(), rng.normal(0, 1, (600, 5)).tolist()
    found = [stats.improvement(x, y) for x, y in zip(ours, theirs, strict=True)]
    assert 0.92 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98


def test_the_last_value_is_carried_forward():
    run = Learning([0, 10, 30], [1.0, 2.0, 3.0])
    assert list(stats.carried_forward(run, [0, 9, 10, 29, 30, 99])) == [1, 1, 2, 2, 3, 3]
    alone = stats.curve([run])
    assert stats.curve([run, Learning([0, 20], [3.0, 4.0])]).steps == [0, 10, 20, 30]
    assert stats.curve([run, Learning([0, 20], [3.0, 4.0])]).iqm == [2.0, 2.5, 3.0, 3.5]
    found = stats.curve(5 * [run])
    assert (found.low, found.high) == (found.iqm, found.iqm)
    assert (alone.iqm, alone.low) == ([1.0, 2.0, 3.0], [None] * 3)


def test_many_steps_become_an_even_grid():
    runs_ = [Learning(range(0, 1001, 2), range(501)), Learning(range(1, 1000, 2), range(500))]
    steps = stats.grid(runs_)
    assert steps == list(range(0, 1001, 10))


def test_steps_to_a_threshold():
    run = Learning([0, 10, 20], [-9.0, -3.0, -5.0])
    assert stats.steps_to(-3.0, run) == 10
    assert stats.steps_to(-2.0, run) is None
    assert stats.median([3, None, 1]) == 3
    assert stats.median([3, None, None]) is None
    assert stats.median([]) is None


# --- processes


class Notes(Unwatched):
    def __init__(self):
        self.said = []
        self.at_once = self.most = 0

    def started(self, name):
        self.said.append(("started", name))
        self.at_once += 1
        self.most = max(self.most, self.at_once)

    def ended(self, name, error):
        self.said.append(("ended", name))
        self.at_once -= 1


def child(tmp_path, name: str, program: str, after: str | None = None) -> Child:
    return Child(name, (sys.executable, "-c", program), tmp_path / f"{name}.log", after)


def test_processes_that_end_badly_do_not_stop_the_others(tmp_path):
    kill = "import os, signal; os.kill(os.getpid(), signal.{})"
    children = [
        child(tmp_path, "raises", "raise RuntimeError('the motor is hot')"),
        child(tmp_path, "killed", kill.format("SIGKILL")),
        child(tmp_path, "crashes", kill.format("SIGSEGV")),
        child(tmp_path, "silent", "import os; os._exit(3)"),
        child(tmp_path, "hostile", r"import sys; sys.exit('\033[2Jgone' + 400 * 'x')"),
        Child("missing", (str(tmp_path / "nothing"),), tmp_path / "missing.log"),
        child(tmp_path, "well", "import os; print(os.environ['NPROC'])", after="raises"),
    ]
    notes = Notes()
    errors = processes.run(children, 2, processes.THREADS, notes)
    assert errors["raises"] == "RuntimeError: the motor is hot"
    assert errors["killed"].startswith("killed by SIGKILL")
    assert errors["crashes"] == "killed by SIGSEGV"
    assert errors["silent"] == "ended with exit code 3 and said nothing"
    assert errors["hostile"].isprintable()
    assert len(errors["hostile"]) == 300
    assert errors["missing"] == "could not be started: No such file or directory"
    assert errors["well"] is None
    assert (tmp_path / "well.log").read_text() == "1\n"
    assert notes.most == 2
    assert notes.said.index(("ended", "raises")) < notes.said.index(("started", "well"))


def test_ctrl_c_ends_those_that_run(tmp_path):
    class Impatient(Notes):
        def waiting(self):
            if (tmp_path / "started").exists():
                raise KeyboardInterrupt

    program = (
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'started')!r}).touch(); "
        f"time.sleep(2); pathlib.Path({str(tmp_path / 'survived')!r}).touch()"
    )
    with pytest.raises(KeyboardInterrupt):
        processes.run([child(tmp_path, "sleeper", program)], 1, {}, Impatient())
    assert not (tmp_path / "survived").exists()


def test_a_training_ends_when_nobody_waits_for_it():
    program = (
        "import time; from dynasac.processes import end_with_parent; "
        "end_with_parent(); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        process.stdin.close()
        assert process.wait(timeout=30) == 1


# --- the design


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"agents": ("dynasac", "td3")}, "--agents td3: there are dynasac"),
        ({"agents": ()}, "there are dynasac"),
        ({"agents": ("sac", "sac")}, "name each once"),
        ({"agents": ("sac-matched",)}, "as many updates as dynasac"),
        ({"model": "none"}, "--model none is the agent sac"),
        ({"model": "auto"}, "no physics is known for Rail-v0"),
        ({"seeds": 0}, "--seeds 0: at least 1"),
        ({"real_steps": 0}, "--real-steps 0: at least 1"),
        ({"evaluation_episodes": 0}, "--evaluation-episodes 0"),
        ({"env": "Rial-v0"}, "did you mean Rail-v0"),
        ({"env": "Buttons-v0"}, "continuous actions"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        agents.check(dataclasses.replace(RAIL, **changes))


def test_budgets_are_equal_but_in_the_seed_documents_own_comparison():
    def budgets(design):
        return {name: agents.agent(name, design, 200).real_steps for name in design.names}

    assert budgets(Design("Pendulum-v1")) == dict.fromkeys(
        ("dynasac", "sac", "sb3-sac", "sb3-ppo"), 5000
    )
    seed = Design("Pendulum-v1", preset="seed")
    assert budgets(seed) == {"dynasac": 4000, "sac": 8000, "sb3-ppo": 100_000}
    settings = agents.agent("dynasac", seed, 200).settings
    assert (settings["real_episodes"], settings["planning"]["stored_transitions"]) == (20, 100)
    without = agents.agent("sac", seed, 200).settings
    assert (without["real_episodes"], without["planning"]["stored_transitions"]) == (40, 0)
    matched = dataclasses.replace(seed, agents=("dynasac", "sac-matched"))
    assert budgets(matched) == {"dynasac": 4000, "sac-matched": 4000}
    given = dataclasses.replace(seed, real_steps=600)
    assert set(budgets(given).values()) == {600}


def test_what_counts_as_solved():
    pendulum = agents.Facts("Pendulum-v1", 200, None)
    car = agents.Facts("MountainCarContinuous-v0", 999, 90.0)
    assert results.solved(pendulum, 100) == pytest.approx(-145.9)
    assert results.solved(car, 100) == 90
    assert results.solved(agents.Facts("Rail-v0", 10, None), 100) is None
    # the optimum and the threshold are about the mean of 100 episodes
    assert results.solved(pendulum, 20) is results.solved(car, 99) is None


def test_a_directory_belongs_to_one_comparison(tmp_path):
    def ask(design):
        found = [agents.agent(name, design, 10) for name in design.names]
        with held(tmp_path / "here", "comparison"):
            return [one.name for one in claim(tmp_path / "here", design, found)]

    assert ask(RAIL) == ["sac", "sac-matched", "dynasac"]
    ask(dataclasses.replace(RAIL, seeds=5))
    added = ask(dataclasses.replace(RAIL, agents=("sb3-ppo", "sac")))
    assert added == ["sac", "sac-matched", "dynasac", "sb3-ppo"]
    asked = json.loads((tmp_path / "here" / "asked.json").read_text())
    assert list(asked["agents"]) == added
    with pytest.raises(UsageError, match=r"differs in the real steps of sac: .*another --output"):
        ask(dataclasses.replace(RAIL, agents=("sac",), real_steps=7))
    with pytest.raises(UsageError, match="differs in model"):
        ask(dataclasses.replace(RAIL, agents=("sac",), model="auto"))
    (tmp_path / "here" / "asked.json").write_text('{"agents": {"sac": {"real_steps": 7}}}')
    with pytest.raises(UsageError, match="not written by this version"):
        ask(RAIL)
    (tmp_path / "here" / "asked.json").unlink()
    (tmp_path / "here" / "thesis.txt").touch()
    with pytest.raises(UsageError, match="already holds something"):
        ask(RAIL)
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"thesis.txt"}


def test_one_comparison_at_a_time_in_a_directory(tmp_path):
    """A second one would remove what the first has not finished."""
    design = Design("Rail-v0", ("sac",), seeds=1)
    unfinished = tmp_path / "out" / "sac" / "seed-0" / "metrics.csv"
    program = (
        "import sys; from pathlib import Path; from dynasac.runs import held\n"
        "with held(Path(sys.argv[1]), 'comparison'): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        unfinished.parent.mkdir(parents=True)
        unfinished.touch()
        (tmp_path / "out" / "asked.json").touch()
        with pytest.raises(UsageError, match="out is in use by another comparison: wait for it"):
            compare(design, tmp_path / "out")
        assert unfinished.exists()
        other.kill()
    with held(tmp_path / "out", "comparison"):
        pass


def test_modules_are_looked_for_in_the_current_directory_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jinja2.py").write_text("raise RuntimeError('planted')")
    (tmp_path / "rig.py").write_text("")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    assert processes.module_paths() == sys.path
    for inserted in ("", str(tmp_path)):
        monkeypatch.setattr(sys, "path", [inserted, *sys.path])
        assert processes.module_paths() == [*filter(None, sys.path[1:]), str(tmp_path)]
    design = Design("Rail-v0", ("sac",), seeds=1)
    (only,) = planned(tmp_path, design, [agents.agent("sac", design, 10)])
    python = only.command[: only.command.index("-m")]
    done = subprocess.run(
        [*python, "-c", "import rig, jinja2"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(processes.module_paths())},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr


def test_matched_updates_wait_for_what_they_match(tmp_path):
    contenders = [agents.agent(name, RAIL, 10) for name in RAIL.names]
    children = planned(tmp_path, RAIL, contenders)
    assert [one.name for one in children[:3]] == [
        "sac/seed-0",
        "sac-matched/seed-0",
        "dynasac/seed-0",
    ]
    assert [one.after for one in children[3:]] == [None, "dynasac/seed-1", None]
    job = agents.Job(**json.loads(children[4].command[-1]))
    assert (job.seed, job.matched) == (1, str(tmp_path / "dynasac" / "seed-1"))


# --- trainings and what is made of them


def job(tmp_path: Path, **changes) -> agents.Job:
    given = agents.Job("sac", "Rail-v0", "auto", "default", 1, 25, 2, str(tmp_path / "run"))
    return dataclasses.replace(given, **changes)


def test_a_training_ends_exactly_with_its_real_steps_and_evaluates_now_and_then(tmp_path):
    agents.train(job(tmp_path))
    rows = runs.read_metrics(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    steps = [int(row["real_steps"]) for row in rows]
    assert steps[-1] == summary["real_steps"] == 25
    at = [int(row["real_steps"]) for row in rows if row["eval_mean_return"]]
    assert (at[0], at[-1]) == (0, steps[-1])
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(at[:-1]))
    assert len(at) < len(rows)  # episodes on the rail are over after a few steps
    assert float(rows[-1]["eval_mean_return"]) == summary["evaluation"]["mean_return"]


def test_real_steps_that_run_out_truncate_an_episode():
    idle = dataclasses.replace(SMALL.planning, first_updates=0, updates=0)
    config = dataclasses.replace(SMALL, planning=idle, updates_per_real_step=0)
    agent = DynaSAC(agents.Rationed(gym.make("Clock-v0"), 13), "none", config).learn(13)
    assert agent.state.counts[:2] == (2, 13)
    assert not np.asarray(agent.state.replay.transitions.terminated).any()
    assert agent.spaces.episode_steps == 10
    assert len(agent.evaluate(1).returns) == 1  # in environments without the ration


def test_as_many_updates_as_another_training(tmp_path):
    (tmp_path / "other").mkdir()
    asked = job(tmp_path, agent="sac-matched", real_steps=5, matched=str(tmp_path / "other"))
    with pytest.raises(UsageError, match="did not finish, so there are no updates to match"):
        agents.train(asked)
    (tmp_path / "other" / "summary.json").write_text('{"gradient_updates": 900}')
    assert agents._matched(tmp_path / "other", job(tmp_path, real_steps=700), 100) == 2  # 1.5
    assert agents._matched(tmp_path / "other", job(tmp_path, real_steps=9000), 100) == 1
    agents.train(asked)  # all of its steps are random ones
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["updates_per_real_step"] == 900
    assert config["model"] == "none"


def write_run(directory: Path, steps: list[int], returns: list[float], finished: bool = True):
    directory.mkdir(parents=True)
    rows = [
        {
            "real_episodes": number,
            "real_steps": step,
            "eval_mean_return": value,
            "gradient_updates": 7 * step,
            "evaluate_seconds": 2.0,
            "wall_seconds": 2.0 + step,
        }
        for number, (step, value) in enumerate(zip(steps, returns, strict=True))
    ]
    rows.insert(1, {**rows[0], "eval_mean_return": None})
    runs.write_metrics(directory, rows)
    directory.with_name(f"{directory.name}.log").touch()
    made = {"versions": {"jax": "1", "numpy": "2"}, "machine": "a machine", "date": "2026-01-02"}
    (directory / "config.json").write_text(json.dumps(made))
    if finished:
        (directory / "summary.json").write_text("{}")


@pytest.fixture
def content(tmp_path) -> dict:
    """Two agents, three seeds; one training of the second failed half way."""
    design = Design("Pendulum-v1", ("sac", "sb3-ppo"), seeds=3, real_steps=20)
    for seed, best in enumerate([-150.0, -140.0, -130.0]):
        write_run(tmp_path / f"sac/seed-{seed}", [0, 10, 20], [-900.0, -145.0, best])
    write_run(tmp_path / "sb3-ppo/seed-0", [0, 20], [-900.0, -800.0])
    write_run(tmp_path / "sb3-ppo/seed-1", [0, 20], [-900.0, -140.0])
    write_run(tmp_path / "sb3-ppo/seed-2", [0], [-900.0], finished=False)
    found = [agents.agent(name, design, 200) for name in design.names]
    facts = agents.Facts("Pendulum-v1", 200, None)
    errors: dict[str, str | None] = {"sb3-ppo/seed-2": "killed by SIGSEGV", "sac/seed-0": None}
    return results.gathered(tmp_path, design, facts, found, errors)


def test_the_result_says_what_came_out(content):
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["threshold"] == pytest.approx(-145.9)
    assert content["optimum"] == -125.9
    sac, ppo = content["agents"]["sac"], content["agents"]["sb3-ppo"]
    assert sac["mean"]["value"] == -140.0  # the end, not the best
    assert sac["steps_to_threshold"] == {"median": 10.0, "reached": 3, "runs": 3}
    assert sac["runs"][0]["steps"] == [0, 10, 20]
    assert sac["runs"][0]["final"] == -150.0
    assert sac["runs"][0]["seconds"] == 20.0
    assert sac["runs"][0]["gradient_updates"] == 140
    assert sac["seconds"]["median"] == 20.0
    assert sac["curve"]["steps"] == [0, 10, 20]
    failed = ppo["runs"][2]
    assert (failed["error"], failed["final"], failed["steps"]) == ("killed by SIGSEGV", None, [0])
    assert ppo["mean"]["value"] == -470.0
    assert ppo["steps_to_threshold"] == {"median": None, "reached": 1, "runs": 2}
    (improvement,) = content["improvement"]
    assert improvement == {
        "better": "sac",
        "than": "sb3-ppo",
        "better_steps": 20.0,
        "than_steps": 20.0,
        "probability": pytest.approx((3 + 1.5) / 6),
        "low": None,
        "high": None,
    }
    assert content["versions"] == {"jax": "1", "numpy": "2"}
    assert (content["machine"], content["date"]) == ("a machine", "2026-01-02")


def gathered(directory: Path, design: Design, *added: str) -> dict:
    everyone = [agents.agent(name, design, 200) for name in (*design.names, *added)]
    return results.gathered(directory, design, agents.Facts("Pendulum-v1", 200, None), everyone, {})


def test_what_is_not_asked_for_again_is_still_in_the_result(tmp_path):
    """Other agents, further seeds, and what each run was made with and when."""
    for seed in range(3):
        write_run(tmp_path / f"sac/seed-{seed}", [0, 20], [-900.0, -140.0 - seed])
    write_run(tmp_path / "dynasac/seed-0", [0, 20], [-900.0, -130.0])
    write_run(tmp_path / "dynasac/seed-1", [0], [-900.0], finished=False)
    later = {"versions": {"jax": "1.1"}, "packages": {"torch": "3"}, "date": "2026-02-03"}
    (tmp_path / "dynasac/seed-0/config.json").write_text(json.dumps(later))
    design = Design("Pendulum-v1", ("sac",), seeds=1, real_steps=20)
    content = gathered(tmp_path, design, "dynasac")
    assert content["seeds"] == [0, 1, 2]
    sac, dynasac = content["agents"]["sac"]["runs"], content["agents"]["dynasac"]["runs"]
    assert [run["final"] for run in sac] == [-140, -141, -142]
    assert [run["error"] for run in dynasac] == [None, "ended without a result"]
    assert content["real_steps"] == {"sac": 20, "dynasac": 20}
    assert sac[0]["versions"] == {"jax": "1", "numpy": "2"}
    assert (dynasac[0]["versions"], dynasac[0]["machine"]) == ({"jax": "1.1", "torch": "3"}, None)
    assert content["versions"] == {"jax": "1, 1.1", "numpy": "2", "torch": "3"}
    assert content["date"] == "2026-01-02, 2026-02-03"


def test_after_unequal_real_steps_it_is_said_after_how_many(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"dynasac/seed-{seed}", [0, 40], [-900.0, -140.0 - seed])
        sac = [-900.0, -150.0 - seed, -130.0 - seed]
        write_run(tmp_path / f"sac/seed-{seed}", [0, 39, 80], sac)
        write_run(tmp_path / f"sb3-ppo/seed-{seed}", [0, 4096], [-900.0, -160.0])
    found = gathered(tmp_path, Design("Pendulum-v1", ("dynasac", "sac", "sb3-ppo"), preset="seed"))
    assert found["agents"]["sb3-ppo"]["steps"] == {"median": 4096}  # its budget is 100,000
    assert [tuple(one.values())[1:5] for one in found["improvement"]] == [
        ("sac", 40, 80, 0),
        ("sac", 40, 40, 1),
        ("sb3-ppo", 40, 4096, 1),  # when the other had made 40, it was not evaluated
    ]


def test_it_is_said_how_well_updates_match(tmp_path):
    write_run(tmp_path / "dynasac/seed-0", [0, 20], [-900.0, -130.0])
    write_run(tmp_path / "sac-matched/seed-0", [0, 22], [-900.0, -140.0])
    design = Design("Pendulum-v1", ("dynasac", "sac-matched"), seeds=1, real_steps=20)
    content = gathered(tmp_path, design)
    assert content["agents"]["dynasac"]["gradient_updates"] == {"median": 140}
    assert content["agents"]["sac-matched"]["updates_to_dynasac"] == {"median": pytest.approx(1.1)}


def test_an_agent_that_always_failed_leaves_the_rest_whole(tmp_path):
    design = Design("Pendulum-v1", ("sac", "sb3-sac"), seeds=1, real_steps=20)
    write_run(tmp_path / "sac/seed-0", [0, 20], [-900.0, -800.0])
    found = [agents.agent(name, design, 200) for name in design.names]
    facts = agents.Facts("Pendulum-v1", 200, None)
    content = results.gathered(tmp_path, design, facts, found, {})
    assert content["agents"]["sac"]["iqm"] == {"value": -800.0, "low": None, "high": None}
    lost = content["agents"]["sb3-sac"]
    assert lost["runs"][0]["error"] == "ended without a result"
    assert (lost["iqm"], lost["curve"]["steps"], content["improvement"]) == (None, [], [])
    picture.draw(content, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").exists()


def test_the_picture(content, tmp_path, monkeypatch):
    content["env_id"] = r"$\frac{<b>_^"
    content["agents"]["sb3-ppo"]["curve"]["steps"] = [0, 1000]
    picture.draw(content, tmp_path / "curves.png")
    image = (tmp_path / "curves.png").read_bytes()
    assert image.startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"matplotlib: pip install 'dynasac\[report\]'"):
        picture.draw(content, tmp_path / "curves.png")


# --- progress


def test_the_time_left_is_that_of_what_is_known():
    running = display.Running
    assert display.seconds_left(["a", "b"], [running("a", 5.0, 0.0)], [], 2) is None
    assert display.seconds_left([], [], [("a", 9.0)], 2) == 0
    # one of a under way for 10 of its 40 seconds; b not begun, and taken for as long
    assert display.seconds_left(["b"], [running("a", 10.0, 0.25)], [], 1) == 30 + 40
    # those that have ended know better than those under way
    assert display.seconds_left(["b"], [running("a", 4.0, 0.5)], [("a", 6.0), ("b", 20.0)], 2) == 11
    # at least the longest of those under way
    assert display.seconds_left([], [running("a", 10.0, 0.1)], [], 8) == 90
    assert [display.in_words(s) for s in (None, 0.0, 0.2, 80.0, 600.0, 9000.0)] == [
        "",
        "",
        "about 1 s left",
        "about 80 s left",
        "about 10 min left",
        "about 2.5 h left",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_is_shown_while_it_goes_on(tmp_path, terminal):
    everything = [
        Child(name, (), tmp_path / f"{name}.log")
        for name in ("sac/seed-0", "sac/seed-1", "dynasac/seed-0")
    ]
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    budgets = {"sac": 20, "dynasac": 20}
    write_run(tmp_path / "sac/seed-1", [0, 10], [-9.0, -8.25])
    with display.shown(
        tmp_path, budgets, everything, everything[1:], 2, True, console=console
    ) as watch:
        watch.started("sac/seed-1")
        watch.started("dynasac/seed-0")
        watch.waiting()
        watch.ended("sac/seed-1", None)
        watch.ended("dynasac/seed-0", "ValueError: [/bold] no")
        watch.waiting()
    said = console.file.getvalue()
    assert "sac seed 1: mean return -8.2 after 10 real steps, 0 s" in said
    assert "dynasac seed 0 failed: ValueError: [/bold] no" in said
    assert ("\x1b" in said) == terminal
    if not terminal:
        assert [line[:7] for line in said.splitlines()] == ["[2 of 3", "[3 of 3"]
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", said)
