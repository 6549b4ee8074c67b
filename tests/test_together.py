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
import probes
import pytest
from conftest import SMALL, same_run
from rich.console import Console
from test_cli import SLIDE, TINY, finish, start

from dynasac import DynaSAC, UsageError, cli, learn_together, memory, presets, progress, runs

SEEDS = 3
LIVED = dataclasses.replace(presets.with_real_episodes(SMALL, 2), adapt="identify")
"""with real episodes, and a model that is fitted to them"""

both_ways = pytest.mark.parametrize("one_call", [False, True])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def _not_for_ever():
    with hostile.bounded(120, 4000):
        yield


def several(config=LIVED, env_id: str = "Rail-v0") -> list[DynaSAC]:
    return [DynaSAC(env_id, probes.Slide(), config, seed) for seed in range(SEEDS)]


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
        assert ours.state.counts.real_episodes == 2


def test_in_one_call_each_is_what_it_would_be_alone_up_to_rounding(alone):
    for ours, theirs in zip(learn_together(several(), one_call=True), alone, strict=True):
        for a, b in zip(numbers(ours), theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_what_all_of_them_use_is_compiled_once(compilations):
    def compiled(width: int, count: int) -> int:
        learner = dataclasses.replace(SMALL.sac, hidden=(width,))
        config = dataclasses.replace(presets.with_real_episodes(SMALL, 1), sac=learner)
        agents = [DynaSAC("Rail-v0", "none", config, seed) for seed in range(count)]
        before = compilations.count
        learn_together(agents)
        return compilations.count - before

    compiled(5, 1)  # with it all that does not depend on the width
    assert compiled(6, SEEDS) == compiled(7, 1) > 0


@both_ways
def test_one_that_fails_or_ends_early_does_not_disturb_the_others(one_call, alone):
    ours, theirs = several()[1], alone[1]
    broken = DynaSAC("BrokenObservation-v0", probes.Slide(), LIVED, seed=7)
    short = DynaSAC("Rail-v0", probes.Slide(), presets.with_real_episodes(LIVED, 0), seed=8)
    with pytest.raises(UsageError, match=r"^1 of 3 .* seed 7: the environment returned a non-fin"):
        learn_together([broken, ours, short], one_call=one_call)
    assert short.state.counts.planned == 1
    for a, b in zip(numbers(ours), theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_one_that_diverges_does_not_disturb_the_others(alone):
    agents = several()
    actor = jax.tree.map(lambda leaf: leaf * jnp.nan, agents[0].state.sac.actor)
    learner = dataclasses.replace(agents[0].state.sac, actor=actor)
    agents[0].state = agents[0].state._replace(sac=learner)
    with pytest.raises(UsageError, match=r"^1 of 3 .* seed 0: .* after 6 gradient updates"):
        learn_together(agents)
    assert numbers(agents[1])[0].tobytes() == alone[1][0].tobytes()


def test_an_error_that_nobody_expected_is_raised():
    agents = several()
    agents[1].env.unwrapped.step = lambda action: 1 / 0
    agents[2].learn = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        learn_together(agents, real_episodes=1)
    assert agents[0].state.counts.real_episodes == 1


def test_what_two_of_them_cannot_share_is_refused():
    env = gym.make("Rail-v0")
    two = [DynaSAC(env, probes.Slide(), SMALL, seed) for seed in range(2)]
    with pytest.raises(UsageError, match="two agents share one environment: make one for each"):
        learn_together(two)
    assert learn_together([]) == []


def test_memory_is_for_all_of_them():
    each = DynaSAC("Rail-v0", probes.Slide(), SMALL).memory
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


TRAIN = ["train", "Rail-v0", SLIDE, *TINY, "--adapt=none", "--real-episodes=1"]
RESUME = ["train", "--resume", "--output=runs/Rail-v0", SLIDE]


def test_seeds_leave_ordinary_runs_and_a_table(capsys):
    assert cli.run([*TRAIN, "--seeds=2", "--seed=4"]) == 0
    told = capsys.readouterr().out
    summary = json.loads(Path("runs/Rail-v0/seed-5/summary.json").read_text())
    assert re.search(rf"\n 5 +{summary['evaluation']['mean_return']:.1f} ", told)
    assert re.search(r"\n mean +-\d.*\n worst +-\d", told)
    assert "everything is in runs/Rail-v0/\n" in told
    assert "dynasac report runs/Rail-v0/seed-* --output runs/Rail-v0/report.html" in told
    assert cli.run([*TRAIN, "--seed=5", "--output=alone"]) == 0
    assert same_run(Path("runs/Rail-v0/seed-5"), Path("alone"))
    assert cli.run(["evaluate", "runs/Rail-v0/seed-4", "--episodes=2"]) == 0

    assert cli.run(RESUME) == 0
    assert "all 2 seeds in runs/Rail-v0 are complete" in capsys.readouterr().out
    assert cli.run([*RESUME, "--real-episodes=2"]) == 0
    assert cli.run([*TRAIN[:-1], "--real-episodes=2", "--seed=5", "--output=longer"]) == 0
    assert same_run(Path("runs/Rail-v0/seed-5"), Path("longer"))
    for changed, message in (
        (["--seeds=3"], "runs/Rail-v0 holds 2 seeds, not 3 seeds: leave --seeds out"),
        (["--seed=5"], "has --seed 4, not 5"),
    ):
        with pytest.raises(UsageError, match=message):
            cli.run([*RESUME, *changed])
    with (
        runs.locked(Path("runs/Rail-v0"), "is busy"),
        pytest.raises(UsageError, match="is being written by another process"),
    ):
        cli.run(RESUME)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds=0"], "--seeds 0: at least 1"),
        (["--seeds=2", "--seed=2147483647"], "--seed 2147483648: from 0 to"),
        (["--seeds=2", "--output=full"], "full already holds something: choose another --output"),
        (["--seeds=1000000"], r"1000000 learners .*: \d+ fit"),
        (["--resume", "--seeds=2"], "--resume needs --output DIR"),
    ],
)
def test_bad_input(arguments, message):
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    with pytest.raises(UsageError, match=message):
        cli.run([*TRAIN, *arguments])
    assert [path.name for path in Path().iterdir()] == ["full"]


class Moody(probes.Rail):
    """The second one that is made fails in its third step."""

    made, well = 0, False

    def __init__(self):
        Moody.made += 1
        self.bad = Moody.made == 2

    def step(self, action):
        self.time = getattr(self, "time", 0) + 1
        if self.bad and self.time == 3 and not Moody.well:
            raise ConnectionError("the cable is loose")
        return super().step(action)


def test_the_failure_of_one_seed_is_told_and_tried_again(capsys, monkeypatch):
    gym.register("Moody-v0", entry_point=Moody, max_episode_steps=10)
    try:
        assert cli.run(["train", "Moody-v0", *TRAIN[2:], "--seeds=2", "--output=runs/Rail-v0"]) == 1
        out, error = capsys.readouterr()
        assert re.search(r"\n 0 +-", out)
        assert not re.search(r"\n 1 +-", out)
        assert "dynasac: runs/Rail-v0/seed-1: the environment failed (real episode 1, step" in error
        again = "try again with:  dynasac train --resume --output runs/Rail-v0 --model"
        assert again in error
        monkeypatch.setattr(Moody, "well", True)
        finished = Path("runs/Rail-v0/seed-0/summary.json").stat().st_mtime_ns
        assert cli.run(RESUME) == 0
        assert Path("runs/Rail-v0/seed-0/summary.json").stat().st_mtime_ns == finished
        assert re.search(r"\n 0 +-.*\n 1 +-", capsys.readouterr().out)
    finally:
        del gym.registry["Moody-v0"]


def test_ctrl_c_stops_all_and_all_go_on():
    settings = [*TINY, "--adapt=none", "--planning.updates=20000", "--real-episodes=1"]
    command = ["train", "probes:Rail-v0", SLIDE]
    process = start(*command, *settings, "--seeds=2", "--output=several")
    deadline = time.monotonic() + 90
    while len(list(Path().glob("several/seed-*/metrics.csv"))) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    code, _, error = finish(process)
    assert code == 130, error
    assert error.count("stopping at the next safe point; once more stops at once") == 1
    assert "what was learned is in several" in error
    assert "go on with:  dynasac train probes:Rail-v0 --resume --output several" in error
    assert "Traceback" not in error
    assert not list(Path().glob("several/seed-*/summary.json"))
    assert cli.run([*command, "--resume", "--output=several"]) == 0
    assert cli.run([*command, *settings, "--seed=1", "--output=alone"]) == 0
    assert same_run(Path("several/seed-1"), Path("alone"))


def test_ctrl_c_in_python_leaves_what_was_learned():
    agents = several(presets.with_real_episodes(SMALL, 1))
    stopped = []

    class Interrupting(probes.Rail):
        def step(self, action):
            if not stopped:
                stopped.append(True)
                signal.raise_signal(signal.SIGINT)
                time.sleep(0.3)
            return super().step(action)

    agents[0].env.unwrapped.__class__ = Interrupting
    with pytest.raises(KeyboardInterrupt):
        learn_together(agents)
    assert agents[0].state.counts.planned == 1
    assert agents[0].state.counts.real_episodes == 0
    learn_together(agents)
    assert [agent.state.counts.real_episodes for agent in agents] == [1] * SEEDS
