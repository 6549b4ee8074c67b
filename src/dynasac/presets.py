"""Complete settings under a name."""

import dataclasses
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints

from .adapt.ladder import Asked
from .errors import UsageError
from .models import ensemble
from .models.ensemble import EnsembleConfig
from .planning import PlanningConfig, StartWeights
from .sac import SACConfig


@dataclass(frozen=True)
class Config:
    """All settings of the algorithm."""

    sac: SACConfig = SACConfig()
    planning: PlanningConfig = PlanningConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    adapt: Asked = "auto"
    """auto: what real transitions show to be best; none: the model is believed; identify: fit its
    parameters; residual: learn a correction; ensemble: learn all of it"""
    real_episodes: int = 0
    """episodes collected in the real environment"""
    replay_capacity: int = 100_000
    """transitions kept"""
    updates_per_real_step: int = 0
    """gradient updates on replayed transitions at each step in the real environment; planning's
    updates are on real and synthetic ones together"""
    random_steps: int = 0
    """real steps with uniform actions, and no updates, before the policy takes over; logged ones
    count"""
    env_retries: int = 0
    """times that an episode which the environment fails in is begun again"""
    step_seconds: float | None = None
    """longest that one reset or step of the environment may take while episodes are collected; one
    that takes longer fails, and the environment is made anew for the next"""
    checkpoint_every_steps: int = 0
    """real steps after which what was collected of an episode is kept too; 0: whole episodes"""


MODEL_FREE_SAC = SACConfig(
    hidden=(256, 256),
    activation="relu",
    batch_size=256,
    learning_rate=3e-4,
    final_learning_rate=3e-4,
    discount=0.99,
    target_rate=0.005,
    critic_reduction="min",
    huber_delta=None,
    entropy_in_target=True,
    target_entropy=-1.0,
    initial_temperature=1.0,
    reward_scale=1.0,
    advantage_learning=0.0,
)
"""The settings of the SAC paper, which stable-baselines3 uses as its defaults."""

SEED = Config(
    # 64 is what the notebook's `model.train(gradient_steps=2)` draws when no batch size is given
    sac=dataclasses.replace(MODEL_FREE_SAC, batch_size=64),
    planning=PlanningConfig(
        first_updates=0,
        updates=200,
        starts=StartWeights(reset=1.0, space=0.0, visited=0.0),
        horizon=1,
        value_expansion=1,
        exploration=0.0,
        real_fraction=1.0,
        improvement_states=0,
        stored_transitions=100,
    ),
    adapt="none",
    real_episodes=20,
    replay_capacity=10_000,
    updates_per_real_step=2,
)
"""The seed document step for step: 20 real episodes with 2 updates a step, then after each 100
one-step synthetic transitions from reset states into the same replay and 100 times 2 updates.
Actions in the replay are in [-1, 1], as the learner's are; the document's notebook adds all of them
in ±2, so that the actor's actions are twice what its critics know."""

DEFAULT = Config()
"""The best we can make it."""

MODEL_FREE = Config(
    sac=dataclasses.replace(MODEL_FREE_SAC, learning_rate=1e-3, final_learning_rate=1e-3),
    planning=PlanningConfig(first_updates=0, updates=0),
    adapt="none",
    updates_per_real_step=1,
    real_episodes=25,
    random_steps=100,
)
"""Plain SAC, for `--model none`."""

LEARNED = dataclasses.replace(
    DEFAULT,
    sac=SACConfig(
        batch_size=512,
        learning_rate=3e-3,
        final_learning_rate=1.5e-4,
        target_rate=0.1,
        huber_delta=None,
        target_entropy=-6.0,
        initial_temperature=0.1,
        reward_scale=0.1,
        advantage_learning=0.0,
    ),
    planning=PlanningConfig(
        value_expansion=1,
        exploration=0.5,
        improvement_candidates=4,
        starts=StartWeights(replay=1.0),
    ),
    adapt="ensemble",
    real_episodes=5,
)
"""For `--model ensemble`, chosen by hand: rollouts begin at real observations too, which the model
knows best."""

PRESETS = {"default": DEFAULT, "seed": SEED}


def preset(name: str, model: str = "auto") -> Config:
    """The settings of a preset, for a model as it is named on the command line.

    The seed's own settings without a model are its 40-episode comparison.
    """
    if model not in ("none", "ensemble"):
        return PRESETS[name]
    if name == "seed":
        without = dataclasses.replace(SEED.planning, updates=0, stored_transitions=0)
        return dataclasses.replace(SEED, planning=without, real_episodes=40)
    return MODEL_FREE if model == "none" else LEARNED


def adapting(model: str, asked: Any) -> Any:
    """How a model as it is named on the command line is adapted, where that leaves a choice."""
    return model if model in ("none", "ensemble") else asked


def with_real_episodes(config: Config, count: int) -> Config:
    """The same settings for another number of real episodes."""
    return dataclasses.replace(config, real_episodes=count)


RENEWABLE = ("real_episodes", "env_retries", "step_seconds", "checkpoint_every_steps")
"""settings that a run may go on with other values of: what it has learned from stays what it is"""


def check(config: Config) -> None:
    """Refuse settings that make no sense.

    Raises:
        UsageError: naming the setting and what it may be.
    """
    planning, learner = config.planning, config.sac
    whole = {
        "real-episodes": (config.real_episodes, 0),
        "replay-capacity": (config.replay_capacity, 1),
        "updates-per-real-step": (config.updates_per_real_step, 0),
        "random-steps": (config.random_steps, 0),
        "env-retries": (config.env_retries, 0),
        "checkpoint-every-steps": (config.checkpoint_every_steps, 0),
        "planning.first-updates": (planning.first_updates, 0),
        "planning.updates": (planning.updates, 0),
        "planning.horizon": (planning.horizon, 1),
        "planning.value-expansion": (planning.value_expansion, 1),
        "planning.improvement-states": (planning.improvement_states, 0),
        "planning.improvement-candidates": (planning.improvement_candidates, 1),
        "planning.simulations": (planning.simulations, 1),
        "planning.simulated-transitions": (planning.simulated_transitions, 1),
        "planning.lookahead-tail": (planning.lookahead_tail, 0),
        "planning.stored-transitions": (planning.stored_transitions, 0),
        "sac.batch-size": (learner.batch_size, 1),
    }
    for name, (value, least) in whole.items():
        if value < least:
            raise UsageError(f"--{name} {value}: must be at least {least}")
    shares = {
        "planning.real-fraction": planning.real_fraction,
        "planning.exploration": planning.exploration,
        "sac.discount": 0.0 if learner.discount is None else learner.discount,
        "sac.target-rate": learner.target_rate,
        "sac.advantage-learning": learner.advantage_learning or 0.0,
    }
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UsageError(f"--{name} {value}: must be from 0 to 1")
    if learner.advantage_learning == 1:
        raise UsageError("--sac.advantage-learning 1: must be less than 1")
    positive = {
        "step-seconds": 1.0 if config.step_seconds is None else config.step_seconds,
        "sac.learning-rate": learner.learning_rate,
        "sac.final-learning-rate": learner.final_learning_rate,
        "sac.initial-temperature": learner.initial_temperature,
        "sac.reward-scale": 1.0 if learner.reward_scale is None else learner.reward_scale,
        "sac.huber-delta": 1.0 if learner.huber_delta is None else learner.huber_delta,
    }
    for name, value in positive.items():
        if not value > 0:
            raise UsageError(f"--{name} {value}: must be more than 0")
    starts = planning.starts
    weights = (starts.replay, starts.reset or 0.0, starts.space, starts.visited or 0.0)
    if min(weights) < 0 or sum(weights) == 0:
        raise UsageError(f"--planning.starts.* {weights}: weights of at least 0, not all of them 0")
    if not learner.hidden or min(learner.hidden) < 1:
        raise UsageError(f"--sac.hidden {learner.hidden}: one number of units for each layer")
    ensemble.check(config.ensemble)
    if planning.horizon > learner.batch_size:
        raise UsageError(
            f"--planning.horizon {planning.horizon}: at most the batch of {learner.batch_size}"
        )
    if planning.stored_transitions and config.adapt != "none":
        raise UsageError(
            "--planning.stored-transitions needs --adapt none: models are tried on real "
            "transitions, and a replay with synthetic ones does not tell which are real"
        )
    if planning.stored_transitions > config.replay_capacity:
        raise UsageError(
            f"--planning.stored-transitions {planning.stored_transitions}: more than the replay "
            f"holds ({config.replay_capacity})"
        )


def from_plain(content: Any, kind: type = Config) -> Any:
    """Settings from what JSON holds of them; the inverse of `dataclasses.asdict`.

    Raises:
        UsageError: a setting is unknown, missing or of another type.
    """
    hints = get_type_hints(kind)
    if not isinstance(content, dict) or set(content) != set(hints):
        raise UsageError(f"the saved {kind.__name__} does not have the settings of this version")
    values = {}
    for name, value in content.items():
        if dataclasses.is_dataclass(hints[name]):
            values[name] = from_plain(value, hints[name])
            continue
        like = getattr(kind(), name)
        if value is None and type(None) in get_args(hints[name]):
            values[name] = None
            continue
        like = 0.0 if like is None else like  # the only settings that may be open are numbers
        number = None if isinstance(value, bool) or not isinstance(value, int | float) else value
        if isinstance(like, float) and number is not None:
            values[name] = float(number)
            continue
        value = tuple(value) if isinstance(value, list) else value
        listed = get_args(hints[name]) if isinstance(like, str) else (value,)
        same = type(value) is type(like) and value in listed
        if isinstance(like, tuple):
            same = isinstance(value, tuple) and all(type(item) is int for item in value)
        if not same:
            raise UsageError(f"the setting {name} is {value!r}, not like {like!r}")
        values[name] = value
    return kind(**values)
