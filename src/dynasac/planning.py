"""Planning: synthetic transitions from a model under the current policy, and updates on them.

`plan` is Dyna's inner loop (Sutton & Barto, section 8.2) with Soft Actor-Critic as the learner. It
compiles into one program: start states, rollouts, losses and optimisers, with nothing on the host
in between and no recompilation when a count or a share changes.
"""

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from . import replay as replay_module
from . import sac
from .errors import UsageError
from .models import DynamicsModel
from .networks import Actor, Critics
from .replay import ReplayState
from .sac import Expansion, Improvement, SACConfig, SACState
from .spaces import Box, Spaces
from .types import Transition


@dataclass(frozen=True)
class StartWeights:
    """Where rollouts begin: weights of a mixture, in any unit."""

    replay: float = 0.0
    """observations of real transitions; passed over while there are none"""
    reset: float | None = None
    """the model's reset distribution; None: not at all, or as much as `space` where the environment
    leaves observations unbounded, so that nobody knows how much of that space matters"""
    space: float = 1.0
    """anywhere in the observation space"""
    visited: float | None = None
    """anywhere in the box around what the policy's own episodes in the model visit; None: as much
    as `space` where the environment bounds all observations, most of which may never be met, or not
    at all"""


@dataclass(frozen=True)
class PlanningConfig:
    """How synthetic transitions are made and used."""

    first_updates: int = 3000
    """gradient updates before the first real episode"""
    updates: int = 1000
    """gradient updates after each real episode"""
    starts: StartWeights = StartWeights()
    """where rollouts begin"""
    horizon: int = 1
    """k: steps of a rollout, fewer where it terminates"""
    value_expansion: int = 5
    """model steps in a target, the transition's own among them, before the critics judge; fewer
    where the episode terminates, or the model's error says so"""
    exploration: float = 0.54
    """share of rollouts whose first action is drawn uniformly, not from the policy"""
    real_fraction: float = 0.0
    """least share of real transitions in a batch, once there are any; the model's error is the
    share if it is larger"""
    improvement_states: int = 256
    """states of a batch for which better actions than the policy's are sought in the model"""
    improvement_candidates: int = 2
    """uniform actions tried for each"""
    lookahead_tail: int = 100
    """steps that `lookahead` follows the policy in the model, before the critics judge"""
    simulations: int = 64
    """episodes that go on side by side in a model that runs on the host"""
    simulated_transitions: int = 8
    """steps in such a model for each update"""
    stored_transitions: int = 0
    """synthetic transitions written to the replay after each real episode, as the seed document
    does; the updates then draw from the replay alone. 0: fresh ones for every update"""


class Trust(eqx.Module):
    """How far planning may go with a model. All of it may change without recompilation."""

    real_fraction: Float[Array, ""]
    """share of real transitions in a batch, once there are any; 1 is plain SAC"""
    horizon: Int[Array, ""]
    """steps of a rollout that are believed, `PlanningConfig.horizon` at most"""
    value_expansion: Int[Array, ""]
    """steps of a target that are believed, `PlanningConfig.value_expansion` at most"""
    uncertainty: Float[Array, ""]
    """the largest `ModelStep.uncertainty` of a transition that is learned from"""


def full_trust(config: PlanningConfig) -> Trust:
    """In a model that is believed: what the settings say."""
    believed = np.float32(1e9)  # whatever the uncertainty; files hold finite numbers alone
    steps = np.int32(config.horizon), np.int32(config.value_expansion)
    return Trust(*jax.device_put((np.float32(config.real_fraction), *steps, believed)))


def for_spaces(spaces: Spaces, config: PlanningConfig) -> PlanningConfig:
    """The settings with what the observation space decides filled in."""
    starts, bounded = config.starts, all(spaces.bounded)
    if starts.reset is None:
        starts = dataclasses.replace(starts, reset=0.0 if bounded else starts.space)
    if starts.visited is None:
        starts = dataclasses.replace(starts, visited=starts.space if bounded else 0.0)
    return dataclasses.replace(config, starts=starts)


def start_observations(
    model: DynamicsModel,
    replay: ReplayState,
    weights: StartWeights,
    space: Box,
    visited: Box,
    count: int,
    key: PRNGKeyArray,
) -> Float[Array, "count observation"]:
    """Draw the observations that rollouts begin from. Consumes `key`.

    Arguments:
        visited: where the policy goes in the model (`episodes`).
    """
    kind_key, replay_key, reset_key, space_key, box_key = jax.random.split(key, 5)
    reset, in_visited = weights.reset or 0.0, weights.visited or 0.0
    in_box = weights.space + in_visited
    sources = []
    if weights.replay > 0:
        rows = replay_module.sample(replay, replay_key, count).observation
        sources.append((jnp.where(replay.size > 0, weights.replay, 0.0), rows))
    if reset > 0 or not in_box:
        rows = jax.vmap(model.initial_observation)(jax.random.split(reset_key, count))
        # with replay alone, the first plan begins where episodes do
        weight = jnp.where(replay.size > 0, reset, max(reset, 1e-6))
        sources.append((weight, rows))
    if in_box > 0:
        unit = jax.random.uniform(space_key, (count, space.size), minval=-1.0)
        rows = space.from_unit(unit)
        if in_visited > 0:
            # which box is settled before anything is projected: projections may be dear
            inner = jax.random.uniform(box_key, (count, 1)) * in_box < in_visited
            rows = jnp.where(inner, visited.from_unit(unit), rows)
        sources.append((jnp.asarray(in_box), jax.vmap(model.project)(rows)))
    if len(sources) == 1:
        return sources[0][1]
    logits = jnp.log(jnp.stack([weight for weight, _ in sources]))
    kind = jax.random.categorical(kind_key, logits, shape=(count,))
    return jnp.stack([rows for _, rows in sources])[kind, jnp.arange(count)]


def rollout(
    model: DynamicsModel,
    actor: Actor,
    starts: Float[Array, "count observation"],
    horizon: int,
    exploration: float,
    spaces: Spaces,
    trust: Trust,
    key: PRNGKeyArray,
) -> tuple[Transition, Bool[Array, "horizon count"]]:
    """Follow the policy through the model for `horizon` steps, until termination or distrust.

    Returns the transitions, with leading axes [horizon, count], and which of them happened: rows
    after a termination did not, nor do steps of which the model is more uncertain, or that are
    further from the start, than `trust` allows. The first action of the last rollouts, a share
    `exploration` of them, is uniform. Consumes `key`.
    """
    count = starts.shape[0]

    def follow(observation, key):
        noise = jax.random.normal(key, (len(observation), spaces.action.size))
        return actor.sample(spaces.observation.to_unit(observation), noise)[0]

    def advance(index, observation, alive, action, key):
        result = jax.vmap(model.step)(
            observation, spaces.action.from_unit(action), jax.random.split(key, count)
        )
        transition = Transition(
            observation, action, result.reward, result.next_observation, result.terminated
        )
        happened = alive & (result.uncertainty <= trust.uncertainty) & (index < trust.horizon)
        return (result.next_observation, happened & ~result.terminated), (transition, happened)

    def step(carry, index_and_key):
        observation, alive = carry
        index, key = index_and_key
        policy_key, model_key = jax.random.split(key)
        return advance(index, observation, alive, follow(observation, policy_key), model_key)

    policy_key, uniform_key, model_key, later_key = jax.random.split(key, 4)
    explored = round(exploration * count)
    uniform = jax.random.uniform(uniform_key, (explored, spaces.action.size), minval=-1.0)
    actions = jnp.concatenate([follow(starts[: count - explored], policy_key), uniform])
    carry, first = advance(0, starts, jnp.ones(count, bool), actions, model_key)
    later_steps = jnp.arange(1, horizon), jax.random.split(later_key, horizon - 1)
    _, later = jax.lax.scan(step, carry, later_steps)
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), first, later)


def synthetic_batch(
    state: SACState,
    model: DynamicsModel,
    replay: ReplayState,
    count: int,
    config: PlanningConfig,
    spaces: Spaces,
    visited: Box,
    trust: Trust,
    key: PRNGKeyArray,
) -> tuple[Transition, Bool[Array, " count"]]:
    """`count` synthetic transitions under the current policy, and which of them happened.

    Consumes `key`.
    """
    start_key, rollout_key = jax.random.split(key)
    rollouts = -(-count // config.horizon)
    starts = start_observations(
        model, replay, config.starts, spaces.observation, visited, rollouts, start_key
    )
    transitions, happened = rollout(
        model, state.actor, starts, config.horizon, config.exploration, spaces, trust, rollout_key
    )
    return jax.tree.map(
        lambda rows: rows.reshape(-1, *rows.shape[2:])[:count], (transitions, happened)
    )


def mixed_batches(
    state: SACState,
    model: DynamicsModel | ReplayState | None,
    replay: ReplayState,
    visited: Box,
    trust: Trust,
    batches: int,
    sac_config: SACConfig,
    config: PlanningConfig,
    spaces: Spaces,
    key: PRNGKeyArray,
) -> tuple[Transition, Bool[Array, "batches batch"], Int[Array, " batches"]]:
    """Batches for some updates: real rows first, synthetic ones behind; real alone without a model.

    Synthetic rows are made by the model, or drawn from a replay that a host model filled.

    Returns the transitions, with leading axes [batches, batch], which of them count, and how many
    of those in each batch are synthetic. Consumes `key`.
    """
    real_key, synthetic_key = jax.random.split(key)
    count = batches * sac_config.batch_size

    def dealt(rows):
        # by turns, so that every batch has its share of each kind of row
        return rows.reshape(-1, batches, *rows.shape[1:]).swapaxes(0, 1)

    if model is None:
        real = replay_module.sample(replay, real_key, count)
        valid = jnp.ones((batches, sac_config.batch_size), bool)
        return jax.tree.map(dealt, real), valid, jnp.zeros(batches, jnp.int32)
    if isinstance(model, ReplayState):
        rows = replay_module.sample(model, synthetic_key, count), jnp.ones(count, bool)
    else:
        rows = synthetic_batch(
            state, model, replay, count, config, spaces, visited, trust, synthetic_key
        )
    synthetic, happened = jax.tree.map(dealt, rows)

    def mixed():
        real = jax.tree.map(dealt, replay_module.sample(replay, real_key, count))
        is_real = jnp.arange(sac_config.batch_size) < trust.real_fraction * sac_config.batch_size

        def choose(a, b):
            return jnp.where(is_real.reshape(1, -1, *[1] * (a.ndim - 2)), a, b)

        used = happened & ~is_real
        return jax.tree.map(choose, real, synthetic), is_real | used, used.sum(1, dtype=jnp.int32)

    def synthetic_alone():
        return synthetic, happened, happened.sum(1, dtype=jnp.int32)

    return jax.lax.cond((replay.size > 0) & (trust.real_fraction > 0), mixed, synthetic_alone)


def expanded(
    state: SACState,
    model: DynamicsModel,
    batch: Transition,
    sac_config: SACConfig,
    spaces: Spaces,
    trust: Trust,
    key: PRNGKeyArray,
) -> Expansion:
    """What the policy earns in the model after transitions, and where the critics judge it then.

    A step that the model is too uncertain of is not taken. This is model-based value expansion
    (Feinberg et al. 2018, arXiv:1803.00101, eq. 3): the critics' own errors count for less, since
    more of a target is reward, and with the policy's entropy in targets each step has its own.
    Consumes `key`.

    Arguments:
        batch: transitions with any leading axes.
    """
    rows = batch.reward.shape
    step = model.step
    for _ in rows:
        step = jax.vmap(step)

    def follow(index, after):
        noise_key, model_key = jax.random.split(jax.random.fold_in(key, index))
        x = spaces.observation.to_unit(after.observation)
        action, bonus = state.actor.mode(x), 0.0
        if sac_config.entropy_in_target:
            noise = jax.random.normal(noise_key, action.shape)
            action, log_prob = state.actor.sample(x, noise)
            bonus = -jnp.exp(state.log_temperature) * log_prob
        keys = jax.random.split(model_key, rows)
        result = step(after.observation, spaces.action.from_unit(action), keys)
        reward = sac.reward_scale(sac_config) * result.reward + bonus
        discount = jnp.where(result.terminated, 0.0, sac.discount(sac_config) * after.discount)
        further = Expansion(
            after.reward + after.discount * reward, result.next_observation, discount
        )
        taken = (after.discount > 0) & (result.uncertainty <= trust.uncertainty)

        def choose(a, b):
            return jnp.where(taken.reshape(*rows, *[1] * (a.ndim - len(rows))), a, b)

        return jax.tree.map(choose, further, after)

    start = sac.one_step(batch, sac_config)
    return jax.lax.fori_loop(0, trust.value_expansion - 1, follow, start)


FULL_RATE_UPDATES = 3000
"""Longer phases have a learning rate that is lower in proportion. At the full rate learners get
worse in them: on Pendulum-v1 they come to hold the pole up at a lean that a torque balances."""


def annealed(
    sac_config: SACConfig, done: Int[Array, ""], total: Int[Array, ""]
) -> Float[Array, ""]:
    """The learning rate after `done` of the `total` updates of a phase: half a cosine.

    With a `total` of 0 it is the final one. A rate that is not to fall stays as it is.
    """
    peak, last = sac_config.learning_rate, sac_config.final_learning_rate
    progress = jnp.where(total > 0, done / jnp.maximum(total, 1), 1.0)
    rate = last + (peak - last) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    if last >= peak:
        return rate
    return rate * jnp.minimum(1.0, FULL_RATE_UPDATES / jnp.maximum(total, 1))


ROUND = 8
"""updates whose batches are made together, under the policy before the first of them: one call of
the model for eight times the rows costs about half as much as eight calls"""


COMPILER_OPTIONS = {
    "xla_cpu_prefer_vector_width": 512,  # with AVX-512; other CPUs use the widest that they have
    "xla_cpu_copy_insertion_use_region_analysis": True,  # fewer copies of what the loop carries
}
EIGEN = {"xla_cpu_experimental_ynn_fusion_type": ""}
"""products by Eigen instead of XLA's usual kernels for CPUs, YNN"""


PATIENT = {"xla_cpu_collective_call_terminate_timeout_seconds": 10**6}
"""XLA would end a process that was suspended while one device waited 40 s for another"""

DEVICES = "devices"
"""the axis over which rows are spread"""


def devices_for(
    model: DynamicsModel | ReplayState | None, sac_config: SACConfig, config: PlanningConfig
) -> int:
    """Over how many of JAX's CPU devices `plan` spreads the rows of each batch.

    All of them (`JAX_NUM_CPU_DEVICES`), if each gets as many rows; but one where that is faster:
    devices wait for each other twice in an update, to exchange gradients, which takes longer than
    they save with 256 units, and between two real steps there is too little to do.
    """
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1
    even = sac_config.batch_size % devices == config.improvement_states % devices == 0
    return devices if even and model is not None and max(sac_config.hidden) < 256 else 1


def has_avx512() -> bool:
    """Whether the processor's vectors have 512 bits."""
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    return any(name == "X86_V4" or name.startswith("AVX512") for name in found)


def eigen_is_faster(
    model: DynamicsModel | ReplayState | None, sac_config: SACConfig, config: PlanningConfig
) -> bool:
    """Whether Eigen multiplies faster what `plan`, on one device, spends most of its time on.

    It does with a batch's few hundred rows where there are more than 64 units. From 256 units on
    YNN is faster on processors with AVX-512, and on others with the thousands of rows of a search
    for better actions, which make up for the updates.
    """
    units = max(sac_config.hidden)
    searching = isinstance(model, DynamicsModel) and config.improvement_states > 0
    return units > 64 and (units < 256 or not (searching or has_avx512()))


def _compiled(program: Callable[..., Any]) -> Callable[..., Any]:
    """`program`, compiled with the kernels and for the devices that suit its arguments."""
    signature = inspect.signature(program)

    def compiled(program, options):
        return eqx.filter_jit(program, compiler_options=COMPILER_OPTIONS | options)  # pyright: ignore[reportCallIssue]

    with_eigen, with_ynn = compiled(program, EIGEN), compiled(program, {})
    spread = compiled(functools.partial(_spread, program), PATIENT)
    one_at_a_time = threading.Lock()

    @functools.wraps(program)
    def call(*arguments):
        named = signature.bind(*arguments).arguments
        suited = named["model"], named["sac_config"], named["config"]
        if devices_for(*suited) == 1:
            return (with_eigen if eigen_is_faster(*suited) else with_ynn)(*arguments)
        with one_at_a_time:  # devices that wait for each other in two programs wait for ever
            found = jax.block_until_ready(spread(*arguments))
        # back from all devices, where what is next would be computed as often
        return jax.device_put(jax.tree.map(np.asarray, found))

    return call


def _spread(program: Callable[..., Any], *arguments: Any) -> Any:
    """What `program` returns, alike on all devices, each of which computes with rows of its own."""
    arrays, others = eqx.partition(arguments, eqx.is_array)
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), (DEVICES,), devices=devices)
    everywhere = jax.sharding.PartitionSpec()

    def on_each(arrays):
        return program(*eqx.combine(arrays, others), axis=DEVICES)

    return jax.shard_map(
        on_each, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
    )(arrays)


@_compiled
def plan(
    state: SACState,
    model: DynamicsModel | ReplayState | None,
    replay: ReplayState,
    visited: Box,
    trust: Trust,
    span: tuple[Int[Array, ""], Int[Array, ""], Int[Array, ""]],
    sac_config: SACConfig,
    config: PlanningConfig,
    spaces: Spaces,
    key: PRNGKeyArray,
    axis: str | None = None,
) -> tuple[SACState, sac.Metrics, Int[Array, ""]]:
    """Updates `first` to `last` of a phase of `total`, each on a batch of its own.

    Arguments:
        model: where synthetic transitions come from: a model, or a replay that a host model filled;
            None for updates on the replay alone.
        visited: where the policy goes in the model (`episodes`), for `StartWeights.visited`.
        span: (first, last, total). The learning rate follows update / total; with a total of 0 it
            is the final one. All three may change without recompilation.
        key: of the phase; round i folds i into it, so a phase cut between rounds is the same phase.
        axis: of the devices that share the rows of each batch (`devices_for`).

    Returns the learner, the means of the updates' metrics, and how many synthetic transitions were
    made and used.
    """
    first, last, total = span
    if axis is not None:
        devices = jax.lax.axis_size(axis)
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        sac_config = dataclasses.replace(sac_config, batch_size=sac_config.batch_size // devices)
        config = dataclasses.replace(
            config, improvement_states=config.improvement_states // devices
        )
    size = ROUND if model is not None else 1
    noise_shape = (size, 2, sac_config.batch_size, spaces.action.size)

    def one_round(number, carry):
        keys = jax.random.split(jax.random.fold_in(key, number), 4)
        batches, valid, used = mixed_batches(
            carry[0], model, replay, visited, trust, size, sac_config, config, spaces, keys[0]
        )
        after = improvements = None
        if isinstance(model, DynamicsModel) and config.value_expansion > 1:
            after = expanded(carry[0], model, batches, sac_config, spaces, trust, keys[3])
        if isinstance(model, DynamicsModel) and config.improvement_states:
            rows = batches.observation[:, : config.improvement_states]
            improvements = better_actions(
                carry[0], model, rows, sac_config, config, spaces, trust, keys[1]
            )
            counts = valid[:, : config.improvement_states]
            improvements = dataclasses.replace(
                improvements, gain=jnp.where(counts, improvements.gain, 0.0)
            )
        noises = jax.random.normal(keys[2], noise_shape)
        prepared = batches, valid, used, noises, improvements, after

        def one_update(index, carry):
            state, sums, synthetic = carry
            batch, valid, used, noise, improvement, following = jax.tree.map(
                lambda rows: rows[index % size], prepared
            )
            rate = annealed(sac_config, index, total)
            state, metrics = sac.update(
                state, batch, valid, rate, sac_config, spaces, noise, improvement, following, axis
            )
            return state, jax.tree.map(jnp.add, sums, metrics), synthetic + used

        start = jnp.maximum(first, number * size)
        end = jnp.minimum(last, (number + 1) * size)
        return jax.lax.fori_loop(start, end, one_update, carry)

    carry = (state, sac.no_metrics(), jnp.zeros((), jnp.int32))
    rounds = (first // size, -(-last // size))
    state, sums, synthetic = jax.lax.fori_loop(*rounds, one_round, carry)
    means = jax.tree.map(lambda sum: sum / jnp.maximum(last - first, 1), sums)
    if axis is not None:
        largest = jax.lax.pmax(means.largest_reward, axis)
        means = dataclasses.replace(means, largest_reward=largest)
        synthetic = jax.lax.psum(synthetic, axis)
    return state, means, synthetic


@eqx.filter_jit
def store_synthetic(
    state: SACState,
    model: DynamicsModel,
    replay: ReplayState,
    config: PlanningConfig,
    spaces: Spaces,
    trust: Trust,
    key: PRNGKeyArray,
) -> tuple[ReplayState, Int[Array, ""]]:
    """Write `config.stored_transitions` synthetic transitions to the replay, the seed's way.

    Returns the replay and how many happened and were written. Consumes `key`.
    """
    count, visited = config.stored_transitions, spaces.observation
    rows, happened = synthetic_batch(
        state, model, replay, count, config, spaces, visited, trust, key
    )
    return replay_module.add(replay, rows, happened), happened.sum()


def action_values(
    actor: Actor,
    critics: Critics,
    model: DynamicsModel,
    observations: Float[Array, "*rows observation"],
    actions: Float[Array, "candidates *rows action"],
    tail: int,
    sac_config: SACConfig,
    spaces: Spaces,
    trust: Trust,
    key: PRNGKeyArray,
) -> Float[Array, "candidates *rows"]:
    """Q(s, a) through the model: a, then `tail` steps of the deterministic policy, then V.

    Actions are in [-1, 1], values in the learner's unit of return; -inf for an action of whose
    outcome the model is too uncertain. This is the evaluation step of rollout policy iteration
    (Bertsekas 2019, section 2.4). Consumes `key`: the candidates of a row share their randomness.
    """
    gamma = sac.discount(sac_config)

    def take(observation, action, key):
        step = model.step
        for _ in observation.shape[:-1]:
            step = jax.vmap(step)
        if observation.ndim < action.ndim:
            # what depends on the state alone is computed once for all candidates
            step = jax.vmap(step, in_axes=(None, 0, None))
        keys = jax.random.split(key, observation.shape[:-1])
        result = step(observation, spaces.action.from_unit(action), keys)
        reward = sac.reward_scale(sac_config) * result.reward
        own = actor.mode(spaces.observation.to_unit(result.next_observation))
        weight = jnp.where(result.terminated, 0.0, gamma)
        return (result.next_observation, own, reward, weight), result.uncertainty

    def follow(carry, key):
        observation, action, total, weight = carry
        (observation, action, reward, later), _ = take(observation, action, key)
        return (observation, action, total + weight * reward, weight * later), None

    first_key, tail_key = jax.random.split(key)
    first, uncertainty = take(observations, actions, first_key)
    carry, _ = jax.lax.scan(follow, first, jax.random.split(tail_key, tail))
    observation, action, total, weight = carry
    x = spaces.observation.to_unit(observation)
    values = total + weight * sac.reduced(critics(x, action), sac_config)
    return jnp.where(uncertainty <= trust.uncertainty, values, -jnp.inf)


def better_actions(
    state: SACState,
    model: DynamicsModel,
    observations: Float[Array, "*rows observation"],
    sac_config: SACConfig,
    config: PlanningConfig,
    spaces: Spaces,
    trust: Trust,
    key: PRNGKeyArray,
) -> Improvement:
    """The best of the policy's own action and some uniform ones, one step ahead in the model.

    Where the outcome of the policy's own action is too uncertain, nothing is gained. Consumes
    `key`.
    """
    candidate_key, model_key = jax.random.split(key)
    own = state.actor.mode(spaces.observation.to_unit(observations))
    uniform = jax.random.uniform(
        candidate_key, (config.improvement_candidates, *own.shape), minval=-1.0
    )
    actions = jnp.concatenate([own[None], uniform])
    values = action_values(
        state.actor,
        state.target_critics,
        model,
        observations,
        actions,
        0,
        sac_config,
        spaces,
        trust,
        model_key,
    )
    gain = jnp.where(jnp.isfinite(values[0]), values.max(axis=0) - values[0], 0.0)
    return Improvement(action=_best(actions, values), gain=gain)


def _best(
    actions: Float[Array, "candidates *rows action"], values: Float[Array, "candidates *rows"]
) -> Float[Array, "*rows action"]:
    index = jnp.argmax(values, axis=0)[None, ..., None]
    return jnp.take_along_axis(actions, index, axis=0)[0]


LOOKAHEAD_CANDIDATES = 32


@eqx.filter_jit
def lookahead_action(
    state: SACState,
    model: DynamicsModel,
    observations: Float[Array, "batch observation"],
    sac_config: SACConfig,
    config: PlanningConfig,
    spaces: Spaces,
    trust: Trust,
) -> Float[Array, "batch action"]:
    """The best of many actions one step ahead in the model, in the environment's units.

    The candidates are the policy's own action and points all over the action box: evenly spaced in
    one dimension, random but fixed in more.
    """
    size = spaces.action.size
    if size == 1:
        grid = np.linspace(-1, 1, LOOKAHEAD_CANDIDATES)[:, None]
    else:
        rng = np.random.default_rng(0)  # the same candidates at every decision
        grid = rng.uniform(-1, 1, (LOOKAHEAD_CANDIDATES * size, size))

    own = state.averaged_actor.mode(spaces.observation.to_unit(observations))
    points = jnp.asarray(grid, jnp.float32)[:, None]
    points = jnp.broadcast_to(points, (len(grid), *own.shape))
    actions = jnp.concatenate([own[None], points])
    values = action_values(
        state.averaged_actor,
        state.target_critics,
        model,
        observations,
        actions,
        config.lookahead_tail,
        sac_config,
        spaces,
        trust,
        jax.random.key(0),
    )
    return spaces.action.from_unit(_best(actions, values))


class Episodes(eqx.Module):
    """What episodes in a model were like."""

    mean_return: Float[Array, ""]
    """undiscounted, in the environment's unit"""
    visited: Box
    """the smallest that holds every observation in which an action was taken"""


@eqx.filter_jit
def episodes(
    actor: Actor, model: DynamicsModel, spaces: Spaces, key: PRNGKeyArray, count: int = 64
) -> Episodes:
    """Follow the deterministic policy in the model for `count` whole episodes.

    They begin at its resets and end at termination or the time limit. Consumes `key`, on which
    alone it depends where they begin.
    """
    reset_key, steps_key = jax.random.split(key)
    starts = jax.vmap(model.initial_observation)(jax.random.split(reset_key, count))

    def step(carry, key):
        observation, alive, total, visited = carry
        low, high = observation.min(0), observation.max(0)
        visited = Box(jnp.minimum(visited.low, low), jnp.maximum(visited.high, high))
        action = spaces.action.from_unit(actor.mode(spaces.observation.to_unit(observation)))
        result = jax.vmap(model.step)(observation, action, jax.random.split(key, count))
        total += jnp.where(alive, result.reward, 0.0)
        alive &= ~result.terminated
        # an episode that is over stays where it was
        observation = jnp.where(alive[:, None], result.next_observation, observation)
        return (observation, alive, total, visited), None

    carry = (starts, jnp.ones(count, bool), jnp.zeros(count), Box(starts.min(0), starts.max(0)))
    keys = jax.random.split(steps_key, spaces.episode_steps)
    (_, _, total, visited), _ = jax.lax.scan(step, carry, keys)
    return Episodes(total.mean(), visited)


def visited_box(model: DynamicsModel, spaces: Spaces, seed: int, rollouts: int = 64) -> Spaces:
    """Measure the components that the environment leaves unbounded, by random actions in the model.

    Raises:
        UsageError: the model's predictions are not finite.
    """
    if all(spaces.bounded):
        return spaces

    @eqx.filter_jit
    def visited(model, key):
        start_key, steps_key = jax.random.split(key)
        starts = jax.vmap(model.initial_observation)(jax.random.split(start_key, rollouts))

        def step(observation, key):
            action_key, model_key = jax.random.split(key)
            unit = jax.random.uniform(action_key, (rollouts, spaces.action.size), minval=-1.0)
            result = jax.vmap(model.step)(
                observation, spaces.action.from_unit(unit), jax.random.split(model_key, rollouts)
            )
            reached = jnp.where(result.terminated[:, None], starts, result.next_observation)
            return reached, result.next_observation

        _, seen = jax.lax.scan(step, starts, jax.random.split(steps_key, spaces.episode_steps))
        return starts, seen.reshape(-1, spaces.observation.size)

    starts, seen = visited(model, jax.random.key(seed))
    return box_around(np.asarray(starts), np.asarray(seen), spaces, model.name)


def box_around(starts: np.ndarray, seen: np.ndarray, spaces: Spaces, name: str) -> Spaces:
    """Give the components that the environment leaves unbounded the range of what was seen.

    That is the range of the resets and of nine tenths of what random actions visit, widened by
    half: the far ends of random walks are not worth planning for.

    Raises:
        UsageError: what was seen is not finite.
    """
    if not np.isfinite(seen).all():
        raise UsageError(f"{name}.step returns numbers that are not finite under random actions")
    low, high = np.quantile(seen, [0.05, 0.95], axis=0)
    low, high = np.minimum(low, starts.min(0)), np.maximum(high, starts.max(0))
    margin = np.maximum((high - low) / 4, 1e-3)
    bounded = np.asarray(spaces.bounded)
    box = spaces.observation
    low, high = np.where(bounded, box.low, low - margin), np.where(bounded, box.high, high + margin)
    return spaces._replace(observation=Box(*jax.device_put((np.float32(low), np.float32(high)))))


def reward_size(model: DynamicsModel, spaces: Spaces, rows: int = 4096) -> float:
    """Mean distance of rewards from 0 over the observation space under uniform actions.

    In the environment's unit; of rewards that are finite alone, 0 if none is.
    """
    rng = np.random.default_rng(0)  # not the run's seed: seeds share programs, so the scale too
    # drawn on the host: compiling the draws would take five times as long as the rest
    units = np.float32(rng.uniform(-1, 1, (rows, spaces.observation.size)))
    actions = np.float32(rng.uniform(-1, 1, (rows, spaces.action.size)))
    return mean_size(np.asarray(_rewards(model, spaces, *jax.device_put((units, actions)))))


def mean_size(rewards: np.ndarray) -> float:
    """Mean distance from 0 of those that are finite, 0 if none is."""
    found = np.abs(rewards[np.isfinite(rewards)])
    return float(found.mean()) if len(found) else 0.0


@eqx.filter_jit
def _rewards(model: DynamicsModel, spaces: Spaces, units, actions):
    """Of one step from each of some observations, all in [-1, 1]."""
    observations = jax.vmap(model.project)(spaces.observation.from_unit(units))
    keys = jax.random.split(jax.random.key(0), len(units))
    return jax.vmap(model.step)(observations, spaces.action.from_unit(actions), keys).reward
