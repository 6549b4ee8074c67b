"""The two networks: shapes, starting points, and the density of the squashed Gaussian."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from scipy import integrate, stats

from dynasac.networks import LOG_STD_MAX, LOG_STD_MIN, Actor, Critics, affine

# one program for each, where operations one by one would be some twenty
sample, mode, gaussian = (eqx.filter_jit(f) for f in (Actor.sample, Actor.mode, Actor.gaussian))
values_of = eqx.filter_jit(Critics.__call__)


def actor(seed: int = 0, observation: int = 3, action: int = 2) -> Actor:
    return Actor(observation, action, (8, 8), "tanh", np.random.default_rng(seed))


def critics(count: int = 2, activation: str = "relu") -> Critics:
    return Critics(count, 3, 2, (8, 8), activation, np.random.default_rng(0))


def gaussian_noise(seed: int, shape: tuple[int, ...]):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape, np.float32))


@pytest.mark.parametrize("batch", [(), (4,), (2, 5)])
def test_shapes(batch):
    x, a = jnp.ones((*batch, 3)), jnp.zeros((*batch, 2))
    sampled, log_prob = sample(actor(), x, gaussian_noise(0, (*x.shape[:-1], 2)))
    assert mode(actor(), x).shape == sampled.shape == (*batch, 2)
    assert log_prob.shape == batch
    assert values_of(critics(3), x, a).shape == (3, *batch)


def test_actions_stay_in_their_range_and_deviations_in_theirs():
    wild = jax.tree.map(lambda leaf: 100 * leaf, actor())
    x = gaussian_noise(1, (200, 3))
    sampled, log_prob = sample(wild, x, gaussian_noise(0, (*x.shape[:-1], 2)))
    log_std = gaussian(wild, x)[1]
    assert np.abs(sampled).max() <= 1
    assert np.isfinite(log_prob).all()
    assert log_std.min() >= LOG_STD_MIN
    assert log_std.max() <= LOG_STD_MAX


def test_a_new_policy_is_near_the_middle():
    x = jax.random.uniform(jax.random.key(1), (200, 3), minval=-1.0)
    assert np.abs(mode(actor(), x)).max() < 0.5


def test_log_prob_is_that_of_a_change_of_variables():
    policy = actor()
    x = gaussian_noise(1, (500, 3))
    action, log_prob = sample(policy, x, gaussian_noise(2, (500, 2)))
    mean, log_std = (np.asarray(part, np.float64) for part in gaussian(policy, x))
    a = np.asarray(action, np.float64)
    inside = (np.abs(a) < 0.999).all(-1)  # beyond, float32 has lost the action's digits
    density = stats.norm(mean, np.exp(log_std)).logpdf(np.arctanh(a)) - np.log1p(-(a**2))
    assert inside.sum() > 400
    np.testing.assert_allclose(log_prob[inside], density.sum(-1)[inside], rtol=1e-3, atol=2e-3)


def test_the_density_of_actions_integrates_to_one_and_fits_the_samples():
    policy = probes.constant_actor(actor(action=1), [0.4], [0.0])
    log_std = float(gaussian(policy, jnp.zeros(3))[1][0])
    normal = stats.norm(0.4, np.exp(log_std))
    total, _ = integrate.quad(lambda a: normal.pdf(np.arctanh(a)) / (1 - a * a), -1, 1)
    assert total == pytest.approx(1, abs=1e-6)
    action, log_prob = sample(policy, jnp.zeros((20_000, 3)), gaussian_noise(0, (20_000, 1)))
    assert stats.kstest(np.arctanh(np.asarray(action[:, 0])), normal.cdf).pvalue > 0.01
    jacobian, _ = integrate.quad(
        lambda u: normal.pdf(u) * (normal.logpdf(u) - np.log1p(-(np.tanh(u) ** 2))), -3, 4
    )
    assert float(log_prob.mean()) == pytest.approx(jacobian, abs=0.02)


def test_log_prob_stays_finite_where_tanh_saturates():
    policy = probes.constant_actor(actor(action=1), [50.0], [-10.0])
    _, log_prob = sample(policy, jnp.zeros((10, 3)), gaussian_noise(0, (10, 1)))
    expected = -0.5 * np.log(2 * np.pi) - 0.5 - LOG_STD_MIN - 2 * (np.log(2) - 50)
    np.testing.assert_allclose(log_prob, expected, atol=4)


def test_mode_is_the_squashed_mean():
    policy = probes.constant_actor(actor(), [0.3, -2.0], [0.0, 1.0])
    np.testing.assert_allclose(mode(policy, jnp.ones(3)), np.tanh([0.3, -2.0]), rtol=1e-5)


def test_members_differ_and_see_observation_and_action():
    pair = critics()
    x, a = jnp.ones((1, 3)), jnp.zeros((1, 2))
    first, second = np.asarray(values_of(pair, x, a))
    assert abs(first - second).max() > 1e-3
    assert (np.asarray(values_of(pair, x, a)) != np.asarray(values_of(pair, 2 * x, a))).all()
    assert (np.asarray(values_of(pair, x, a)) != np.asarray(values_of(pair, x, a + 1))).all()


def test_the_ensemble_is_its_members_one_by_one():
    pair = critics()
    x, a = jnp.ones((4, 3)), jnp.full((4, 2), 0.5)
    members = [jax.tree.map(lambda leaf, k=k: leaf[k], pair.members) for k in range(2)]
    for member, values in zip(members, values_of(pair, x, a), strict=True):
        alone = member(x, a)[:, 0]
        np.testing.assert_allclose(values, alone, rtol=1e-5)
        np.testing.assert_allclose(member(jnp.concatenate([x, a], axis=-1))[:, 0], alone, rtol=1e-5)


@pytest.mark.parametrize(("activation", "function"), [("tanh", np.tanh), ("relu", None)])
def test_a_perceptron_is_matrix_products_with_activations_between(activation, function):
    function = function or (lambda v: np.maximum(v, 0))
    network = Actor(3, 2, (8, 8), activation, np.random.default_rng(0)).body
    biases = [bias + 0.1 for bias in network.biases]
    shifted = eqx.tree_at(lambda n: n.biases, network, biases)
    (w1, w2, w3), (b1, b2, b3) = network.weights, biases
    x = np.array([[0.5, -1.0, 2.0]], np.float32)
    expected = w3 @ function(w2 @ function(w1 @ x.T + b1) + b2) + b3
    np.testing.assert_allclose(shifted(jnp.asarray(x)), expected.T, rtol=1e-4)


@pytest.mark.parametrize("outputs", [1, 4, 20])
@pytest.mark.parametrize("inputs", [1, 3, 20])
def test_a_layer_and_its_gradients_are_those_of_a_matrix_product(inputs, outputs):
    layer = gaussian_noise(0, (outputs, inputs)), gaussian_noise(1, (outputs, 1))
    x, upstream = gaussian_noise(2, (inputs, 5)), gaussian_noise(3, (outputs, 5))

    def plain(weight, bias, x):
        return jnp.matmul(weight, x) + bias

    @functools.partial(jax.jit, static_argnums=0)
    def found(layer_of, *given):
        output, gradients = jax.vjp(layer_of, *given)
        return output, *gradients(upstream)

    for ours, theirs in zip(found(affine, *layer, x), found(plain, *layer, x), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_equal_seeds_give_equal_networks_and_other_seeds_others():
    first, again, other = actor(0), actor(0), actor(1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.body.weights[0], other.body.weights[0])
