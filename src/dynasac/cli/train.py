"""`dynasac train`."""

import contextlib
import importlib.util
import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from .. import checkpoint, evaluation, presets
from ..checkpoint import read_json
from ..datasets import Columns
from ..errors import UsageError
from ..presets import Config
from ..runs import flat, plain, seed_directories
from .start import configure
from .words import worth

if TYPE_CHECKING:
    from ..agent import DynaSAC
    from ..models import DynamicsModel
    from ..runs import Run


@dataclass(frozen=True)
class Train:
    """Train a controller and leave a run directory."""

    env: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="ENV")]
    """Gymnasium environment id, or MODULE:ID"""
    model: str = "auto"
    """auto: known physics of the environment, or its MuJoCo simulator; FILE.py:Class: your own;
    simulator: a copy of the environment; ensemble: learn one; none: plain SAC"""
    dataset: str | None = None
    """logged transitions to learn from before any real episode, or instead: a CSV file, or
    minari:ID or the directory of a Minari data set"""
    columns: Columns = Columns()
    preset: Literal["default", "seed"] = "default"
    """the settings below that are not given: the best known, or the seed document's"""
    seed: int = 0
    """decides everything random"""
    seeds: int | None = None
    """train so many learners side by side, from --seed on, each as it would be alone; the run
    directory of each is seed-K in --output"""
    output: Path | None = None
    """run directory; runs/ENV, numbered, if not given"""
    resume: bool = False
    """go on with the run in --output, or with those of all seeds in it, with its own settings; ENV
    and --model are needed only if they are modules or files of your own. --real-episodes,
    --evaluation-episodes, --env-retries, --step-seconds and --checkpoint-every-steps may be others
    from now on"""
    evaluation_episodes: int = 100
    """episodes of each evaluation in the environment, episode k from reset(seed=10000+k); there is
    one before the first real episode and one after each. 0: none, as for real systems"""
    rigs: int = 0
    """real environments that collect side by side while training goes on, each in a process of its
    own that makes ENV anew and finds its number in DYNASAC_RIG; 0: this process collects"""
    rigs_in_order: bool = False
    """take their episodes in the order in which they were begun: equal seeds give equal bytes"""
    ray_address: str = "local"
    """where rigs are: local starts a Ray on this machine; HOST:PORT, one that is there"""
    settings: Annotated[Config, tyro.conf.arg(name="")] = presets.DEFAULT

    def run(self) -> int:
        presets.check(self.settings)
        if not 0 <= self.evaluation_episodes <= evaluation.MOST_EPISODES:
            raise UsageError(f"--evaluation-episodes: 0 to {evaluation.MOST_EPISODES:,}")
        if self.resume and self.output is None:
            raise UsageError("--resume needs --output DIR, the run to go on with")
        configure()
        held = seed_directories(self.output) if self.resume and self.output else []
        if held or self.seeds is not None:
            if self.rigs:
                raise UsageError("rigs feed one learner: leave out --rigs or --seeds")
            from . import seeds

            return seeds.train(self)
        from .. import recording

        if self.rigs < 0:
            raise UsageError(f"--rigs {self.rigs}: must be at least 0")
        if not self.rigs and (self.rigs_in_order or self.ray_address != "local"):
            raise UsageError("--rigs-in-order and --ray-address are about rigs: give --rigs too")
        rigs = None
        if self.rigs:
            from ..rigs import Rigs

            rigs = Rigs(self.rigs, self.rigs_in_order, self.ray_address)
        agent, run, said = self.resumed() if self.resume else self._new()
        print(*said, sep="\n", end="\n" if said else "", file=sys.stderr if self.resume else None)
        with contextlib.closing(agent):
            if self.resume and recording.is_finished(agent, run.directory):
                run.close()
                count = agent.state.counts.real_episodes
                print(
                    f"nothing is left to do: {run.directory} is complete after {count} real "
                    f"episode{'' if count == 1 else 's'}; --real-episodes {count + 1} goes on"
                )
                return 0
            try:
                measured = recording.record_training(
                    agent, run, self.evaluation_episodes, progress_bar=True, rigs=rigs
                )
            except (recording.Interrupted, KeyboardInterrupt):
                print("dynasac: stopped", file=sys.stderr)
                print(*self._what_is_left(run.directory), sep="\n", file=sys.stderr)
                return 130
            except UsageError as error:
                for line in self._what_is_left(run.directory):
                    error.add_note(line)
                raise
        _print_result(agent, measured, run.directory)
        print("next:", *self.next_commands(agent, run.directory), sep="\n  ")
        return 0

    def _new(self) -> tuple["DynaSAC", "Run", list[str]]:
        agent, said = self.learner()
        try:
            return agent, self.claimed(agent, self.output or free_directory(agent.env_id)), said
        except UsageError:
            agent.close()
            raise

    def learner(self, made: "DynamicsModel | None" = None) -> tuple["DynaSAC", list[str]]:
        """An agent with the logged data, and a sentence about these.

        Arguments:
            made: the model, where another agent has it already.
        """
        from .. import datasets
        from ..agent import DynaSAC

        agent = DynaSAC(self.env, made or self.model, self.settings, self.seed)
        if self.dataset is None:
            return agent, []
        try:
            task = agent.task
            logged = datasets.read(self.dataset, task.spaces, self.columns, task.model)
            agent.remember(logged.transitions)
        except UsageError:
            agent.close()
            raise
        return agent, [logged.sentence(self.dataset)]

    def claimed(self, agent: "DynaSAC", directory: Path, keep: bool = False) -> "Run":
        """A new run directory; see `Run.create`."""
        from .. import recording
        from ..runs import Run

        asked = recording.asked_for(
            agent,
            self.model,
            self.preset,
            self.dataset,
            self.columns,
            self.evaluation_episodes,
            {"rigs": self.rigs, "rigs_in_order": self.rigs_in_order},
        )
        return Run.create(directory, asked, keep)

    def resumed(self, made: "DynamicsModel | None" = None) -> tuple["DynaSAC", "Run", list[str]]:
        """What is in the run directory to go on with, and a sentence for what is damaged in it."""
        from .. import recording

        assert self.output is not None  # as `run` sees to
        self.refuse_changes(self.output)
        agent, run, damaged = recording.resume(
            self.output,
            self.env,
            self.model,
            {name: getattr(self.settings, name) for name in presets.RENEWABLE},
            self.evaluation_episodes,
            self.dataset,
            self.columns,
            made,
        )
        return agent, run, [f"dynasac: {sentence}" for sentence in damaged]

    def next_commands(self, agent: "DynaSAC", directory: Path) -> list[str]:
        """Commands that may come next."""
        from ..models import DynamicsModel

        env = ["--env", self.env] if ":" in self.env else []
        model = ["--model", self.model] if ":" in self.model else []
        able = isinstance(agent.model, DynamicsModel)
        onnx = importlib.util.find_spec("onnx") is not None
        commands = (
            *([("evaluate", "--lookahead", "1", *env, *model)] if able else []),
            ("report", *env, *model),
            ("record", *env),
            ("export", *([] if onnx else ["--format", "numpy"]), *env),
        )
        lines = [
            shlex.join(["dynasac", command, str(directory), *options])
            for command, *options in commands
        ]
        return [*lines, "dynasac train --help"]

    def _what_is_left(self, directory: Path) -> list[str]:
        """Of a training that came to an early end: where it is, and the command that goes on."""
        if not checkpoint.numbered(directory / "checkpoints"):
            return []
        return [f"what was learned is in {directory}", f"go on with:  {self.go_on(directory)}"]

    def go_on(self, directory: Path) -> str:
        """The command that goes on with a run that was stopped."""
        words = ["dynasac", "train", "--resume", "--output", str(directory)]
        if ":" in self.env:
            words.insert(2, self.env)
        if ":" in self.model:
            words += ["--model", self.model]
        if self.ray_address != "local":
            words += ["--ray-address", self.ray_address]
        return shlex.join(words)

    def refuse_changes(self, directory: Path) -> None:
        """Say which settings of the run were given anew and differ."""
        kept, asked = self._fixed(), own(directory)._fixed()
        changed = [
            f"--{name.replace('_', '-')} {asked[name]}, not {value}"
            for name, value in kept.items()
            if value != asked[name]
        ]
        if changed:
            raise UsageError(
                f"the run in {directory} has {'; '.join(changed)}: leave that out, or train anew "
                "in another --output"
            )

    def _fixed(self) -> dict[str, Any]:
        """What stays as it is for the whole of a run, by the names of the options."""
        settings = flat(plain(self.settings))
        return {
            "seed": self.seed,
            "preset": self.preset,
            **{name: value for name, value in settings.items() if name not in presets.RENEWABLE},
        }


def own(directory: Path) -> Train:
    """The command that a run directory comes from, but for what names code of one's own.

    Of several seeds in a directory, it is that of the first.

    Raises:
        UsageError: it is no run directory, or damaged.
    """
    if not (directory / "config.json").exists():
        directory = next(filter(_readable, seed_directories(directory)), directory)
    asked = read_json(directory / "config.json")
    env, model = asked.get("env_id"), asked.get("model")
    like = Train(env="")
    told = {name: asked.get(name) for name in ("seed", "preset", "evaluation_episodes")}
    for name in ("rigs", "rigs_in_order"):  # which runs of other programs do not have
        told[name] = asked.get(name, getattr(like, name))
    for name, value in told.items():
        if type(value) is not type(getattr(like, name)):
            raise UsageError(f"{directory / 'config.json'} has the {name} {value!r}")
    return Train(
        env=env if isinstance(env, str) and env in evaluation.registered() else "",
        model=model if model in ("none", "ensemble", "simulator") else like.model,
        settings=presets.from_plain(asked.get("settings", {})),
        **told,  # pyright: ignore[reportArgumentType]
    )


def _readable(directory: Path) -> bool:
    with contextlib.suppress(UsageError):
        return bool(read_json(directory / "config.json"))
    return False


def _print_result(agent, measured, directory: Path) -> None:
    summary = json.loads((directory / "summary.json").read_text())
    if measured is None:
        print(f"{agent.env_id}: trained, and not evaluated; metrics.csv has each episode's return")
    else:
        print(worth(agent.env_id, measured, evaluation.regret(agent.env_id, measured)))
    logged = summary["logged_transitions"]
    print(
        f"  learned from {summary['real_steps']:,} real{f', {logged:,} logged' if logged else ''} "
        f"and {summary['synthetic_transitions']:,} synthetic transitions in "
        f"{summary['gradient_updates']:,} updates, "
        f"{summary['wall_seconds']:.1f} s ({summary['compile_seconds']:.1f} s of them compiling)"
    )
    print(f"  everything is in {directory}/")


def free_directory(env_id: str) -> Path:
    """runs/ENV, or the first of runs/ENV-2, runs/ENV-3, … that is free."""
    base = Path("runs") / env_id.replace("/", "-").replace(":", "-")
    number = 1
    while (candidate := base if number == 1 else Path(f"{base}-{number}")).exists():
        number += 1
    return candidate
