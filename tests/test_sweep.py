"""Sweeps: what may be asked for, which trials come of it, and what happens when things go wrong."""

import csv
import dataclasses
import importlib.util
import io
import json
import os
import signal
import time
from pathlib import Path

import probes
import pytest
from conftest import same_run
from rich.console import Console

from dynasac import DynaSAC, UsageError, checkpoint, recording, runs, sweep
from dynasac.sweep import LocalPool, Range, Sweep, display, scores, spec, table
from dynasac.sweep.pool import Event, Pool
from dynasac.sweep.scores import Scale
from dynasac.sweep.search import Search, Trial
from dynasac.sweep.spec import Choices, from_flags, jobs, parsed
from dynasac.sweep.work import Job, config_of, differing, finished, work

assert probes.Rail  # registers the environments

RAIL = Sweep(("Rail-v0",), model="none", seeds=2, evaluation_episodes=2, fixed={"real_episodes": 0})
GRID = dataclasses.replace(RAIL, grid={"sac.learning_rate": (1e-3, 3e-3)})
SEARCH = dataclasses.replace(
    RAIL, seeds=1, search={"sac.learning_rate": Range(1e-4, 1e-2, log=True)}, trials=12
)
TINY = {
    "planning.first_updates": 3,
    "planning.updates": 2,
    "sac.hidden": [16],
    "sac.batch_size": 8,
    "replay_capacity": 500,
}
optuna = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None, reason="a search needs Optuna"
)


# --- what is asked for


def test_a_file_says_all_of_it(tmp_path):
    (tmp_path / "sweep.toml").write_text(
        """
        env = "Pendulum-v1"
        seeds = 2
        first-seed = 7
        [settings]
        "sac.learning-rate" = [1e-3, 3e-3]
        sac.hidden = [[64, 64], [128, 128]]
        planning.updates = 100
        huber = 1
        """.replace("        huber = 1\n", '        "sac.huber_delta" = "none"\n')
    )
    found = parsed(spec.read_toml(tmp_path / "sweep.toml"))
    assert (found.envs, found.seeds, found.first_seed) == (("Pendulum-v1",), 2, 7)
    assert found.fixed == {"planning.updates": 100, "sac.huber_delta": None}
    assert list(found.grid) == ["sac.learning_rate", "sac.hidden"]
    assert (found.count, found.trainings) == (4, 8)
    tried = list(spec.combinations(found))
    assert [each["sac.learning_rate"] for each in tried] == [1e-3, 1e-3, 3e-3, 3e-3]
    assert [each["sac.hidden"] for each in tried] == 2 * [[64, 64], [128, 128]]
    names = [job.name for job in jobs(found, 3, tried[3])]
    assert names == ["trial-0003/seed-7", "trial-0003/seed-8"]
    assert config_of(jobs(found, 3, tried[3])[0]).sac.hidden == (128, 128)


def test_flags_say_the_same_and_come_before_the_file():
    file = {"env": "Pendulum-v1", "settings": {"sac": {"learning-rate": 1e-3}}}
    asked = from_flags(
        file,
        ["sac.learning-rate=1e-3,3e-3", "sac.hidden=[64,64],[128,128]", "adapt=none"],
        [],
        None,
    )
    found = parsed(asked)
    assert found.grid == {
        "sac.learning_rate": (1e-3, 3e-3),
        "sac.hidden": ([64, 64], [128, 128]),
    }
    assert found.fixed == {"adapt": "none"}
    searched = [
        "planning.exploration=0.1:0.9",
        "sac.learning-rate=1e-4:1e-2:log",
        "planning.horizon=1:8",
        "sac.activation=relu,tanh",
        "sac.huber-delta=None,1",
    ]
    found = parsed(from_flags({"env": "Pendulum-v1"}, ["sac.hidden=[8]"], searched, 9))
    assert found.search == {
        "planning.exploration": Range(0.1, 0.9),
        "sac.learning_rate": Range(1e-4, 1e-2, log=True),
        "planning.horizon": Range(1, 8, whole=True),
        "sac.activation": Choices(("relu", "tanh")),
        "sac.huber_delta": Choices((None, 1.0)),
    }
    assert found.fixed == {"sac.hidden": [8]}
    assert found.count == 9


def test_several_tasks_have_directories_of_their_own():
    found = parsed({"envs": ["Rail-v0", "rig:dock/Crane-v0"], "seeds": 2})
    assert [job.name for job in jobs(found, 0, {})] == [
        "trial-0000/Rail-v0/seed-100",
        "trial-0000/dock-Crane-v0/seed-100",
        "trial-0000/Rail-v0/seed-101",
        "trial-0000/dock-Crane-v0/seed-101",
    ]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({}, "name the task"),
        ({"env": "A", "envs": ["B"]}, "name the task"),
        ({"env": "A", "sead": 3}, "there is no 'sead' in a sweep; did you mean seeds"),
        ({"env": "A", "seeds": True}, "seeds = True: not int"),
        ({"env": "A", "seeds": 0}, "seeds 0: from 1"),
        ({"env": "A", "first-seed": -1}, "first-seed -1: from 0"),
        ({"env": "A", "evaluation_episodes": 0}, "evaluation-episodes 0: from 1"),
        ({"env": "A", "preset": "best"}, "preset 'best': there are default, seed"),
        ({"envs": ["A", "m:A"]}, "name each once"),
        ({"envs": [1]}, "each is the id of an environment"),
        ({"settings": {"sac.learning-rat": 1}}, "did you mean sac.learning-rate"),
        ({"settings": {"learning-rate": 1}}, "did you mean sac.learning-rate"),
        ({"settings": {"zzz": 1}}, "`dynasac train --help` lists them all"),
        ({"settings": {"sac.learning-rate": "much"}}, "setting learning_rate is 'much'"),
        ({"settings": {"sac.learning-rate": -1.0}}, "--sac.learning-rate -1.0: must be more"),
        ({"settings": {"sac.learning-rate": [1, 1]}}, "each of its values once"),
        ({"settings": {"sac.learning-rate": []}}, "each of its values once"),
        ({"settings": {"sac.learning-rate": float("inf")}}, "no finite number"),
        (
            {"settings": {"planning.horizon": [2, 90], "sac.batch-size": 64}},
            r"--planning.horizon 90: at most the batch of 64 \(with planning.horizon 90\)",
        ),
        ({"settings": {"planning.updates": list(range(10_001))}}, "10,001 settings: 10,000"),
        ({"search": {"trials": 3}}, "trials are of a search"),
        ({"search": {"sac.learning-rate": {"low": 1, "high": 2}}}, "how many trials"),
        ({"search": {"trials": 0, "sac.target-rate": {"low": 0, "high": 1}}}, "trials 0"),
        ({"search": {"trials": 3, "sac.learning-rate": 3}}, "write {low = 0.1"),
        ({"search": {"trials": 3, "sac.learning-rate": {"low": 1}}}, "write {low = 0.1"),
        ({"search": {"trials": 3, "sac.learning-rate": {"low": 2, "high": 1}}}, "low is less"),
        (
            {"search": {"trials": 3, "sac.learning-rate": {"low": 0, "high": 1, "log": True}}},
            "more than 0 with log",
        ),
        ({"search": {"trials": 3, "planning.horizon": {"low": 0.5, "high": 2}}}, "whole numbers"),
        ({"search": {"trials": 3, "adapt": {"low": 1, "high": 2}}}, "adapt takes choices"),
        ({"search": {"trials": 3, "adapt": {"choices": ["auto"]}}}, "at least two choices"),
        ({"search": {"trials": 3, "adapt": {"choices": ["auto", "x"]}}}, r"with adapt x\)"),
        (
            {
                "settings": {"sac.learning-rate": [1e-3, 2e-3]},
                "search": {"trials": 3, "sac.target-rate": {"low": 0.1, "high": 1}},
            },
            "with a search, write several values under it",
        ),
        (
            {
                "settings": {"sac.target-rate": 0.1},
                "search": {"trials": 3, "sac.target-rate": {"low": 0.1, "high": 1}},
            },
            "fixed, or searched, not both",
        ),
        ({"solved": {"B": 1.0}}, "told of 'B', which is no task"),
        ({"solved": {"A": "high"}}, "a mean return"),
    ],
)
def test_what_makes_no_sense_is_said_before_anything_runs(asked, said):
    with pytest.raises(UsageError, match=said):
        parsed(asked if "envs" in asked or not asked else {"env": "A", **asked})


@pytest.mark.parametrize(
    ("flags", "search", "said"),
    [
        (["sac.learning-rate"], [], "write NAME=VALUE"),
        (["sac.learning-rate="], [], "write NAME=VALUE"),
        ([], ["sac.learning-rate=1:2:lin"], "LOW:HIGH:log"),
        ([], ["sac.activation=relu"], "at least two choices"),
    ],
)
def test_flags_that_are_none(flags, search, said):
    with pytest.raises(UsageError, match=said):
        parsed(from_flags({"env": "A"}, flags, search, 1 if search else None))


def test_a_file_that_is_none(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read .*no\.toml"):
        spec.read_toml(tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_bytes(b"seeds = \xff")
    with pytest.raises(UsageError, match="is no TOML"):
        spec.read_toml(tmp_path / "bad.toml")


# --- what it is worth


def test_a_curve_goes_on_training_by_training():
    assert scores.curve([{0: 1.0, 1: 3.0}, {0: 5.0}, {0: 9.0, 1: 9.0}], 2) == [1.0, 3.0, 4.0]
    assert scores.curve([{1: 3.0}], 2) == []
    assert scores.curve([{0: 1.0}, {0: 3.0}], 1) == [1.0, 2.0]


def test_tasks_count_from_random_actions_to_solved():
    two = dataclasses.replace(RAIL, envs=("Rail-v0", "Clock-v0"), solved={"Rail-v0": 0.0})
    with pytest.raises(UsageError, match=r"solved = \{Clock-v0 = MEAN_RETURN\}"):
        scores.scales(two, {})
    two = dataclasses.replace(two, solved={"Rail-v0": 0.0, "Clock-v0": 20.0})
    found = scores.scales(two, {})
    assert found["Clock-v0"].solved == 20.0
    assert -10 < found["Clock-v0"].random < 10
    assert found["Rail-v0"].score(0.0) == 1.0
    assert found["Rail-v0"].score(found["Rail-v0"].random) == 0.0
    known = scores.scales(two, {"Rail-v0": [-8.0, 0.0], "Clock-v0": ["x", 1.0]})
    assert known["Rail-v0"] == Scale(-8.0, 0.0)
    assert known["Clock-v0"] == found["Clock-v0"]
    with pytest.raises(UsageError, match="random actions get"):
        scores.scales(dataclasses.replace(two, solved={"Rail-v0": -99.0, "Clock-v0": 9.0}), {})
    assert scores.scales(RAIL, {}) == {"Rail-v0": (0.0, 1.0)}


# --- the driver


class Fake:
    """A pool without processes: what comes of each attempt is said beforehand.

    `script` has for a training's name what happens at each attempt: a value is one that is done
    with that mean return, and leaves it where a worker would.
    """

    def __init__(self, output: Path, script=None, slots: int = 2):
        self.slots, self.output, self.script = slots, output, script or (lambda job: job.seed)
        self.submitted: list[str] = []
        self.stopped: list[str] = []
        self.closed = False
        self._going: list[Job] = []

    def submit(self, job: Job) -> None:
        assert len(self._going) < self.slots
        self.submitted.append(job.name)
        self._going.append(job)

    def stop(self, name: str) -> None:
        self.stopped.append(name)

    def events(self, seconds: float) -> list[Event]:
        for job in [job for job in self._going if job.name in self.stopped]:
            self._going.remove(job)
            return [Event(job.name, "stopped")]
        job = self._going.pop(0)
        what = self.script(job)
        if isinstance(what, BaseException):
            raise what
        if isinstance(what, int | float):
            row = {"real_episodes": 0, "eval_mean_return": float(what)}
            return [Event(job.name, "row", row), done(self.output, job, what)]
        if what.kind == "row":
            self._going.append(job)
        return [what]

    def close(self) -> None:
        self.closed = True


def done(output: Path, job: Job, value: float) -> Event:
    """A training as a worker leaves it."""
    summary = {"evaluation": {"mean_return": float(value)}, "wall_seconds": 2.0}
    asked = {name: getattr(job, name) for name in ("seed", "preset", "evaluation_episodes")}
    settings = runs.plain(config_of(job))
    checkpoint.write_json(output / job.name / "config.json", {**asked, "settings": settings})
    checkpoint.write_json(output / job.name / "summary.json", summary)
    return Event(job.name, "done", summary)


def swept(asked: Sweep, output: Path, script=None, slots: int = 2) -> tuple[dict, Fake]:
    fake = Fake(output, script, slots)
    assert isinstance(fake, Pool)
    return sweep.sweep(asked, output, lambda _: fake), fake


def statuses(content: dict) -> list[list[str]]:
    return [[each["status"] for each in trial["runs"]] for trial in content["trials"]]


def test_a_grid_is_done_in_its_order_and_never_again(tmp_path):
    content, fake = swept(
        GRID, tmp_path / "out", lambda job: job.seed + 1000 * job.settings["sac.learning_rate"]
    )
    assert fake.submitted == [
        f"trial-000{number}/seed-{seed}" for number in (0, 1) for seed in (100, 101)
    ]
    assert fake.closed
    assert [trial["value"] for trial in content["trials"]] == [101.5, 103.5]
    assert [trial["spread"] for trial in content["trials"]] == [pytest.approx(0.5**0.5)] * 2
    assert [trial["number"] for trial in table.ranked(content)] == [1, 0]
    assert content == checkpoint.read_json(tmp_path / "out" / "sweep.json")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "results.csv").read_text())))
    assert len(rows) == 4
    assert rows[3]["sac.learning-rate"] == "0.003"
    assert (rows[3]["mean_return"], rows[3]["status"], rows[3]["attempts"]) == (
        "104.0",
        "done",
        "1",
    )

    again, fake = swept(GRID, tmp_path / "out")
    assert fake.submitted == []
    assert again == content
    _, fake = swept(dataclasses.replace(GRID, seeds=3), tmp_path / "out")
    assert fake.submitted == ["trial-0000/seed-102", "trial-0001/seed-102"]
    with pytest.raises(UsageError, match="differs in grid: ask for the same"):
        swept(dataclasses.replace(GRID, grid={}), tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(UsageError, match="already holds something"):
        swept(GRID, tmp_path / "other")
    checkpoint.write_json(tmp_path / "compared" / "asked.json", {"agents": {}})
    with pytest.raises(UsageError, match="already holds something else"):
        swept(GRID, tmp_path / "compared")


def test_what_was_lost_is_gone_on_with_and_given_up_in_the_end(tmp_path):
    tried: dict[str, int] = {}

    def script(job):
        tried[job.name] = tried.get(job.name, 0) + 1
        if job.seed == 100 and (tried[job.name] == 1 or "trial-0001" in job.name):
            return Event(job.name, "lost", why="killed by SIGKILL")
        return job.seed

    content, fake = swept(GRID, tmp_path / "out", script)
    assert statuses(content) == [["done", "done"], ["failed", "done"]]
    first, last = content["trials"][0]["runs"][0], content["trials"][1]["runs"][0]
    assert (first["attempts"], first["happened"]) == (2, ["lost: killed by SIGKILL"])
    assert last["attempts"] == 3
    assert last["happened"][-1] == "failed: lost 3 times without getting any further"
    assert content["trials"][1]["state"] == "failed"
    assert content["trials"][1]["value"] is None
    # asked for again, what failed is tried again
    content, fake = swept(GRID, tmp_path / "out")
    assert fake.submitted == ["trial-0001/seed-100"]
    assert content["trials"][1]["runs"][0]["attempts"] == 4
    assert [trial["state"] for trial in content["trials"]] == ["complete", "complete"]


def test_whoever_gets_further_is_not_given_up(tmp_path):
    tried = []

    def script(job):
        tried.append(job.name)
        if len(tried) > 5:
            return 1.0
        folder = tmp_path / "out" / job.name / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"state-{len(tried):08d}.safetensors").touch()
        return Event(job.name, "lost", why="out of memory")

    one = dataclasses.replace(RAIL, seeds=1)
    content, _ = swept(one, tmp_path / "out", script)
    assert content["trials"][0]["runs"][0]["attempts"] == 6
    assert content["trials"][0]["value"] == 1.0


def test_an_interrupted_sweep_goes_on(tmp_path):
    def script(job):
        return KeyboardInterrupt() if job.name == "trial-0001/seed-100" else job.seed

    with pytest.raises(KeyboardInterrupt):
        swept(GRID, tmp_path / "out", script)
    content, fake = swept(GRID, tmp_path / "out")
    # what may have been done while nobody was told is looked at
    assert fake.submitted == ["trial-0001/seed-100", "trial-0001/seed-101"]
    assert content["trials"][1]["runs"][0]["happened"] == ["the sweep ended"]
    assert content["trials"][1]["runs"][0]["attempts"] == 2


def test_a_directory_with_another_run_is_told(tmp_path):
    swept(GRID, tmp_path / "out")
    path = tmp_path / "out" / "trial-0000" / "seed-101" / "config.json"
    asked = checkpoint.read_json(path)
    asked["settings"]["sac"]["learning_rate"] = 0.5
    checkpoint.write_json(path, asked)
    content, fake = swept(GRID, tmp_path / "out")
    assert fake.submitted == []
    said = content["trials"][0]["runs"][1]["happened"][-1]
    assert "holds a run that differs in sac.learning_rate" in said


@optuna
def test_a_search_begins_with_the_preset_and_finds_better(tmp_path):
    def worth(job):
        return -abs(job.settings["sac.learning_rate"] - 2e-3)

    content, fake = swept(SEARCH, tmp_path / "out", worth)
    rates = [trial["settings"]["sac.learning_rate"] for trial in content["trials"]]
    assert rates[0] == config_of(Job("", "Rail-v0", 0, model="none")).sac.learning_rate
    assert len(rates) == len(set(rates)) == 12
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    # two more are other ones, though the random numbers begin anew
    more, fake = swept(dataclasses.replace(SEARCH, trials=14), tmp_path / "out", worth)
    assert len(fake.submitted) == 2
    assert len({trial["settings"]["sac.learning_rate"] for trial in more["trials"]}) == 14


@optuna
def test_bad_trials_are_pruned_and_their_other_seeds_dropped(tmp_path):
    asked = dataclasses.replace(SEARCH, seeds=3)
    content, fake = swept(asked, tmp_path / "out", lambda job: -job.settings["sac.learning_rate"])
    states = [trial["state"] for trial in content["trials"]]
    assert "pruned" in states[sweep.search.UNPRUNED_TRIALS :]
    assert set(states[: sweep.search.UNPRUNED_TRIALS]) == {"complete"}
    pruned = content["trials"][states.index("pruned")]["runs"]
    assert {each["status"] for each in pruned} <= {"done", "pruned"}
    assert pruned[-1]["status"] == "pruned"
    assert fake.stopped
    again, fake = swept(asked, tmp_path / "out")
    assert fake.submitted == []
    assert statuses(again) == statuses(content)


@optuna
def test_a_trial_is_pruned_on_its_learning_curve_while_it_runs(tmp_path):
    asked = dataclasses.replace(SEARCH, fixed={"real_episodes": 2}, trials=10)
    seen: dict[str, int] = {}

    def script(job):
        seen[job.name] = seen.get(job.name, -1) + 1
        value = -job.settings["sac.learning_rate"]
        if seen[job.name] == 2:
            return value
        row = {"real_episodes": seen[job.name], "eval_mean_return": value}
        return Event(job.name, "row", row)

    content, fake = swept(asked, tmp_path / "out", script, slots=1)
    states = [trial["state"] for trial in content["trials"]]
    assert "pruned" in states
    pruned = content["trials"][states.index("pruned")]["runs"][0]
    assert pruned["status"] == "pruned"
    assert pruned["directory"] in fake.stopped
    assert seen[pruned["directory"]] < 2


def test_a_trial_of_several_tasks_is_worth_the_mean_of_what_they_count(tmp_path):
    two = dataclasses.replace(
        RAIL, envs=("Rail-v0", "Clock-v0"), solved={"Rail-v0": 0.0, "Clock-v0": 20.0}
    )
    content, fake = swept(two, tmp_path / "out", lambda job: 20 if job.env == "Clock-v0" else 0)
    assert fake.submitted[:2] == ["trial-0000/Rail-v0/seed-100", "trial-0000/Clock-v0/seed-100"]
    assert (content["trials"][0]["value"], content["trials"][0]["spread"]) == (1.0, 0.0)
    assert content["scales"]["Clock-v0"][1] == 20.0
    again, _ = swept(two, tmp_path / "out")
    assert again["scales"] == content["scales"]


@pytest.mark.parametrize("terminal", [True, False])
def test_people_are_told_how_far_it_is(tmp_path, terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    driver_entries: list = []
    with display.shown(driver_entries, 4, 2, True, console) as watch:
        one = table.entry(GRID, Trial(0, {}), {})
        driver_entries.append(one)
        first, second = one.trainings
        for each in one.trainings:
            watch.began(each)
        first.status = "done"
        watch.ended(first, "trial-0000/seed-100: mean return 1.0")
        second.status = "waiting"
        watch.ended(second, "trial-0000/seed-101 lost [by] SIGKILL")
        watch.waiting()
    said = console.file.getvalue()
    assert "trial-0000/seed-100: mean return 1.0" in said
    assert "lost [by] SIGKILL" in said
    assert "1 of 4" in said


@optuna
def test_a_failed_seed_ends_its_trial(tmp_path):
    asked = dataclasses.replace(SEARCH, seeds=3, trials=2)

    def script(job):
        bad = job.name.startswith("trial-0000") and job.seed == 100
        return Event(job.name, "failed", why="reward is nan") if bad else job.seed

    content, _ = swept(asked, tmp_path / "out", script)
    assert [trial["state"] for trial in content["trials"]] == ["failed", "complete"]
    assert statuses(content)[0] == ["failed", "dropped", "dropped"]
    assert content["trials"][0]["runs"][0]["happened"] == ["failed: reward is nan"]
    again, _ = swept(asked, tmp_path / "out", script)
    assert statuses(again) == statuses(content)


@optuna
def test_a_search_goes_on_with_the_trials_of_a_driver_that_died(tmp_path):
    count = []

    def script(job):
        count.append(job)
        return KeyboardInterrupt() if len(count) == 4 else job.settings["sac.learning_rate"]

    with pytest.raises(KeyboardInterrupt):
        swept(SEARCH, tmp_path / "out", script)
    journal = tmp_path / "out" / "study.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"wor')  # it was killed as it wrote
    (tmp_path / "out" / "study.jsonl.lock").symlink_to(journal)  # and held the lock
    before = {path.name for path in (tmp_path / "out").glob("trial-*")}
    content, fake = swept(SEARCH, tmp_path / "out", lambda job: job.settings["sac.learning_rate"])
    assert len(before) == 3
    assert not {name.partition("/")[0] for name in fake.submitted} & before
    assert len(content["trials"]) == 12
    assert [trial["number"] for trial in content["trials"]] == list(range(12))
    running = [job for job in count if job.name.partition("/")[0] not in before]
    same = next(
        t for t in content["trials"] if running[0].name.startswith(f"trial-{t['number']:04}")
    )
    assert same["settings"] == running[0].settings
    assert same["runs"][0]["attempts"] == 2
    assert all(json.loads(line) for line in journal.read_text().splitlines())


@optuna
def test_choices_of_lists_and_none_come_back_as_they_were(tmp_path):
    layers, delta = ([8], [8, 8]), (None, 1.0)
    asked = dataclasses.replace(
        RAIL,
        search={"sac.hidden": Choices(layers), "sac.huber_delta": Choices(delta)},
        trials=8,
    )
    source = Search(asked, tmp_path / "study.jsonl")
    tried = [source.ask() for _ in range(4)]
    assert source.ask() is None  # there are no others
    for trial in tried:
        assert trial.settings["sac.hidden"] in layers
        assert trial.settings["sac.huber_delta"] in delta
    assert {one["sac.huber_delta"] for one in (trial.settings for trial in tried)} == set(delta)
    again = Search(asked, tmp_path / "study.jsonl")
    assert again.earlier() == tried


@optuna
def test_a_journal_that_is_none(tmp_path):
    (tmp_path / "study.jsonl").write_text("{}\n[1]\n")
    with pytest.raises(UsageError, match=r"study\.jsonl is damaged"):
        Search(SEARCH, tmp_path / "study.jsonl")


def test_a_search_without_optuna_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'dynasac\[scale\]'"):
        swept(SEARCH, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_workers_that_cannot_be_had_leave_nothing_behind(tmp_path):
    def unreachable(output):
        raise UsageError("no Ray cluster answers")

    with pytest.raises(UsageError, match="no Ray cluster answers"):
        sweep.sweep(GRID, tmp_path / "out", unreachable)
    assert not (tmp_path / "out").exists()


def test_a_damaged_table_is_made_anew(tmp_path):
    content, _ = swept(GRID, tmp_path / "out")
    for damage in ("", "[]", '{"trials": [1, {"runs": [2, {"directory": 3}]}]}'):
        (tmp_path / "out" / "sweep.json").write_text(damage)
        again, fake = swept(GRID, tmp_path / "out")
        assert fake.submitted == []
        assert statuses(again) == statuses(content)


# --- a training, and those who do it


def tiny(name: str, seed: int = 0, **more) -> Job:
    return Job(name, "probes:Rail-v0", seed, {**TINY, **more}, "none", evaluation_episodes=2)


def test_a_run_without_a_checkpoint_is_begun_again_and_a_finished_one_is_not(tmp_path):
    run, job = tmp_path / "run", tiny("run", real_episodes=1)
    run.mkdir()
    (run / ".config.json.x1.partial").write_text("{")
    seen: list = []
    first = work(job, run, seen.append)
    assert [row["real_episodes"] for row in seen] == [0, 1]
    assert finished(job, run) == first
    assert work(job, run, seen.append) == first
    assert len(seen) == 2
    with pytest.raises(UsageError, match="differs in seed"):
        work(dataclasses.replace(job, seed=1), run, seen.append)
    assert differing(job, {}) != []
    # killed after a row was written and before the checkpoint was
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    (run / "summary.json").unlink()
    again = work(job, run, seen.append)
    assert again["evaluation"] == first["evaluation"]


@pytest.mark.parametrize("model", ["none", "ensemble"])
@pytest.mark.parametrize("preset", ["default", "seed"])
def test_every_model_and_preset_can_be_gone_on_with(model, preset):
    job = Job("run", "Pendulum-v1", 3, {"adapt": "auto"}, model, preset)
    agent = DynaSAC(job.env, job.model, config_of(job), job.seed)
    asked = recording.asked_for(agent, model, preset)
    assert differing(job, json.loads(json.dumps(asked))) == []


def test_a_directory_that_was_claimed_half_is_free(tmp_path):
    (tmp_path / ".asked.json.x.partial").touch()
    with runs.held(tmp_path, "sweep"):
        pass
    (tmp_path / "notes").touch()
    with pytest.raises(UsageError, match="already holds something"), runs.held(tmp_path, "sweep"):
        pass


def test_a_training_stops_when_it_is_asked_to_and_goes_on(tmp_path):
    job, seen = tiny("run", real_episodes=4), []
    with pytest.raises(recording.Interrupted):
        work(job, tmp_path / "run", seen.append, lambda: len(seen) > 1)
    assert not (tmp_path / "run" / "summary.json").exists()
    work(job, tmp_path / "run", seen.append)
    assert [row["real_episodes"] for row in seen] == [0, 1, 2, 3, 4]
    work(job, tmp_path / "whole", seen.append)
    assert same_run(tmp_path / "run", tmp_path / "whole")


def until(pool: LocalPool, wanted: int, heard=lambda event: None) -> list[Event]:
    """All events until so many trainings have ended."""
    events: list[Event] = []
    deadline = time.monotonic() + 120
    while sum(event.kind != "row" for event in events) < wanted:
        assert time.monotonic() < deadline
        for event in pool.events(1.0):
            events.append(event)
            heard(event)
    return events


def test_a_worker_that_is_killed_loses_nothing_that_was_kept(tmp_path):
    job, whole = tiny("out/killed", real_episodes=8), tiny("out/whole", real_episodes=8)
    pool = LocalPool(tmp_path, slots=1)
    killed = []

    def kill(event):
        if event.kind == "row" and event.row["real_episodes"] == 3 and not killed:
            killed.append(pool._workers[0]._process.pid)
            os.kill(killed[0], signal.SIGKILL)

    try:
        pool.submit(job)
        events = until(pool, 1, kill)
        assert (events[-1].kind, events[-1].name) == ("lost", "out/killed")
        assert "SIGKILL" in events[-1].why
        assert checkpoint.numbered(tmp_path / job.name / "checkpoints")
        pool.submit(job)
        pool.submit(whole)
        events = until(pool, 2)
        assert [event.kind for event in events if event.kind != "row"] == ["done", "done"]
        again = [e.row["real_episodes"] for e in events if e.name == job.name and e.kind == "row"]
        assert again[0] >= 3
        assert same_run(tmp_path / job.name, tmp_path / whole.name)
        worker = pool._workers[0]._process.pid
        # one that is stopped before it has begun, and one that fails on its own
        pool.submit(tiny("out/long", real_episodes=500))
        pool.submit(tiny("out/never"))
        pool.stop("out/never")
        pool.submit(dataclasses.replace(tiny("out/bad"), env="probes:Nowhere-v0"))
        pool.stop("out/long")
        events = until(pool, 3)
        kinds = {event.name: event.kind for event in events if event.kind != "row"}
        assert kinds == {"out/never": "stopped", "out/long": "stopped", "out/bad": "failed"}
        assert "Nowhere-v0" in events[-1].why
        assert pool._workers[0]._process.pid == worker
    finally:
        pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)


CHATTY = """
import sys, gymnasium as gym, probes


class Chatty(probes.Rail):
    def reset(self, *, seed=None, options=None):
        print('{"name": "x", "kind": "done"}', flush=True)
        assert sys.stdin.read() == ""
        return super().reset(seed=seed)


gym.register("Chatty-v0", entry_point=Chatty, max_episode_steps=10)
"""


def test_what_others_print_and_read_is_not_ours_and_workers_do_not_grow(tmp_path, monkeypatch):
    (tmp_path / "chatty.py").write_text(CHATTY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sweep.pool, "SETTINGS_OF_A_WORKER", 1)
    pool = LocalPool(tmp_path / "out", slots=1)
    try:
        pool.submit(dataclasses.replace(tiny("a", real_episodes=0), env="chatty:Chatty-v0"))
        assert [event.kind for event in until(pool, 1)] == ["row", "done"]
        first = pool._workers[0]._process
        pool.submit(tiny("b", real_episodes=0))  # for whose programs there is no more room
        assert [event.kind for event in until(pool, 1)] == ["row", "done"]
        assert first.returncode is not None
    finally:
        pool.close()
    assert '{"name": "x"' in (tmp_path / "out" / "a.log").read_text()


def test_a_number_of_workers():
    with pytest.raises(UsageError, match="--jobs 0: at least 1"):
        LocalPool(Path("nowhere"), 0)
