"""The loop of the seed document: collect, update, plan, evaluate, record; repeat."""

from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np

from . import planning, replay, sac
from .errors import UsageError
from .evaluation import check_step
from .models import DynamicsModel
from .presets import Config
from .replay import ReplayState
from .sac import SACState
from .spaces import Spaces
from .types import Transition


class Counts(NamedTuple):
    """How far training is; with the seed, all that its random numbers depend on."""

    real_episodes: int = 0
    real_steps: int = 0
    synthetic_transitions: int = 0
    gradient_updates: int = 0
    phase_updates: int = 0
    """updates already made of the phase of planning under way"""
    planned: int = 0
    """phases of planning that are complete"""


class TrainingState(NamedTuple):
    """Everything that training changes: what a checkpoint holds."""

    sac: SACState
    replay: ReplayState
    counts: Counts = Counts()
    train_return: float = 0.0
    """return of the last real episode; 0 before the first"""


class Task(NamedTuple):
    """Everything that training is given and never changes."""

    env: gym.Env
    spaces: Spaces
    model: DynamicsModel | None
    config: Config
    seed: int


@runtime_checkable
class Observer(Protocol):
    """Who looks on: progress bars and run directories. Raising KeyboardInterrupt stops training."""

    def progress(self, state: TrainingState, message: str) -> None:
        """Called several times a second."""
        ...

    def episode(self, state: TrainingState) -> None:
        """Called once before the first real episode and once after each."""
        ...


CHUNK = 32 * planning.ROUND
"""updates in one call of the compiled program, between two looks at the clock and the keyboard"""

COLLECT, PLAN, STORE = range(3)
"""what a stream of random numbers is for"""


def key_for(task: Task, purpose: int, count: int) -> jax.Array:
    """The random key of the `count`-th use of a purpose: nothing but the seed and counts decide.

    Of XLA's own generator, which is faster than JAX's default on CPUs. Made on the host: there is
    nothing to compile then.
    """
    words = np.random.SeedSequence((task.seed, purpose, count)).generate_state(4)
    return jax.random.wrap_key_data(jnp.asarray(words), impl="rbg")


def initial(task: Task) -> TrainingState:
    """A learner that knows nothing, and an empty replay."""
    sizes = (task.spaces.observation.size, task.spaces.action.size)
    return TrainingState(
        sac=sac.create(task.config.sac, task.spaces, task.seed),
        replay=replay.create(task.config.replay_capacity, *sizes),
    )


def train(
    task: Task,
    state: TrainingState,
    observer: Observer,
    real_episodes: int | None = None,
    total_timesteps: int | None = None,
) -> TrainingState:
    """Dyna: plan from what is known; then collect a real episode and plan again, and so on.

    Goes on from `state` until `real_episodes` episodes, or at least `total_timesteps` real steps,
    have been collected in all and planned from. When it is interrupted, the last state that
    `observer` saw is one to go on from, and leads to the same end.
    """

    def wants_more(counts: Counts) -> bool:
        if real_episodes is not None:
            return counts.real_episodes < real_episodes
        return counts.real_steps < (total_timesteps or 0)

    while _phase_is_due(state.counts) or wants_more(state.counts):
        if not _phase_is_due(state.counts):
            state = collect(task, state, observer)
            observer.progress(state, "")
        state = plan(task, state, observer)
        observer.episode(state)
    return state


def _phase_is_due(counts: Counts) -> bool:
    """Whether the last real episode, or the beginning, has not been planned from to the end."""
    return counts.planned <= counts.real_episodes


def collect(task: Task, state: TrainingState, observer: Observer) -> TrainingState:
    """One real episode into the replay, with model-free updates on the way.

    Raises:
        UsageError: the environment returned something that is not a finite number.
    """
    config, counts = task.config, state.counts
    key = key_for(task, COLLECT, counts.real_episodes)
    learner = state.sac
    memory = jax.tree.map(jnp.copy, state.replay)  # its buffers are given away row by row below
    env_seed = np.random.SeedSequence((task.seed, counts.real_episodes)).generate_state(1)
    observation, _ = task.env.reset(seed=int(env_seed[0]))
    total = 0.0
    for step in range(task.spaces.episode_steps):
        random = counts.real_steps < config.random_steps
        observation = np.array(observation, np.float32)  # environments may reuse their arrays
        draw = jnp.asarray(np.int32(step))
        unit, action = _act(
            learner, task.spaces, observation, jnp.asarray(np.bool_(random)), draw, key
        )
        following, reward, terminated, truncated, _ = task.env.step(np.asarray(action))
        check_step(following, reward, f"real episode {counts.real_episodes + 1}, step {step}")
        row = Transition(
            observation=_row(observation),
            action=_row(unit),
            reward=_row(reward),
            next_observation=_row(following),
            terminated=jnp.asarray(np.array([terminated], bool)),
        )
        memory = _remember(memory, row)
        counts = counts._replace(real_steps=counts.real_steps + 1)
        if config.updates_per_real_step and not random:
            last = counts.gradient_updates + config.updates_per_real_step
            learner, _, _ = planning.plan(
                learner,
                None,
                memory,
                _scalar(1.0),
                _span(counts.gradient_updates, last, 0),
                config.sac,
                config.planning,
                task.spaces,
                key,
            )
            counts = counts._replace(gradient_updates=last)
        total += float(reward)
        observation = following
        if step % 10 == 0:
            observer.progress(state, f"real episode {counts.real_episodes + 1}")
        if terminated or truncated:
            break
    counts = counts._replace(real_episodes=counts.real_episodes + 1)
    state = TrainingState(learner, memory, counts, train_return=total)
    if config.planning.stored_transitions and task.model is not None:
        store_key = key_for(task, STORE, counts.real_episodes)
        memory, stored = planning.store_synthetic(
            learner, task.model, memory, config.planning, task.spaces, store_key
        )
        synthetic = counts.synthetic_transitions + int(stored)
        counts = counts._replace(synthetic_transitions=synthetic)
        state = state._replace(replay=memory, counts=counts)
    return state


def plan(task: Task, state: TrainingState, observer: Observer) -> TrainingState:
    """The updates of one phase of planning, in chunks, from wherever `state` is in the phase."""
    config = task.config.planning
    total = config.first_updates if state.counts.planned == 0 else config.updates
    fresh = task.model if not config.stored_transitions else None
    key = key_for(task, PLAN, state.counts.planned)
    message = f"planning after {state.counts.real_episodes} real episodes"
    while state.counts.phase_updates < total:
        first = state.counts.phase_updates
        last = min(first + CHUNK, total)
        learner, metrics, synthetic = planning.plan(
            state.sac,
            fresh,
            state.replay,
            _scalar(config.real_fraction),
            _span(first, last, total),
            task.config.sac,
            config,
            task.spaces,
            key,
        )
        _check_learning(metrics, state)
        counts = state.counts
        state = state._replace(
            sac=learner,
            counts=counts._replace(
                phase_updates=last,
                gradient_updates=counts.gradient_updates + last - first,
                synthetic_transitions=counts.synthetic_transitions + int(synthetic),
            ),
        )
        observer.progress(state, message)
    counts = state.counts._replace(phase_updates=0, planned=state.counts.planned + 1)
    return state._replace(counts=counts)


def total_updates(config: Config, real_episodes: int, episode_steps: int) -> int:
    """How many gradient updates training will make, if no episode ends early."""
    collected = real_episodes * episode_steps * config.updates_per_real_step
    return config.planning.first_updates + real_episodes * config.planning.updates + collected


def _check_learning(metrics: sac.Metrics, state: TrainingState) -> None:
    if not np.isfinite(np.asarray(metrics.critic_loss)):
        raise UsageError(
            f"the critics diverged after {state.counts.gradient_updates} updates: check that the "
            "model's rewards and observations are finite, or lower --sac.learning-rate or "
            "--sac.reward-scale"
        )


@eqx.filter_jit
def _act(learner: SACState, spaces: Spaces, observation, random, draw, key):
    """A stochastic action, in the learner's unit and in the environment's."""
    policy_key, uniform_key = jax.random.split(jax.random.fold_in(key, draw))
    noise = jax.random.normal(policy_key, (spaces.action.size,))
    unit, _ = learner.actor.sample(spaces.observation.to_unit(observation), noise)
    unit = jnp.where(random, jax.random.uniform(uniform_key, unit.shape, minval=-1.0), unit)
    return unit, spaces.action.from_unit(unit)


_remember = eqx.filter_jit(replay.add, donate="all")


def _row(value) -> jax.Array:
    return jnp.asarray(np.asarray(value, np.float32)[None])


def _scalar(value: float) -> jax.Array:
    return jnp.asarray(np.float32(value))


def _span(first: int, last: int, total: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Counts as arrays: as Python numbers they would be compiled in."""
    return jnp.asarray(np.int32(first)), jnp.asarray(np.int32(last)), jnp.asarray(np.int32(total))
