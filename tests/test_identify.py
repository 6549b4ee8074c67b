"""Parameters of known physics, found again in transitions of the same physics with others."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import MountainCar, Pendulum, PhysicsModel, UsageError
from dynasac.adapt.identify import identify, parameter_names
from dynasac.spaces import Box
from dynasac.types import Transition

TORQUE = Box(jnp.array([-2.0]), jnp.array([2.0]))
FORCE = Box(jnp.array([-1.0]), jnp.array([1.0]))
PENDULUM_NOISE = np.array([0.02, 0.02, 0.16])  # 1% of each range
CAR_NOISE = np.array([0.018, 0.0014])


def as_arrays(model):
    """With float32 fields, as an agent holds its model."""
    return jax.tree.map(lambda leaf: jnp.asarray(np.float32(leaf)), model)


@eqx.filter_jit
def rolled_out(model, observation, actions):
    def forward(observation, action):
        step = model.step(observation, action, jax.random.key(0))
        return step.next_observation, (observation, step)

    return jax.lax.scan(forward, observation, actions)[1]


def episode(model, box, start, steps, noise=0.0, seed=0) -> Transition:
    """Random actions; the noise of an observation is the same where it is the next one."""
    rng = np.random.default_rng(seed)
    actions = jnp.asarray(rng.uniform(-1, 1, (steps, box.size)), jnp.float32)
    start = jnp.asarray(start, jnp.float32)
    observations, step = rolled_out(as_arrays(model), start, box.from_unit(actions))
    errors = (rng.normal(size=(steps + 1, start.size)) * noise).astype(np.float32)
    return Transition(
        observations + errors[:-1],
        actions,
        step.reward,
        step.next_observation + errors[1:],
        step.terminated,
    )


def swings(model=None, steps=200, noise=0.0, seed=0) -> Transition:
    """A pendulum, Gymnasium's unless given, let go at 2 rad."""
    start = [np.cos(2.0), np.sin(2.0), 0.5]
    return episode(model or Pendulum(), TORQUE, start, steps, noise, seed)


def with_garbage(transitions: Transition, share: float) -> Transition:
    """Some rows replaced by numbers that are possible and mean nothing."""
    rng = np.random.default_rng(7)
    count = transitions.reward.size
    rows = rng.choice(count, int(share * count), replace=False)

    def replaced(field):
        low, high = field.min(0), field.max(0)
        field = np.array(field)
        field[rows] = rng.uniform(low, high, field[rows].shape)
        return field

    replacement = jax.tree.map(replaced, transitions)
    return eqx.tree_at(lambda t: t.terminated, replacement, np.asarray(transitions.terminated))


def combinations(found) -> np.ndarray:
    """What the motion of a pendulum shows: g/l and m l², relative to 10 and 1."""
    g, m, length = (float(parameter.after) for parameter in found.parameters[:3])
    return np.array([g / length / 10, m * length**2])


WRONG = Pendulum(g=14.0, m=0.6, l=1.3)
WRONG_CAR = MountainCar(power=0.0010, gravity=0.0030)
VALLEY = [-0.5, 0.0]


def test_names_are_paths():
    class Engine(eqx.Module):
        power: float = 2.0
        gears: int = 5

    class Car(probes.Drift):
        engine: Engine = Engine()
        masses: tuple = (1.0, jnp.ones(()))
        table: jax.Array = dataclasses.field(default_factory=lambda: jnp.ones(3))

    assert parameter_names(Pendulum()) == parameter_names(as_arrays(Pendulum())) == ("g", "m", "l")
    assert parameter_names(Car()) == ("engine.power", "masses.0", "masses.1")
    assert parameter_names(probes.Drift()) == ()


@pytest.mark.parametrize("wrong", [WRONG, Pendulum(g=50.0, m=1.0, l=0.3)])
def test_pendulum_exactly(wrong):
    found = identify(as_arrays(wrong), swings(), TORQUE)
    np.testing.assert_allclose(combinations(found), 1, atol=1e-5)
    assert found.transitions == 200
    assert found.unidentified == ("g +1%, m -2%, l +1% together change no prediction",)
    assert all(np.isinf(parameter.standard_error) for parameter in found.parameters)
    told = [parameter.after for parameter in found.parameters]
    np.testing.assert_allclose(told, jax.tree.leaves(found.model), rtol=1e-6)


def test_along_what_the_data_do_not_tell_parameters_stay():
    found = identify(as_arrays(WRONG), swings(), TORQUE)
    moved = np.log([parameter.after / parameter.before for parameter in found.parameters])
    assert np.abs(moved).max() > 0.05
    assert abs(moved @ [1, -2, 1]) < 0.01  # of all that fit, the nearest


def test_mountain_car_exactly():
    found = identify(WRONG_CAR, episode(MountainCar(), FORCE, VALLEY, 300), FORCE)
    assert found.unidentified == ()
    for parameter, true in zip(found.parameters, (0.0015, 0.0025), strict=True):
        assert parameter.after == pytest.approx(true, rel=1e-5)
        assert 0 < parameter.standard_error < 1e-5 * true
    assert found.sentence().startswith("power 0.001 → 0.0015 ± ")
    assert "told apart" not in found.sentence()


def test_outliers_leave_exact_data_exact():
    found = identify(as_arrays(WRONG), with_garbage(swings(), 0.1), TORQUE)
    np.testing.assert_allclose(combinations(found), 1, atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.05])
@pytest.mark.parametrize("seed", [0, 1])
def test_pendulum_with_noise_and_outliers(share, seed):
    transitions = with_garbage(swings(noise=PENDULUM_NOISE, seed=seed), share)
    found = identify(as_arrays(WRONG), transitions, TORQUE)
    np.testing.assert_allclose(combinations(found), 1, atol=0.06)
    assert len(found.unidentified) == 1


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_mountain_car_with_noise_and_outliers(share):
    transitions = episode(MountainCar(), FORCE, VALLEY, 999, CAR_NOISE)
    found = identify(as_arrays(WRONG_CAR), with_garbage(transitions, share), FORCE)
    for parameter, true in zip(found.parameters, (0.0015, 0.0025), strict=True):
        error = abs(parameter.after - true)
        assert error < 0.08 * true
        assert error < 5 * parameter.standard_error < 0.15 * true


def test_standard_errors_are_those_of_repetition():
    found = [
        identify(
            as_arrays(WRONG_CAR), episode(MountainCar(), FORCE, VALLEY, 500, CAR_NOISE, seed), FORCE
        )
        for seed in range(12)
    ]
    for index in range(2):
        spread = np.std([one.parameters[index].after for one in found])
        told = np.mean([one.parameters[index].standard_error for one in found])
        assert 0.5 < told / spread < 2


def test_windows_beat_single_steps_under_noise():
    """The same transitions with their order lost predict one step only."""
    errors = {"windows": [], "steps": []}
    for seed in range(5):
        ordered = swings(noise=PENDULUM_NOISE, seed=seed)
        shuffled = jax.tree.map(lambda field: np.concatenate([field[::2], field[1::2]]), ordered)
        for name, transitions in (("windows", ordered), ("steps", shuffled)):
            found = identify(as_arrays(WRONG), transitions, TORQUE)
            errors[name].append(np.abs(combinations(found) - 1).sum())
    assert np.mean(errors["windows"]) < 0.5 * np.mean(errors["steps"])


def test_episodes_are_not_run_together():
    """Each begins anew at 0; run together, they would say that the action moves nothing."""
    rng = np.random.default_rng(0)
    before, after = rng.normal(size=(2, 100, 1)) * 0.1 + np.array([0.0, 0.8])[:, None, None]
    ones = jnp.ones(100)
    before, after = jnp.asarray(before, jnp.float32), jnp.asarray(after, jnp.float32)
    reward = -(after[:, 0] ** 2) - 0.1
    transitions = Transition(before, ones[:, None], reward, after, ones < 0)
    found = identify(as_arrays(probes.Slide()), transitions, FORCE)
    assert found.parameters[0].after == pytest.approx(0.8, abs=0.05)


class Cart(PhysicsModel):
    """A mass with friction on a line; a light and a colour that nothing depends on."""

    mass: float = 1.0
    friction: float = eqx.field(default=0.0, metadata={"bounds": (0.0, 2.0)})
    wind: float = 0.0
    light: float = 3.0
    colour: float = 0.0

    def initial(self, key):
        return jax.random.normal(key, (2,))

    def transition(self, state, action):
        position, velocity = state
        force = action[0] - self.friction * velocity + self.wind
        velocity = velocity + 0.1 * force / self.mass
        return jnp.stack([position + 0.1 * velocity, velocity])

    def reward(self, state, action, next_state):
        return -(state[0] ** 2)


def rides(model, **settings) -> Transition:
    return episode(model, FORCE, [1.0, -1.0], 100, **settings)


def by_name(found):
    return {parameter.name: parameter for parameter in found.parameters}


def test_fields_that_begin_at_zero_are_found_and_unused_ones_left():
    true = Cart(mass=2.0, friction=0.3, wind=-0.2)
    found = identify(as_arrays(Cart()), rides(true), FORCE)
    told = by_name(found)
    for name in ("mass", "friction", "wind"):
        assert told[name].after == pytest.approx(getattr(true, name), rel=1e-4)
        assert told[name].standard_error < 1e-3
    for name in ("light", "colour"):
        assert told[name].after == told[name].before
        assert np.isinf(told[name].standard_error)
    assert set(found.unidentified) == {
        "light alone changes no prediction",
        "colour alone changes no prediction",
    }
    assert "light alone changes no prediction" in found.sentence()


@pytest.mark.parametrize(("friction", "bound"), [(4.0, 2.0), (-0.5, 0.0)])
def test_bounds_hold(friction, bound):
    found = identify(as_arrays(Cart()), rides(Cart(friction=friction)), FORCE)
    after = by_name(found)["friction"].after
    assert 0.0 <= after <= 2.0
    assert after == pytest.approx(bound, abs=1e-3)
    # at its bound or not, it is a fine start for the next time
    identify(found.model, rides(Cart(friction=friction)), FORCE)


def test_bounds_hold_for_the_logarithm_and_a_start_outside_is_refused():
    class Heavy(Cart):
        mass: float = eqx.field(default=1.0, metadata={"bounds": (0.1, 1.5)})

    found = identify(as_arrays(Heavy()), rides(Cart(mass=3.0)), FORCE)
    assert by_name(found)["mass"].after == pytest.approx(1.5, rel=1e-3)
    assert by_name(found)["mass"].after <= 1.5
    with pytest.raises(UsageError, match=r"^mass = 2 is not within its bounds, 0.1 to 1.5: "):
        identify(as_arrays(Heavy(mass=2.0)), rides(Cart()), FORCE)


def test_positive_parameters_stay_positive():
    """The car's actions act backwards: its power would have to be negative."""
    true = MountainCar(power=-0.0015)
    found = identify(as_arrays(WRONG_CAR), episode(true, FORCE, VALLEY, 200), FORCE)
    power = found.parameters[0].after
    assert 0 < power < 1e-5


def test_what_drowns_in_noise_stays():
    rng = np.random.default_rng(0)
    noise = jnp.asarray(0.1 * rng.normal(size=(61, 1)), jnp.float32)
    zeros = jnp.zeros(60)
    transitions = Transition(noise[:-1], zeros[:, None] + 1e-4, zeros, noise[1:], zeros > 0)
    found = identify(as_arrays(probes.Slide()), transitions, FORCE)
    (speed,) = found.parameters
    assert 0.4 < speed.after < 0.6
    assert np.isinf(speed.standard_error)
    assert found.unidentified == ("speed alone changes predictions less than the noise",)


def test_the_model_keeps_its_structure_and_programs(compilations):
    wrong = as_arrays(WRONG)
    found = identify(wrong, swings(steps=130), TORQUE)
    assert isinstance(found.model, Pendulum)
    assert jax.tree.structure(found.model) == jax.tree.structure(wrong)
    for new, old in zip(jax.tree.leaves(found.model), jax.tree.leaves(wrong), strict=True):
        assert isinstance(new, jax.Array)
        assert (new.dtype, new.shape, new.weak_type) == (old.dtype, old.shape, old.weak_type)
    more = swings(steps=250)
    rolled_out(found.model, more.observation[0], more.action)
    before = compilations.count
    identify(found.model, more, TORQUE)
    rolled_out(wrong, more.observation[0], more.action)
    assert compilations.count == before
    plain = identify(WRONG, more, TORQUE).model
    assert all(type(leaf) is float for leaf in jax.tree.leaves(plain))


def test_rows_that_are_not_finite_count_for_nothing():
    transitions = jax.tree.map(np.array, swings())
    transitions.observation[50] = np.nan
    transitions.next_observation[49] = np.nan
    transitions.reward[120] = np.inf
    found = identify(as_arrays(WRONG), transitions, TORQUE)
    np.testing.assert_allclose(combinations(found), 1, atol=1e-5)


def test_what_cannot_be_identified_is_refused():
    with pytest.raises(UsageError, match=r"^Drift has no float fields to identify: write "):
        identify(probes.Drift(), swings(), TORQUE)
    with pytest.raises(UsageError, match=r"^8 transitions are too few .* 3 .*: collect at least 9"):
        identify(WRONG, swings(steps=8), TORQUE)
    identify(WRONG, swings(steps=9), TORQUE)
    with pytest.raises(
        UsageError, match=r"^Pendulum predicts numbers that are not finite .*: check"
    ):
        identify(as_arrays(Pendulum(m=float("nan"))), swings(), TORQUE)
