"""Soft Actor-Critic: the losses, and one gradient update.

Haarnoja et al., "Soft Actor-Critic Algorithms and Applications" (arXiv:1812.05905), equations by
their numbers there. Choices on which respected implementations differ are fields of `SACConfig`.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int
from optax.transforms import PartitionState

from .networks import Actor, Critics
from .spaces import Spaces
from .types import Transition


@dataclass(frozen=True)
class SACConfig:
    """The learner's settings."""

    hidden: tuple[int, ...] = (64, 64)
    """units in each hidden layer, of actor and critics alike"""
    activation: Literal["tanh", "relu"] = "tanh"
    """between layers"""
    learning_rate: float = 5.1e-3
    """of Adam, for actor, critics and temperature"""
    final_learning_rate: float = 2.4e-4
    """what a cosine takes it down to over a phase of planning; in a phase of more than 3,000
    updates both are lower in proportion"""
    batch_size: int = 256
    """transitions in an update"""
    discount: float | None = None
    """γ; None: 1 - 1.5/T for episodes of T steps, so that values look two thirds of one ahead"""
    target_rate: float = 0.11
    """τ: how far the target critics move towards the critics at each update"""
    critic_reduction: Literal["min", "mean"] = "min"
    """what of the two critics is believed"""
    huber_delta: float | None = 1.0
    """errors of the critics beyond this, in the learner's unit of return, count in proportion and
    not squared (Huber 1964), so that hopeless states do not drown the others; None: all squared,
    as they always are where the model runs on the host, whose episodes begin as real ones do"""
    entropy_in_target: bool = False
    """whether values include the entropy to come (soft policy evaluation), as in the paper"""
    target_entropy: float = -8.4
    """of the policy, in nats for each action dimension"""
    initial_temperature: float = 0.31
    """α at the start"""
    reward_scale: float | None = None
    """rewards are multiplied by this before the learner sees them; None: 0.2, or 0.1 without a
    model in equations; less where their mean size would be more than 1, or more than 0.5 where
    the environment leaves observations unbounded, so that rewards further out may be larger"""
    advantage_learning: float | None = None
    """β: the share of an action's disadvantage that is taken from its target once more; less than 1
    (Bellemare et al. 2016, arXiv:1512.04860); None: 0.3, but 0 without a model in equations"""


def for_task(
    config: SACConfig, steps: int, bounded: bool, reward_size: float = 1.0, equations: bool = True
) -> SACConfig:
    """The settings with what the task decides filled in.

    Arguments:
        steps: of an episode.
        bounded: whether the environment bounds all observations.
        reward_size: mean distance of rewards from 0 where planning goes, in the environment's unit.
        equations: whether there is a model in equations, and not none or one that runs on the host.
    """
    scale, share = (0.2, 0.3) if equations else (0.1, 0.0)
    largest = 1.0 if bounded else 0.5
    scale = min(scale, largest / reward_size) if reward_size > 0 else scale
    decided = {
        "discount": max(0.0, 1 - 1.5 / steps),
        # one digit, so that a model with slightly other parameters is not another program
        "reward_scale": float(f"{scale:.1g}"),
        "advantage_learning": share,
    }
    still_open = {name: value for name, value in decided.items() if getattr(config, name) is None}
    return dataclasses.replace(config, **still_open)


def discount(config: SACConfig) -> float:
    """γ.

    Raises:
        ValueError: it is still to be decided, by `for_task`.
    """
    return _decided(config, "discount")


def reward_scale(config: SACConfig) -> float:
    """What rewards are multiplied by.

    Raises:
        ValueError: it is still to be decided, by `for_task`.
    """
    return _decided(config, "reward_scale")


def _decided(config: SACConfig, name: str) -> float:
    value = getattr(config, name)
    if value is None:
        raise ValueError(f"{name} is not decided: use for_task(config, steps, ...)")
    return value


class SACState(eqx.Module):
    """All that an update changes."""

    actor: Actor
    critics: Critics
    target_critics: Critics
    """an exponential moving average of `critics`, used in targets alone"""
    log_temperature: Float[Array, ""]
    critic_moments: PartitionState
    policy_moments: PartitionState
    """of actor and temperature together"""
    averaged_actor: Actor
    """an exponential moving average of `actor`: the deterministic policy that is handed out"""


class Metrics(eqx.Module):
    """What one update looked like; each but the last a mean over its batch."""

    critic_loss: Float[Array, ""]
    actor_loss: Float[Array, ""]
    temperature: Float[Array, ""]
    entropy: Float[Array, ""]
    q_value: Float[Array, ""]
    largest_reward: Float[Array, ""]
    """the greatest distance from 0 in the batch, in the learner's unit"""


def no_metrics() -> Metrics:
    """Those of no update: zeros."""
    return Metrics(*[jnp.asarray(np.float32(0))] * len(dataclasses.fields(Metrics)))


class Improvement(eqx.Module):
    """Actions known to be better than the policy's own, for the first rows of a batch."""

    action: Float[Array, "*rows action"]
    """in [-1, 1]"""
    gain: Float[Array, "*rows"]
    """by how much, in the learner's unit of return; 0 where the policy's own action is best"""


class Expansion(eqx.Module):
    """What follows the transitions of a batch until the critics judge."""

    reward: Float[Array, "*rows"]
    """discounted sum from the next observation on, in the learner's unit of return"""
    observation: Float[Array, "*rows observation"]
    """where the critics judge"""
    discount: Float[Array, "*rows"]
    """of the value there; 0 where the episode has terminated"""


AVERAGING_RATE = 0.01


def _kinds(parameters):
    return jax.tree.map(lambda leaf: "large" if leaf.size > 2**15 else "small", parameters)


ADAM: Any = optax.partition(
    {"large": optax.scale_by_adam(), "small": optax.flatten(optax.scale_by_adam())}, _kinds
)
"""Small arrays end to end, as one: each would cost more to begin with than to compute. Large ones
would only be copied."""


def create(config: SACConfig, spaces: Spaces, seed: int) -> SACState:
    """A learner that knows nothing."""
    rng = np.random.default_rng(seed)
    sizes = (spaces.observation.size, spaces.action.size)
    actor = Actor(*sizes, config.hidden, config.activation, rng)
    critics = Critics(2, *sizes, config.hidden, config.activation, rng)
    log_temperature = jax.device_put(np.float32(np.log(config.initial_temperature)))
    return SACState(
        actor=actor,
        critics=critics,
        target_critics=critics,
        log_temperature=log_temperature,
        critic_moments=_moments(critics),
        policy_moments=_moments((actor, log_temperature)),
        averaged_actor=actor,
    )


def _moments(parameters) -> PartitionState:
    """Adam's state at the start, all zeros; made on the host for the same reason as the weights."""
    return jax.tree.map(
        lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype)),
        jax.eval_shape(ADAM.init, parameters),
    )


def updates(state: SACState) -> Int[Array, ""]:
    """Gradient updates that a learner has been through."""
    # the temperature is a small one
    return optax.tree_utils.tree_get(state.policy_moments.inner_states["small"], "count")


def reduced(q: Float[Array, "members *batch"], config: SACConfig) -> Float[Array, "*batch"]:
    """What the ensemble says together."""
    return q.min(axis=0) if config.critic_reduction == "min" else q.mean(axis=0)


def next_value(
    state: SACState,
    x: Float[Array, "*batch observation"],
    config: SACConfig,
    noise: Float[Array, "*batch action"],
) -> Float[Array, "*batch"]:
    """V(s) by the target critics, for scaled observations (eq. 3)."""
    action, log_prob = state.actor.sample(x, noise)
    if not config.entropy_in_target:
        return reduced(state.target_critics(x, state.actor.mode(x)), config)
    value = reduced(state.target_critics(x, action), config)
    return value - jnp.exp(state.log_temperature) * log_prob


def one_step(batch: Transition, config: SACConfig) -> Expansion:
    """The critics judge the next observation, and nothing where it is terminal (eq. 5)."""
    return Expansion(
        jnp.zeros_like(batch.reward),
        batch.next_observation,
        jnp.where(batch.terminated, 0.0, discount(config)),
    )


def td_target(
    batch: Transition, after: Expansion, value: Float[Array, "*batch"], config: SACConfig
) -> Float[Array, "*batch"]:
    """r + γ V(s') where nothing lies between (eq. 5)."""
    # what critics say of terminal states does not count even where it is no number
    later = jnp.where(after.discount > 0, after.discount * value, 0.0)
    return reward_scale(config) * batch.reward + after.reward + later


def disadvantage(
    state: SACState,
    x: Float[Array, "*batch observation"],
    action: Float[Array, "*batch action"],
    config: SACConfig,
) -> Float[Array, "*batch"]:
    """Q(s, μ(s)) - Q(s, a): by how much the deterministic policy's action is better.

    By the target critics. Where steps are short, one other action changes values less than critics
    err; with β times this taken from targets they come to tell actions apart by 1 / (1 - β) of the
    true difference, and V(s) stays what it is (Bellemare et al. 2016, arXiv:1512.04860, eq. 7).
    """
    actions = jnp.stack([state.actor.mode(x), action])
    own, taken = reduced(state.target_critics(jnp.stack([x, x]), actions), config)
    return own - taken


def critic_loss(
    critics: Critics,
    x: Float[Array, "batch observation"],
    action: Float[Array, "batch action"],
    target: Float[Array, " batch"],
    valid: Bool[Array, " batch"],
    huber_delta: float | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Half the squared error, summed over members, meaned over valid rows (eq. 5); and mean Q.

    Of errors beyond `huber_delta` it is Huber's loss.
    """
    q = critics(x, action)
    error = q - target
    loss = (
        0.5 * error**2 if huber_delta is None else optax.losses.huber_loss(error, delta=huber_delta)
    )
    return _mean(loss, valid).sum(), _mean(q, valid).mean()


def actor_loss(
    actor: Actor,
    critics: Critics,
    temperature: Float[Array, ""],
    x: Float[Array, "batch observation"],
    valid: Bool[Array, " batch"],
    config: SACConfig,
    noise: Float[Array, "batch action"],
    improvement: Improvement | None = None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """α log π(a|s) - Q(s, a) for a reparameterised action (eq. 7); and the entropy.

    The gradient of Q climbs the nearest of its peaks. An `improvement` adds the squared distance to
    a better action, weighted by its gain, which leads to the highest.
    """
    action, log_prob = actor.sample(x, noise)
    q = reduced(critics(x, action), config)
    loss = _mean(temperature * log_prob - q, valid)
    if improvement is not None:
        own = actor.mode(x[: improvement.gain.shape[0]])
        loss += (improvement.gain * ((own - improvement.action) ** 2).sum(-1)).mean()
    return loss, -_mean(log_prob, valid)


def temperature_loss(
    log_temperature: Float[Array, ""], entropy: Float[Array, ""], target_entropy: float
) -> Float[Array, ""]:
    """α (H(π) - H̄): raises α while the policy has less entropy than asked for (eq. 18)."""
    return jnp.exp(log_temperature) * (entropy - target_entropy)


def update(
    state: SACState,
    batch: Transition,
    valid: Bool[Array, " batch"],
    learning_rate: Float[Array, ""],
    config: SACConfig,
    spaces: Spaces,
    noise: Float[Array, "2 batch action"],
    improvement: Improvement | None = None,
    after: Expansion | None = None,
    axis: str | None = None,
) -> tuple[SACState, Metrics]:
    """One gradient step of critics, actor and temperature, then of the target critics.

    Arguments:
        batch: transitions with one leading axis.
        valid: the rows that count; a rollout that has ended leaves rows that do not.
        noise: standard normal, for the actions of the targets and for those of the actor's loss.
        improvement: for the first rows of the batch, better actions than the policy's own.
        after: what follows the transitions; None: `one_step`.
        axis: of the devices that the batch is spread over, where it is; rows are those of this one,
            losses and gradients those of all.
    """
    target_noise, actor_noise = noise
    x = spaces.observation.to_unit(batch.observation)
    after = one_step(batch, config) if after is None else after
    next_x = spaces.observation.to_unit(after.observation)
    target = td_target(batch, after, next_value(state, next_x, config, target_noise), config)
    share = _decided(config, "advantage_learning")
    if share > 0:
        target -= share * disadvantage(state, x, batch.action, config)

    found = jax.value_and_grad(critic_loss, has_aux=True)(
        state.critics, x, batch.action, target, valid, config.huber_delta
    )
    (loss, q_value), gradient = _over(axis, found, valid)
    critics, critic_moments = _step(state.critics, gradient, state.critic_moments, learning_rate)

    temperature = jnp.exp(state.log_temperature)
    found = jax.value_and_grad(actor_loss, has_aux=True)(
        state.actor, critics, temperature, x, valid, config, actor_noise, improvement
    )
    (policy_loss, entropy), gradient = _over(axis, found, valid)
    target_entropy = config.target_entropy * batch.action.shape[-1]
    by_temperature = jax.grad(temperature_loss)(state.log_temperature, entropy, target_entropy)
    (actor, log_temperature), policy_moments = _step(
        (state.actor, state.log_temperature),
        (gradient, by_temperature),
        state.policy_moments,
        learning_rate,
    )

    rewards = jnp.where(valid, jnp.abs(batch.reward), 0.0)
    largest_reward = reward_scale(config) * rewards.max()
    return SACState(
        actor=actor,
        critics=critics,
        target_critics=_moved(state.target_critics, critics, config.target_rate),
        log_temperature=log_temperature,
        critic_moments=critic_moments,
        policy_moments=policy_moments,
        averaged_actor=_moved(state.averaged_actor, actor, AVERAGING_RATE),
    ), Metrics(loss, policy_loss, temperature, entropy, q_value, largest_reward)


def _mean(values: Float[Array, "*any batch"], valid: Bool[Array, " batch"]) -> Array:
    return jnp.where(valid, values, 0.0).sum(-1) / jnp.maximum(valid.sum(), 1)


def _over(axis: str | None, means, valid: Bool[Array, " batch"]):
    """Means over the valid rows of a batch, from those over each device's share of them."""
    if axis is None:
        return means
    flat, tree = ravel_pytree((means, 1.0))
    total = jax.lax.psum(valid.sum() * flat, axis)  # one exchange: each makes all devices wait
    return tree(total / jnp.maximum(total[-1], 1))[0]


def _step(parameters, gradient, moments, learning_rate):
    direction, moments = ADAM.update(gradient, moments)
    return jax.tree.map(lambda p, d: p - learning_rate * d, parameters, direction), moments


def _moved(average, current, rate: float):
    """A step of an exponential moving average towards `current`."""
    return jax.tree.map(lambda a, c: a + rate * (c - a), average, current)
