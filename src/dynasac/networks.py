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


FEW_OUTPUTS = 16
"""Fewer than this are no left side for XLA's fast kernels: with two, a product that sums over the
batch took several times as long as with the two on its right."""


@jax.custom_vjp
def product(
    weight: Float[Array, "outputs inputs"], x: Float[Array, "inputs rows"]
) -> Float[Array, "outputs rows"]:
    """`weight @ x`.

    XLA's fast CPU kernels contract their left side over its last axis. Its gradient with respect to
    `x` has the weights transposed there; without a barrier XLA folds the transposition into the
    product, which then runs on slower kernels.
    """
    return weight @ x


def _product_forward(weight, x):
    return weight @ x, (weight, x)


def _product_backward(saved, gradient):
    weight, x = saved
    outputs = len(weight)
    barrier = jax.lax.optimization_barrier
    if outputs == 1:
        # what leads to the gradient would be computed again for every input, in one loop with these
        gradient = barrier(gradient)
        return (gradient * x).sum(-1)[None], weight.T * gradient
    by_x = barrier(weight.T) @ gradient
    if outputs < FEW_OUTPUTS:
        return barrier(x @ gradient.T).T, by_x
    return gradient @ x.T, by_x


product.defvjp(_product_forward, _product_backward)


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
            jnp.asarray(rng.normal(0.0, gain / inputs**0.5, (outputs, inputs)), jnp.float32)
            for gain, (inputs, outputs) in zip(gains, shapes, strict=True)
        ]
        self.biases = [jnp.asarray(np.zeros((outputs, 1), np.float32)) for _, outputs in shapes]
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        # barriers for the same reason as in `product`
        barrier = jax.lax.optimization_barrier
        hidden = barrier(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]).T)
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            hidden = ACTIVATIONS[self.activation](product(weight, hidden) + bias)
        output = product(self.weights[-1], hidden) + self.biases[-1]
        return barrier(output).T.reshape(*x.shape[:-1], output.shape[0])


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
        self.members = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *networks)

    def __call__(
        self, x: Float[Array, "*batch observation"], action: Float[Array, "*batch action"]
    ) -> Float[Array, "members *batch"]:
        """The value of an action in [-1, 1], by each member, in the learner's unit of return."""
        inputs = jnp.concatenate([x, action], axis=-1)
        return jax.vmap(lambda member: member(inputs)[..., 0])(self.members)
