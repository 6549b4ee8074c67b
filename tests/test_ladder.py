"""Which rung real transitions lead to, and what is done with it."""

import dataclasses
import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import SMALL_PLANNING

from dynasac import Pendulum, PhysicsModel, UsageError
from dynasac.adapt import ladder
from dynasac.models import Called, HostModel, HostStep, check_contract, ensemble
from dynasac.models import Turned as TurnedModel
from dynasac.spaces import Box, Spaces
from dynasac.types import Transition

QUICK = dataclasses.replace(ensemble.EnsembleConfig(), updates=300, hidden=(16,))
SPACES = Spaces(
    Box(jnp.array([-1.0, -1.0, -8.0]), jnp.array([1.0, 1.0, 8.0])),
    Box(jnp.array([-2.0]), jnp.array([2.0])),
    (True, True, True),
    200,
)


class Rubbing(Pendulum):
    """A pendulum with friction in its bearing."""

    def transition(self, state, action):
        angle, velocity = super().transition(state, action)
        velocity -= 0.05 * 0.5 * state[1]
        return jnp.stack([angle, velocity])


def arrays(model):
    return jax.tree.map(jnp.asarray, model)


def lived(model, rows=300, noise=0.0, seed=0):
    """Transitions of episodes of 50 steps with actions that are held for a while, as NumPy's."""
    rng = np.random.default_rng(seed)
    episodes = rows // 50
    held = np.repeat(rng.uniform(-1, 1, (10, episodes, 1)), 5, axis=0).astype(np.float32)

    def step(observation, unit):
        said = jax.vmap(model.step, in_axes=(0, 0, None))(observation, 2 * unit, jax.random.key(0))
        return said.next_observation, (observation, unit, said)

    starts = jax.vmap(model.initial_observation)(jax.random.split(jax.random.key(seed), episodes))
    _, (before, unit, said) = jax.jit(lambda s: jax.lax.scan(step, s, jnp.asarray(held)))(starts)
    flat = jax.tree.map(
        lambda a: np.asarray(a).swapaxes(0, 1).reshape(rows, *a.shape[2:]),
        (before, unit, said.reward, said.next_observation, said.terminated),
    )
    before, unit, reward, after, terminated = flat
    drawn = noise * np.array([2, 2, 16]) * rng.normal(size=(episodes, 51, 3))
    before = before + drawn[:, :-1].reshape(rows, 3).astype(np.float32)
    after = after + drawn[:, 1:].reshape(rows, 3).astype(np.float32)
    return jax.tree.map(
        np.asarray, Transition(*map(jnp.asarray, (before, unit, reward, after, terminated)))
    )


def climb(given, transitions, asked="auto", before=None, config=SMALL_PLANNING):
    start = ladder.at_hand(given, config)
    return ladder.climb(given, asked, transitions, 1, before or start, SPACES, config, QUICK, 0)


def test_an_exact_model_is_used_as_it_is():
    model = arrays(Pendulum())
    found = climb(model, lived(model))
    assert found.rung == "exact"
    assert found.model is model
    assert not found.changed
    assert found.error < 1e-3
    assert float(found.trust.real_fraction) == pytest.approx(SMALL_PLANNING.real_fraction)
    assert int(found.trust.value_expansion) == SMALL_PLANNING.value_expansion > 1


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_wrong_parameters_are_identified(noise):
    given = arrays(Pendulum(g=14.0, m=0.6, l=1.3))
    found = climb(given, lived(arrays(Pendulum(g=9.0)), noise=noise))
    assert found.rung == "identified"
    assert found.changed
    assert float(found.model.g / found.model.l) == pytest.approx(9.0, rel=0.03)
    assert {p.name for p in found.parameters} == {"g", "m", "l"}
    assert set(found.errors) >= {"exact", "identified"}
    assert found.errors["identified"] < found.errors["exact"]
    assert "g 14 →" in found.sentence
    assert "fitted parameters" in found.sentence
    again = climb(given, lived(arrays(Pendulum(g=9.0)), noise=noise), before=found)
    assert not again.changed


def test_missing_physics_is_learned():
    given = arrays(Pendulum())
    real = lived(arrays(Rubbing()), 600)
    found = climb(given, real)
    assert found.rung == "residual"
    assert found.errors["residual"] < 0.5 * found.errors["exact"]
    assert ladder.DOUBT <= float(found.trust.uncertainty) < 10 * ladder.DOUBT
    assert 1 <= int(found.trust.horizon) <= SMALL_PLANNING.horizon


def test_a_system_that_is_held_still_does_not_tell_its_parameters():
    """Feedback on noisy observations, near the upright: a smaller g would have smaller errors."""
    model = arrays(Pendulum())
    rng = np.random.default_rng(0)
    state, rows = np.zeros(2), []
    deviation = np.array([0.02, 0.02, 0.16])
    seen = np.asarray(model.observation(jnp.zeros(2))) + deviation * rng.normal(size=3)
    for _ in range(200):
        unit = np.clip([-8 * np.arctan2(seen[1], seen[0]) - seen[2]], -1, 1)
        following = np.asarray(model.transition(jnp.asarray(state), jnp.asarray(2 * unit)))
        reward = float(model.reward(*map(jnp.asarray, (state, 2 * unit, following))))
        after = np.asarray(model.observation(jnp.asarray(following)))
        after = after + deviation * rng.normal(size=3)
        rows.append((seen, unit, reward, after, False))
        state, seen = following, after
    columns = [np.array(c) for c in zip(*rows, strict=True)]
    columns = [jnp.asarray(c if c.dtype == bool else c.astype(np.float32)) for c in columns]
    found = climb(model, jax.tree.map(np.asarray, Transition(*columns)))
    assert float(found.model.g / found.model.l) == pytest.approx(10, rel=0.3)


def test_noise_is_not_learned():
    model = arrays(Pendulum())
    assert climb(model, lived(model, noise=0.01)).rung in ("exact", "identified")


@pytest.mark.parametrize(
    ("asked", "rung"),
    [("identify", "identified"), ("residual", "residual"), ("ensemble", "ensemble")],
)
def test_a_rung_can_be_asked_for(asked, rung):
    model = arrays(Pendulum())
    assert climb(model, lived(model), asked).rung == rung


def test_no_physics_leads_to_an_ensemble():
    found = climb(None, lived(arrays(Pendulum())))
    assert found.rung == "ensemble"
    assert found.changed
    assert found.error < 1


def test_a_model_that_predicts_nothing_leaves_real_transitions_alone():
    class Blind(Pendulum):
        def transition(self, state, action):
            return 3.0 + 0 * super().transition(state, action)

    found = ladder._trust(
        ladder._given(arrays(Blind()), lived(arrays(Pendulum())), SPACES), SMALL_PLANNING
    )
    assert float(found.real_fraction) == 1
    assert int(found.value_expansion) == 1


def test_a_model_that_returns_nan_is_replaced():
    class Broken(Pendulum):
        def transition(self, state, action):
            return jnp.nan * super().transition(state, action)

    found = climb(arrays(Broken()), lived(arrays(Pendulum())))
    assert float(found.trust.real_fraction) == 1
    assert "real transitions alone" in found.sentence


def test_too_few_transitions_decide_nothing():
    model = arrays(Pendulum(g=14.0))
    few = jax.tree.map(lambda a: a[:10], lived(arrays(Pendulum())))
    found = climb(model, few)
    assert (found.rung, found.changed, found.after_transitions) == ("exact", False, 1)
    assert found.model is model
    assert "10 real transitions are too few" in found.sentence


class Table(HostModel):
    """A host model whose state is the observation: it moves by a tenth of the action."""

    observation_size = 3
    action_size = 1
    recoverable = True

    def reset(self, count, rng):
        states = rng.uniform(-1, 1, (count, 3))
        return states, states.astype(np.float32)

    def step(self, states, actions):
        states = states + 0.1 * actions
        shown = states.astype(np.float32)
        return HostStep(states, shown, -(states**2).sum(1), np.zeros(len(states), bool))

    def state(self, observations):
        if not self.recoverable:
            raise UsageError("the state cannot be recovered")
        return np.asarray(observations, np.float64)


def test_a_simulator_is_believed_as_far_as_it_predicts():
    host = Table()
    right = lived(Called(host), 100)
    found = climb(host, right)
    assert (found.rung, found.changed) == ("exact", False)
    assert found.error < 1e-3
    wrong = eqx.tree_at(lambda t: t.next_observation, right, right.observation - 0.1)
    found = climb(host, wrong)
    assert found.error > 0.5
    assert float(found.trust.real_fraction) > 0.5
    host.recoverable = False
    assert "cannot be recovered" in climb(host, right).sentence


def test_what_is_described_comes_back():
    given = arrays(Pendulum(g=14.0))
    found = climb(given, lived(arrays(Pendulum())))
    text = json.loads(json.dumps(ladder.described(found), allow_nan=False))
    back = ladder.template(text, given, SPACES, SMALL_PLANNING, QUICK)
    assert back._replace(model=None, trust=None) == found._replace(model=None, trust=None)
    for rung in ("residual", "ensemble"):
        made = climb(given, lived(arrays(Pendulum())), rung)
        base = None if rung == "ensemble" else given
        back = ladder.template(ladder.described(made), base, SPACES, SMALL_PLANNING, QUICK)
        assert jax.tree.structure(back.model) == jax.tree.structure(made.model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rung": "divine"}, "the rung 'divine', which does not exist"),
        ({"rung": "none"}, "name it as it was named in training"),
        ({"errors": 3}, "damaged"),
        ({"parameters": [{}]}, "damaged"),
    ],
)
def test_damaged_descriptions_are_refused(change, message):
    given = arrays(Pendulum())
    text = {**ladder.described(ladder.at_hand(given, SMALL_PLANNING)), **change}
    with pytest.raises(UsageError, match=message):
        ladder.template(text, given, SPACES, SMALL_PLANNING, QUICK)


class Turned(Pendulum):
    """A pendulum whose motor is wired the other way round."""

    def transition(self, state, action):
        return super().transition(state, -action)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_an_action_that_acts_the_other_way_round_is_turned(noise):
    given, real = arrays(Turned(g=14.0)), lived(arrays(Pendulum()), noise=noise)
    found = climb(given, real)
    assert found.rung == "identified"
    assert "action[0]: acts the other way round; g 14 →" in found.sentence
    assert found.error < 0.05
    action, key = jnp.array([1.5]), jax.random.key(0)
    said = found.model.step(jnp.array([-1.0, 0.0, 0.0]), action, key)
    right = Pendulum().step(jnp.array([-1.0, 0.0, 0.0]), action, key)
    np.testing.assert_allclose(said.next_observation, right.next_observation, atol=0.02)
    assert {parameter.name for parameter in found.parameters} == {"g", "m", "l"}
    text = json.loads(json.dumps(ladder.described(found), allow_nan=False))
    back = ladder.template(text, given, SPACES, SMALL_PLANNING, QUICK)
    assert jax.tree.structure(back.model) == jax.tree.structure(found.model)
    assert not climb(given, real, before=found).changed


def test_actions_are_turned_in_the_middle_of_their_box():
    box = Box(jnp.array([0.0, -1.0]), jnp.array([1.0, 1.0]))

    class Pushed(PhysicsModel):
        def initial(self, key):
            return jnp.zeros(2)

        def transition(self, state, action):
            return state + action

        def reward(self, state, action, next_state):
            return action[0]

    turned = TurnedModel(Pushed(), jnp.array([-1.0, 1.0]), box)
    said = turned.step(jnp.zeros(2), jnp.array([0.2, 0.5]), jax.random.key(0))
    np.testing.assert_allclose(said.next_observation, [0.8, 0.5], atol=1e-6)
    assert float(said.reward) == pytest.approx(0.2)  # what is paid for is what was done
    check_contract(turned, 2, 2)


def test_refitting_says_what_predicts_better_and_learns_nothing():
    real = lived(arrays(Pendulum()))
    right = arrays(Pendulum())
    assert ladder.refit(right, real, SPACES) == ladder.Refit(right, (), "")
    wrong = ladder.refit(arrays(Pendulum(m=2.0)), real, SPACES)
    assert {p.name for p in wrong.parameters} == {"g", "m", "l"}
    assert "m 2 →" in wrong.sentence
    torque = 3 / float(wrong.model.m * wrong.model.l**2)
    assert torque == pytest.approx(3.0, rel=1e-2)
    turned = TurnedModel(right, jnp.array([-1.0]), SPACES.action)
    back = ladder.refit(right, lived(turned), SPACES)
    assert isinstance(back.model, TurnedModel)
    assert "action[0]: acts the other way round" in back.sentence
    bare = ladder.refit(arrays(Constant()), real, SPACES)
    assert bare.parameters == ()
    assert "cannot be identified: Constant has no float fields" in bare.sentence
    assert json.loads(json.dumps(bare.summary()))["sentence"] == bare.sentence


class Constant(PhysicsModel):
    """A pendulum that hangs, without parameters."""

    def initial(self, key):
        return jnp.zeros(3)

    def transition(self, state, action):
        return state

    def reward(self, state, action, next_state):
        return jnp.zeros(())
