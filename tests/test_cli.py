"""The command line: what it writes, and one line for everything that can go wrong."""

import csv
import functools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import probes
import pytest
from conftest import beside_tests, same_run

from dynasac import DynaSAC, UsageError, agent, checkpoint, cli, recording
from dynasac.cli.parse import parse
from dynasac.models import model_from_file

TESTS = Path(__file__).parent
TINY = [
    "--planning.first-updates=3",
    "--planning.updates=2",
    "--sac.hidden",
    "16",
    "16",
    "--sac.batch-size=8",
    "--replay-capacity=500",
    "--evaluation-episodes=2",
]
SLIDE = f"--model={TESTS / 'probes.py'}:Slide"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Runs are written to a directory of the test's own."""
    monkeypatch.chdir(tmp_path)


_read_once = functools.cache(model_from_file)


@pytest.fixture(autouse=True)
def _one_class_for_each_file(monkeypatch):
    """What is beside the tests is read once, or programs would be compiled for each time."""

    def read(reference: str):
        ours = reference.startswith(f"{TESTS}/")
        return _read_once(reference) if ours else model_from_file(reference)

    monkeypatch.setattr(agent, "model_from_file", read)


def start(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "dynasac.cli", *arguments],
        env=beside_tests(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=120)
    return process.returncode, out, error


def rows(directory: Path) -> list[dict]:
    with (directory / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_train_then_evaluate(tmp_path, capsys):
    assert cli.run(["train", "Rail-v0", SLIDE, *TINY, "--real-episodes=1", "--seed=5"]) == 0
    said = capsys.readouterr().out
    run = tmp_path / "runs" / "Rail-v0"
    assert "mean return" in said
    for command in ("evaluate", "report", "record", "export"):
        assert f"dynasac {command} runs/Rail-v0" in said
    assert {"config.json", "metrics.csv", "summary.json", "checkpoints", "policy"} <= {
        path.name for path in run.iterdir()
    }
    assert list(run.glob("events.*"))
    assert not [path for path in run.rglob(".*")]

    config = json.loads((run / "config.json").read_text())
    assert (config["env_id"], config["seed"], config["preset"]) == ("Rail-v0", 5, "default")
    assert config["settings"]["sac"]["hidden"] == [16, 16]
    assert config["versions"]["jax"]

    summary = json.loads((run / "summary.json").read_text())
    assert summary["gradient_updates"] == 3 + 2
    assert summary["model"]["name"] == "Slide"
    assert summary["model"]["parameters"] == {"speed": 0.5}
    assert summary["evaluation"]["episodes"] == 2
    assert [row["real_episodes"] for row in rows(run)] == ["0", "1"]
    assert float(rows(run)[1]["eval_mean_return"]) == summary["evaluation"]["mean_return"]

    assert cli.run(["evaluate", str(run), "--episodes=2", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["returns"] == summary["evaluation"]["returns"]
    assert (measured["env_id"], measured["regret"]) == ("Rail-v0", None)

    assert cli.run(["evaluate", str(run), "--episodes=3", "--seed=7", "--lookahead=1", SLIDE]) == 0
    assert "over 3 episodes" in capsys.readouterr().out

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"already holds something.*--resume"):
        cli.run(["train", "Rail-v0", SLIDE, *TINY, f"--output={run}"])
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    with pytest.raises(UsageError, match="lookahead needs a model"):
        cli.run(["evaluate", str(run), "--episodes=2", "--lookahead=1"])

    weights = run / "policy" / "policy.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(UsageError, match="is truncated: 5 bytes are missing"):
        cli.run(["evaluate", str(run), "--episodes=2"])


def test_the_known_physics_by_default_and_planning_alone(tmp_path, capsys):
    command = ["train", "Pendulum-v1", *TINY, "--real-episodes", "0"]
    assert cli.run(command) == 0
    assert cli.run(command) == 0  # again, beside the first
    summary = json.loads((tmp_path / "runs" / "Pendulum-v1-2" / "summary.json").read_text())
    assert summary["real_steps"] == 0
    assert summary["model"]["parameters"] == {"g": 10.0, "m": 1.0, "l": 1.0}
    first, second = (
        (tmp_path / "runs" / name / "policy" / "policy.safetensors").read_bytes()
        for name in ("Pendulum-v1", "Pendulum-v1-2")
    )
    assert first == second


def test_without_a_model(tmp_path):
    small = [option for option in TINY if "planning" not in option]
    arguments = ["--model=none", "--real-episodes=1", "--random-steps=4", "--output=run"]
    assert cli.run(["train", "Clock-v0", *small, *arguments]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"]["name"] == "none"
    assert (summary["synthetic_transitions"], summary["real_steps"]) == (0, 10)
    assert summary["gradient_updates"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pendulm-v1"], r"did you mean Pendulum-v1"),
        (["nowhere_to_be_found:Thing-v0"], r"there is no module nowhere_to_be_found"),
        (["Buttons-v0"], r"continuous actions"),
        (["Picture-v0"], r"pictures are not supported"),
        (["Labelled-v0"], r"FlattenObservation"),
        (["Rail-v0"], r"no physics is known for Rail-v0.*--model FILE\.py:Class.*--model none"),
        (["Rail-v0", "--model=gone.py:Cart"], r"there is no file gone\.py"),
        (["Rail-v0", "--model=Cart"], r"write it as FILE\.py:Class"),
        (["Rail-v0", f"--model={TESTS}/probes.py:Nothing"], r"has no class Nothing; it has .*Slid"),
        (["Rail-v0", f"--model={TESTS}/probes.py:Box"], r"subclass of dynasac\.PhysicsModel"),
        (["Rail-v0", f"--model={TESTS}/probes.py:Clock"], r"get_state\(\) and set_state"),
        (["Rail-v0", f"--model={TESTS}/probes.py:Drift"], r"not shape \(1,\)"),
        (["Pendulum-v1", "--real-episodes=-1"], r"--real-episodes -1: must be at least 0"),
        (["Pendulum-v1", "--replay-capacity=0"], r"--replay-capacity 0"),
        (["Pendulum-v1", "--planning.horizon=0"], r"--planning.horizon 0"),
        (["Pendulum-v1", "--planning.horizon=600"], r"at most the batch of 256"),
        (["Pendulum-v1", "--planning.updates=-5"], r"--planning.updates -5"),
        (["Pendulum-v1", "--planning.real-fraction=1.5"], r"must be from 0 to 1"),
        (["Pendulum-v1", "--planning.exploration=nan"], r"must be from 0 to 1"),
        (["Pendulum-v1", "--sac.advantage-learning=-0.1"], r"must be from 0 to 1"),
        (["Pendulum-v1", "--sac.advantage-learning=1"], r"must be less than 1"),
        (["Pendulum-v1", "--planning.starts.space=0"], r"not all of them 0"),
        (["Pendulum-v1", "--planning.starts.reset=-1"], r"weights of at least 0"),
        (
            ["Pendulum-v1", "--adapt=none", "--planning.stored-transitions=200000"],
            r"more than the replay",
        ),
        (["Pendulum-v1", "--planning.stored-transitions=10"], r"needs --adapt none"),
        (["Pendulum-v1", "--model=simulator", "--adapt=residual"], r"written as equations"),
        (["Pendulum-v1", "--sac.batch-size=0"], r"--sac.batch-size 0"),
        (["Pendulum-v1", "--sac.learning-rate=0"], r"must be more than 0"),
        (["Pendulum-v1", "--sac.discount=2"], r"--sac.discount 2.0"),
        (["Pendulum-v1", "--sac.hidden", "0"], r"--sac.hidden"),
        (["Pendulum-v1", "--evaluation-episodes=-1"], r"--evaluation-episodes: 0 to 1,000,000"),
        (["Pendulum-v1", "--seed=-1"], r"--seed -1: from 0 to"),
        (["Pendulum-v1", "--resume"], r"--resume needs --output"),
        (["Pendulum-v1", "--resume", "--output=nothing"], r"there is no config\.json"),
    ],
)
def test_bad_input_to_train(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        cli.run(["train", *arguments])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())  # nothing was written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], r"nothing is not a run directory"),
        (["nothing", "--episodes=0"], r"--episodes: at least 1"),
        (["nothing", "--seed=-3"], r"--seed: at least 0"),
    ],
)
def test_bad_input_to_evaluate(arguments, message):
    with pytest.raises(UsageError, match=message):
        cli.run(["evaluate", *arguments])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", r"config\.json is damaged"),
        ("{}", r"name it with --env"),
        ('{"env_id": "os:Evil-v0"}', r"'os:Evil-v0' does not come with Gymnasium"),
        ('{"env_id": ["Pendulum-v1"]}', r"does not come with Gymnasium"),
        ('{"env_id": "Pendulum-v1"}', r"holds no policy yet"),
    ],
)
def test_run_directories_that_are_none(tmp_path, config, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(config)
    with pytest.raises(UsageError, match=message):
        cli.run(["evaluate", "run"])


def test_an_environment_that_returns_nan(tmp_path, monkeypatch):
    # where compiling takes longer, what was learned before is kept
    monkeypatch.setattr(recording, "SAVE_SECONDS", 1e9)
    with pytest.raises(UsageError, match="non-finite observation"):
        cli.run(["train", "BrokenObservation-v0", SLIDE, *TINY, "--output=run"])
    assert not (tmp_path / "run").exists()


def test_presets_show_their_settings_in_the_help(capsys):
    def shown(*arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.run(["train", *arguments, "--help"])
        assert stopped.value.code == 0
        return " ".join(capsys.readouterr().out.split())

    assert "--real-episodes" in shown()
    seed = shown("Pendulum-v1", "--preset", "seed")
    assert "(default: 20)" in seed
    assert "(default: 100)" in seed
    assert "(default: 20)" not in shown("Pendulum-v1")


def test_an_error_is_one_line_and_no_traceback(tmp_path):
    codes = [
        finish(process) for process in [start("train", "Pendulm-v1"), start("evaluate", "nothing")]
    ]
    for code, out, error in codes:
        assert (code, out) == (1, "")
        assert error.startswith("dynasac: ")
        assert error.count("\n") == 1
    assert "did you mean Pendulum-v1" in codes[0][2]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "missing from dynasac train: ENV Gymnasium environment id, or MODULE:ID"),
        (["train", "Pendulum-v1", "--seed=x"], "error parsing --seed: invalid literal for int()"),
        (
            ["train", "Pendulum-v1", "--sed", "3"],
            "--sed, 3; perhaps you meant --seed (dynasac train",
        ),
        (["train", "Pendulum-v1", "--preset=best"], "invalid choice 'best' for argument '--preset"),
        (["evaluate"], "missing from dynasac evaluate: DIR run directory"),
        (["record", "run", "more"], "unrecognized options: more (dynasac record --help has"),
        (["frobnicate"], "unrecognized options: frobnicate"),
        (["--verbose"], "(dynasac --help has all there is)"),
    ],
)
def test_what_cannot_be_parsed_is_said_in_one_line(capsys, arguments, said):
    with pytest.raises(SystemExit) as stopped:
        cli.run(arguments)
    out, error = capsys.readouterr()
    assert (stopped.value.code, out) == (2, "")
    assert error.startswith("dynasac: ")
    assert error.count("\n") == 1
    assert said in error
    assert "─" not in error


def test_modules_here_are_found_but_not_in_place_of_installed_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "jinja2.py").write_text("raise SystemExit('planted')")
    (tmp_path / "own_env.py").write_text(
        "import jinja2, probes, gymnasium\n\n"
        "gymnasium.register('Planted-v0', entry_point=probes.Clock, max_episode_steps=5)\n"
    )
    assert cli.run(["envs"]) == 0
    assert "" not in sys.path
    monkeypatch.delitem(sys.modules, "jinja2", raising=False)
    with pytest.raises(UsageError, match="no physics is known for Planted-v0"):
        cli.run(["train", "own_env:Planted-v0"])


def test_stopped_and_resumed_ends_as_if_never_stopped(tmp_path):
    settings = [*TINY, "--planning.updates=4000", "--real-episodes=2"]
    command = ["train", "probes:Rail-v0", SLIDE, "--seed=2"]
    first = start(*command, *settings, "--output=stopped")
    deadline = time.monotonic() + 90
    while not (tmp_path / "stopped" / "metrics.csv").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    first.send_signal(signal.SIGINT)
    code, _, error = finish(first)
    assert code == 130
    assert "stopping at the next safe point; once more stops at once" in error
    assert "what was learned is in stopped" in error
    assert "go on with:  dynasac train probes:Rail-v0 --resume --output stopped" in error
    assert "Traceback" not in error
    assert not (tmp_path / "stopped" / "summary.json").exists()
    assert (tmp_path / "stopped" / "policy" / "policy.safetensors").exists()

    code, _, error = finish(start(*command, "--resume", "--output=stopped"))
    assert code == 0, error
    assert cli.run([*command, *settings, "--output=whole"]) == 0
    assert same_run(tmp_path / "stopped", tmp_path / "whole")
    assert [row["real_episodes"] for row in rows(tmp_path / "stopped")] == ["0", "1", "2"]


def test_readers_work_while_training_runs_and_a_second_writer_is_refused(tmp_path, capsys):
    settings = [*TINY, "--planning.updates=40000", "--real-episodes=30"]
    training = start("train", "probes:Rail-v0", SLIDE, *settings, "--output=run")
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.csv").exists():
        assert training.poll() is None, training.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while not (tmp_path / "run" / "policy" / "policy.safetensors").exists():
        time.sleep(0.02)
    for _ in range(3):
        assert cli.run(["evaluate", "run", "--episodes=2", "--env=Rail-v0"]) == 0
        assert cli.run(["report", "run", "--env=Rail-v0"]) == 0
        assert json.loads((tmp_path / "run" / "config.json").read_text())["env_id"] == "Rail-v0"
        with pytest.raises(UsageError, match="run is being written by another process"):
            cli.run(["train", "Rail-v0", "--resume", "--output=run", SLIDE])
    assert training.poll() is None, "it was over too soon to show anything"
    assert "mean return" in capsys.readouterr().out
    training.send_signal(signal.SIGTERM)
    code, _, error = finish(training)
    assert code == 130
    assert "Traceback" not in error


def test_what_goes_on_with_a_run_is_only_what_was_given():
    def told(*arguments):
        return parse(["train", *arguments]).go_on(Path("my run"))

    begin = "dynasac train --resume --output 'my run'"
    assert told("Rail-v0") == begin
    assert told("Rail-v0", "--real-episodes=3") == begin  # its config.json knows
    given = ["--model=a b.py:C", "--evaluation-episodes=7", "--seed=3", "--preset=seed"]
    assert told("Rail-v0", *given) == f"{begin} --model 'a b.py:C'"
    assert told("own:Rail-v0") == begin.replace("train", "train own:Rail-v0")


def test_settings_of_a_run_that_are_changed_are_named(tmp_path):
    assert cli.run(["train", "Rail-v0", SLIDE, *TINY, "--output=run"]) == 0
    resume = ["train", "--resume", "--output=run", SLIDE]
    for changed, told in (
        (["--seed=4"], "has --seed 0, not 4:"),
        (["--sac.batch-size=5"], "has --sac.batch-size 8, not 5:"),
        (["--seed=3", "--adapt=none"], "has --seed 0, not 3; --adapt auto, not none"),
    ):
        with pytest.raises(UsageError, match=told):
            cli.run([*resume, *changed])
    assert cli.run([*resume, "--real-episodes=1", "--env-retries=3", "--step-seconds=9"]) == 0
    kept = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert (kept["real_episodes"], kept["env_retries"], kept["step_seconds"]) == (1, 3, 9)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["real_episodes"] == 1
    with pytest.raises(UsageError, match=r"has --model .*:Slide, not auto"):
        cli.run(resume[:-1])


def test_a_training_without_evaluation(tmp_path, capsys):
    tiny = [word for word in TINY if "evaluation" not in word]
    command = ["train", "Rail-v0", SLIDE, *tiny, "--real-episodes=1", "--output=run"]
    assert cli.run([*command, "--evaluation-episodes=0"]) == 0
    assert "Rail-v0: trained, and not evaluated" in capsys.readouterr().out
    assert cli.run(["report", "run"]) == 0
    assert cli.run(["train", "--resume", "--output=run", SLIDE, "--evaluation-episodes=2"]) == 0
    assert "nothing is left to do" in capsys.readouterr().out
    again = ["train", "--resume", "--output=run", SLIDE, "--real-episodes=2"]
    assert cli.run(again) == 0
    assert "over 2 episodes" in capsys.readouterr().out
    assert [row["eval_mean_return"] != "" for row in rows(tmp_path / "run")] == [False, False, True]


class Motor(probes.Rail):
    """Must be closed, lest it goes on turning."""

    turning = 0
    broken = False

    def __init__(self):
        Motor.turning += 1

    def step(self, action):
        if self.broken:
            raise RuntimeError("no answer from the motor")
        return super().step(action)

    def close(self):
        Motor.turning -= 1


def test_environments_are_closed_whatever_happens(monkeypatch):
    gym.register("Motor-v0", entry_point=Motor, max_episode_steps=10)
    command = ["train", "Motor-v0", "--model=none", *TINY, "--real-episodes=1"]
    try:
        assert cli.run([*command, "--output=run"]) == 0
        assert cli.run(["evaluate", "run", "--episodes=2"]) == 0
        assert cli.run(["export", "run", "--format=numpy"]) == 0
        monkeypatch.setattr(Motor, "broken", True)
        with pytest.raises(UsageError, match="no answer from the motor"):
            cli.run([*command, "--output=broken"])
    finally:
        del gym.registry["Motor-v0"]
    assert Motor.turning == 0


def test_what_goes_on_imports_nothing_that_the_run_names(tmp_path):
    assert cli.run(["train", "Rail-v0", SLIDE, *TINY, "--output=run"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    hostile = {**config, "env_id": "evil:Rail-v0", "model": "evil.py:Evil"}
    (tmp_path / "run" / "config.json").write_text(json.dumps(hostile))
    with pytest.raises(SystemExit, match="2"):  # the environment has to be named
        cli.run(["train", "--resume", "--output=run"])
    with pytest.raises(UsageError, match=r"has --model evil\.py:Evil, not auto"):
        cli.run(["train", "Rail-v0", "--resume", "--output=run"])


def test_a_damaged_checkpoint_is_said_and_the_one_before_is_gone_on_from(tmp_path, capsys):
    command = ["train", "Rail-v0", SLIDE, *TINY, "--output"]
    assert cli.run([*command, "whole", "--real-episodes=2"]) == 0
    assert cli.run([*command, "run", "--real-episodes=1"]) == 0
    newest, _ = checkpoint.numbered(tmp_path / "run" / "checkpoints")
    content = bytearray(newest.read_bytes())
    content[-9] ^= 1
    newest.write_bytes(content)
    assert cli.run(["train", SLIDE, "--resume", "--output=run", "--real-episodes=2"]) == 0
    said = capsys.readouterr().err
    assert f"{newest.name} is damaged: its arrays are not what was written; going on from" in said
    assert (newest.parent / f"{newest.name}.damaged").exists()
    assert same_run(tmp_path / "run", tmp_path / "whole")
    for path in checkpoint.numbered(tmp_path / "run" / "checkpoints"):
        path.write_bytes(b"")
    with pytest.raises(
        UsageError, match=r"nothing to go on from: .* is truncated: .*; .* is trunc"
    ):
        cli.run(["train", SLIDE, "--resume", "--output=run", "--real-episodes=3"])


def test_a_resumed_run_finishes_what_it_was_asked_for(tmp_path, capsys):
    """And no more, whatever the preset has: that of an ensemble has five real episodes."""
    command = ["train", "--output=run"]
    given = ["Rail-v0", "--model=ensemble", *TINY, "--real-episodes=1", "--random-steps=9"]
    assert cli.run([*command, *given]) == 0
    for told in ("summary.json", "metrics.csv"):
        (tmp_path / "run" / told).unlink()  # as if it had been killed
    assert cli.run([*command, "--resume"]) == 0
    capsys.readouterr()
    summary = (tmp_path / "run" / "summary.json").read_bytes()
    assert json.loads(summary)["real_episodes"] == 1
    assert cli.run([*command, "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("nothing is left to do: run is complete after 1 real episode; --real-")
    assert (tmp_path / "run" / "summary.json").read_bytes() == summary
    assert cli.run([*command, "--resume", "--real-episodes=2"]) == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["real_episodes"] == 2


def test_check_model_says_whether_the_model_is_right(tmp_path, capsys):
    (tmp_path / "wrong.py").write_text(
        "import dynasac\n\n\nclass Heavy(dynasac.Pendulum):\n    m: float = 1.3\n"
    )
    assert cli.run(["check-model", "Pendulum-v1", "--steps=600"]) == 0
    assert "Pendulum agrees with the environment on 600" in capsys.readouterr().out
    wrong = ["check-model", "Pendulum-v1", "--model=wrong.py:Heavy", "--steps=600"]
    assert cli.run(wrong) == 1
    assert "Heavy is wrong about observation[2]" in capsys.readouterr().out
    assert cli.run([*wrong, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["agrees"] is False
    assert report["transitions"] == 600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["Pendulum-v1", "--steps=0"], "--steps: at least 1"),
        (["Pendulum-v1", "--seed=-1"], "--seed: at least 0"),
        (["Pendulum-v1", "--steps=50"], "too few to judge Pendulum by"),
        (["Pendulum-v1", "--model=none"], "nothing to check"),
        (["Acrobot-v1"], "continuous actions"),
    ],
)
def test_bad_input_to_check_model(arguments, message):
    with pytest.raises(UsageError, match=message):
        cli.run(["check-model", *arguments])


def test_what_was_identified_is_kept_in_the_run(tmp_path, capsys):
    (tmp_path / "rough.py").write_text(
        "import dynasac\n\n\nclass Rough(dynasac.Pendulum):\n    g: float = 14.0\n"
    )
    train = ["train", "Pendulum-v1", "--model=rough.py:Rough", *TINY, "--real-episodes=1"]
    assert cli.run([*train, "--output=run"]) == 0
    said = capsys.readouterr().out
    assert "g 14 →" in " ".join(said.split())
    _, row = rows(tmp_path / "run")
    assert row["adapt_rung"] == "identified"
    assert float(row["error_exact"]) > 10 * float(row["error_identified"])
    assert float(row["model_error"]) == float(row["error_identified"])
    assert "the model with fitted parameters" in row["decision"]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    found = summary["model"]["parameters"]
    assert found["g"] / found["l"] == pytest.approx(10, rel=1e-2)
    assert summary["model"]["identified"][0]["before"] == 14
    loaded, _ = recording.load_run(tmp_path / "run", "Pendulum-v1", "rough.py:Rough")
    assert float(loaded.model.g) == pytest.approx(found["g"])


PUSHED = ["--dataset=log.csv", "--columns.observation", "x", "--columns.action", "force"]


def write_log(path, rows=40, speed=0.5):
    """What somebody logged of `Rail-v0`, two steps to an episode; the rewards were not."""
    rng = np.random.default_rng(0)
    lines = ["run,x,force"]
    for episode in range(rows // 2):
        x = rng.uniform(0.4, 0.5)
        for _ in range(2):
            force = rng.uniform(-0.5, 0.5)
            lines.append(f"{episode},{x:.7f},{force:.7f}")
            x += speed * force
        lines.append(f"{episode},{x:.7f},")
    path.write_text("\n".join(lines))


def test_training_on_a_log_without_a_real_step(tmp_path, capsys):
    write_log(tmp_path / "log.csv")
    fast = tmp_path / "fast.py"
    fast.write_text("import probes\n\n\nclass Fast(probes.Slide):\n    speed: float = 0.8\n")
    model = f"--model={fast}:Fast"
    command = ["train", "Rail-v0", model, *TINY, *PUSHED, "--columns.episode=run"]
    assert cli.run([*command, "--real-episodes=0", "--output=run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "log.csv: 40 real transitions in 20 episodes, without rewards: they are" in said
    assert "after 40 logged transitions: error on 40 real transitions" in said
    assert "speed 0.8 → 0.5" in said
    assert "learned from 0 real, 40 logged and" in said
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dataset"] == "log.csv"
    assert config["columns"]["observation"] == ["x"]
    (row,) = rows(tmp_path / "run")
    assert (row["real_steps"], row["logged_transitions"]) == ("0", "40")
    assert row["adapt_rung"] == "identified"
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["logged_transitions"] == 40
    assert summary["model"]["identified"][0]["after"] == pytest.approx(0.5, rel=1e-3)

    (tmp_path / "log.csv").rename(tmp_path / "moved.csv")  # a run goes on without the file
    goes_on = ["train", "Rail-v0", model, "--resume", "--output=run", "--real-episodes=1"]
    assert cli.run(goes_on) == 0
    assert [row["logged_transitions"] for row in rows(tmp_path / "run")] == ["40", "40"]
    with pytest.raises(UsageError, match=r"is not of the data set moved\.csv: leave it out"):
        cli.run([*goes_on, "--dataset=moved.csv"])
    (tmp_path / "moved.csv").rename(tmp_path / "log.csv")
    assert cli.run([*command, "--real-episodes=1", "--output=whole"]) == 0
    ours, theirs = (
        (tmp_path / name / "policy" / "policy.safetensors").read_bytes()
        for name in ("run", "whole")
    )
    assert ours == theirs


def test_a_run_on_a_log_that_was_killed_at_once_needs_the_log_again(tmp_path):
    write_log(tmp_path / "log.csv")
    command = ["train", "Rail-v0", SLIDE, "--output=run"]
    assert cli.run([*command, *TINY, *PUSHED, "--real-episodes=0"]) == 0
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.unlink()
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(UsageError, match=r"name its data set again with --dataset"):
        cli.run([*command, "--resume"])
    assert cli.run([*command, "--resume", *PUSHED]) == 0
    (row,) = rows(tmp_path / "run")
    assert row["logged_transitions"] == "40"


def test_runs_without_a_data_set_say_so(tmp_path):
    assert cli.run(["train", "Rail-v0", SLIDE, *TINY, "--real-episodes=0", "--output=run"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["dataset"], config["columns"]) == (None, None)
    assert rows(tmp_path / "run")[0]["logged_transitions"] == "0"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["Rail-v0", "--model=none", *PUSHED],
            r"log\.csv has no column of rewards, and there is no",
        ),
        (["Rail-v0", SLIDE, "--dataset=log.csv"], r"no column observation_0; it has run, x, force"),
        (["Rail-v0", SLIDE, "--dataset=gone.csv"], r"there is no file gone\.csv"),
        (["Rail-v0", SLIDE, *PUSHED, "--replay-capacity=30"], r"--replay-capacity 40 keeps all"),
    ],
)
def test_logs_that_cannot_be_trained_on(tmp_path, arguments, message):
    write_log(tmp_path / "log.csv")
    with pytest.raises(UsageError, match=message):
        cli.run(["train", *arguments, "--output=run"])
    assert not (tmp_path / "run").exists()


def test_check_model_on_a_log_takes_no_real_step(tmp_path, capsys, monkeypatch):
    write_log(tmp_path / "log.csv", 450)
    monkeypatch.setattr("probes.Rail.step", lambda *_: pytest.fail("a real step was taken"))
    check = ["check-model", "Rail-v0", *PUSHED, "--columns.episode=run"]
    assert cli.run([*check, SLIDE]) == 0
    said = capsys.readouterr().out
    assert "450 real transitions in 225 episodes" in said
    assert "Slide agrees with the environment on 450" in said
    fast = tmp_path / "fast.py"
    fast.write_text("import probes\n\n\nclass Fast(probes.Slide):\n    speed: float = 0.8\n")
    assert cli.run([*check, f"--model={fast}:Fast"]) == 1
    *_, verdict, fitted, then = capsys.readouterr().out.splitlines()
    assert "Fast is wrong about observation[0]" in verdict
    assert fitted.startswith("fitted to these transitions: speed 0.8 → 0.5")
    assert then == "then: Fast agrees with the environment on 450 transitions"
    assert cli.run([*check, f"--model={fast}:Fast", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["agrees"] is False
    assert report["fit"]["agrees"] is True
    assert report["fit"]["parameters"][0]["after"] == pytest.approx(0.5, rel=1e-3)


def test_an_own_model_is_not_replaced_by_the_known_physics(tmp_path, capsys):
    """The policy needs none; lookahead asks for the one that was trained with."""
    (tmp_path / "rough.py").write_text(
        "import dynasac\n\n\nclass Rough(dynasac.Pendulum):\n    drag: float = 0.1\n"
    )
    model = "--model=rough.py:Rough"
    train = ["train", "Pendulum-v1", model, *TINY, "--real-episodes=0", "--output=run"]
    assert cli.run(train) == 0
    assert recording.load_run(tmp_path / "run")[0].model is None
    assert DynaSAC.load(tmp_path / "run" / "policy", "Pendulum-v1").model is None
    assert cli.run(["evaluate", "run", "--episodes=2"]) == 0
    for command in ("evaluate", "record"):
        with pytest.raises(UsageError, match=r"rough\.py:Rough'.*--model FILE\.py:Class"):
            cli.run([command, "run", "--episodes=1", "--lookahead=1"])
    assert cli.run(["evaluate", "run", "--episodes=1", "--lookahead=1", model]) == 0
    capsys.readouterr()
    agent, _ = recording.load_run(tmp_path / "run", model="rough.py:Rough")
    assert type(agent.model).__name__ == "Rough"


@pytest.mark.parametrize("name", ["none", "auto"])
def test_a_known_name_of_a_model_is_taken_as_it_is(tmp_path, name):
    options = [option for option in TINY if "planning" not in option]
    train = ["train", "Pendulum-v1", f"--model={name}", *options, "--planning.first-updates=2"]
    assert cli.run([*train, "--real-episodes=0", "--output=run"]) == 0
    agent, _ = recording.load_run(tmp_path / "run")
    assert (agent.model is None) == (name == "none")
