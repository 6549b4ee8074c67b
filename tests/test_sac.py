"""The losses against numbers worked out by hand, and learning where the answer is known."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import SACConfig, sac
from dynasac.types import Transition

CONFIG = dataclasses.replace(
    SACConfig(),
    hidden=(16,),
    discount=0.9,
    huber_delta=None,
    reward_scale=0.5,
    critic_reduction="mean",
    entropy_in_target=False,
    target_rate=0.25,
    advantage_learning=0.0,
    target_entropy=-1.0,
    initial_temperature=0.2,
    batch_size=4,
)
SPACES = probes.probe_spaces()
KEY = jax.random.key(7)
# one program for each, where operations one by one would be some twenty
update, next_value, critic_loss, actor_loss = (
    eqx.filter_jit(f) for f in (sac.update, sac.next_value, sac.critic_loss, sac.actor_loss)
)


def with_(**changes) -> SACConfig:
    return dataclasses.replace(CONFIG, **changes)


def constant_state(values=(3.0, 5.0), mean=0.0, raw=0.0, config=CONFIG) -> sac.SACState:
    """A learner whose critics and policy see nothing."""
    state = sac.create(config, SPACES, 0)
    actor = probes.constant_actor(state.actor, [mean], [raw])
    critics = probes.constant_critics(state.critics, list(values))
    return eqx.tree_at(
        lambda s: (s.actor, s.critics, s.target_critics), state, (actor, critics, critics)
    )


def transitions(reward, terminated=None, observation=None, action=None) -> Transition:
    count = len(reward)
    zeros = np.zeros((count, 1), np.float32)
    seen = zeros if observation is None else np.float32(observation)[:, None]
    return Transition(
        observation=jnp.asarray(seen),
        action=jnp.asarray(zeros if action is None else np.float32(action)[:, None]),
        reward=jnp.asarray(np.float32(reward)),
        next_observation=jnp.asarray(seen),
        terminated=jnp.asarray(np.zeros(count, bool) if terminated is None else terminated),
    )


def noise_for(batch):
    return jax.random.normal(KEY, (2, *batch.action.shape))


def all_of(batch: Transition):
    return jnp.ones(batch.reward.shape, bool)


@pytest.mark.parametrize(
    ("bounded", "size", "equations", "scale", "share"),
    [
        (True, 5.4, True, 0.2, 0.3),
        (True, 540.0, True, 0.002, 0.3),
        (True, 0.0054, True, 0.2, 0.3),
        (True, 0.0, True, 0.2, 0.3),
        (False, 5.4, True, 0.09, 0.3),
        (False, 1.0, False, 0.1, 0.0),
        (False, 50.0, False, 0.01, 0.0),
    ],
)
def test_the_task_decides_what_is_left_open(bounded, size, equations, scale, share):
    found = sac.for_task(SACConfig(), 300, bounded, size, equations)
    assert (found.discount, found.reward_scale, found.advantage_learning) == (0.995, scale, share)
    asked = with_(discount=0.5, reward_scale=3.0, advantage_learning=0.6)
    assert sac.for_task(asked, 300, bounded, size, equations) == asked


@pytest.mark.parametrize("name", ["discount", "reward_scale", "advantage_learning"])
def test_what_is_still_open_cannot_be_used(name):
    batch = transitions([1.0])
    with pytest.raises(ValueError, match=f"{name} is not decided"):
        sac.update(
            constant_state(),
            batch,
            all_of(batch),
            jnp.asarray(0.01),
            with_(**{name: None}),
            SPACES,
            noise_for(batch),
        )


def test_target_bootstraps_unless_terminated():
    batch = transitions([2.0, 2.0, -4.0], np.array([False, True, True]))
    after = sac.one_step(batch, CONFIG)
    target = sac.td_target(batch, after, jnp.array([10.0, 10.0, 10.0]), CONFIG)
    np.testing.assert_allclose(target, [0.5 * 2 + 0.9 * 10, 0.5 * 2, -0.5 * 4])


def test_target_counts_what_lies_between():
    batch = transitions([2.0, 2.0])
    after = sac.Expansion(jnp.array([1.5, -0.5]), jnp.zeros((2, 1)), jnp.array([0.81, 0.0]))
    target = sac.td_target(batch, after, jnp.array([10.0, jnp.nan]), CONFIG)
    np.testing.assert_allclose(target, [0.5 * 2 + 1.5 + 0.81 * 10, 0.5 * 2 - 0.5])


def test_the_ensemble_is_reduced_as_asked():
    q = jnp.array([[1.0, 4.0], [3.0, 2.0]])
    np.testing.assert_allclose(sac.reduced(q, with_(critic_reduction="min")), [1, 2])
    np.testing.assert_allclose(sac.reduced(q, with_(critic_reduction="mean")), [2, 3])


@pytest.mark.parametrize(("reduction", "value"), [("min", 3.0), ("mean", 4.0)])
def test_next_value_without_entropy(reduction, value):
    found = next_value(
        constant_state(), jnp.zeros((2, 1)), with_(critic_reduction=reduction), jnp.zeros((2, 1))
    )
    np.testing.assert_allclose(found, [value, value])


def test_next_value_with_entropy_counts_it_at_the_temperature():
    state = constant_state(raw=-1.0)
    x = jnp.zeros((4000, 1))
    noise, other = jax.random.normal(KEY, (2, 4000, 1))
    found = next_value(state, x, with_(entropy_in_target=True, critic_reduction="min"), noise)
    entropy = -float(state.actor.sample(x, other)[1].mean())
    assert abs(entropy) > 0.5
    assert float(found.mean()) == pytest.approx(3 + 0.2 * entropy, abs=0.01)


def test_next_value_asks_the_target_critics():
    state = constant_state()
    moved = probes.constant_critics(state.critics, [100.0, 100.0])
    state = eqx.tree_at(lambda s: s.critics, state, moved)
    np.testing.assert_allclose(
        next_value(state, jnp.zeros((1, 1)), CONFIG, jnp.zeros((1, 1))), [4.0]
    )


def test_disadvantage_asks_the_target_critics_and_the_deterministic_policy():
    config = with_(critic_reduction="min")
    state = sac.create(config, SPACES, 0)
    state = eqx.tree_at(lambda s: s.critics, state, sac.create(config, SPACES, 1).critics)
    x, action = jax.random.uniform(KEY, (2, 5, 1), minval=-1.0)
    own, taken = (state.target_critics(x, a).min(axis=0) for a in (state.actor.mode(x), action))
    np.testing.assert_allclose(
        sac.disadvantage(state, x, action, config), own - taken, rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
    ("valid", "delta", "loss"),
    [
        ([True, True], None, 0.5 * (2.5 + 8.5)),
        ([True, False], None, 0.5 * (4 + 16)),
        ([False, False], None, 0.0),
        ([True, False], 1.0, (2 - 0.5) + (4 - 0.5)),  # errors 2 and 4: |e| - ½
        ([True, False], 3.0, 0.5 * 4 + 3 * (4 - 1.5)),  # only the larger is beyond δ: δ (|e| - δ/2)
    ],
)
def test_critic_loss(valid, delta, loss):
    critics = constant_state().critics
    x = jnp.zeros((2, 1))
    found, q = critic_loss(critics, x, x, jnp.array([1.0, 4.0]), jnp.array(valid), delta)
    assert float(found) == pytest.approx(loss)
    assert float(q) == pytest.approx(4.0 if any(valid) else 0.0)


def test_critic_gradient_is_that_of_each_members_own_error():
    state, x = constant_state(), jnp.zeros((2, 1))
    target, valid = jnp.array([1.0, 4.0]), jnp.ones(2, bool)
    gradient = jax.grad(lambda c: critic_loss(c, x, x, target, valid, None)[0])(state.critics)
    np.testing.assert_allclose(gradient.members.biases[-1][:, 0, 0], [3 - 2.5, 5 - 2.5], rtol=1e-5)


@pytest.mark.parametrize(("reduction", "q"), [("min", 3.0), ("mean", 4.0)])
def test_actor_loss(reduction, q):
    state = constant_state(mean=0.3)
    x, valid = jnp.zeros((3, 1)), jnp.array([True, True, False])
    noise = jax.random.normal(KEY, (3, 1))
    loss, entropy = actor_loss(
        state.actor,
        state.critics,
        jnp.asarray(0.2),
        x,
        valid,
        with_(critic_reduction=reduction),
        noise,
    )
    log_prob = float(state.actor.sample(x, noise)[1][:2].mean())
    assert float(entropy) == pytest.approx(-log_prob, rel=1e-5)
    assert float(loss) == pytest.approx(0.2 * log_prob - q, rel=1e-5)


def test_temperature_loss():
    loss = sac.temperature_loss(jnp.log(jnp.asarray(0.5)), jnp.asarray(2.0), -1.0)
    assert float(loss) == pytest.approx(0.5 * 3.0)


@pytest.mark.parametrize(("raw", "direction"), [(-3.0, 1), (1.0, -1)])
def test_temperature_rises_while_entropy_is_too_low_and_falls_while_too_high(raw, direction):
    state, batch = constant_state(raw=raw), transitions([0.0] * 4)
    after, metrics = update(
        state, batch, all_of(batch), jnp.asarray(0.01), CONFIG, SPACES, noise_for(batch)
    )
    assert (float(metrics.entropy) < CONFIG.target_entropy) == (direction > 0)
    moved = float(after.log_temperature - state.log_temperature)
    assert moved == pytest.approx(direction * 0.01, rel=1e-3)  # Adam's first step


def test_target_entropy_is_for_each_dimension_of_the_action():
    # two dimensions, each with an entropy between the target and twice the target
    config, spaces = with_(target_entropy=-1.0), probes.probe_spaces(action=2)
    state = sac.create(config, spaces, 0)
    actor = probes.constant_actor(state.actor, [0.0, 0.0], [-0.19, -0.19])
    state = eqx.tree_at(lambda s: s.actor, state, actor)
    batch = transitions([0.0] * 64)
    batch = eqx.tree_at(lambda b: b.action, batch, jnp.zeros((64, 2)))
    after, metrics = update(
        state, batch, all_of(batch), jnp.asarray(0.01), config, spaces, noise_for(batch)
    )
    assert -2 < float(metrics.entropy) < -1
    assert after.log_temperature < state.log_temperature


def test_target_critics_move_a_share_of_the_way():
    state, batch = constant_state(), transitions([1.0, -1.0, 0.0, 2.0])
    away = probes.constant_critics(state.critics, [0.0, 1.0])
    state = eqx.tree_at(lambda s: s.target_critics, state, away)
    after, _ = update(
        state, batch, all_of(batch), jnp.asarray(0.01), CONFIG, SPACES, noise_for(batch)
    )
    jax.tree.map(
        lambda old, new, target: np.testing.assert_allclose(
            target, 0.75 * old + 0.25 * new, atol=1e-6
        ),
        state.target_critics,
        after.critics,
        after.target_critics,
    )


def test_an_update_reports_its_losses():
    state, batch = constant_state(), transitions([2.0] * 4, np.array([True, True, False, False]))
    _, metrics = update(
        state, batch, all_of(batch), jnp.asarray(0.01), CONFIG, SPACES, noise_for(batch)
    )
    terminal, other = 0.5 * 2.0, 0.5 * 2.0 + 0.9 * 4.0
    errors = [(q - target) ** 2 for q in (3, 5) for target in (terminal, other)]
    assert float(metrics.critic_loss) == pytest.approx(0.5 * sum(errors) / 2, rel=1e-5)
    assert float(metrics.q_value) == pytest.approx(4.0, rel=1e-5)
    assert float(metrics.temperature) == pytest.approx(0.2, rel=1e-5)


def test_rows_that_do_not_count_have_no_influence():
    state = sac.create(CONFIG, SPACES, 0)
    valid = jnp.array([True, False, True, False])

    def updated(garbage):
        row = [0.3, garbage, -0.4, garbage]
        batch = transitions(row, np.array([False, garbage > 0, True, False]), row, row)
        return update(state, batch, valid, jnp.asarray(0.01), CONFIG, SPACES, noise_for(batch))

    jax.tree.map(np.testing.assert_array_equal, updated(0.5), updated(-1e4))


def test_rows_that_count_have_influence():
    state = sac.create(CONFIG, SPACES, 0)
    first, second = (
        update(state, batch, all_of(batch), jnp.asarray(0.01), CONFIG, SPACES, noise_for(batch))[0]
        for batch in (transitions([0.0] * 4), transitions([50.0] * 4))
    )
    first, second = (state.critics.members.biases[-1][0] for state in (first, second))
    assert not np.array_equal(first, second)


def test_a_batch_spread_over_devices_is_one_batch():
    """Rows that do not count are unevenly shared: means are over rows and not over devices."""
    config = with_(batch_size=8, huber_delta=1.0, critic_reduction="min")
    state = sac.create(config, SPACES, 0)
    draws = np.random.default_rng(0).normal(size=(3, 8))
    batch = transitions(draws[0], None, draws[1], np.tanh(draws[2]))
    valid = jnp.array([True] * 5 + [False] * 3)
    rate, noise = jnp.asarray(0.01), jax.random.normal(KEY, (2, 8, 1))
    whole = update(state, batch, valid, rate, config, SPACES, noise)

    @jax.jit
    @functools.partial(jax.vmap, axis_name="devices")
    def spread(batch, valid, noise):
        return sac.update(
            state, batch, valid, rate, config, SPACES, noise.swapaxes(0, 1), axis="devices"
        )

    def shares(rows):
        return rows.reshape(2, 4, *rows.shape[1:])

    *on_each, largest = jax.tree.leaves(
        spread(*jax.tree.map(shares, (batch, valid, noise.swapaxes(0, 1))))
    )
    *at_once, largest_of_all = jax.tree.leaves(whole)
    for copies, value in zip(on_each, at_once, strict=True):
        for copy in copies:
            np.testing.assert_allclose(copy, value, rtol=2e-5, atol=1e-6)
    assert largest.max() == largest_of_all  # each device looks at its own rows


def test_equal_seeds_make_equal_learners():
    first, again, other = (sac.create(CONFIG, SPACES, seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first.actor.body.weights[0], other.actor.body.weights[0])
    jax.tree.map(np.testing.assert_array_equal, first.critics, first.target_critics)


@eqx.filter_jit
def learned(state, batch, config, count=600):
    """Many updates on one batch."""
    valid = jnp.ones(batch.reward.shape, bool)

    def one(index, state):
        rate = jnp.asarray(0.01)
        noise = jax.random.normal(jax.random.fold_in(KEY, index), (2, *batch.action.shape))
        return sac.update(state, batch, valid, rate, config, SPACES, noise)[0]

    return jax.lax.fori_loop(0, count, one, state)


def test_critics_converge_to_discounted_values():
    """Two states that alternate; being in the first pays 1: 1/(1 - γ²) and γ/(1 - γ²)."""
    config = with_(discount=0.8, reward_scale=1.0, target_rate=0.1)
    here = np.tile(np.float32([1, -1]), 32)
    actions = np.random.default_rng(0).uniform(-1, 1, 64)
    batch = transitions((here > 0).astype(np.float32), observation=here, action=actions)
    batch = eqx.tree_at(lambda b: b.next_observation, batch, -batch.observation)
    state = learned(sac.create(config, SPACES, 0), batch, config)
    x = jnp.array([[1.0], [-1.0]])
    values = state.critics(x, state.actor.mode(x))
    first, second = 1 / (1 - 0.64), 0.8 / (1 - 0.64)
    np.testing.assert_allclose(values, [[first, second]] * 2, rtol=0.05)


def test_critics_converge_to_the_reward_where_the_episode_ends():
    config = with_(discount=0.8, reward_scale=1.0)
    here = np.tile(np.float32([1, -1]), 32)
    actions = np.random.default_rng(0).uniform(-1, 1, 64)
    batch = transitions(2.0 * here, np.ones(64, bool), here, actions)
    state = learned(sac.create(config, SPACES, 0), batch, config)
    x = jnp.array([[1.0], [-1.0]])
    values = state.critics(x, state.actor.mode(x))
    np.testing.assert_allclose(values, [[2.0, -2.0]] * 2, atol=0.1)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_advantage_learning_widens_the_gaps_between_actions(share):
    """Reward -(a - 0.6 x)²: the best is worth 0, and others that much less, over 1 - β."""
    rng = np.random.default_rng(0)
    x, a = rng.uniform(-1, 1, (2, 256))
    config = with_(target_entropy=-3.0, reward_scale=1.0, advantage_learning=share)
    batch = transitions(-((a - 0.6 * x) ** 2), np.ones(256, bool), x, a)
    state = learned(sac.create(config, SPACES, 0), batch, config, 2000)
    states, actions = jnp.asarray(np.float32([x, a]))[..., None]
    said = sac.reduced(state.critics(states, actions), config)
    best = sac.reduced(state.critics(states, state.actor.mode(states)), config)
    slope = (said * batch.reward).sum() / (batch.reward**2).sum()
    assert slope == pytest.approx(1 / (1 - share), rel=0.1)
    np.testing.assert_allclose(best, 0.0, atol=0.15)


def test_the_policy_finds_the_best_action_of_a_bandit():
    """Reward -(a - 0.6 x)²: the best action is 0.6 x."""
    rng = np.random.default_rng(0)
    x, a = rng.uniform(-1, 1, (2, 256))
    config = with_(target_entropy=-3.0, reward_scale=1.0)
    batch = transitions(-((a - 0.6 * x) ** 2), np.ones(256, bool), x, a)
    state = learned(sac.create(config, SPACES, 0), batch, config, 1000)
    shown = jnp.array([[-1.0], [-0.5], [0.0], [0.5], [1.0]])
    np.testing.assert_allclose(state.actor.mode(shown), 0.6 * shown, atol=0.12)
    np.testing.assert_allclose(state.averaged_actor.mode(shown), 0.6 * shown, atol=0.12)
