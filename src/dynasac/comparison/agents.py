"""Who is compared, with which settings and how many real steps; the training of one of them."""

import contextlib
import dataclasses
import datetime
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from .. import baselines, evaluation, presets, recording, runs
from ..agent import DynaSAC, resolved
from ..checkpoint import read_json
from ..errors import UsageError
from ..presets import Config
from ..processes import machine
from ..spaces import spaces_of

OURS = ("dynasac", "sac", "sac-matched")
NAMES = (*OURS, *baselines.NAMES)
SEED_PPO_STEPS = 100_000
"""what the seed document gives PPO"""


@dataclass(frozen=True)
class Design:
    """What is to be compared."""

    env: str
    """Gymnasium environment id, or MODULE:ID, which other processes can import"""
    agents: tuple[str, ...] | None = None
    """of `NAMES`; None for those that the preset is about"""
    seeds: int = 5
    """how many, from 0"""
    real_steps: int | None = None
    """of each agent; None for what plain SAC has by default, or with the preset "seed" for each
    agent what the seed document gives it"""
    model: str = "auto"
    """of the agent dynasac, as on the command line"""
    preset: str = "default"
    """`default`, or "seed" for the seed document's own comparison"""
    threshold: float | None = None
    """mean return that counts as solved; None for what is known of the environment"""
    evaluation_episodes: int = 100
    """of each evaluation; episode k starts from `reset(seed=10000 + k)`"""

    @property
    def names(self) -> tuple[str, ...]:
        if self.agents is not None:
            return self.agents
        everybody = ("dynasac", "sac", "sb3-sac", "sb3-ppo")
        return everybody if self.preset == "default" else ("dynasac", "sac", "sb3-ppo")


@dataclass(frozen=True)
class Agent:
    """One of those that are compared."""

    name: str
    about: str
    settings: dict[str, Any]
    real_steps: int


@dataclass(frozen=True)
class Job:
    """The training of one agent with one seed: all that its process has to know."""

    agent: str
    env: str
    model: str
    preset: str
    seed: int
    real_steps: int
    evaluation_episodes: int
    directory: str
    matched: str | None = None
    """the run directory whose number of updates is to be made"""


def training_name(agent: str, seed: int) -> str:
    """Of the training of an agent with a seed: its directory within that of the comparison."""
    return f"{agent}/seed-{seed}"


class Facts(NamedTuple):
    """What an environment says of itself."""

    env_id: str
    """without its module"""
    episode_steps: int
    reward_threshold: float | None
    """the mean return that it calls solved"""


def check(design: Design) -> Facts:
    """Refuse what cannot be compared before anything is run.

    Raises:
        UsageError: and what to ask for instead.
    """
    names = design.names
    unknown = [name for name in names if name not in NAMES]
    if unknown or not names:
        raise UsageError(f"--agents {' '.join(unknown) or 'of none'}: there are {', '.join(NAMES)}")
    if len(set(names)) < len(names):
        raise UsageError(f"--agents {' '.join(names)}: name each once")
    if "sac-matched" in names and "dynasac" not in names:
        raise UsageError("--agents sac-matched makes as many updates as dynasac: name that too")
    if "dynasac" in names and design.model == "none":
        raise UsageError("--model none is the agent sac; dynasac needs a model")
    for option, value in (
        ("seeds", design.seeds),
        ("real-steps", 1 if design.real_steps is None else design.real_steps),
        ("evaluation-episodes", design.evaluation_episodes),
    ):
        if value < 1:
            raise UsageError(f"--{option} {value}: at least 1")
    baselines.check_installed([name for name in names if name in baselines.NAMES])
    env = evaluation.make(design.env)
    try:
        spaces = spaces_of(env)
        if "dynasac" in names:
            resolved(design.model, env, spaces)
        spec = env.spec
        assert spec is not None  # it was made by its id
        return Facts(spec.id, spaces.episode_steps, spec.reward_threshold)
    finally:
        env.close()


def agent(name: str, design: Design, episode_steps: int) -> Agent:
    """One of `NAMES` under a design."""
    real_steps = design.real_steps or _budget(name, design, episode_steps)
    if name in baselines.NAMES:
        which = baselines.baseline(name, design.env, real_steps)
        about = f"{which.algorithm} of stable-baselines3, settings {which.source}"
        return Agent(name, about, _as_json(dataclasses.asdict(which)), real_steps)
    settings = runs.plain(_config(name, design.model, design.preset, real_steps, episode_steps))
    if name == "sac-matched":
        settings["updates_per_real_step"] = None  # each run's own config.json has its number
    told = {
        "dynasac": f"this package with the model {design.model}",
        "sac": "this package without a model: plain Soft Actor-Critic",
        "sac-matched": "this package without a model, with the whole number of gradient updates "
        "for each real step that comes nearest to what dynasac with the same seed makes in all",
    }
    return Agent(name, f"{told[name]}; preset {design.preset}", _as_json(settings), real_steps)


def read(name: str, written: dict[str, Any]) -> Agent:
    """The agent called `name` as asked.json holds it.

    Raises:
        TypeError: it holds something else. Names become names of directories.
    """
    one = Agent(**written)
    types = (one.about, str), (one.settings, dict), (one.real_steps, int)
    if name not in NAMES or one.name != name or not all(isinstance(*each) for each in types):
        raise TypeError(name)
    return one


def _as_json(settings: dict[str, Any]) -> dict[str, Any]:
    """As they will be when they are read again: tuples are lists."""
    return json.loads(json.dumps(settings))


def _budget(name: str, design: Design, episode_steps: int) -> int:
    """Real steps where none are asked for; of ours, whole episodes of full length."""
    if design.preset == "seed" and name == "sb3-ppo":
        return SEED_PPO_STEPS
    with_model = design.preset == "seed" and name in ("dynasac", "sac-matched")
    config = presets.preset(design.preset, design.model if with_model else "none")
    return config.real_episodes * episode_steps


def _config(name: str, model: str, preset: str, real_steps: int, episode_steps: int) -> Config:
    config = presets.preset(preset, model if name == "dynasac" else "none")
    return presets.with_real_episodes(config, -(-real_steps // episode_steps))


def train(job: Job) -> None:
    """Train in this process and leave a directory with config.json, metrics.csv and summary.json.

    Raises:
        UsageError: in one line, what went wrong.
    """
    if job.agent in baselines.NAMES:
        _train_baseline(job)
    else:
        _train_ours(job)


class Rationed(gym.Wrapper):
    """An environment of so many steps in all: the episode in which they run out is truncated."""

    def __init__(self, env: gym.Env, steps: int):
        super().__init__(env)
        self._left = steps

    @property
    def spec(self):
        """Of the environment itself: what is made from it for evaluations is not rationed."""
        return self.env.spec

    def step(self, action):
        self._left -= 1
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated or self._left <= 0, info


def _train_ours(job: Job) -> None:
    model = job.model if job.agent == "dynasac" else "none"
    env = Rationed(evaluation.make(job.env), job.real_steps)
    episode_steps = spaces_of(env).episode_steps
    config = _config(job.agent, model, job.preset, job.real_steps, episode_steps)
    if job.matched:
        config = dataclasses.replace(
            config, updates_per_real_step=_matched(Path(job.matched), job, config.random_steps)
        )
    agent = DynaSAC(env, model, config, job.seed)
    asked = {**recording.asked_for(agent, model, job.preset), **_here_and_now()}
    run = runs.Run.create(Path(job.directory), asked)
    with contextlib.closing(agent):
        recording.record_training(
            agent,
            run,
            job.evaluation_episodes,
            progress_bar=False,
            total_timesteps=job.real_steps,
            evaluate_every=episode_steps,
        )


def _here_and_now() -> dict[str, str]:
    return {"machine": machine(), "date": datetime.date.today().isoformat()}


def _matched(directory: Path, job: Job, random_steps: int) -> int:
    """Updates for each real step, to make about as many in all as another run did."""
    if not (directory / "summary.json").exists():
        raise UsageError(f"{directory} did not finish, so there are no updates to match")
    updates = read_json(directory / "summary.json").get("gradient_updates", 0)
    return max(1, round(updates / max(1, job.real_steps - random_steps)))


def _train_baseline(job: Job) -> None:
    which = baselines.baseline(job.agent, job.env, job.real_steps)
    asked = {
        "env_id": job.env,
        "agent": job.agent,
        "seed": job.seed,
        "real_steps": job.real_steps,
        "settings": dataclasses.asdict(which),
        "packages": baselines.versions(),
        **_here_and_now(),
    }
    run = runs.Run.create(Path(job.directory), asked)
    last = baselines.train(
        which, job.env, job.seed, job.real_steps, _writer(run.directory), job.evaluation_episodes
    )
    kept = ("real_episodes", "real_steps", "gradient_updates", "wall_seconds")
    run.write_summary(
        {
            "env_id": job.env,
            "seed": job.seed,
            **{name: last[name] for name in kept},
            "evaluation": {
                "episodes": job.evaluation_episodes,
                "first_seed": evaluation.FIRST_SEED,
                "mean_return": last["eval_mean_return"],
            },
        }
    )


def _writer(directory: Path) -> Callable[[dict[str, Any]], None]:
    rows: list[dict[str, Any]] = []

    def record(row: dict[str, Any]) -> None:
        rows.append(row)
        runs.write_metrics(directory, rows)

    return record
