"""Bad numbers: a learner that diverges, a model that breaks, and what is never taken for either."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL, SMALL_SAC

from dynasac import DynaSAC, Transition, UsageError, divergence, preset, replay, sac, training
from dynasac.agent import Silent
from dynasac.training import Counts

SPACES = probes.probe_spaces()
LEARNER = sac.create(SMALL_SAC, SPACES, 0)
EMPTY = replay.create(8, 1, 1)


def with_(config=SMALL, sac=None, planning=None, **changes):
    return dataclasses.replace(
        config,
        sac=dataclasses.replace(config.sac, **(sac or {})),
        planning=dataclasses.replace(config.planning, **(planning or {})),
        **changes,
    )


def learned(**values):
    """Metrics of an update, zeros but for `values`."""
    arrays = {name: jnp.asarray(np.float32(value)) for name, value in values.items()}
    return dataclasses.replace(sac.no_metrics(), **arrays)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["critic_loss", "actor_loss", "q_value"])
def test_a_metric_that_is_no_number_is_divergence(field, bad):
    said = divergence.found(LEARNER, learned(**{field: bad}), EMPTY, SMALL_SAC)
    assert said == "numbers are not finite"


def test_a_weight_that_is_no_number_is_divergence():
    broken = jax.tree.map(lambda leaf: leaf, LEARNER)
    broken = dataclasses.replace(broken, log_temperature=jnp.asarray(np.float32(np.nan)))
    assert divergence.found(LEARNER, learned(), EMPTY, SMALL_SAC) is None
    assert divergence.found(broken, learned(), EMPTY, SMALL_SAC) == "numbers are not finite"


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_values_that_no_return_can_have_are_divergence(unit):
    """With the discount 0.99, no return is beyond 100 times the largest reward."""

    def said(value):
        learning = learned(q_value=value, largest_reward=unit)
        return divergence.found(LEARNER, learning, EMPTY, SMALL_SAC)

    assert said(100 * unit) is None
    assert said(-100 * unit) is None
    assert said(-5000 * unit) is None
    assert "no return can be beyond" in said(-100 - 11_000 * unit)


def test_rewards_that_left_the_batches_are_remembered_from_the_replay():
    one = jnp.ones((1, 1))
    row = Transition(one, one, jnp.full(1, 1000.0), one, jnp.ones(1, bool))
    held = replay.add(EMPTY, row)
    learning = learned(q_value=900.0)
    assert divergence.found(LEARNER, learning, held, SMALL_SAC) is None
    assert divergence.found(LEARNER, learning, EMPTY, SMALL_SAC)


def test_a_bonus_for_entropy_is_a_reward():
    soft = dataclasses.replace(SMALL_SAC, entropy_in_target=True, initial_temperature=1.0)
    learning = learned(q_value=500.0, entropy=0.7, temperature=1.0)
    assert divergence.found(LEARNER, learning, EMPTY, soft) is None
    assert divergence.found(LEARNER, learning, EMPTY, SMALL_SAC)


def test_without_a_discount_any_finite_value_may_be():
    undiscounted = dataclasses.replace(SMALL_SAC, discount=1.0)
    assert divergence.found(LEARNER, learned(q_value=1e9), EMPTY, undiscounted) is None


def test_safer_settings():
    found = divergence.safer(dataclasses.replace(SMALL_SAC, huber_delta=None))
    assert found.huber_delta == 1.0
    assert found.learning_rate == pytest.approx(SMALL_SAC.learning_rate / 10)
    assert found.final_learning_rate == pytest.approx(SMALL_SAC.final_learning_rate / 10)
    mild = dataclasses.replace(SMALL_SAC, huber_delta=0.5)
    assert divergence.safer(mild).huber_delta == 0.5


# --- in training

PLANNED = with_(planning={"first_updates": 600, "updates": 300}, updates_per_real_step=0)
COLLECTED = with_(planning={"first_updates": 0, "updates": 0})


def wild(rate):
    """Squared errors and a learning rate at which critics diverge."""
    learner = {"learning_rate": rate, "final_learning_rate": rate, "huber_delta": None}
    return with_(PLANNED, sac={**learner, "activation": "relu"})


class Watch(Silent):
    """Keeps every state that it is shown."""

    def __init__(self):
        self.seen = []

    def progress(self, state, phase):
        self.seen.append(state)

    def episode(self, state):
        self.seen.append(state)


def diverging(monkeypatch, at):
    """Critics that are taken for diverged after some checks, by their number from 0."""
    checks = iter(range(1000))
    found = divergence.found

    def scripted(*arguments):
        assert found(*arguments) is None
        return "so it was written" if next(checks) in at else None

    monkeypatch.setattr(divergence, "found", scripted)


def test_wild_settings_diverge_and_the_agent_keeps_a_learner_that_is_sound():
    agent, watch = DynaSAC("Rail-v0", probes.Slide(), wild(1e4)), Watch()
    start = agent.state.sac
    with pytest.raises(UsageError, match=r"diverged again after .*--sac\.learning-rate") as error:
        agent.learn(real_episodes=0, observer=watch)
    assert "\n" not in str(error.value)
    jax.tree.map(np.testing.assert_array_equal, agent.state.sac, start)
    assert agent.state.counts.diverged > 0
    assert all(divergence.finite((state.sac, state.learning)) for state in watch.seen)


def test_safer_settings_can_be_enough():
    agent = DynaSAC("Rail-v0", probes.Slide(), wild(300.0)).learn(real_episodes=0)
    assert agent.state.counts.diverged == 256
    assert agent.state.counts.gradient_updates == 256 + 600
    assert abs(float(agent.state.learning.q_value)) < 100


def test_planning_begins_again_with_safer_settings_that_stay(monkeypatch):
    diverging(monkeypatch, {1})
    agent, watch = DynaSAC("Rail-v0", probes.Slide(), PLANNED), Watch()
    rows = []
    agent.learn(real_episodes=1, observer=watch, callback=lambda agent, row: rows.append(row))
    counts = agent.state.counts
    assert counts.diverged == 512
    assert counts.gradient_updates == 512 + 600 + 300
    assert "diverged after 512 updates" in rows[0]["decision"]
    assert "diverged after 512 updates" in rows[1]["decision"]
    tame = with_(
        PLANNED,
        sac={
            "learning_rate": PLANNED.sac.learning_rate / 10,
            "final_learning_rate": PLANNED.sac.final_learning_rate / 10,
        },
    )
    monkeypatch.undo()
    other = DynaSAC("Rail-v0", probes.Slide(), tame).learn(real_episodes=1)
    jax.tree.map(np.testing.assert_array_equal, agent.state.sac, other.state.sac)


def test_a_real_episode_keeps_its_transitions_and_not_its_learner(monkeypatch):
    diverging(monkeypatch, {1})
    agent = DynaSAC("Clock-v0", "none", COLLECTED)
    agent.learn(real_episodes=1)
    one = agent.state
    assert one.counts.diverged == 0
    agent.learn(real_episodes=2)
    two = agent.state
    assert two.counts.diverged == two.counts.gradient_updates == 20
    assert int(two.replay.size) == 20
    jax.tree.map(np.testing.assert_array_equal, one.sac, two.sac)
    agent.learn(real_episodes=3)
    before, after = (state.sac.critics.members.biases[0] for state in (two, agent.state))
    assert not np.array_equal(before, after)


def test_a_learner_that_is_no_number_moves_nothing_real():
    agent = DynaSAC("Clock-v0", "none", COLLECTED)
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan), agent.state.sac.actor)
    sick = dataclasses.replace(agent.state.sac, actor=broken)
    collected = training.collect(agent.task, agent.state._replace(sac=sick), Silent())
    assert collected.counts.real_steps == 0
    assert agent.env.unwrapped.actions == []


def test_gone_on_after_divergence_equals_never_interrupted(monkeypatch, tmp_path):
    diverging(monkeypatch, {1})
    whole = DynaSAC("Rail-v0", probes.Slide(), PLANNED).learn(real_episodes=2)
    monkeypatch.undo()
    diverging(monkeypatch, {1})
    agent = DynaSAC("Rail-v0", probes.Slide(), PLANNED).learn(real_episodes=1)
    agent.save_checkpoint(tmp_path / "checkpoints")
    fresh = DynaSAC("Rail-v0", probes.Slide(), PLANNED)
    fresh.load_checkpoint(tmp_path / "checkpoints")
    fresh.learn(real_episodes=2)
    assert fresh.state.counts == whole.state.counts
    assert fresh.state.counts.diverged
    jax.tree.map(np.testing.assert_array_equal, fresh.state.sac, whole.state.sac)


def test_a_setback_is_told(monkeypatch, capsys):
    assert training.setback(Counts()) == ""
    diverging(monkeypatch, {0})
    agent = DynaSAC("Rail-v0", probes.Slide(), PLANNED)
    agent.learn(real_episodes=0, progress_bar=True)
    out = capsys.readouterr().out.replace("\n", " ")
    assert "the critics diverged after 256 updates: training went back" in out
    assert "a tenth of the learning rate" in out


# --- what is no divergence


class Paid(probes.Slide):
    """`Slide` in another unit of reward."""

    unit: float = 1.0

    def reward(self, state, action, next_state):
        return self.unit * super().reward(state, action, next_state)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("name", ["default", "seed"])
def test_rewards_of_any_unit_are_no_divergence(name, unit):
    config = preset(name)
    planning = {"first_updates": 600 if name == "default" else 0, "improvement_states": 16}
    config = with_(config, sac={"hidden": (16, 16), "batch_size": 32}, planning=planning)
    agent = DynaSAC("Rail-v0", Paid(unit=unit), config).learn(real_episodes=2)
    assert agent.state.counts.gradient_updates > 300
    assert agent.state.counts.diverged == 0


@pytest.mark.parametrize(("env_id", "model"), [("MountainCarContinuous-v0", "auto")])
def test_sparse_rewards_are_no_divergence(env_id, model):
    config = with_(
        preset("default", model),
        sac={"hidden": (16, 16), "batch_size": 64},
        planning={"first_updates": 1024, "improvement_states": 16},
    )
    agent = DynaSAC(env_id, model, config).learn(real_episodes=0)
    assert agent.state.counts.diverged == 0


# --- models


class Broken(probes.Slide):
    """`Slide`, but for one flaw; one class, so that one program plans with all of them."""

    dry: float = 0.0
    """the reward is the logarithm of what is left, which is none beyond 0.5"""
    torn: float = 0.0
    """strong actions lead nowhere"""
    lost: float = 0.0
    """no observation is possible"""

    def reward(self, state, action, next_state):
        paid = super().reward(state, action, next_state)
        return jnp.where(self.dry > 0, jnp.log(0.5 - next_state[0]), paid)

    def transition(self, state, action):
        following = super().transition(state, action)
        return jnp.where(self.torn * jnp.abs(action) > 1.5, jnp.inf, following)

    def project(self, observation):
        return jnp.where(self.lost > 0, jnp.nan, observation)


@pytest.mark.parametrize("preset_name", ["default", "seed"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Broken(dry=1.0),
            r"Broken\.step gives reward = (nan|-inf) to the observation \[.*\] and the action "
            r"\[.*\]; found in planning, after \d+ gradient updates",
        ),
        (Broken(torn=1.0), r"Broken\.step gives next_observation\[0\] = inf to the observation"),
        (
            Broken(lost=1.0),
            r"Broken begins at observations that are not finite: check project\(\)",
        ),
    ],
)
def test_a_model_that_breaks_in_planning_is_named(preset_name, model, message):
    if preset_name == "seed":
        if model.lost > 0:
            pytest.skip("its resets are sound")
        config = with_(planning={"stored_transitions": 100, "first_updates": 0})
    else:
        config = PLANNED
    agent, watch = DynaSAC("Rail-v0", model, config), Watch()
    with pytest.raises(UsageError, match=message) as error:
        agent.learn(real_episodes=3, observer=watch)
    assert "\n" not in str(error.value)
    assert agent.state.counts.diverged == 0
    assert all(divergence.finite((state.sac, state.replay)) for state in watch.seen)


@pytest.mark.parametrize("stop", [3, 9])
def test_an_episode_that_diverges_and_is_interrupted_ends_as_if_it_were_not(
    stop, tmp_path, monkeypatch
):
    def found(learner, learning, replay, config):
        # whether values go too far by themselves depends on the machine's last bits
        return "too far" if int(replay.size) >= 5 and config.learning_rate > 1 else None

    monkeypatch.setattr(divergence, "found", found)
    learner = dataclasses.replace(SMALL_SAC, learning_rate=1.5, final_learning_rate=1.5)
    config = dataclasses.replace(
        COLLECTED, sac=learner, updates_per_real_step=20, checkpoint_every_steps=1
    )
    whole = DynaSAC("Recall-v0", "none", config).learn(real_episodes=3)
    assert whole.state.counts.diverged

    class Stop(Silent):
        def progress(self, state, phase):
            if state.counts.episode_steps == stop:
                raise KeyboardInterrupt

    agent = DynaSAC("Recall-v0", "none", config)
    with contextlib.suppress(KeyboardInterrupt):
        agent.learn(real_episodes=3, observer=Stop())
    agent.save_checkpoint(tmp_path)
    fresh = DynaSAC("Recall-v0", "none", config)
    fresh.load_checkpoint(tmp_path)
    fresh.learn(real_episodes=3)
    assert fresh.state.counts == whole.state.counts
    jax.tree.map(np.testing.assert_array_equal, fresh.state.sac, whole.state.sac)
