"""A training that leaves a run directory: evaluation, metrics, checkpoints and the summary."""

import dataclasses
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from . import evaluation, presets, training
from .adapt import ladder
from .agent import DynaSAC, Rigs
from .checkpoint import read_json
from .datasets import USUAL_NAMES, Columns
from .errors import UsageError
from .evaluation import Evaluation
from .models import KNOWN_PHYSICS, DynamicsModel, PhysicsModel, Turned
from .runs import CompileClock, Run, measured, plain, read_metrics
from .training import Phase, TrainingState

LOG = logging.getLogger(__name__)

SAVE_SECONDS = 10.0
"""of computing that may be lost"""


class Interrupted(Exception):
    """Training was stopped by a signal at a point where it can be gone on from."""


class Stop:
    """Whether somebody wants training to stop, at its next safe point."""

    asked = False


class Recorder:
    """An observer that evaluates and writes after each real episode, and stops when asked to.

    Where episodes are short it evaluates after at least `evaluate_every` real steps. All that is
    needed to go on is written as soon as there are new real transitions, and every
    `SAVE_SECONDS` of computing.
    """

    def __init__(
        self,
        agent: DynaSAC,
        run: Run,
        episodes: int,
        evaluate_every: int = 0,
        watch: Callable[[dict[str, Any]], None] | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ):
        self._agent, self._run, self._episodes = agent, run, episodes
        self._every, self._watch, self._stopped = evaluate_every, watch, stopped
        self._evaluated_at = run.evaluated_at
        self._saved = agent.state.counts
        self._saved_at = time.monotonic()
        self.last: Evaluation | None = None

    def progress(self, state: TrainingState, phase: Phase) -> None:
        self._run.stopwatch.enter(phase)
        with self._writing():
            self._run.log_learning(training.learning(state), state.counts.gradient_updates)
            learned = state.counts.real_steps > self._saved.real_steps
            due = time.monotonic() - self._saved_at > SAVE_SECONDS
            if learned or (due and state.counts != self._saved):
                self._save_checkpoint()
        if self._stopped():
            self.save()
            raise Interrupted

    def episode(self, state: TrainingState) -> bool | None:
        at = self._evaluated_at
        if self._episodes and (at is None or state.counts.real_steps - at >= self._every):
            self._evaluate(state)
        else:
            self._run.stopwatch.enter(None)
            self._append(training.metrics(state))
        self.save()

    def final(self) -> Evaluation | None:
        """What the policy is worth in the end, whose row of metrics says so too.

        None where it is not to be evaluated.
        """
        if self._episodes and self._evaluated_at != self._agent.state.counts.real_steps:
            self._evaluate(self._agent.state)
        if self._episodes and self.last is None:  # there was nothing left to train
            self.last = self._agent.evaluate(self._episodes)
            self.save()
        return self.last

    def _evaluate(self, state: TrainingState) -> None:
        self._run.stopwatch.enter("evaluate")
        self.last = self._agent.evaluate(self._episodes)
        self._run.stopwatch.enter(None)
        self._evaluated_at = state.counts.real_steps
        measured = {
            "eval_mean_return": self.last.mean_return,
            "eval_regret": evaluation.regret(self._agent.env_id, self.last),
        }
        self._append({**training.metrics(state), **measured})

    def _append(self, row: dict[str, Any]) -> None:
        with self._writing():
            self._run.append(row)
        if self._watch is not None:
            self._watch(row)

    def summarise(self, measured: Evaluation | None, compile_seconds: float) -> None:
        """Write down what came out."""
        with self._writing():
            self._run.write_summary(_summary(self._agent, self._run, measured, compile_seconds))

    def save(self) -> None:
        """Write the policy, then the checkpoint: what is cut off in between is done again."""
        with self._writing():
            self._agent.save(self._run.directory / "policy")
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        self._agent.save_checkpoint(self._run.directory / "checkpoints")
        self._saved, self._saved_at = self._agent.state.counts, time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._run.check_place()
        try:
            yield
        except OSError as error:
            counts, directory = self._saved, self._run.directory
            raise UsageError(
                f"cannot write to {directory}: {error.strerror}. The last good state in it is that "
                f"after {counts.real_steps:,} real steps and {counts.gradient_updates:,} updates: "
                "make room and go on with it"
            ) from None


def record_training(
    agent: DynaSAC,
    run: Run,
    episodes: int,
    progress_bar: bool,
    total_timesteps: int | None = None,
    evaluate_every: int = 0,
    watch: Callable[[dict[str, Any]], None] | None = None,
    stopped: Callable[[], bool] | None = None,
    rigs: Rigs | None = None,
) -> Evaluation | None:
    """Train as the agent's settings say, or for at least `total_timesteps`; leave `run` complete.

    Arguments:
        episodes: of each evaluation; 0 for none, so that the environment is not used for that.
        evaluate_every: real steps that lie between two evaluations at least, but for the last.
        watch: called with each row of metrics.csv.
        stopped: asked several times a second whether to stop, as Ctrl-C does.
        rigs: what real episodes come from, if not from the agent's own environment.

    Raises:
        Interrupted: by Ctrl-C, SIGTERM or `stopped`; what was learned so far is in `run`.
        UsageError: the environment or the model returned what is no number; `run` is as it was
            after the last complete episode, or gone if there was none.
    """
    clock = CompileClock()
    real_episodes = agent.config.real_episodes if total_timesteps is None else None
    with stopping() as stop:

        def asked() -> bool:
            return stop.asked or (stopped is not None and stopped())

        recorder = Recorder(agent, run, episodes, evaluate_every, watch, asked)
        try:
            agent.learn(
                total_timesteps,
                real_episodes=real_episodes,
                progress_bar=progress_bar,
                observer=recorder,
                rigs=rigs,
            )
            measured = recorder.final()
            recorder.summarise(measured, clock.seconds)
        except UsageError:
            run.discard_if_empty()
            raise
        finally:
            run.close()
    return measured


def _summary(agent: DynaSAC, run: Run, measured: Evaluation | None, compile_seconds: float) -> dict:
    counts = agent.state.counts
    return {
        "env_id": agent.env_id,
        "seed": agent.seed,
        "real_episodes": counts.real_episodes,
        "real_steps": counts.real_steps,
        "logged_transitions": counts.logged_transitions,
        "synthetic_transitions": counts.synthetic_transitions,
        "gradient_updates": counts.gradient_updates,
        "wall_seconds": run.wall_seconds,
        "compile_seconds": compile_seconds,
        "phase_seconds": run.stopwatch.seconds,
        "evaluation": measured and measured.summary(),
        "model": describe_model(agent),
    }


def describe_model(agent: DynaSAC) -> dict:
    """Name, rung, parameters and error of the agent's model, as JSON holds them."""
    model, adaptation = agent.model, agent.state.adaptation
    if isinstance(model, Turned):  # which the decision tells
        model = model.model
    described = {
        "name": "none" if model is None else model.name,
        "rung": adaptation.rung,
        "parameters": {},
        "error": adaptation.error,
        "identified": ladder.described(adaptation)["parameters"],
        "decision": training.decision(agent.state),
    }
    if isinstance(model, PhysicsModel):
        leaves = jax.tree_util.tree_flatten_with_path(model)[0]
        described["parameters"] = {
            jax.tree_util.keystr(path).lstrip("."): float(leaf)
            for path, leaf in leaves
            if np.ndim(leaf) == 0
        }
    return described


def asked_for(
    agent: DynaSAC,
    model: str,
    preset: str,
    dataset: str | None = None,
    columns: Columns = USUAL_NAMES,
    evaluation_episodes: int = 100,
    collected_by: Mapping[str, Any] | None = None,
) -> dict:
    """What config.json holds of a training.

    Arguments:
        collected_by: how many rigs, and whether in order, by the names of the options.
    """
    return {
        "env_id": agent.env_id,
        "model": model,
        "preset": preset,
        "seed": agent.seed,
        "evaluation_episodes": evaluation_episodes,
        **(collected_by or {}),
        **_settings(agent),
        "dataset": dataset,
        "columns": None if dataset is None else plain(columns),
    }


def _settings(agent: DynaSAC) -> dict:
    memory = {**agent.memory._asdict(), "total": agent.memory.total}
    return {"settings": plain(agent.config), "memory": memory}


def load_run(
    directory: Path, env_id: str | None = None, model: str | None = None, lookahead: int = 0
) -> tuple[DynaSAC, dict]:
    """The trained agent of a run directory, and what its config.json says.

    Arguments:
        env_id: needed where the run's environment comes from a module of one's own, since nothing
            named in a file is imported.
        model: likewise for a model from a file. Without it such an agent has no model, which its
            policy does not need.
        lookahead: what will be asked of `DynaSAC.predict`.

    Raises:
        UsageError: this is no run directory, it is damaged, or there is no model to look ahead in.
    """
    if not (directory / "config.json").exists():
        raise UsageError(f"{directory} is not a run directory: it has no config.json")
    asked = read_json(directory / "config.json")
    written = asked.get("env_id")
    if env_id is None and (not isinstance(written, str) or written not in evaluation.registered()):
        raise UsageError(
            f"the run's environment {written!r} does not come with Gymnasium: name it with "
            "--env MODULE:ID"
        )
    if not (directory / "policy").exists():
        raise UsageError(f"{directory} holds no policy yet; go on with its training by --resume")
    named = asked.get("model")
    if model is None:
        known = named == "auto" and (env_id or written) in KNOWN_PHYSICS
        # simulators are for planning alone
        model = "auto" if known else "ensemble" if named == "ensemble" else "none"
    agent = DynaSAC.load(directory / "policy", env_id or str(written), model)
    if lookahead and not isinstance(agent.model, DynamicsModel):
        raise UsageError(
            f"lookahead needs a model that is equations or learned; the run's was {named!r}: name "
            "one with --model FILE.py:Class"
        )
    return agent, asked


def resume(
    directory: Path,
    env_id: str,
    model: str,
    changed: Mapping[str, Any] | None = None,
    evaluation_episodes: int | None = None,
    dataset: str | None = None,
    columns: Columns = USUAL_NAMES,
    made: DynamicsModel | None = None,
) -> tuple[DynaSAC, Run, list[str]]:
    """The agent of a run that was interrupted, as it was at its last whole checkpoint.

    The third of what is returned is a sentence for each checkpoint that is damaged.

    Arguments:
        changed: settings to go on with instead of the run's own, which only those of
            `presets.RENEWABLE` may be; config.json has them from now on.
        evaluation_episodes: likewise.
        dataset: the run's, if any; needed, and read, only where there is no checkpoint yet.
        made: what `model` names, where another agent has it already.

    Raises:
        UsageError: there is nothing to go on from, or another process does.
    """
    asked = read_json(directory / "config.json")
    if _whose(asked.get("model")) != _whose(model):
        raise UsageError(f"the run in {directory} has --model {asked.get('model')}, not {model}")
    before = presets.from_plain(asked.get("settings", {}))
    config = dataclasses.replace(before, **(changed or {}))
    seed = asked.get("seed", 0)
    if not isinstance(seed, int):
        raise UsageError(f"the run in {directory} has the seed {seed!r}, not a number")
    agent = DynaSAC(env_id, made or model, config, seed)
    if asked.get("env_id") != agent.env_id:
        raise UsageError(f"the run in {directory} is of {asked.get('env_id')}, not {agent.env_id}")
    if dataset not in (None, asked.get("dataset")):
        raise UsageError(f"the run in {directory} is not of the data set {dataset}: leave it out")
    run, folder, said = Run(directory), directory / "checkpoints", []
    try:
        if folder.exists() and any(folder.glob("state*")):
            said = agent.load_checkpoint(folder)
        elif (directory / "summary.json").exists() or any(
            measured(row, "real_steps") for row in read_metrics(directory)
        ):
            raise UsageError(
                f"{directory} has results, but no checkpoint to go on from: train anew in another "
                "--output"
            )
        elif dataset is not None:
            agent.remember(dataset, columns)
        elif asked.get("dataset") is not None:
            raise UsageError(
                f"the run in {directory} stopped before its first checkpoint: name its data set "
                "again with --dataset"
            )
        run.go_on(agent.state.counts.planned)
        kept = asked.get("evaluation_episodes")
        episodes = kept if evaluation_episodes is None else evaluation_episodes
        if config != before or episodes != kept:
            run.write_config({**asked, "evaluation_episodes": episodes, **_settings(agent)})
    except UsageError:
        run.close()
        agent.close()
        raise
    return agent, run, said


def _whose(model: object) -> object:
    """A model's name, without the folder that its file is in: that may have been moved."""
    return model.rpartition("/")[2] if isinstance(model, str) and ".py:" in model else model


def is_finished(agent: DynaSAC, directory: Path) -> bool:
    """Whether nothing is left to do of the training that `resume` gave."""
    if not (directory / "summary.json").exists():
        return False
    summary, counts = read_json(directory / "summary.json"), agent.state.counts._asdict()
    told = ("real_steps", "logged_transitions", "gradient_updates")
    as_told = all(summary.get(name) == counts[name] for name in told)
    return as_told and counts["real_episodes"] >= agent.config.real_episodes


@contextmanager
def stopping() -> Iterator[Stop]:
    """Asks for a stop on the first Ctrl-C or SIGTERM; the second ends everything at once."""
    stop, earlier = Stop(), {}

    def ask(number, frame):
        del frame
        stop.asked = True
        LOG.warning("stopping at the next safe point; once more stops at once")
        before = earlier[number]  # in the background shells have it ignored
        default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, default if before in (None, signal.SIG_IGN) else before)

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            earlier[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: signals are somebody else's business
        pass
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
