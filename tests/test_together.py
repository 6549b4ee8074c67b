"""Several learners in one process: each as it would be alone, and none in another's way."""

import dataclasses
import io
import json
import re
import signal
import time
from pathlib import Path

import equinox as eqx
import gymnasium as gym
import hostile
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL, same_run
from gymnasium.envs.classic_control.pendulum import PendulumEnv
from rich.console import Console
from test_cli import SLIDE, TINY, finish, start

from dynasac import (
    DynaSAC,
    Pendulum,
    UsageError,
    cli,
    learn_together,
    memory,
    presets,
    progress,
    runs,
    together,
)
from dynasac.cli.parse import parse

SEEDS = 3
TRAIN = ["train", "Pendulum-v1", *TINY, "--real-episodes=1", "--adapt=identify"]
RESUME = ["train", "--resume", "--output=runs/Pendulum-v1"]
LIVED: presets.Config = parse(TRAIN).settings
"""with a real episode, and a model that is fitted to it; compiled for all tests only once"""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _not_for_ever():
    with hostile.bounded(120, 4000):
        yield


def several(adapt="identify") -> list[DynaSAC]:
    config = dataclasses.replace(LIVED, adapt=adapt)
    heavy = eqx.tree_at(lambda pendulum: pendulum.m, Pendulum(), 1.4)
    return [DynaSAC("Pendulum-v1", heavy, config, seed) for seed in range(SEEDS)]


def on_rails(config=SMALL) -> list[DynaSAC]:
    """Without a model, and with an update after each real step."""
    config = presets.with_real_episodes(config, 1)
    return [DynaSAC("Rail-v0", "none", config, seed) for seed in range(SEEDS)]


def numbers(agent: DynaSAC) -> list[np.ndarray]:
    """All that it has learned and all that it remembers."""
    state = agent.state
    kept = state.sac, state.replay, state.adaptation.model
    return [np.asarray(leaf) for leaf in jax.tree.leaves(kept) if eqx.is_array(leaf)]


@pytest.fixture(scope="module")
def alone() -> list[list[np.ndarray]]:
    return [numbers(agent.learn()) for agent in several()]


def test_each_is_to_the_byte_what_it_would_be_alone(alone):
    together = learn_together(several())
    for ours, theirs in zip(together, alone, strict=True):
        assert [a.tobytes() for a in numbers(ours)] == [a.tobytes() for a in theirs]
        assert ours.state.counts.real_episodes == 1
        assert ours.state.adaptation.rung == "identified"


def same_up_to_rounding(ours: DynaSAC, theirs: DynaSAC) -> None:
    assert ours.state.counts == theirs.state.counts
    for a, b in zip(numbers(ours), numbers(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_in_one_call_each_is_what_it_would_be_alone_up_to_rounding():
    # without `adapt`, which decides by thresholds: rounding may make another decision there
    together, alone = learn_together(several("none"), one_call=True), several("none")
    for ours, theirs in zip(together, alone, strict=True):
        same_up_to_rounding(ours, theirs.learn())


def test_what_all_of_them_use_is_compiled_once(compilations):
    def compiled(width: int, count: int) -> int:
        learner = dataclasses.replace(SMALL.sac, hidden=(width,))
        agents = on_rails(dataclasses.replace(SMALL, sac=learner))[:count]
        before = compilations.count
        learn_together(agents)
        return compilations.count - before

    compiled(37, 1)  # with it all that does not depend on the width
    assert compiled(41, SEEDS) == compiled(43, 1) > 0


@pytest.mark.parametrize("one_call", [False, True])
def test_one_that_fails_or_ends_early_does_not_disturb_the_others(one_call):
    broken, ours, short = several("none")
    broken.env.unwrapped.step = lambda action: (np.full(3, np.nan), 0.0, False, False, {})
    short.config = presets.with_real_episodes(LIVED, 0)
    with pytest.raises(UsageError, match=r"^1 of 3 .* seed 0: the environment returned a non-fin"):
        learn_together([broken, ours, short], one_call=one_call)
    assert (short.state.counts.real_episodes, short.state.counts.planned) == (0, 1)
    same_up_to_rounding(ours, several("none")[1].learn())


def test_one_that_diverges_does_not_disturb_the_others(alone):
    agents = several()
    actor = jax.tree.map(lambda leaf: leaf * jnp.nan, agents[0].state.sac.actor)
    learner = dataclasses.replace(agents[0].state.sac, actor=actor)
    agents[0].state = agents[0].state._replace(sac=learner)
    with pytest.raises(UsageError, match=r"^1 of 3 .* seed 0: .* after 3 gradient updates"):
        learn_together(agents)
    assert numbers(agents[1])[0].tobytes() == alone[1][0].tobytes()


def test_an_error_that_nobody_expected_is_told(capsys):
    agents = several("none")
    agents[1].env.unwrapped.step = lambda action: 1 / 0
    agents[2].learn = lambda *_, **__: 1 / 0
    with pytest.raises(UsageError, match=r"2 of 3 agents failed; .*division by zero"):
        learn_together(agents)
    assert "Traceback" in capsys.readouterr().err
    assert agents[0].state.counts.real_episodes == 1


def test_what_two_of_them_cannot_share_is_refused():
    env = gym.make("Rail-v0")
    two = [DynaSAC(env, "none", SMALL, seed) for seed in range(2)]
    with pytest.raises(UsageError, match="two agents share one environment: make one for each"):
        learn_together(two)
    assert learn_together([]) == []


def test_memory_is_for_all_of_them():
    each = on_rails()[0].memory
    memory.check_together([each] * 3, 3 * each.total)
    with pytest.raises(UsageError, match=r"^4 learners side by side would .* GB: 3 fit$"):
        memory.check_together([each] * 4, 4 * each.total - 1)


def test_progress_is_told_for_all_of_them(monkeypatch):
    said = io.StringIO()
    with progress.counted(8, Console(file=said, width=200)) as tell:
        tell(0, 800, 0)
        monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
        tell(200, 600, 2)
    line = r"2 of 8 learners are through \(200 of 800 updates, \d+ s, about \d+ s left\)\n"
    assert re.fullmatch(line, said.getvalue())
    with progress.counted(8, Console(file=said, force_terminal=True, width=200)) as tell:
        tell(400, 400, 4)
    assert "4 of 8 learners are through" in said.getvalue()


def test_seeds_leave_ordinary_runs_and_a_table(capsys):
    assert cli.run([*TRAIN, "--seeds=2", "--seed=4"]) == 0
    told = capsys.readouterr().out
    summary = json.loads(Path("runs/Pendulum-v1/seed-5/summary.json").read_text())
    assert re.search(rf"\n 5 +{summary['evaluation']['mean_return']:.1f} ", told)
    assert re.search(r"\n mean +-\d.*\n worst +-\d", told)
    assert "everything is in runs/Pendulum-v1/\n" in told
    assert "dynasac report runs/Pendulum-v1/seed-* --output runs/Pendulum-v1/report.html" in told
    assert cli.run([*TRAIN, "--seed=5", "--output=alone"]) == 0
    assert same_run(Path("runs/Pendulum-v1/seed-5"), Path("alone"))
    assert cli.run(["evaluate", "runs/Pendulum-v1/seed-4", "--episodes=2"]) == 0

    assert cli.run(RESUME) == 0
    assert "all 2 seeds in runs/Pendulum-v1 are complete" in capsys.readouterr().out
    assert cli.run([*RESUME, "--real-episodes=2"]) == 0
    assert cli.run([*TRAIN, "--real-episodes=2", "--seed=5", "--output=longer"]) == 0
    assert same_run(Path("runs/Pendulum-v1/seed-5"), Path("longer"))
    for changed, message in (
        (["--seeds=3"], "runs/Pendulum-v1 holds 2 seeds, not 3 seeds: leave --seeds out"),
        (["--seed=5"], "has --seed 4, not 5"),
    ):
        with pytest.raises(UsageError, match=message):
            cli.run([*RESUME, *changed])
    with (
        runs.locked(Path("runs/Pendulum-v1"), "is busy"),
        pytest.raises(UsageError, match="is being written by another process"),
    ):
        cli.run(RESUME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "--seeds 0: from 1 to 1,000"),
        (["--seeds=2", "--seed=2147483647"], "--seed 2147483648: from 0 to"),
        (["--seeds=2", "--output=full"], "full already holds something: choose another --output"),
        (["--seeds=1000", "--replay-capacity=1000000"], r"1000 learners .*: \d+ fit"),
        (["--resume", "--seeds=2"], "--resume needs --output DIR"),
    ],
)
def test_bad_input(arguments, message):
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    with pytest.raises(UsageError, match=message):
        cli.run([*TRAIN, *arguments])
    assert [path.name for path in Path().iterdir()] == ["full"]


def test_the_failure_of_one_seed_is_told_and_tried_again(capsys, monkeypatch):
    made, begin, step = [], PendulumEnv.__init__, PendulumEnv.step

    def noted(self, *arguments, **named):
        made.append(self)
        begin(self, *arguments, **named)

    def shaky(self, action):
        if self is made[1]:
            raise ConnectionError("the cable is loose")
        return step(self, action)

    monkeypatch.setattr(PendulumEnv, "__init__", noted)
    monkeypatch.setattr(PendulumEnv, "step", shaky)
    assert cli.run([*TRAIN, "--seeds=2"]) == 1
    out, error = capsys.readouterr()
    assert re.search(r"\n 0 +-", out)
    assert not re.search(r"\n 1 +-", out)
    assert "dynasac: runs/Pendulum-v1/seed-1: the environment failed (real episode 1, step" in error
    assert "try again with:  dynasac train --resume --output runs/Pendulum-v1\n" in error
    monkeypatch.setattr(PendulumEnv, "step", step)
    finished = Path("runs/Pendulum-v1/seed-0/summary.json").stat().st_mtime_ns
    assert cli.run(RESUME) == 0
    assert Path("runs/Pendulum-v1/seed-0/summary.json").stat().st_mtime_ns == finished
    assert re.search(r"\n 0 +-.*\n 1 +-", capsys.readouterr().out)


def test_a_model_from_a_file_is_read_once_for_all_of_them(monkeypatch):
    kinds = []

    def looked_at(agents, *_, **__):
        kinds.append({type(agent.model) for agent in agents})
        raise KeyboardInterrupt

    monkeypatch.setattr(together, "record_together", looked_at)
    assert cli.run(["train", "Rail-v0", SLIDE, *TINY, "--seeds=3"]) == 130
    assert cli.run(["train", "--resume", "--output=runs/Rail-v0", SLIDE]) == 130
    assert [len(kind) for kind in kinds] == [1, 1]


def test_ctrl_c_stops_all_and_all_go_on():
    command = [*TRAIN, "--planning.first-updates=700"]
    process = start(*command, "--seeds=2", "--output=several")
    deadline = time.monotonic() + 90
    while len(list(Path().glob("several/seed-*/events.*"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, _, error = finish(process)
    assert code == 130, error
    assert error.count("stopping at the next safe point; once more stops at once") == 1
    assert "what was learned is in several" in error
    assert "go on with:  dynasac train --resume --output several" in error
    assert "Traceback" not in error
    assert not list(Path().glob("several/seed-*/summary.json"))
    assert cli.run(["train", "--resume", "--output=several"]) == 0
    assert cli.run([*command, "--seed=1", "--output=alone"]) == 0
    assert same_run(Path("several/seed-1"), Path("alone"))


def test_ctrl_c_in_python_leaves_what_was_learned():
    agents, stopped = several("none"), []
    env = agents[0].env.unwrapped
    step = env.step

    def interrupting(action):
        if not stopped:
            stopped.append(True)
            signal.raise_signal(signal.SIGINT)
            time.sleep(0.3)
        return step(action)

    env.step = interrupting
    with pytest.raises(KeyboardInterrupt):
        learn_together(agents)
    assert agents[0].state.counts.planned == 1
    assert agents[0].state.counts.real_episodes == 0
    learn_together(agents)
    assert [agent.state.counts.real_episodes for agent in agents] == [1] * SEEDS
