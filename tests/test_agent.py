"""DynaSAC as users of stable-baselines3 expect it."""

import dataclasses
import errno
import hashlib
import inspect

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL, redescribed
from safetensors.numpy import load_file

from dynasac import Columns, DynaSAC, UsageError, checkpoint, runs
from dynasac.agent import Silent

BATCH = np.random.default_rng(0).uniform([-1, -1, -8], [1, 1, 8], (6, 3)).astype(np.float32)


def test_signatures_are_those_of_stable_baselines3():
    predict = list(inspect.signature(DynaSAC.predict).parameters)
    assert predict[:5] == ["self", "observation", "state", "episode_start", "deterministic"]
    assert inspect.signature(DynaSAC.predict).parameters["deterministic"].default is False
    learn = list(inspect.signature(DynaSAC.learn).parameters)
    assert learn[1:3] == ["total_timesteps", "callback"]
    assert list(inspect.signature(DynaSAC.load).parameters)[:2] == ["path", "env"]


def test_an_agent_is_made_without_compiling(compilations):
    """Of other sizes, that is: what comes of NumPy's arrays is put there, not computed."""
    DynaSAC("Rail-v0", probes.Slide(), SMALL)
    before = compilations.count
    learner = dataclasses.replace(SMALL.sac, hidden=(23, 29))
    config = dataclasses.replace(SMALL, sac=learner, replay_capacity=177)
    DynaSAC("Rail-v0", probes.Slide(), config)
    assert compilations.count == before


@pytest.mark.parametrize("options", [{}, {"deterministic": True}, {"lookahead": 1}])
def test_one_observation_or_a_batch(trained, options):
    one, state = trained.predict(BATCH[0], **options)
    many, _ = trained.predict(BATCH, **options)
    assert isinstance(one, np.ndarray)
    assert (one.shape, many.shape) == ((1,), (6, 1))
    assert one.dtype == many.dtype == np.float32
    assert state is None
    for action in (one, *many):
        assert action in trained.env.action_space
    if options:
        np.testing.assert_allclose(one, many[0], atol=1e-5)


def test_deterministic_actions_repeat_and_others_do_not(trained):
    first, again = (trained.predict(BATCH, deterministic=True)[0] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    first, again = (trained.predict(BATCH)[0] for _ in range(2))
    assert (first != again).any()


def test_observations_of_double_precision_are_read(trained):
    ours, theirs = (
        trained.predict(batch, deterministic=True)[0] for batch in (BATCH, BATCH.astype(np.float64))
    )
    np.testing.assert_array_equal(ours, theirs)


def test_the_state_is_handed_back(trained):
    token = (np.zeros(2),)
    assert trained.predict(BATCH, token, np.ones(6, bool), True)[1] is token


@pytest.mark.parametrize("shape", [(), (2,), (4,), (6, 2), (2, 3, 3)])
def test_observations_of_another_shape(trained, shape):
    with pytest.raises(UsageError, match=r"an observation has shape \(3,\) or \(n, 3\)"):
        trained.predict(np.zeros(shape, np.float32))


def test_lookahead_that_is_not_supported(trained):
    with pytest.raises(UsageError, match="lookahead=2"):
        trained.predict(BATCH, lookahead=2)
    plain = DynaSAC("Rail-v0", "none", SMALL)
    with pytest.raises(UsageError, match="lookahead needs a model"):
        plain.predict(np.zeros(1, np.float32), lookahead=1)


def test_lookahead_does_not_lose(trained):
    assert trained.evaluate(5, lookahead=1).mean_return > trained.evaluate(5).mean_return - 15


def test_the_calls_of_evaluate_policy(trained):
    """What stable_baselines3.common.evaluation.evaluate_policy does with a model."""
    envs = gym.make_vec("Pendulum-v1", num_envs=4, vectorization_mode="sync")
    seen, _ = envs.reset(seed=1)
    returns, states, starts = np.zeros(4), None, np.ones(4, bool)
    for _ in range(200):
        actions, states = trained.predict(
            seen, state=states, episode_start=starts, deterministic=True
        )
        seen, rewards, ends, cuts, _ = envs.step(actions)
        returns += rewards
        starts = ends | cuts
    assert starts.all()
    assert returns.mean() > -400
    envs.close()


def test_evaluate_policy_itself(trained):
    evaluation = pytest.importorskip("stable_baselines3.common.evaluation")
    monitor = pytest.importorskip("stable_baselines3.common.monitor")
    env = monitor.Monitor(gym.make("Pendulum-v1"))
    mean, _ = evaluation.evaluate_policy(trained, env, n_eval_episodes=5)
    assert mean > -400


def test_evaluation_does_not_disturb_the_agents_own_environment(trained):
    before = trained.env.reset(seed=8)[0]
    trained.evaluate(2)
    assert trained.env.unwrapped.state is not None
    after, *_ = trained.env.step(np.zeros(1, np.float32))
    trained.env.reset(seed=8)
    np.testing.assert_array_equal(after, trained.env.step(np.zeros(1, np.float32))[0])
    assert before.shape == (3,)


def test_loaded_actions_are_identical(trained, tmp_path):
    trained.save(tmp_path / "policy")
    loaded = DynaSAC.load(tmp_path / "policy", "Pendulum-v1")
    for options in ({"deterministic": True}, {"lookahead": 1}):
        ours, theirs = (agent.predict(BATCH, **options)[0] for agent in (trained, loaded))
        np.testing.assert_array_equal(ours, theirs)
    assert loaded.config == trained.config
    assert loaded.evaluate(3).returns == trained.evaluate(3).returns
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [
        "model.json",
        "model.safetensors",
        "policy.json",
        "policy.safetensors",
    ]


def test_the_names_of_saved_arrays_change_only_with_the_format(trained, tmp_path):
    """Whoever renames one raises `checkpoint.FORMAT`, so that older files are told by their age."""
    trained.save(tmp_path / "policy")
    names = sorted(load_file(tmp_path / "policy" / "policy.safetensors"))
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    assert (checkpoint.FORMAT, digest) == (10, "c04bd0f64818")


def test_measured_scales_are_saved(tmp_path):
    agent = DynaSAC("Plane-v0", probes.Drift(), SMALL, seed=1)
    seen = np.full((2, 4), 2.0, np.float32)
    assert np.abs(agent.spaces.observation.high).min() > 1
    agent.save(tmp_path / "policy")
    loaded = DynaSAC.load(tmp_path / "policy", "Plane-v0")  # without a model to measure by
    ours, theirs = (a.predict(seen, deterministic=True)[0] for a in (agent, loaded))
    np.testing.assert_array_equal(ours, theirs)
    assert (ours >= agent.env.action_space.low).all()
    assert (ours <= agent.env.action_space.high).all()


def test_loading_names_no_code(trained, tmp_path):
    """What the files say about environment and model is never looked up."""
    trained.save(tmp_path / "policy")
    evil = {"env_id": "os:Evil-v0", "model": "evil.py:Evil"}
    redescribed(tmp_path / "policy" / "policy.safetensors", lambda told: {**told, **evil})
    DynaSAC.load(tmp_path / "policy", "Pendulum-v1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"config": {}}, "does not have the settings"),
        ({"seed": "zero"}, "has the seed 'zero'"),
    ],
)
def test_damaged_descriptions(rail, tmp_path, change, message):
    rail.save(tmp_path)
    redescribed(tmp_path / "policy.safetensors", lambda told: {**told, **change})
    with pytest.raises(UsageError, match=message):
        DynaSAC.load(tmp_path, "Rail-v0")


@pytest.mark.parametrize(
    "change", [{"hidden": ["a"]}, {"hidden": [8.5]}, {"activation": "sine"}, {"discount": "high"}]
)
def test_damaged_settings(rail, tmp_path, change):
    rail.save(tmp_path)

    def changed(told):
        told["config"]["sac"].update(change)
        return told

    redescribed(tmp_path / "policy.safetensors", changed)
    with pytest.raises(UsageError):
        DynaSAC.load(tmp_path, "Rail-v0")


def test_loading_what_is_not_there_or_does_not_fit(rail, tmp_path):
    with pytest.raises(UsageError, match=r"there is no policy\.safetensors"):
        DynaSAC.load(tmp_path / "nothing", "Rail-v0")
    rail.save(tmp_path)
    told = r"is of 'Rail-v0', .* sizes \[1, 1\], not of Pendulum-v1, whose are \[3, 1\]"
    with pytest.raises(UsageError, match=told):
        DynaSAC.load(tmp_path, "Pendulum-v1")

    def without_sizes(told):
        del told["sizes"]
        return told

    redescribed(tmp_path / "policy.safetensors", without_sizes)
    with pytest.raises(UsageError, match=r"float32\["):
        DynaSAC.load(tmp_path, "Pendulum-v1")


def test_learn_goes_on_and_returns_the_agent(rail):
    assert rail.learn(total_timesteps=1) is rail
    first = rail.state.counts
    assert (first.real_episodes, first.planned) == (1, 2)
    assert rail.learn(real_episodes=2).state.counts.real_steps > first.real_steps
    assert rail.learn(real_episodes=2).state.counts == rail.state.counts


def test_a_log_is_remembered_by_its_name(rail, tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("x,force\n0.4,1\n0.9,-1\n0.4,\n0.5,-2\n-0.5,\n")
    columns = Columns(observation=("x",), action=("force",))
    assert rail.remember(path, columns) is rail
    rail.learn(real_episodes=0)
    assert rail.state.counts.logged_transitions == 3
    rows = rail.state.replay.transitions
    np.testing.assert_allclose(rows.action[:3, 0], [0.5, -0.5, -1.0])
    np.testing.assert_allclose(rows.reward[:3], [-0.91, -0.26, -0.65], rtol=1e-5)  # the model's
    with pytest.raises(UsageError, match="no column of rewards"):
        DynaSAC("Rail-v0", "none", SMALL).remember(str(path), columns)


def test_without_counts_the_settings_decide():
    agent = DynaSAC("Rail-v0", probes.Slide(), dataclasses.replace(SMALL, real_episodes=2))
    assert agent.learn().state.counts.real_episodes == 2


def test_a_progress_bar_changes_nothing(rail, capsys):
    quiet = DynaSAC("Rail-v0", probes.Slide(), SMALL).learn(real_episodes=1)
    rail.learn(real_episodes=1, progress_bar=True)
    jax.tree.map(np.testing.assert_array_equal, rail.state, quiet.state)


def test_callbacks_see_each_count_of_episodes(rail):
    seen, others = [], []

    def watch(agent, row):
        assert agent.state.counts.real_episodes == row["real_episodes"]
        seen.append(row)

    rail.learn(real_episodes=2, callback=[watch, lambda agent, row: others.append(agent)])
    assert [row["real_episodes"] for row in seen] == [0, 1, 2]
    assert others == [rail] * 3
    assert seen[0]["train_return"] is None
    assert seen[2]["train_return"] == rail.state.train_return
    assert seen[2]["gradient_updates"] == rail.state.counts.gradient_updates
    assert 0 < seen[2]["temperature"] < 1
    measured = {"eval_mean_return", "eval_regret", "wall_seconds"}
    assert set(seen[2]) <= set(runs.METRICS) - measured


def test_a_callback_stops_early_and_learning_goes_on(rail):
    def enough(agent, row):
        return row["real_episodes"] < 1

    rail.learn(real_episodes=5, callback=enough)
    assert rail.state.counts.real_episodes == 1
    rail.learn(real_episodes=2)
    whole = DynaSAC("Rail-v0", probes.Slide(), SMALL).learn(real_episodes=2)
    jax.tree.map(np.testing.assert_array_equal, rail.state, whole.state)


@pytest.mark.parametrize("answer", [False, np.False_])
def test_one_of_several_callbacks_is_enough_to_stop(rail, answer):
    rail.learn(real_episodes=5, callback=[lambda agent, row: answer, lambda agent, row: True])
    assert rail.state.counts.real_episodes == 0


@pytest.mark.parametrize("answer", [0, float("nan"), np.zeros(3), "stop", jnp.zeros(())])
def test_a_callback_that_returns_what_means_nothing(rail, answer):
    def peculiar(agent, row):
        return answer

    message = "callback peculiar returned .*: return True to go on, False to stop"
    with pytest.raises(UsageError, match=message) as error:
        rail.learn(real_episodes=1, callback=[peculiar])
    assert "\n" not in str(error.value)
    assert rail.state.counts.gradient_updates == 6


def test_an_observer_stops_training_with_a_number_of_numpy(rail):
    class Enough(Silent):
        def episode(self, state):
            return np.bool_(state.counts.real_episodes < 1)

    rail.learn(real_episodes=5, observer=Enough(), progress_bar=True)
    assert rail.state.counts.real_episodes == 1


def test_callbacks_that_cannot_be_called(rail):
    with pytest.raises(UsageError, match=r"give functions of \(agent, row\)"):
        rail.learn(real_episodes=0, callback=["print"])


def test_observers_see_each_count_of_episodes(rail):
    seen = []

    class Watch(Silent):
        def episode(self, state):
            seen.append(state.counts.real_episodes)

    rail.learn(real_episodes=2, observer=Watch())
    assert seen == [0, 1, 2]


def test_an_interrupted_agent_keeps_what_it_learned(rail):
    before = rail.predict(np.zeros(1, np.float32), deterministic=True)[0]

    class Stop(Silent):
        def progress(self, state, phase):
            if state.counts.gradient_updates:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rail.learn(real_episodes=1, observer=Stop())
    assert rail.state.counts.gradient_updates == 6
    assert (rail.predict(np.zeros(1, np.float32), deterministic=True)[0] != before).all()


def test_a_checkpoint_of_other_settings_is_refused(rail, tmp_path):
    rail.save_checkpoint(tmp_path / "checkpoints")
    other = DynaSAC("Rail-v0", probes.Slide(), dataclasses.replace(SMALL, random_steps=1))
    with pytest.raises(UsageError, match="other settings: random_steps"):
        other.load_checkpoint(tmp_path / "checkpoints")
    other = DynaSAC("Rail-v0", probes.Slide(), SMALL, seed=1)
    with pytest.raises(UsageError, match="other settings: seed"):
        other.load_checkpoint(tmp_path / "checkpoints")


def test_counts_that_make_no_sense(rail):
    with pytest.raises(UsageError, match="not both"):
        rail.learn(10, real_episodes=1)
    with pytest.raises(UsageError, match="cannot be negative"):
        rail.learn(-1)
    with pytest.raises(UsageError, match="cannot be negative"):
        rail.learn(real_episodes=-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("NoSuchEnvironment-v3",), "is not known"),
        (("Buttons-v0",), "continuous actions"),
        (("Picture-v0",), "pictures are not supported"),
        (("Labelled-v0",), "FlattenObservation"),
        (("Rail-v0",), "no physics is known for Rail-v0"),
        (("Rail-v0", probes.Drift()), r"not shape \(1,\)"),
        (("Rail-v0", "model.txt"), r"FILE\.py:Class"),
    ],
)
def test_what_cannot_be_controlled(arguments, message):
    with pytest.raises(UsageError, match=message) as error:
        DynaSAC(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [2**31, 2**40])
def test_seeds_beyond_32_bits_are_refused(seed):
    with pytest.raises(UsageError, match="from 0 to 2147483647"):
        DynaSAC("Rail-v0", probes.Slide(), SMALL, seed=seed)


def test_a_negative_seed_is_refused():
    with pytest.raises(UsageError, match="seed"):
        DynaSAC("Rail-v0", probes.Slide(), SMALL, seed=-1)


def test_an_environment_without_an_id_is_evaluated_in_turn():
    agent = DynaSAC(gym.wrappers.TimeLimit(probes.Clock(), 5), "none", SMALL)
    agent.learn(real_episodes=1)
    assert agent.state.counts.real_steps == 5
    assert agent.evaluate(3).returns == agent.evaluate(1).returns * 3


def test_a_policy_does_not_bring_limits_of_its_own(tmp_path, rail):
    rail.save(tmp_path)
    narrow = gym.wrappers.RescaleAction(gym.make("Rail-v0"), np.float32(-1), np.float32(1))
    with pytest.raises(UsageError, match=r"actions from \[-2\.0\] to \[2\.0\], the .*\[-1\.0\]"):
        DynaSAC.load(tmp_path, narrow, "none")


def test_saving_leaves_no_model_of_another_agent(tmp_path, rail):
    rail.save(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    DynaSAC("Rail-v0", "none", SMALL).save(tmp_path)
    assert not list(tmp_path.glob("model.*"))


def test_a_checkpoint_of_another_environment_is_refused(tmp_path):
    DynaSAC("Recall-v0", "none", SMALL).save_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="is of 'Recall-v0', not of Clock-v0"):
        DynaSAC("Clock-v0", "none", SMALL).load_checkpoint(tmp_path)


def test_a_checkpoint_that_may_not_be_read_is_not_put_aside(tmp_path, monkeypatch):
    agent = DynaSAC("Clock-v0", "none", SMALL)
    agent.save_checkpoint(tmp_path)
    agent.save_checkpoint(tmp_path)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoint, "regular", refused)
    with pytest.raises(UsageError, match=r"cannot read .*: Permission denied"):
        agent.load_checkpoint(tmp_path)
    assert len(checkpoint.numbered(tmp_path)) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"real_episodes": -1},
        {"gradient_updates": 2**40},
        {"episode_steps": -3},
        {"episode_steps": 500},
        {"diverged": 10**6},
    ],
)
def test_counts_that_cannot_be_are_damage(change, tmp_path):
    agent = DynaSAC("Clock-v0", "none", SMALL).learn(real_episodes=1)
    agent.state = agent.state._replace(counts=agent.state.counts._replace(**change))
    agent.save_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="its counts cannot be"):
        DynaSAC("Clock-v0", "none", SMALL).load_checkpoint(tmp_path)


@pytest.mark.parametrize("change", [{"size": -1}, {"size": 10**6}, {"position": 3}])
def test_replays_that_cannot_be_are_damage(change, tmp_path):
    agent = DynaSAC("Clock-v0", "none", SMALL).learn(real_episodes=1)
    forged = {name: jnp.asarray(np.int32(value)) for name, value in change.items()}
    replay = dataclasses.replace(agent.state.replay, **forged)
    agent.state = agent.state._replace(replay=replay)
    agent.save_checkpoint(tmp_path)
    with pytest.raises(UsageError, match="its counts cannot be"):
        DynaSAC("Clock-v0", "none", SMALL).load_checkpoint(tmp_path)


@pytest.mark.parametrize("deed", ["remember", "learn"])
def test_what_a_callback_may_not_do(deed):
    def call(agent, row):
        logged = jax.tree.map(lambda ring: ring[:2], agent.state.replay.transitions)
        agent.remember(logged) if deed == "remember" else agent.learn(1)

    agent = DynaSAC("Clock-v0", "none", SMALL)
    with pytest.raises(UsageError, match="callback"):
        agent.learn(real_episodes=1, callback=call)
    agent.learn(real_episodes=1)
