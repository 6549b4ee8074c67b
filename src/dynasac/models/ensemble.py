"""A probabilistic ensemble of small networks, trained in one compiled loop, that knows its errors.

Each member predicts mean and standard deviation of a vector (Lakshminarayanan et al. 2017, "Simple
and scalable predictive uncertainty estimation using deep ensembles"; for dynamics Chua et al. 2018,
"PETS", and Janner et al. 2019, "MBPO"). Each has its own bootstrap of the rows, made of weights
instead of copies: every block of consecutive rows is left out by exactly `HELD_OUT` members and
weighs as in the Bayesian bootstrap (Rubin 1981) for the others. So every row has predictions by
members that never saw it, and no data is set aside.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ..errors import UsageError
from ..types import padded

HELD_OUT = 2
"""members that each row is held out from: two, so that their difference says how far members that
have not seen a place disagree about it"""
BLOCK = 10
"""consecutive rows that are held out together: neighbours in time are nearly copies"""
LEAST_ROWS = 4096
"""rows are padded to a power of two, this at least; nothing is compiled again below it"""
OUTLYING = 10.0
"""errors of this many spreads of the target count for nothing (Tukey's biweight): a car that hits
a wall once must not hide how it moves; a twentieth of the rows is part of the spread"""
LOG_STD_MIN, LOG_STD_MAX = -7.0, 1.0
"""of the predicted noise, in standard deviations of the target"""
ADAM: Any = optax.scale_by_adam()


@dataclass(frozen=True)
class EnsembleConfig:
    """Settings of learned models."""

    members: int = 5
    """networks; at least 3"""
    hidden: tuple[int, ...] = (32, 32)
    """units in each hidden layer"""
    updates: int = 3000
    """gradient updates of a fit"""
    batch_size: int = 256
    """rows in an update, the same for all members"""
    learning_rate: float = 1e-2
    """of Adam at the start; half a cosine takes it to nothing"""
    weight_decay: float = 0.1
    """of the networks' weights, decoupled from the gradient; the linear part has none"""


class Scale(eqx.Module):
    """What makes the rows' mean 0 and their standard deviation 1, in their units."""

    mean: Float[Array, " size"]
    std: Float[Array, " size"]

    def to_unit(self, value: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        return (value - self.mean) / self.std

    def from_unit(self, unit: Float[Array, "*batch size"]) -> Float[Array, "*batch size"]:
        return self.mean + self.std * unit


class Networks(eqx.Module):
    """The members' parameters, stacked: `y = skip φ + MLP(φ)`, and the noise's log from the MLP.

    φ are the `features` of the inputs: what physics leaves open is often linear in them, and then
    needs few rows.
    """

    weights: tuple[Float[Array, "members _ _"], ...]
    biases: tuple[Float[Array, "members _"], ...]
    skip: Float[Array, "members targets features"]

    def __call__(
        self, x: Float[Array, " inputs"]
    ) -> tuple[Float[Array, "members targets"], Float[Array, "members targets"]]:
        """Means and log standard deviations, all in units of their scales.

        Of one vector, and each product a matrix times a vector: batched by `vmap`, rows become the
        columns, which is the layout that XLA's kernels for CPUs like.
        """
        members, targets, _ = self.skip.shape
        phi = features(x)
        means, raws = [], []
        for member in range(members):  # one by one: XLA's batched products are slower
            hidden = phi
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                hidden = jnp.tanh(weight[member] @ hidden + bias[member])
            weight, bias = self.weights[-1][member], self.biases[-1][member]
            linear = self.skip[member] @ phi
            means.append(weight[:targets] @ hidden + bias[:targets] + linear)
            raws.append(weight[targets:] @ hidden + bias[targets:])
        span = (LOG_STD_MAX - LOG_STD_MIN) / 2
        return jnp.stack(means), LOG_STD_MIN + span * (jnp.tanh(jnp.stack(raws)) + 1)


MOST_PRODUCTS = 16
"""inputs, with more of which products of two would be too many"""
REACH = 4.0
"""standard deviations of an input at which its products stop growing"""


def features(x: Float[Array, " inputs"]) -> Float[Array, " features"]:
    """A vector of scaled inputs, and the products of every two of them."""
    size = len(x)
    if size > MOST_PRODUCTS:
        return x
    first, second = np.triu_indices(size)
    near = jnp.clip(x, -REACH, REACH)
    return jnp.concatenate([x, near[first] * near[second]])


def feature_count(inputs: int) -> int:
    """The size of `features`."""
    return inputs + (inputs * (inputs + 1) // 2 if inputs <= MOST_PRODUCTS else 0)


class Ensemble(eqx.Module):
    """Networks that differ as far as the rows leave them free to, and the scales they work in."""

    networks: Networks
    inputs: Scale
    targets: Scale

    def __call__(
        self, inputs: Float[Array, " inputs"]
    ) -> tuple[Float[Array, "members targets"], Float[Array, "members targets"]]:
        """Each member's mean and standard deviation, in the targets' units."""
        mean, log_std = self.networks(self.inputs.to_unit(inputs))
        return self.targets.from_unit(mean), self.targets.std * jnp.exp(log_std)


def create(inputs: int, targets: int, config: EnsembleConfig, seed: int) -> Ensemble:
    """An untrained ensemble: random hidden layers, and 0 whatever it is asked.

    Raises:
        UsageError: the settings make no sense.
    """
    check(config)
    rng = np.random.default_rng(seed)
    size = feature_count(inputs)
    sizes = (size, *config.hidden, 2 * targets)
    shapes = [(config.members, o, i) for i, o in itertools.pairwise(sizes)]
    weights = [rng.normal(0.0, shape[-1] ** -0.5, shape) for shape in shapes]
    weights[-1] *= 0.0
    # biases spread over the data: the members bend in different places
    biases = [rng.uniform(-1.0, 1.0, shape[:2]) for shape in shapes]
    biases[-1] *= 0.0
    return Ensemble(
        Networks(
            tuple(float32(weight) for weight in weights),
            tuple(float32(bias) for bias in biases),
            float32(np.zeros((config.members, targets, size))),
        ),
        Scale(float32(np.zeros(inputs)), float32(np.ones(inputs))),
        Scale(float32(np.zeros(targets)), float32(np.ones(targets))),
    )


def fit(
    inputs: np.ndarray,
    targets: np.ndarray,
    counted: np.ndarray,
    stopped: np.ndarray,
    floor: np.ndarray,
    config: EnsembleConfig,
    seed: int,
    *,
    loss: Literal["gaussian", "logistic"] = "gaussian",
    rows: np.ndarray | None = None,
    bags: np.ndarray | None = None,
) -> tuple[Ensemble, np.ndarray]:
    """Train on rows; and what every member says about every row, [members, rows, targets].

    Arguments:
        inputs, targets: [rows, inputs] and [rows, targets], in their own units; for the logistic
            loss the targets are 0 or 1, and what is predicted are log odds.
        counted: [rows, targets]; whether a row says anything about a target.
        stopped: [rows, targets]; 1 where a bound of the environment may have kept the target from
            being larger, -1 where from being smaller, 0 elsewhere. Predictions beyond it are right.
        floor: [targets]; deviations smaller than this mean nothing. Targets are scaled by their
            `spread`, this at least.
        rows: [rows]; how often a row is drawn, as weights; all alike if None.
        bags: [members, rows]; how much a row weighs for a member; those of `bootstrap` if None.

    Raises:
        UsageError: a number is not finite, or the settings make no sense.
    """
    check(config)
    for name, values in (("inputs", inputs), ("targets", targets)):
        if not np.isfinite(values).all():
            raise UsageError(
                f"the {name} to learn from have numbers that are not finite, first in row "
                f"{int(np.flatnonzero(~np.isfinite(values).all(1))[0])}"
            )
    count = len(inputs)
    start = create(inputs.shape[1], targets.shape[1], config, seed)
    unscaled = loss == "logistic"
    target_scale = start.targets if unscaled else _target_scale(targets, counted, floor)
    start = Ensemble(start.networks, _input_scale(inputs), target_scale)
    rng = np.random.default_rng((seed, 1))
    bags = bootstrap(count, config.members, rng) if bags is None else bags
    drawn = np.ones(count) if rows is None else rows

    def rounded(values: np.ndarray, axis: int = 0) -> np.ndarray:
        return padded(values, LEAST_ROWS, axis)

    data = _Data(
        start.inputs.to_unit(float32(rounded(inputs))),
        start.targets.to_unit(float32(rounded(targets))),
        jax.device_put(rounded(counted)),
        float32(rounded(stopped)),
        float32(rounded(bags, axis=1)),
        float32(np.cumsum(rounded(drawn)) / drawn.sum()),
        jax.device_put(np.int32(count)),
    )
    if loss == "gaussian":
        start = eqx.tree_at(lambda e: e.networks, start, _regressed(start.networks, data))
    words = np.random.SeedSequence((seed, 2)).generate_state(4)
    networks = _trained(
        start.networks,
        data,
        jax.device_put(np.int32(config.updates)),
        float32(config.learning_rate),
        float32(config.weight_decay),
        config.batch_size,
        loss,
        jax.random.wrap_key_data(jax.device_put(words), impl="rbg"),
    )
    said = np.asarray(start.targets.from_unit(_means(networks, data.inputs)))[:, :count]
    return Ensemble(networks, start.inputs, start.targets), said


def bootstrap(rows: int, members: int, rng: np.random.Generator) -> np.ndarray:
    """How much each row weighs for each member, [members, rows]; 0 for those held out from it.

    Blocks of consecutive rows share their weight. The blocks are dealt to the members in turns, so
    that each is held out from as many rows as any other.
    """
    size = max(1, min(BLOCK, rows // (2 * members)))
    blocks = -(-rows // size)
    turn = (rng.permutation(blocks) + rng.integers(members)) % members
    apart = (np.arange(members)[:, None] - turn) % members
    # the second one held out differs from block to block, so that every pair occurs
    second = 1 + rng.integers(members - 1, size=blocks)
    weights = np.where((apart == 0) | (apart == second), 0.0, rng.exponential(size=apart.shape))
    return np.repeat(weights, size, axis=1)[:, :rows]


class _Data(eqx.Module):
    inputs: Float[Array, "rows inputs"]
    targets: Float[Array, "rows targets"]
    counted: Bool[Array, "rows targets"]
    stopped: Float[Array, "rows targets"]
    bags: Float[Array, "members rows"]
    cumulative: Float[Array, " rows"]
    """the chance that a row, or one before it, is drawn"""
    count: Int[Array, ""]


@eqx.filter_jit
def _trained(
    networks: Networks,
    data: _Data,
    updates: Int[Array, ""],
    learning_rate: Float[Array, ""],
    weight_decay: Float[Array, ""],
    batch_size: int,
    loss: str,
    key: PRNGKeyArray,
) -> Networks:
    """Adam on batches that all members share, each with its own weights of the rows."""

    def objective(networks: Networks, batch) -> Array:
        x, y, counted, stopped, bags = batch
        mean, log_std = jax.vmap(networks, out_axes=1)(x)
        if loss == "logistic":
            errors = optax.sigmoid_binary_cross_entropy(mean, jnp.broadcast_to(y, mean.shape))
        else:
            # weighted by the variance, as in Seitzer et al. 2022 with β = 1: noise does not slow
            # the mean down, and what it is learned from is the squared error
            error = y - mean
            error = jnp.where(error * stopped < 0, 0.0, error) / OUTLYING
            squared = OUTLYING**2 / 3 * (1 - jnp.maximum(0.0, 1 - error**2) ** 3)
            std = jax.lax.stop_gradient(log_std)
            noise = 0.5 * jax.lax.stop_gradient(squared) * jnp.exp(-2 * log_std) + log_std
            errors = 0.5 * squared + jnp.exp(2 * std) * noise
        weights = bags[..., None] * counted
        return (weights * errors).sum() / batch_size

    def update(index, carry):
        networks, moments = carry
        # stratified: a batch holds of every part of the data what is due to it
        places = jnp.arange(batch_size) + jax.random.uniform(
            jax.random.fold_in(key, index), (batch_size,)
        )
        drawn = jnp.searchsorted(data.cumulative, places / batch_size, side="right")
        drawn = jnp.minimum(drawn, data.count - 1)
        by_row = data.inputs, data.targets, data.counted, data.stopped
        batch = *(rows[drawn] for rows in by_row), data.bags[:, drawn]
        direction, moments = ADAM.update(jax.grad(objective)(networks, batch), moments)
        rate = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * index / updates))
        moved = jax.tree.map(lambda p, d: p - rate * d, networks, direction)
        weights = tuple(weight * (1 - rate * weight_decay) for weight in moved.weights)
        return Networks(weights, moved.biases, moved.skip), moments

    networks, _ = jax.lax.fori_loop(0, updates, update, (networks, ADAM.init(networks)))
    return networks


RIDGE = 1e-4
"""of the regression, in units of the features' mean squares"""

PRODUCTS = 30.0
"""how much more it holds products down"""


@eqx.filter_jit
def _regressed(networks: Networks, data: _Data) -> Networks:
    """The linear part by robust ridge regression: what is left is for the networks to learn."""
    phi = jax.vmap(features)(data.inputs)
    phi = jnp.concatenate([phi, jnp.ones((len(phi), 1))], axis=-1)
    linear = data.inputs.shape[1]
    product = (jnp.arange(phi.shape[1]) >= linear) & (jnp.arange(phi.shape[1]) < phi.shape[1] - 1)
    ridge = RIDGE * jnp.where(product, PRODUCTS, 1.0)
    free = (jnp.arange(len(phi)) < data.count)[:, None] & data.counted & (data.stopped == 0)

    def solve(bag, free, target):
        def again(_, found):
            error = (target - phi @ found) / OUTLYING
            weight = bag * free * jnp.maximum(0.0, 1 - error**2) ** 2
            weight = weight / jnp.maximum(weight.sum(), 1e-6)
            gram = (phi * weight[:, None]).T @ phi + jnp.diag(ridge)
            return jnp.linalg.solve(gram, phi.T @ (weight * target))

        return jax.lax.fori_loop(0, 8, again, jnp.zeros(phi.shape[1]))

    by_target = jax.vmap(solve, in_axes=(None, 1, 1))
    found = jax.vmap(by_target, in_axes=(0, None, None))(data.bags, free, data.targets)
    *biases, last = networks.biases
    last = last.at[:, : found.shape[1]].set(found[..., -1])
    return Networks(networks.weights, (*biases, last), found[..., :-1])


@eqx.filter_jit
def _means(networks: Networks, inputs: Array) -> Array:
    return jax.vmap(networks, out_axes=1)(inputs)[0]


def spread(values: np.ndarray) -> np.ndarray:
    """What is usual for a column: its standard deviation without the tails, [rows, n] to [n].

    A tenth of the one with them at least; 0 for a constant.
    """
    if not len(values):
        return np.zeros(values.shape[1:])
    low, high = np.quantile(values, [0.05, 0.95], axis=0)
    return np.asarray(np.maximum((high - low) / 3.29, 0.1 * values.std(axis=0)))


def _input_scale(values: np.ndarray) -> Scale:
    """A constant column keeps its unit."""
    mean, std = values.mean(0), values.std(0)
    return Scale(float32(mean), float32(np.where(std > 1e-6 * np.abs(mean) + 1e-12, std, 1.0)))


def _target_scale(values: np.ndarray, counted: np.ndarray, floor: np.ndarray) -> Scale:
    """Of the rows that count."""
    columns = [column[rows] for column, rows in zip(values.T, counted.T, strict=True)]
    middle = [np.median(column) if len(column) else 0.0 for column in columns]
    return Scale(
        float32(middle), float32(np.maximum([spread(column) for column in columns], floor))
    )


def check(config: EnsembleConfig) -> None:
    """Refuse settings that make no sense.

    Raises:
        UsageError: naming what must be larger.
    """
    if config.members < HELD_OUT + 1:
        raise UsageError(f"an ensemble of {config.members} members: at least {HELD_OUT + 1}")
    if min(config.updates, config.batch_size, *config.hidden) < 1 or not config.hidden:
        raise UsageError("an ensemble's updates, batch size and hidden layers are at least 1")


def float32(values) -> Array:
    """Arrays made on the host: nothing is compiled for them."""
    return jax.device_put(np.asarray(values, np.float32))
