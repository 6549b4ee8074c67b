"""The loop: what is counted, what is stored, what repeats, and that it learns."""

import dataclasses
import json

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL, SMALL_SAC

from dynasac import DynaSAC, Pendulum, StartWeights, Transition, UsageError, planning, preset
from dynasac.agent import Silent
from dynasac.presets import from_plain
from dynasac.training import Counts, updates_to_come


def with_(config=SMALL, sac=None, planning=None, **changes):
    return dataclasses.replace(
        config,
        sac=dataclasses.replace(config.sac, **(sac or {})),
        planning=dataclasses.replace(config.planning, **(planning or {})),
        **changes,
    )


def stored(agent):
    """The rows that the replay holds, as NumPy arrays."""
    size = int(agent.state.replay.size)
    return jax.tree.map(lambda ring: np.asarray(ring[:size]), agent.state.replay.transitions)


def policy_bytes(agent, tmp_path, name):
    agent.save(tmp_path / name)
    return (tmp_path / name / "policy.safetensors").read_bytes()


@pytest.fixture(scope="module")
def clocked():
    """Two real episodes of `Clock`, which the time limit ends, without a model."""
    env = gym.make("Clock-v0", disable_env_checker=True)
    return DynaSAC(env, "none", SMALL).learn(real_episodes=2)


def test_the_seed_preset_is_the_seed_document():
    seed = preset("seed")
    assert seed.real_episodes == 20
    assert seed.updates_per_real_step == 2
    assert seed.planning.stored_transitions == 100
    assert seed.planning.updates == 200
    assert seed.planning.horizon == 1
    assert seed.planning.first_updates == 0
    assert seed.planning.starts == StartWeights(replay=0.0, reset=1.0, space=0.0, visited=0.0)
    assert preset("seed", "none").real_episodes == 40
    assert preset("seed", "none").planning.stored_transitions == 0


@pytest.mark.parametrize("name", ["default", "seed"])
@pytest.mark.parametrize("model", ["auto", "none", "ensemble"])
def test_settings_are_read_as_they_were_written(name, model):
    config = preset(name, model)
    assert from_plain(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_the_seed_preset_adds_up():
    config = with_(
        preset("seed"),
        sac={"hidden": (16, 16), "batch_size": 16},
        planning={"updates": 7, "stored_transitions": 9},
    )
    agent = DynaSAC("Rail-v0", probes.Slide(), config).learn(real_episodes=3)
    counts = agent.state.counts
    steps = counts.real_steps
    assert 3 <= steps <= 30
    assert counts == Counts(
        real_episodes=3,
        real_steps=steps,
        synthetic_transitions=3 * 9,
        gradient_updates=2 * steps + 3 * 7,
        phase_updates=0,
        planned=4,
        planned_steps=steps,
    )
    rows = stored(agent)
    assert len(rows.reward) == steps + 3 * 9
    assert np.abs(rows.action).max() <= 1
    # the last nine are synthetic, from the reset distribution, with the action's scale put right
    assert ((rows.observation[-9:] >= 0.4) & (rows.observation[-9:] <= 0.5)).all()
    moved = rows.observation + 0.5 * 2 * rows.action
    np.testing.assert_allclose(rows.next_observation, moved, atol=1e-5)


def test_actions_in_the_replay_are_the_learners_and_the_environments_are_its_own(clocked):
    rows = stored(clocked)
    played = np.array(clocked.env.unwrapped.actions, np.float32)
    assert np.abs(rows.action).max() <= 1
    np.testing.assert_allclose(played, 2 * rows.action[:, 0], atol=1e-6)
    np.testing.assert_allclose(rows.reward, played, atol=1e-6)
    assert np.abs(played).max() > 0.5


def test_truncation_is_not_termination_and_the_last_observation_is_kept(clocked):
    rows = stored(clocked)
    assert len(rows.reward) == 20
    assert not rows.terminated.any()
    once = np.arange(10, dtype=np.float32) / 10
    np.testing.assert_allclose(rows.observation[:, 0], np.tile(once, 2), atol=1e-6)
    np.testing.assert_allclose(rows.next_observation[:, 0], np.tile(once + 0.1, 2), atol=1e-6)


def test_termination_is_stored_where_it_happened():
    agent = DynaSAC("Timer-v0", "none", SMALL).learn(real_episodes=3)
    rows = stored(agent)
    np.testing.assert_array_equal(rows.terminated, [False, False, False, True] * 3)
    np.testing.assert_allclose(rows.next_observation[3::4, 0], [0.4] * 3, atol=1e-6)
    assert agent.state.counts.real_steps == 12


def test_learning_by_steps_counts_whole_episodes(clocked):
    agent = DynaSAC("Clock-v0", "none", SMALL)
    assert agent.learn(11).state.counts.real_steps == 20
    assert agent.learn(total_timesteps=20).state.counts.real_steps == 20
    jax.tree.map(np.testing.assert_array_equal, agent.state, clocked.state)
    assert agent.learn(total_timesteps=21).state.counts.real_steps == 30


def test_random_steps_come_first_and_without_updates():
    agent = DynaSAC("Clock-v0", "none", with_(random_steps=15))
    counts = agent.learn(real_episodes=2).state.counts
    assert counts.gradient_updates == 6 + 5 + 2 * 4
    assert len(np.unique(stored(agent).action)) == 20


def test_real_steps_do_not_compile_again(compilations):
    agent = DynaSAC("Clock-v0", "none", with_(sac={"batch_size": 17}))
    seen = []

    class Watch(Silent):
        def progress(self, state, phase):
            seen.append((state.counts.real_episodes, compilations.count))

    agent.learn(real_episodes=1)
    before = compilations.count
    agent.learn(real_episodes=3, observer=Watch())
    assert compilations.count == before
    small = DynaSAC("Clock-v0", "none", with_(sac={"hidden": (7,)}, updates_per_real_step=0))
    before = compilations.count
    small.learn(real_episodes=1)
    assert compilations.count - before < 8  # ten steps, none with a program of its own


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(tmp_path):
    def trained(seed, name):
        agent = DynaSAC("Rail-v0", probes.Slide(), SMALL, seed).learn(real_episodes=1)
        return policy_bytes(agent, tmp_path, name)

    first = trained(4, "first")
    assert trained(4, "again") == first
    assert trained(5, "other") != first


class Stop(Silent):
    """Interrupts at the n-th look."""

    def __init__(self, looks):
        self.looks = looks

    def progress(self, state, phase):
        self.looks -= 1
        if self.looks < 0:
            raise KeyboardInterrupt


CHUNKED = with_(planning={"first_updates": 600, "updates": 300})


@pytest.fixture(scope="module")
def uninterrupted():
    return DynaSAC("Rail-v0", probes.Slide(), CHUNKED).learn(real_episodes=2)


@pytest.mark.parametrize("looks", [0, 1, 2, 5, 6, 7])
def test_interrupted_and_gone_on_equals_never_interrupted(uninterrupted, looks):
    agent = DynaSAC("Rail-v0", probes.Slide(), CHUNKED)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=Stop(looks))
    assert agent.state.counts != uninterrupted.state.counts
    assert (agent.state.counts.gradient_updates > 0) == (looks > 0)
    agent.learn(real_episodes=2)
    assert agent.state.counts == uninterrupted.state.counts
    jax.tree.map(np.testing.assert_array_equal, agent.state, uninterrupted.state)


def test_gone_on_from_a_checkpoint_equals_never_interrupted(uninterrupted, tmp_path):
    agent = DynaSAC("Rail-v0", probes.Slide(), CHUNKED)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(real_episodes=2, observer=Stop(7))
    agent.save_checkpoint(tmp_path / "checkpoints")
    fresh = DynaSAC("Rail-v0", probes.Slide(), CHUNKED)
    fresh.load_checkpoint(tmp_path / "checkpoints")
    assert fresh.state.counts == agent.state.counts
    assert int(fresh.state.replay.size) == int(agent.state.replay.size)
    fresh.learn(real_episodes=2)
    jax.tree.map(np.testing.assert_array_equal, fresh.state.sac, uninterrupted.state.sac)
    jax.tree.map(np.testing.assert_array_equal, fresh.state.replay, uninterrupted.state.replay)
    assert fresh.state.counts == uninterrupted.state.counts


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("BrokenObservation-v0", r"non-finite observation \(real episode 1, step 2\)"),
        ("BrokenReward-v0", r"reward inf \(real episode 1, step 2\)"),
    ],
)
def test_an_environment_that_returns_what_is_not_finite(env_id, message):
    agent = DynaSAC(env_id, "none", SMALL)
    with pytest.raises(UsageError, match=message):
        agent.learn(real_episodes=1)
    assert int(agent.state.replay.size) == 2


def test_a_model_that_returns_nan_is_an_error():
    class Leaky(probes.Slide):
        def reward(self, state, action, next_state):
            return super().reward(state, action, next_state) / 0.0 * 0.0

    with pytest.raises(UsageError, match=r"Leaky\.step gives reward = nan to the observation"):
        DynaSAC("Rail-v0", Leaky(), SMALL).learn(real_episodes=0)


def test_the_updates_to_come_are_known_beforehand(clocked):
    ahead = updates_to_come(clocked.task, Counts(), 2)
    assert ahead == clocked.state.counts.gradient_updates
    assert updates_to_come(clocked.task, clocked.state.counts, 2) == 0


def test_planning_alone_learns_pendulum_without_a_real_step(trained_run, trained):
    assert DynaSAC("Pendulum-v1", config=trained.config, seed=3).evaluate(20).mean_return < -800
    summary = json.loads((trained_run / "summary.json").read_text())
    assert (summary["real_steps"], summary["gradient_updates"]) == (0, 1500)
    assert summary["evaluation"]["episodes"] == 100
    assert summary["evaluation"]["mean_return"] > -180


def test_plain_sac_learns_from_real_steps_alone():
    """Doing nothing is worth about -7.5 an episode, the best policy 0."""
    config = with_(
        SMALL,
        sac={
            **dataclasses.asdict(SMALL_SAC),
            "hidden": (16, 16),
            "batch_size": 64,
            "learning_rate": 3e-3,
            "final_learning_rate": 3e-3,
            "reward_scale": 1.0,
            "discount": 0.5,
            "target_entropy": -2.0,
        },
        planning={"first_updates": 0, "updates": 0},
        replay_capacity=1000,
        random_steps=100,
    )
    agent = DynaSAC("Recall-v0", "none", config)
    assert agent.evaluate(20).mean_return < -5
    agent.learn(real_episodes=120)
    assert agent.state.counts.synthetic_transitions == 0
    assert agent.evaluate(20).mean_return > -1


def test_without_a_model_the_first_episode_wanders_and_a_model_is_learned_from_it():
    quick = dataclasses.replace(SMALL.ensemble, updates=5, members=3, hidden=(4,))
    config = with_(adapt="ensemble", ensemble=quick, updates_per_real_step=0)
    agent = DynaSAC("Clock-v0", "ensemble", config).learn(real_episodes=1)
    assert agent.state.adaptation.rung == "none"  # ten steps decide nothing
    agent.learn(real_episodes=2)
    assert agent.state.adaptation.rung == "ensemble"
    actions = np.abs(stored(agent).action)
    assert 0.5 < actions[:10].max() <= 1
    assert actions[10:].max() <= 0.5  # what was too short to learn from calls for weaker ones
    assert agent.predict(np.zeros(1, np.float32), lookahead=1)[0].shape == (1,)


def test_a_learned_model_measures_what_the_environment_leaves_unbounded(tmp_path):
    quick = dataclasses.replace(SMALL.ensemble, updates=5, members=3, hidden=(4,))
    config = with_(adapt="ensemble", ensemble=quick, updates_per_real_step=0)
    agent = DynaSAC("Plane-v0", "ensemble", config)
    assert np.asarray(agent.spaces.observation.high).tolist() == [1, 1, 1, 1]
    agent.learn(real_episodes=2)
    seen = np.abs(stored(agent).observation).max(axis=0)
    box = agent.spaces.observation
    assert (np.maximum(-np.asarray(box.low), np.asarray(box.high)) > seen).all()
    assert np.abs(np.asarray(box.high)).max() < 2 * seen.max()
    agent.save(tmp_path / "policy")
    there = np.ones((1, 4), np.float32)
    loaded = DynaSAC.load(tmp_path / "policy", "Plane-v0", "ensemble")
    ours, theirs = (a.predict(there, deterministic=True)[0] for a in (agent, loaded))
    np.testing.assert_array_equal(ours, theirs)


def test_gone_on_with_a_learned_model_equals_never_interrupted(tmp_path):
    quick = dataclasses.replace(SMALL.ensemble, updates=5, members=3, hidden=(4,))
    config = with_(adapt="ensemble", ensemble=quick, updates_per_real_step=0)
    whole = DynaSAC("Plane-v0", "ensemble", config).learn(real_episodes=3)
    agent = DynaSAC("Plane-v0", "ensemble", config).learn(real_episodes=2)
    agent.save_checkpoint(tmp_path / "checkpoints")
    fresh = DynaSAC("Plane-v0", "ensemble", config)
    fresh.load_checkpoint(tmp_path / "checkpoints")
    fresh.learn(real_episodes=3)
    assert fresh.state.counts == whole.state.counts
    jax.tree.map(np.testing.assert_array_equal, fresh.state.sac, whole.state.sac)
    jax.tree.map(np.testing.assert_array_equal, fresh.spaces, whole.spaces)


def slid(rows=60, speed=0.5, seed=0):
    """Logged transitions of `Slide` in episodes of five steps, each from its own start."""
    rng = np.random.default_rng(seed)
    unit = rng.uniform(-0.3, 0.3, (rows // 5, 5)).astype(np.float32)
    starts = rng.uniform(0.4, 0.5, (rows // 5, 1)).astype(np.float32)
    moved = np.cumsum(np.concatenate([starts, speed * 2 * unit], axis=1), axis=1, dtype=np.float32)
    before, after = (part.reshape(-1, 1) for part in (moved[:, :-1], moved[:, 1:]))
    reward = -(after[:, 0] ** 2) - 0.1 * (2 * unit.reshape(-1)) ** 2
    ended = np.abs(after[:, 0]) > 1
    fields = (before, unit.reshape(-1, 1), reward.astype(np.float32), after, ended)
    return Transition(*map(jnp.asarray, fields))


ADAPTING = with_(adapt="auto", updates_per_real_step=0, planning={"updates": 300})


def test_a_model_is_adapted_to_logged_transitions_without_a_real_step():
    agent = DynaSAC("Rail-v0", probes.Slide(speed=0.8), ADAPTING)
    agent.remember(slid()).learn(real_episodes=0)
    state = agent.state
    assert (state.counts.real_steps, state.counts.logged_transitions) == (0, 60)
    assert state.adaptation.rung == "identified"
    assert float(agent.model.speed) == pytest.approx(0.5, rel=1e-3)
    assert "speed 0.8 → 0.5" in state.adaptation.sentence
    assert state.counts.gradient_updates == ADAPTING.planning.first_updates
    row = {}
    agent.learn(real_episodes=1, callback=lambda agent, said: row.update(said))
    assert row["logged_transitions"] == 60
    assert row["real_steps"] == agent.state.counts.real_steps > 0
    assert state.adaptation.after_transitions == 60
    assert agent.state.adaptation.after_transitions == 60 + row["real_steps"]


def test_a_loaded_model_is_adapted_to_what_is_remembered_next(tmp_path):
    agent = DynaSAC("Rail-v0", probes.Slide(speed=0.8), ADAPTING).remember(slid())
    agent.learn(real_episodes=0).save(tmp_path)
    loaded = DynaSAC.load(tmp_path, "Rail-v0", probes.Slide(speed=0.8))
    assert float(loaded.model.speed) == float(agent.model.speed)
    loaded.remember(slid(40, speed=0.6)).learn(real_episodes=0)
    assert float(loaded.model.speed) == pytest.approx(0.6, rel=1e-3)


def test_an_exact_model_is_still_planned_in_from_the_beginning():
    agent = DynaSAC("Rail-v0", probes.Slide(), ADAPTING).remember(slid()).learn(real_episodes=0)
    assert agent.state.adaptation.rung == "exact"
    assert not agent.state.adaptation.changed
    assert agent.state.counts.gradient_updates == ADAPTING.planning.first_updates


def test_the_replay_holds_what_was_logged_before_what_is_collected():
    agent = DynaSAC("Rail-v0", probes.Slide(), SMALL).remember(slid()).learn(real_episodes=1)
    rows, logged = stored(agent), slid()
    np.testing.assert_array_equal(rows.observation[:60], logged.observation)
    np.testing.assert_allclose(rows.action[:60], logged.action, atol=1e-6)
    np.testing.assert_array_equal(rows.terminated[:60], logged.terminated)
    assert len(rows.reward) == 60 + agent.state.counts.real_steps


def test_logged_transitions_that_come_later_are_planned_from_once():
    agent = DynaSAC("Rail-v0", probes.Slide(speed=0.8), ADAPTING).learn(real_episodes=0)
    assert agent.state.adaptation.rung == "exact"
    seen = []
    agent.remember(slid(20)).remember(slid(40, seed=1))
    for _ in range(2):
        agent.learn(real_episodes=0, callback=lambda agent, row: seen.append(row))
    assert [row["logged_transitions"] for row in seen] == [60]
    assert agent.state.adaptation.rung == "identified"
    assert agent.state.counts.planned == 2
    agent.learn(real_episodes=1)
    assert agent.state.counts.planned == 3


def test_without_a_model_logged_transitions_get_updates_as_if_collected():
    config = with_(planning={"first_updates": 0, "updates": 0}, random_steps=15)
    agent = DynaSAC("Clock-v0", "none", config)
    logged = slid(10)
    agent.remember(logged).learn(real_episodes=0)
    assert agent.state.counts.gradient_updates == 10
    assert updates_to_come(agent.task, agent.state.counts, 1) == 10
    agent.learn(real_episodes=1)  # ten of fifteen random steps were logged
    assert agent.state.counts.gradient_updates == 10 + 5
    fresh = DynaSAC("Clock-v0", "none", config).remember(logged)
    assert updates_to_come(fresh.task, fresh.state.counts, 1) == 10 + 10
    seed = with_(preset("seed"), sac={"hidden": (16, 16), "batch_size": 16})
    counts = DynaSAC("Rail-v0", probes.Slide(), seed).remember(logged).learn(real_episodes=0)
    assert counts.state.counts.gradient_updates == 2 * 10


def test_a_model_is_learned_from_logged_transitions_alone():
    quick = dataclasses.replace(SMALL.ensemble, updates=5, members=3, hidden=(4,))
    config = with_(adapt="ensemble", ensemble=quick, updates_per_real_step=0)
    agent = DynaSAC("Rail-v0", "ensemble", config).remember(slid()).learn(real_episodes=0)
    assert agent.state.adaptation.rung == "ensemble"
    assert agent.state.counts.real_steps == 0
    assert agent.state.counts.gradient_updates == config.planning.first_updates
    assert agent.state.counts.synthetic_transitions > 0


@pytest.mark.parametrize(("now", "before"), [(1.0, 2.0), (2.0, 1.0), (2.0, 2.0)])
def test_after_planning_the_better_policy_in_the_model_is_kept(monkeypatch, now, before):
    agent = DynaSAC("Rail-v0", probes.Slide(speed=0.8), ADAPTING).learn(real_episodes=0)
    earlier, episodes, judged = agent.state.sac, planning.episodes, []

    def judge(actor, model, spaces, key):
        found = episodes(actor, model, spaces, key)
        if actor is earlier.averaged_actor:
            worth = before
        elif actor is agent.state.sac.actor:
            return found  # only where it goes is asked for
        else:
            worth = now
        judged.append(float(model.speed))
        return dataclasses.replace(found, mean_return=jnp.asarray(worth))

    monkeypatch.setattr(planning, "episodes", judge)
    agent.remember(slid()).learn(real_episodes=0)
    assert judged[-2:] == [pytest.approx(0.5, rel=1e-3)] * 2
    kept = eqx.tree_equal(agent.state.sac, earlier)
    assert kept == (before > now)
    said = "the policy from before is kept: its return in the model is 2, the new one's 1"
    assert (said in agent.state.adaptation.sentence) == kept


@pytest.mark.parametrize(("now", "kept"), [(-9.0, False), (-11.0, True)])
def test_a_model_learned_from_nothing_judges_as_far_as_it_is_right(monkeypatch, now, kept):
    rival, judged = None, []

    def judge(actor, *rest):
        judged.append(actor)
        worth = jnp.asarray(-5.0 if actor is rival else now)
        return planning.Episodes(worth, visited=agent.task.spaces.observation)

    monkeypatch.setattr(planning, "episodes", judge)
    quick = dataclasses.replace(SMALL.ensemble, updates=5, members=3, hidden=(4,))
    starts = StartWeights(replay=1.0, space=1.0, visited=0.0)
    config = with_(adapt="ensemble", ensemble=quick, planning={"starts": starts})
    agent = DynaSAC("Rail-v0", "ensemble", config).remember(slid()).learn(real_episodes=0)
    assert not judged  # the learner before had learned nothing
    earlier = agent.state.sac
    rival = earlier.averaged_actor
    agent.state = agent.state._replace(train_return=-10.0)  # off by 5
    agent.remember(slid()).learn(real_episodes=0)
    assert len(judged) == 2
    assert eqx.tree_equal(agent.state.sac, earlier) == kept


CHUNKED_LOG = with_(ADAPTING, planning={"first_updates": 600, "updates": 300})


def on_a_log() -> DynaSAC:
    return DynaSAC("Rail-v0", probes.Slide(speed=0.8), CHUNKED_LOG)


@pytest.fixture(scope="module")
def uninterrupted_on_a_log() -> DynaSAC:
    return on_a_log().remember(slid()).learn(real_episodes=1)


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 4, 6])
def test_gone_on_with_logged_transitions_equals_never_interrupted(
    uninterrupted_on_a_log, tmp_path, looks
):
    whole, stopped = uninterrupted_on_a_log, on_a_log().remember(slid())
    with pytest.raises(KeyboardInterrupt):
        stopped.learn(real_episodes=1, observer=Stop(looks))
    stopped.save_checkpoint(tmp_path / "checkpoints")
    fresh = on_a_log()
    fresh.load_checkpoint(tmp_path / "checkpoints")
    fresh.learn(real_episodes=1)
    assert fresh.state.counts == whole.state.counts
    assert fresh.state.adaptation.sentence == whole.state.adaptation.sentence
    jax.tree.map(np.testing.assert_array_equal, fresh.state.sac, whole.state.sac)
    jax.tree.map(np.testing.assert_array_equal, fresh.state.replay, whole.state.replay)


def test_logged_transitions_that_do_not_fit():
    agent = DynaSAC("Rail-v0", probes.Slide(), with_(replay_capacity=50, real_episodes=2))
    with pytest.raises(UsageError, match=r"60 logged .*: --replay-capacity 80 keeps all of them"):
        agent.remember(slid())
    assert agent.state.counts.logged_transitions == 0
    agent.remember(slid(40))
    with pytest.raises(UsageError, match="--replay-capacity 100"):
        agent.remember(slid(40))


def test_logged_transitions_of_another_shape():
    with pytest.raises(UsageError, match=r"observation has shape \(60, 1\), not \(rows, 3\)"):
        DynaSAC("Pendulum-v1", Pendulum(), SMALL).remember(slid())
