"""The two networks of Soft Actor-Critic: a squashed-Gaussian actor and an ensemble of critics."""

import itertools
import math
from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

LOG_STD_MIN, LOG_STD_MAX = -5.0, 2.0
ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"tanh": jnp.tanh, "relu": jax.nn.relu}


FEW = 8
"""Up to so many inputs or outputs are too few for a matrix product: most of its time would go into
moving data, which a loop fused with the activation saves. With two outputs, a product that sums
over the batch took several times as long as two of a matrix and a vector."""

barrier = jax.lax.optimization_barrier
"""XLA folds transpositions into products and repeats cheap operations in every loop that reads
them; products then run on slower kernels, and loops stride through memory."""


@jax.custom_vjp
def affine(
    weight: Float[Array, "outputs inputs"],
    bias: Float[Array, "outputs 1"],
    x: Float[Array, "inputs rows"],
) -> Float[Array, "outputs rows"]:
    """`weight @ x + bias`, in forms that XLA's CPU compiler is fast at.

    Its fast kernels contract their left side over its last axis.
    """
    return _affine_forward(weight, bias, x)[0]


def _by_columns(weight) -> bool:
    # not for the last layers: what XLA computes again in each loop differs in its last digits, and
    # the gradient of a minimum looks for equal numbers
    outputs, inputs = weight.shape
    return inputs <= FEW < outputs


def _affine_forward(weight, bias, x):
    if not _by_columns(weight):
        return weight @ x + bias, (weight, x)
    # with a row of ones, one product makes the gradients of both weight and bias
    x = barrier(jnp.concatenate([x, jnp.ones_like(x[:1])]))
    outer = (column[:, None] * row for column, row in zip(weight.T, x[:-1], strict=True))
    return sum(outer, start=bias), (weight, x)


def _affine_backward(saved, gradient):
    weight, x = saved
    if _by_columns(weight):
        by_both = gradient @ x.T
        # one by one: those that nobody asks for are never computed
        by_x = jnp.stack([column @ gradient for column in weight.T])
        return by_both[:, :-1], by_both[:, -1:], by_x
    by_bias = gradient.sum(-1, keepdims=True)
    if len(weight) > FEW:
        return gradient @ x.T, by_bias, barrier(weight.T) @ gradient
    gradient = barrier(gradient)
    by_weight = jnp.stack([x @ row for row in gradient])
    outer = (row[:, None] * one for row, one in zip(weight, gradient, strict=True))
    return by_weight, by_bias, sum(outer)


affine.defvjp(_affine_forward, _affine_backward)


class Perceptron(eqx.Module):
    """Fully connected layers: `activation` between them, none after the last.

    Inside, a column is a row of the batch: the long axis of every product and activation is then
    contiguous, which XLA's kernels for CPUs like best.
    """

    weights: list[Float[Array, "outputs inputs"]]
    biases: list[Float[Array, "outputs 1"]]
    activation: str = eqx.field(static=True)

    def __init__(
        self,
        sizes: tuple[int, ...],
        activation: str,
        output_scale: float,
        rng: np.random.Generator,
    ):
        """He initialisation for the hidden layers, LeCun times `output_scale` for the last.

        Drawn on the host: compiling the draws would take longer than training with them.
        """
        shapes = list(itertools.pairwise(sizes))
        gains = [2.0**0.5] * (len(shapes) - 1) + [output_scale]
        self.weights = [
            jax.device_put(np.float32(rng.normal(0.0, gain / inputs**0.5, (outputs, inputs))))
            for gain, (inputs, outputs) in zip(gains, shapes, strict=True)
        ]
        self.biases = [jax.device_put(np.zeros((outputs, 1), np.float32)) for _, outputs in shapes]
        self.activation = activation

    def __call__(self, *parts: Float[Array, "*batch _"]) -> Float[Array, "*batch outputs"]:
        """Of inputs that are `parts`, side by side."""
        batch = parts[0].shape[:-1]
        columns = [part.reshape(math.prod(batch), part.shape[-1]).T for part in parts]
        hidden = barrier(jnp.concatenate(columns))
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = ACTIVATIONS[self.activation](affine(weight, bias, hidden))
        output = affine(self.weights[-1], self.biases[-1], hidden)
        return barrier(output).T.reshape(*batch, output.shape[0])


class Actor(eqx.Module):
    """π(a|s): a Gaussian squashed into [-1, 1] by tanh (Haarnoja et al. 2018, appendix C)."""

    body: Perceptron

    def __init__(
        self,
        observation_size: int,
        action_size: int,
        hidden: tuple[int, ...],
        activation: str,
        rng: np.random.Generator,
    ):
        """A policy that starts near the middle of the action range."""
        sizes = (observation_size, *hidden, 2 * action_size)
        self.body = Perceptron(sizes, activation, output_scale=0.1, rng=rng)

    def gaussian(
        self, x: Float[Array, "*batch observation"]
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch action"]]:
        """Mean and log standard deviation before squashing, for scaled observations."""
        mean, raw = jnp.split(self.body(x), 2, axis=-1)
        span = (LOG_STD_MAX - LOG_STD_MIN) / 2
        return mean, LOG_STD_MIN + span * (jnp.tanh(raw) + 1)

    def mode(self, x: Float[Array, "*batch observation"]) -> Float[Array, "*batch action"]:
        """The deterministic policy: the squashed mean, in [-1, 1]."""
        return jnp.tanh(self.gaussian(x)[0])

    def sample(
        self, x: Float[Array, "*batch observation"], noise: Float[Array, "*batch action"]
    ) -> tuple[Float[Array, "*batch action"], Float[Array, "*batch"]]:
        """An action in [-1, 1] and its log-probability, tanh's Jacobian included.

        A differentiable function of `noise`, which is standard normal.
        """
        mean, log_std = self.gaussian(x)
        u = mean + jnp.exp(log_std) * noise
        gaussian = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2 * jnp.pi)
        # log(1 - tanh(u)²), in the form that does not underflow
        jacobian = 2 * (jnp.log(2.0) - u - jax.nn.softplus(-2 * u))
        return jnp.tanh(u), (gaussian - jacobian).sum(-1)


class Critics(eqx.Module):
    """Qᵢ(s, a): an ensemble of networks that start from different weights."""

    members: Perceptron
    """all of them: every array has one more axis, before its own"""

    def __init__(
        self,
        count: int,
        observation_size: int,
        action_size: int,
        hidden: tuple[int, ...],
        activation: str,
        rng: np.random.Generator,
    ):
        sizes = (observation_size + action_size, *hidden, 1)
        networks = [Perceptron(sizes, activation, output_scale=1.0, rng=rng) for _ in range(count)]
        self.members = jax.tree.map(lambda *leaves: jax.device_put(np.stack(leaves)), *networks)

    def __call__(
        self, x: Float[Array, "*batch observation"], action: Float[Array, "*batch action"]
    ) -> Float[Array, "members *batch"]:
        """The value of an action in [-1, 1], by each member, in the learner's unit of return."""
        return jax.vmap(lambda member: member(x, action)[..., 0])(self.members)
