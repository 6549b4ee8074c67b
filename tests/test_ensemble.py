"""Models learned from transitions: what they know, and what they know that they do not."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import Pendulum, PhysicsModel, UsageError
from dynasac.models import check_contract, ensemble, residual
from dynasac.models.ensemble import EnsembleConfig
from dynasac.spaces import Box, Spaces
from dynasac.types import Transition

FAST = EnsembleConfig(hidden=(16, 16), updates=1000, batch_size=64)


def spaces_for(low, high, actions=1):
    return Spaces(
        Box(jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)),
        Box(-2.0 * jnp.ones(actions), 2.0 * jnp.ones(actions)),
        (True,) * len(low),
        200,
    )


PENDULUM = spaces_for([-1, -1, -8], [1, 1, 8])


def played(model: PhysicsModel, spaces: Spaces, count: int, seed=0, noise=0.0, longest=12):
    """Transitions of a model, in the order of time; random actions, some held, some not."""
    rng = np.random.default_rng(seed)

    @jax.jit
    def step(observation, action):
        return model.step(observation, spaces.action.from_unit(action), jax.random.key(0))

    observation = np.asarray(model.initial_observation(jax.random.key(seed)))
    rows, left = [], 0
    for index in range(count):
        if not left:
            size = spaces.action.size
            action = np.sign(rng.normal(size=size)) * rng.random(size) ** (1 / 3)
            action, left = action.astype(np.float32), int(longest ** rng.random())
        left -= 1
        result = step(observation, action)
        following, end = np.asarray(result.next_observation), bool(result.terminated)
        rows.append((observation, action, np.asarray(result.reward), following, np.asarray(end)))
        observation = following
        if end:
            observation = np.asarray(model.initial_observation(jax.random.key(seed + index)))
    rows = Transition(*(jnp.asarray(np.stack(column)) for column in zip(*rows, strict=True)))
    if not noise:
        return rows
    error = noise * rng.normal(size=(2, *rows.observation.shape)) * rows.observation.std(0)
    return Transition(
        jnp.asarray(np.asarray(rows.observation) + error[0], jnp.float32),
        rows.action,
        rows.reward,
        jnp.asarray(np.asarray(rows.next_observation) + error[1], jnp.float32),
        rows.terminated,
    )


@eqx.filter_jit
def steps(model, observations, actions):
    keys = jax.random.split(jax.random.key(1), len(observations))
    return jax.vmap(model.step)(observations, model.actions.from_unit(actions), keys)


def errors(predicted, observed):
    return np.sqrt(((np.asarray(predicted) - np.asarray(observed)) ** 2).mean(0))


class Friction(Pendulum):
    """Half of the speed is lost in a second."""

    def transition(self, state, action):
        angle, velocity = super().transition(state, action)
        lost = 0.5 * state[1] * 0.05
        return jnp.stack([angle - 0.05 * lost, velocity - lost])


class Goal(PhysicsModel):
    """A position that the action moves; at 1 the episode is over and pays 100."""

    def initial(self, key):
        return jax.random.uniform(key, (1,), minval=-0.5, maxval=0.0)

    def transition(self, state, action):
        return jnp.clip(state + 0.05 * action, -1.2, 1.2)

    def reward(self, state, action, next_state):
        del state
        return jnp.where(self.terminal(next_state), 100.0, 0.0) - 0.1 * action[0] ** 2

    def terminal(self, state):
        return state[0] >= 1.0


GOAL = spaces_for([-1.2], [1.2])


@pytest.fixture(scope="module")
def swings():
    return played(Pendulum(), PENDULUM, 300)


@pytest.fixture(scope="module")
def learned(swings):
    return residual.fit(None, swings, PENDULUM, FAST, seed=0)


def test_a_smooth_system_is_learned_from_few_rows(swings, learned):
    _, held_out = learned
    wrong = errors(held_out.next_observation, swings.next_observation)
    still = errors(swings.observation, swings.next_observation)
    assert (wrong < 0.1 * still).all(), wrong / still
    paid = np.asarray(swings.reward)
    assert errors(held_out.reward, paid) < 0.15 * paid.std()
    assert not held_out.terminated.any()


def test_what_is_said_out_of_bag_is_what_new_rows_show(learned):
    model, _ = learned
    new = played(Pendulum(), PENDULUM, 300, seed=7)
    result = steps(model, new.observation, new.action)
    still = errors(new.observation, new.next_observation)
    assert (errors(result.next_observation, new.next_observation) < 0.2 * still).all()


def test_every_block_of_rows_is_held_out_by_two_members():
    bags = ensemble.bootstrap(203, 5, np.random.default_rng(0))
    assert bags.shape == (5, 203)
    assert ((bags == 0).sum(0) == ensemble.HELD_OUT).all()
    assert (bags[:, :10] == bags[:, :1]).all()  # neighbours in time share their fate
    held = {tuple(np.flatnonzero(column == 0)) for column in bags.T}
    assert len(held) > 5  # not always the same two
    assert ((bags == 0).mean(1) > 0.2).all()


def test_a_member_has_not_seen_what_it_is_held_out_from():
    rng = np.random.default_rng(0)
    inputs, noise = rng.normal(size=(100, 2)), rng.normal(size=(100, 1))
    bags = ensemble.bootstrap(100, 5, rng)
    everything = np.ones(noise.shape, bool)

    def said(targets):
        return ensemble.fit(
            inputs, targets, everything, 0 * noise, np.full(1, 1e-3), FAST, 0, bags=bags
        )[1]

    changed = noise.copy()
    changed[:10] += 3.0
    before, after = said(noise), said(changed)
    moved = np.abs(after - before)[:, :10].mean((1, 2))
    outside = bags[:, 0] == 0
    assert moved[outside].max() < 0.3 < moved[~outside].min() + 0.3
    assert moved[~outside].mean() > 5 * moved[outside].mean()


def test_members_disagree_more_outside_than_inside(learned, swings):
    model, held_out = learned
    assert 0.3 < np.quantile(held_out.uncertainty, 0.95) < 2.0
    inside = steps(model, swings.observation, swings.action).uncertainty
    np.testing.assert_allclose(inside, held_out.uncertainty, rtol=1e-2, atol=1e-3)
    far = np.asarray(swings.observation) + np.array([0, 0, 20.0], np.float32)
    outside = steps(model, far, swings.action).uncertainty
    assert np.median(outside) > 2.0 > 5 * np.median(inside)


def test_predictions_stay_within_what_is_possible(learned, swings):
    model, _ = learned
    far = 100 * np.asarray(swings.observation)
    result = steps(model, far, swings.action)
    assert (np.abs(result.next_observation) <= np.array([1, 1, 8])).all()
    paid = np.asarray(swings.reward)
    margin = 0.26 * np.ptp(paid)
    assert result.reward.min() >= paid.min() - margin
    assert result.reward.max() <= paid.max() + margin


def test_an_input_that_never_changes(swings):
    wide = spaces_for([-1, -1, -8, -1], [1, 1, 8, 1])

    def with_constant(rows):
        return jnp.concatenate([rows, jnp.full((len(rows), 1), 0.25)], axis=1)

    rows = Transition(
        with_constant(swings.observation),
        swings.action,
        swings.reward,
        with_constant(swings.next_observation),
        swings.terminated,
    )
    model, held_out = residual.fit(None, rows, wide, FAST, seed=0)
    assert np.abs(held_out.next_observation[:, 3] - 0.25).max() < 1e-3
    still = errors(swings.observation, swings.next_observation)
    wrong = errors(held_out.next_observation, rows.next_observation)
    assert (wrong[:3] < 0.15 * still).all()
    assert np.isfinite(steps(model, rows.observation, rows.action).uncertainty).all()


def goals(ends: int) -> Transition:
    """An episode for each end, each by rising actions, with some going back and forth."""
    rng = np.random.default_rng(ends)
    rows, x = [], -0.3
    while ends:
        action = float(rng.uniform(-0.6, 1.0))
        following = min(max(x + 0.1 * action, -1.2), 1.2)
        end = following >= 1.0
        reward = 100.0 * end - 0.1 * (2 * action) ** 2
        rows.append(([x], [action], reward, [following], end))
        x = float(rng.uniform(-0.5, 0.0)) if end else following
        ends -= end
    columns = zip(*rows, strict=True)
    return Transition(
        *(jnp.asarray(np.array(c, bool if i == 4 else np.float32)) for i, c in enumerate(columns))
    )


@pytest.mark.parametrize("ends", [1, 4])
def test_terminations_and_their_reward_are_learned_from_few(ends):
    rows = goals(ends)
    model, held_out = residual.fit(None, rows, GOAL, FAST, seed=0)
    assert held_out.terminated[np.asarray(rows.terminated)].all()
    at = jnp.array([[0.99], [0.985], [-1.1], [0.2], [0.8]])
    result = steps(model, at, jnp.array([[1.0], [0.9], [-1.0], [1.0], [0.5]]))
    assert result.terminated.tolist() == [True, True, False, False, False]
    expected = np.array([99.6, 99.676, -0.4, -0.4, -0.1])
    np.testing.assert_allclose(result.reward, expected, atol=1.0)
    assert np.abs(np.asarray(result.reward) - expected)[2:].max() < 0.15


def test_physics_that_is_right_about_the_end_keeps_deciding_it():
    rows = goals(4)
    model, held_out = residual.fit(Goal(), rows, GOAL, FAST, seed=0)
    assert float(model.judges) == 0.0
    assert float(model.jump) == pytest.approx(0.0, abs=0.1)
    np.testing.assert_array_equal(held_out.terminated, rows.terminated)


def test_an_end_that_physics_does_not_know_is_learned():
    class Endless(Goal):
        def terminal(self, state):
            return state[0] > 99.0

    model, _ = residual.fit(Endless(), goals(4), GOAL, FAST, seed=0)
    result = steps(model, jnp.array([[0.98], [0.0]]), jnp.ones((2, 1)))
    assert result.terminated.tolist() == [True, False]
    np.testing.assert_allclose(result.reward, [99.6, -0.4], atol=0.5)


def test_one_wall_does_not_hide_how_things_move():
    """A jump 40 times the usual movement, once: as the car of MountainCar at its wall."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (200, 1))
    action = rng.uniform(-1, 1, (200, 1))
    following = x + 0.02 * action - 0.01 * x**2
    following[77] += 0.8
    columns = (x, action, np.zeros(200), following)
    rows = Transition(
        *(jnp.asarray(column, jnp.float32) for column in columns), jnp.zeros(200, bool)
    )
    model, _ = residual.fit(None, rows, GOAL, FAST, seed=0)
    result = steps(model, rows.observation, rows.action)
    wrong = np.abs(np.asarray(result.next_observation) - (x + 0.02 * action - 0.01 * x**2))
    assert np.median(wrong) < 0.0005
    assert np.quantile(wrong, 0.98) < 0.002


def test_a_bound_that_stops_is_no_law_of_motion():
    """Rows at the limit of speed say that it would be faster, not that nothing pushes."""
    angle, velocity, force = np.random.default_rng(0).uniform(-1, 1, (3, 300)) * [[3], [8], [1]]
    at = jnp.asarray(np.stack([np.cos(angle), np.sin(angle), velocity], axis=1), jnp.float32)
    action = jnp.asarray(force[:, None], jnp.float32)
    result = steps(residual.create(Pendulum(), PENDULUM, FAST), at, action)
    assert (np.abs(result.next_observation[:, 2]) == 8).sum() > 5
    rows = Transition(at, action, result.reward, result.next_observation, result.terminated)
    _, held_out = residual.fit(None, rows, PENDULUM, FAST, seed=0)
    wrong = errors(held_out.next_observation, rows.next_observation)[2]
    assert wrong < 0.03 * errors(at, rows.next_observation)[2]


def test_right_physics_is_left_alone(swings):
    model, _ = residual.fit(Pendulum(), swings, PENDULUM, FAST, seed=0)
    new = played(Pendulum(), PENDULUM, 200, seed=7)
    result = steps(model, new.observation, new.action)
    assert (
        np.abs(np.asarray(result.next_observation) - np.asarray(new.next_observation)).max() < 1e-3
    )
    assert np.abs(np.asarray(result.reward) - np.asarray(new.reward)).max() < 1e-2


def test_right_physics_is_left_alone_under_noise():
    rows = played(Pendulum(), PENDULUM, 300, noise=0.01)
    model, _ = residual.fit(Pendulum(), rows, PENDULUM, FAST, seed=0)
    new = played(Pendulum(), PENDULUM, 200, seed=7)
    result = steps(model, new.observation, new.action)
    noise = 0.01 * np.asarray(new.observation).std(0)
    wrong = errors(result.next_observation, new.next_observation)
    assert (wrong < noise).all(), wrong / noise


def test_missing_friction_is_found():
    rows = played(Friction(), PENDULUM, 200)
    new = played(Friction(), PENDULUM, 300, seed=7)
    model, held_out = residual.fit(Pendulum(), rows, PENDULUM, FAST, seed=0)
    before = steps(residual.create(Pendulum(), PENDULUM, FAST), new.observation, new.action)
    after = steps(model, new.observation, new.action)
    wrong = errors(before.next_observation, new.next_observation)[2]
    left = errors(after.next_observation, new.next_observation)[2]
    assert wrong > 0.03
    assert left < 0.1 * wrong
    assert float(model.shrinkage[2]) > 0.9
    honest = errors(held_out.next_observation, rows.next_observation)[2]
    assert honest < 0.1 * wrong


def test_where_members_disagree_physics_rules(swings):
    model, _ = residual.fit(Pendulum(), played(Friction(), PENDULUM, 100), PENDULUM, FAST, seed=0)
    # members that push in both directions
    kick = jnp.array([1.0, -1.0, 1.0, -1.0, 0.1])[:, None] * jnp.ones((5, 2 * 4)) * 1e3
    torn = eqx.tree_at(
        lambda m: m.correction.networks.biases[-1],
        model,
        kick.at[:, 4:].set(0.0),
    )
    result = steps(torn, swings.observation, swings.action)
    base = steps(residual.create(Pendulum(), PENDULUM, FAST), swings.observation, swings.action)
    scale = np.asarray(model.correction.targets.std)[:3]
    assert (errors(result.next_observation, base.next_observation) < scale).all()
    assert result.uncertainty.max() < 2  # about what physics says there is no disagreement


def test_episodes_begin_where_they_did():
    rows = goals(4)
    model, _ = residual.fit(None, rows, GOAL, FAST, seed=0)
    starts = np.asarray(rows.observation)[
        np.append(0, 1 + np.flatnonzero(np.asarray(rows.terminated)[:-1]))
    ]
    drawn = jax.vmap(model.initial_observation)(jax.random.split(jax.random.key(0), 200))
    assert len(starts) == 4
    assert starts.min() - 1e-6 <= drawn.min() < drawn.max() <= starts.max() + 1e-6


def test_where_ends_cost_the_border_of_what_was_seen_is_one():
    rows = goals(4)
    line = spaces_for([-1], [1])._replace(bounded=(False,))
    cost = eqx.tree_at(lambda t: t.reward, rows, jnp.where(rows.terminated, -50.0, rows.reward))
    at, away = jnp.array([[-5.0], [-0.2]]), jnp.array([[-1.0], [0.0]])
    for given, ends in ((rows, [False, False]), (cost, [True, False])):
        model, _ = residual.fit(None, given, line, FAST, seed=0)
        assert steps(model, at, away).terminated.tolist() == ends


def test_curiosity_pays_for_uncertainty(learned, swings):
    model, _ = learned
    curious = eqx.tree_at(lambda m: m.bonus, model, jnp.float32(2.0))
    plain, paid = (steps(m, swings.observation, swings.action) for m in (model, curious))
    gain = np.asarray(paid.reward) - np.asarray(plain.reward)
    expected = 2.0 * np.minimum(plain.uncertainty, residual.CURIOUS_UP_TO)
    np.testing.assert_allclose(gain, expected, atol=1e-3)


def test_curiosity_ends_when_there_is_something_to_aim_for(swings, learned):
    few = EnsembleConfig(members=3, hidden=(8,), updates=5)
    assert float(learned[0].bonus) == 0  # rewards tell good states from bad ones
    costs = eqx.tree_at(lambda t: t.reward, swings, -0.1 * swings.action[:, 0] ** 2)
    curious, _ = residual.fit(None, costs, PENDULUM, few, 0)
    assert float(curious.bonus) == pytest.approx(float(costs.reward.std()), rel=1e-3)
    assert float(residual.fit(Pendulum(), costs, PENDULUM, few, 0)[0].bonus) == 0


@pytest.mark.parametrize(("pay", "curious"), [(100.0, True), (-100.0, False)])
def test_curiosity_goes_on_after_ends_that_pay(pay, curious):
    position = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    action = np.random.default_rng(0).uniform(-1, 1, (200, 1)).astype(np.float32)
    ended = position[:, 0] > 0.97
    reward = -0.1 * action[:, 0] ** 2 + np.where(ended, pay, 0.0).astype(np.float32)
    rows = Transition(*map(jnp.asarray, (position - 0.01, action, reward, position, ended)))
    line = Spaces(Box(-jnp.ones(1), jnp.ones(1)), Box(-jnp.ones(1), jnp.ones(1)), (True,), 200)
    model, _ = residual.fit(None, rows, line, FAST, 0)
    assert float(model.judges) == 1
    assert (float(model.bonus) > 0) is curious


def test_a_correction_fades_where_nobody_has_been(swings):
    near = jax.tree.map(lambda leaf: leaf[np.abs(swings.observation[:, 2]) < 0.3], swings)
    given = residual.create(Pendulum(g=5.0), PENDULUM, FAST)
    model, _ = residual.fit(given.base, near, PENDULUM, FAST, 0)
    fast = near.observation.at[:, 2].set(8.0)
    wrong = {}
    for name, tried in (("given", given), ("corrected", model)):
        there = steps(tried, fast, near.action)
        here = steps(tried, near.observation, near.action)
        wrong[name] = errors(here.next_observation, near.next_observation)[2]
        wrong[f"{name} far"] = there.next_observation
    assert wrong["corrected"] < 0.2 * wrong["given"]
    np.testing.assert_allclose(wrong["corrected far"], wrong["given far"], atol=0.1)
    assert float(there.uncertainty.max()) < 1  # of what is left, members do not disagree


def test_the_contract_holds_before_and_after(learned):
    template = residual.create(None, PENDULUM, FAST)
    for model in (template, learned[0], residual.create(Pendulum(), PENDULUM, FAST)):
        check_contract(model, 3, 1)
    shapes = [
        jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), m) for m in (template, learned[0])
    ]
    assert jax.tree.structure(template) == jax.tree.structure(learned[0])
    assert shapes[0] == shapes[1]


def test_nothing_compiles_again_as_the_data_grow(compilations, swings, learned):
    steps(learned[0], swings.observation, swings.action)
    before = compilations.count
    for count, updates in ((150, 600), (151, 50), (299, 700)):
        rows = jax.tree.map(lambda leaf, n=count: np.asarray(leaf)[:n], swings)
        config = dataclasses.replace(FAST, updates=updates)
        model, _ = residual.fit(None, rows, PENDULUM, config, seed=count)
        steps(model, swings.observation, swings.action)
    assert compilations.count == before


def test_equal_seeds_give_equal_bytes(swings, learned):
    again, held_out = residual.fit(None, swings, PENDULUM, FAST, seed=0)
    other, _ = residual.fit(None, swings, PENDULUM, FAST, seed=1)
    for one, two in zip(jax.tree.leaves(learned[0]), jax.tree.leaves(again), strict=True):
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()
    np.testing.assert_array_equal(held_out.next_observation, learned[1].next_observation)
    first = other.correction.networks.weights[0]
    assert not np.array_equal(first, again.correction.networks.weights[0])


@pytest.mark.parametrize("field", ["observation", "action", "reward", "next_observation"])
def test_numbers_that_are_not_finite_are_refused(swings, field):
    rows = {name: np.array(getattr(swings, name)) for name in Transition.__dataclass_fields__}
    rows[field][17] = np.nan
    with pytest.raises(UsageError, match=rf"{field} .*not finite"):
        residual.fit(None, Transition(**jax.tree.map(jnp.asarray, rows)), PENDULUM, FAST, seed=0)


def test_too_little_to_learn_from(swings):
    few = jax.tree.map(lambda leaf: leaf[:6], swings)
    with pytest.raises(UsageError, match=r"6 transitions are too few .* at least 10"):
        residual.fit(None, few, PENDULUM, FAST, seed=0)
    with pytest.raises(UsageError, match=r"2 members: at least 3"):
        residual.fit(None, swings, PENDULUM, EnsembleConfig(members=2), seed=0)


def test_several_actions_and_no_bounds():
    spaces = Spaces(
        Box(-jnp.ones(4), jnp.ones(4)), Box(-jnp.ones(2), jnp.ones(2)), (False,) * 4, 200
    )
    rows = played(probes.Drift(), spaces, 200)
    model, held_out = residual.fit(None, rows, spaces, FAST, seed=0)
    still = errors(rows.observation, rows.next_observation)
    assert (errors(held_out.next_observation, rows.next_observation) < 0.1 * still).all()
    assert (model.observations.high >= rows.observation.max(0)).all()
