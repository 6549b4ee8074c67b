"""Planning for agents of stable-baselines3: what they learn from, and what stays theirs."""

import importlib
import os
import subprocess
import sys

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest

from dynasac import Pendulum, PhysicsModel, StartWeights, UsageError

pytest.importorskip("stable_baselines3")
import torch
from stable_baselines3 import DDPG, PPO, SAC, TD3, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from dynasac.integrations import sb3
from dynasac.integrations.sb3 import DynaCallback

torch.set_num_threads(1)  # networks this small are slower on more, and much so on a busy machine


def made(env_id: str) -> gym.Env:
    return gym.make(env_id, disable_env_checker=True)


def agent_on(env, kind=SAC, **settings):
    """An agent that does everything and learns nothing."""
    small = {"batch_size": 32, "buffer_size": 500, "learning_starts": 5, "seed": 0}
    network = {"net_arch": [8]}
    return kind("MlpPolicy", env, policy_kwargs=network, device="cpu", **(small | settings))


def planning(model, **settings) -> DynaCallback:
    """A callback that plans often and little, and believes the model unless told otherwise."""
    little = {"every": 20, "first_updates": 3, "updates": 3, "adapt": "none"}
    return DynaCallback(model, **(little | settings))


class Shift(PhysicsModel):
    """Two positions, each moved by its own action."""

    step_size: float = 0.05

    def initial(self, key):
        return jax.random.uniform(key, (2,), minval=-0.1, maxval=0.1)

    def transition(self, state, action):
        return state + self.step_size * action

    def reward(self, state, action, next_state):
        return action[0] - 2 * state[1] + next_state @ next_state


class Table(gym.Env):
    """What `Shift` describes; no action means the same at both ends."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Box(np.float32([-1, -3]), np.float32([1, 5]))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-0.1, 0.1, 2).astype(np.float32)
        return self.state, {}

    def step(self, action):
        assert action in self.action_space
        before, self.state = self.state, self.state + np.float32(0.05) * action
        reward = float(action[0] - 2 * before[1] + self.state @ self.state)
        return self.state, reward, False, False, {}


@eqx.filter_jit
def predicted(model, observations, actions):
    keys = jax.random.split(jax.random.key(0), len(actions))
    return jax.vmap(model.step)(observations, actions, keys)


class Spy:
    """Looks at what an agent draws from at each call of `train`, with and without a callback."""

    def __init__(self, agent, rows: int = 400):
        self.planned, self.real, train = [], [], agent.train

        def watched(gradient_steps, batch_size):
            batch = agent.replay_buffer.sample(rows, env=agent.get_vec_normalize_env())
            planned = type(agent.replay_buffer) is not ReplayBuffer
            (self.planned if planned else self.real).append(batch)
            train(gradient_steps, batch_size)

        agent.train = watched


def assert_steps_of(model, space: gym.spaces.Box, batch) -> None:
    """Each row is what the model predicts for the action in the environment's unit."""
    unit = batch.actions.numpy()
    assert (np.abs(unit) <= 1).all()
    action = space.low + (unit + 1) / 2 * (space.high - space.low)
    observation = jnp.asarray(batch.observations.numpy(), jnp.float32)
    right = predicted(model, observation, jnp.asarray(action, jnp.float32))
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(batch.next_observations, right.next_observation, **close)
    np.testing.assert_allclose(batch.rewards[:, 0], right.reward, **close)
    np.testing.assert_array_equal(batch.dones[:, 0], right.terminated)


def test_synthetic_rows_are_steps_of_the_model():
    env = Table()
    agent = agent_on(env)
    spy = Spy(agent)
    agent.learn(45, callback=planning(Shift(), real_fraction=0.0))
    assert len(spy.planned) == 3  # before the first step, after 20 and after 40
    for batch in spy.planned:
        assert batch.observations.shape == (400, 2)
        assert_steps_of(Shift(), env.action_space, batch)
    unit = spy.planned[0].actions.numpy()
    assert (unit > 0.9).any(axis=0).all()
    assert (unit < -0.9).any(axis=0).all()
    for row in range(20):  # the model's unit is the environment's
        env.state = spy.planned[0].observations[row].numpy()
        reached, reward, *_ = env.step(agent.policy.unscale_action(unit[row]))
        np.testing.assert_allclose(reached, spy.planned[0].next_observations[row], atol=1e-5)
        assert reward == pytest.approx(float(spy.planned[0].rewards[row]), abs=1e-4)


def test_termination_is_the_models_and_truncation_nobodys():
    env = made("Rail-v0")  # over past 1; cut off after ten steps
    agent = agent_on(env)
    spy = Spy(agent)
    agent.learn(45, callback=planning(probes.Slide(), real_fraction=0.0))
    ended = np.concatenate([batch.dones.numpy() for batch in spy.planned])
    assert 0.05 < ended.mean() < 0.95
    for batch in spy.planned:
        assert_steps_of(probes.Slide(), env.action_space, batch)


def test_rollouts_go_on_where_the_model_leads_and_end_where_it_ends():
    agent = agent_on(made("Rail-v0"))
    callback = planning(probes.Slide(), horizon=3, starts=StartWeights(reset=1.0, space=0.0))
    agent.learn(1, callback=callback)
    rows, count = callback._planner._synthetic(3, 32)
    assert count == len(rows.reward) < 96  # rollouts that ended are shorter
    assert not rows.terminated.all()
    first = rows.observation[:32]
    assert ((first >= 0.4) & (first <= 0.5)).all()  # where Slide begins
    begun = rows.next_observation[:32][~rows.terminated[:32]]
    np.testing.assert_array_equal(rows.observation[32 : 32 + len(begun)], begun)
    later = rows.observation[32:]
    assert (np.abs(later) <= 1).all()  # nothing follows an end


def test_starts_from_the_agents_replay():
    agent = agent_on(Table())
    callback = planning(Shift(), starts=StartWeights(replay=1.0, reset=0.0, space=0.0))
    agent.learn(25, callback=callback)
    rows, _ = callback._planner._synthetic(3, 32)
    seen = {tuple(row) for row in agent.replay_buffer.observations[:25, 0]}
    assert {tuple(row) for row in rows.observation} <= seen
    assert len({tuple(row) for row in rows.observation}) > 10


def test_the_replay_holds_real_transitions_alone(tmp_path):
    agent = agent_on(made("Rail-v0"))
    spy = Spy(agent)
    callback = planning(probes.Slide(), real_fraction=0.25)
    agent.learn(45, callback=callback)
    assert type(agent.replay_buffer) is ReplayBuffer
    assert agent.replay_buffer.size() == 45
    real = agent.replay_buffer
    at = real.observations[:45, 0, 0], real.next_observations[:45, 0, 0], real.actions[:45, 0, 0]
    np.testing.assert_allclose(at[1], at[0] + 0.5 * 2 * at[2], rtol=1e-5, atol=1e-6)
    agent.save_replay_buffer(tmp_path / "replay")
    again = SAC("MlpPolicy", made("Rail-v0"), device="cpu")
    again.load_replay_buffer(tmp_path / "replay")
    np.testing.assert_array_equal(again.replay_buffer.rewards, real.rewards)
    # the first of the rows are real, once there are any
    seen = set(real.observations[:45, 0, 0].tolist())
    for batch in spy.planned[1:]:
        assert set(batch.observations[:100, 0].tolist()) <= seen
        assert not set(batch.observations[100:, 0].tolist()) <= seen
    assert agent._n_updates == (45 - 5) + callback.planned_updates == 40 + 3 + 3 + 3
    assert callback.synthetic_transitions == 9 * 32


def test_everything_is_given_back_when_an_update_fails():
    agent = agent_on(made("Rail-v0"))
    real, right = agent.replay_buffer, agent.train

    def failing(gradient_steps, batch_size):
        right(gradient_steps, batch_size)
        if agent.replay_buffer is not real:
            raise KeyboardInterrupt

    agent.train = failing
    logger = configure(format_strings=[])
    agent.set_logger(logger)
    with pytest.raises(KeyboardInterrupt):
        agent.learn(45, callback=planning(probes.Slide()))
    assert agent.replay_buffer is real
    assert agent.logger is logger
    assert not logger.name_to_value  # what was planned was logged elsewhere


def test_what_is_logged():
    agent = agent_on(made("Rail-v0"))
    agent.set_logger(configure(format_strings=[]))
    callback = planning(probes.Slide(), updates=53)
    agent.learn(41, callback=callback, log_interval=None)
    said = agent.logger.name_to_value
    assert said["dyna/updates"] == callback.planned_updates == 3 + 2 * 53
    assert said["dyna/synthetic_transitions"] == callback.synthetic_transitions
    assert said["dyna/real_fraction"] == pytest.approx(0.1)
    assert np.isfinite(said["dyna/critic_loss"])
    assert said["dyna/critic_loss"] != said["train/critic_loss"]
    assert said["train/n_updates"] == agent._n_updates


def test_several_environments():
    agent = agent_on(DummyVecEnv([lambda: made("Rail-v0")] * 3))
    spy = Spy(agent)
    agent.set_logger(configure(format_strings=[]))
    agent.learn(90, callback=planning(probes.Slide(), every=30, adapt="auto"))
    assert len(spy.planned) == 4  # after all environments' steps together
    # every transition is found again, in its own time, or the model would be wrong about it
    assert agent.logger.name_to_value["dyna/model_error"] < 1e-3
    found = sb3._transitions(agent.replay_buffer)
    assert found.observation.shape == (90, 1)
    starts = np.asarray(found.observation)[1:] != np.asarray(found.next_observation)[:-1]
    ends = agent.replay_buffer.dones[:30].T.reshape(-1)[:-1] > 0
    borders = np.isin(np.arange(89), [29, 59])
    np.testing.assert_array_equal(starts[:, 0], ends | borders)


def test_a_replay_that_has_come_round_and_the_clock():
    agent = agent_on(made("Rail-v0"), buffer_size=20, learning_starts=100)
    agent.learn(33)
    found = sb3._transitions(agent.replay_buffer)
    buffer = agent.replay_buffer
    assert np.asarray(found.reward)[-1] == buffer.rewards[buffer.pos - 1, 0]
    assert np.asarray(found.reward)[0] == buffer.rewards[buffer.pos, 0]
    ended = np.asarray(found.terminated)
    np.testing.assert_array_equal(ended, np.abs(np.asarray(found.next_observation)[:, 0]) > 1)
    assert ended.any()
    clock = agent_on(made("Clock-v0"), learning_starts=100)
    clock.learn(33)
    assert clock.replay_buffer.dones.sum() == 3  # all of them truncated
    assert not np.asarray(sb3._transitions(clock.replay_buffer).terminated).any()


def test_normalised_observations_and_rewards():
    env = VecNormalize(DummyVecEnv([Table]))
    agent = agent_on(env)
    spy = Spy(agent)
    asked = []
    right = agent.predict

    def predict(observation, **how):
        asked.append(observation)
        return right(observation, **how)

    agent.predict = predict
    agent.learn(40, callback=planning(Shift(), real_fraction=0.0))
    assert len(spy.planned) == 2  # the first waits until the scale is known
    large = [rows for rows in asked if len(rows) > 1]
    assert len(large) == 2
    assert all(np.abs(rows).max() <= env.clip_obs for rows in large)
    batch = spy.planned[-1]
    raw = env.unnormalize_obs(batch.observations.numpy())
    inside = (np.abs(batch.observations.numpy()) < env.clip_obs).all(1)
    inside &= (np.abs(batch.next_observations.numpy()) < env.clip_obs).all(1)
    inside &= (np.abs(batch.rewards.numpy()) < env.clip_reward).all(1)
    assert inside.sum() > 50
    reached = env.unnormalize_obs(batch.next_observations.numpy())
    rewards = env.unnormalize_reward(batch.rewards.numpy())
    plain = batch._replace(
        observations=torch.as_tensor(raw),
        next_observations=torch.as_tensor(reached),
        rewards=torch.as_tensor(rewards),
    )
    plain = type(batch)(*(one if one is None else one[torch.as_tensor(inside)] for one in plain))
    assert_steps_of(Shift(), env.action_space, plain)


@pytest.mark.parametrize("kind", [TD3, DDPG])
def test_deterministic_agents(kind):
    agent = agent_on(made("Rail-v0"), kind)
    spy = Spy(agent)
    agent.learn(45, callback=planning(probes.Slide(), real_fraction=0.0))
    assert len(spy.planned) == 3
    for batch in spy.planned:
        assert_steps_of(probes.Slide(), made("Rail-v0").action_space, batch)


def test_returns_of_several_steps():
    agent = agent_on(made("Rail-v0"), n_steps=3)
    batches = []
    right = agent.train

    def watched(gradient_steps, batch_size):
        batches.append(agent.replay_buffer.sample(40))
        right(gradient_steps, batch_size)

    agent.train = watched
    agent.learn(21, callback=planning(probes.Slide(), real_fraction=0.5))
    assert batches[0].discounts is None  # nothing real yet, and one step each
    last = next(b for b in reversed(batches) if (b.discounts[20:] == agent.gamma).all())
    assert last.discounts[:20].min() == pytest.approx(agent.gamma**3)


def test_a_callback_goes_on_with_its_agent_and_begins_anew_with_another():
    callback = planning(Shift(), every=10, first_updates=3, updates=2)
    agent = agent_on(Table())
    agent.learn(20, callback=callback)
    assert callback.planned_updates == 3 + 2 + 2
    agent.learn(10, callback=callback, reset_num_timesteps=False)
    assert callback.planned_updates == 3 + 3 * 2
    agent_on(Table()).learn(10, callback=callback)
    assert callback.planned_updates == 3 + 2


def test_equal_seeds_make_equal_agents():
    def weights():
        agent = agent_on(made("Rail-v0"))
        agent.learn(25, callback=planning(probes.Slide()))
        return torch.cat([value.flatten() for value in agent.policy.state_dict().values()])

    assert torch.equal(weights(), weights())


def test_a_wrong_model_is_put_right(capsys):
    agent = agent_on(made("Rail-v0"))
    callback = planning(probes.Slide(speed=0.3), every=40, verbose=1, adapt="auto")
    agent.learn(40, callback=callback)
    assert float(callback.dynamics.speed) == pytest.approx(0.5, abs=1e-3)
    assert "fitted parameters" in capsys.readouterr().out


def test_a_model_that_is_believed_stays_as_it_is():
    agent = agent_on(made("Rail-v0"))
    callback = planning(probes.Slide(speed=0.3), every=40)
    agent.learn(40, callback=callback)
    assert float(callback.dynamics.speed) == pytest.approx(0.3)


@pytest.mark.parametrize("model", ["auto", "simulator"])
def test_models_by_name(model):
    agent = agent_on("Pendulum-v1")  # which stable-baselines3 wraps in its Monitor
    spy = Spy(agent)
    callback = planning(model, real_fraction=0.0)
    agent.learn(1, callback=callback)
    assert (type(callback.dynamics) is Pendulum) == (model == "auto")
    (batch,) = spy.planned
    assert_steps_of(Pendulum(), agent.action_space, batch)
    if model == "simulator":
        assert callback.synthetic_transitions == 64  # one step of each episode


class Broken(probes.Slide):
    def transition(self, state, action):
        return state * jnp.nan


class Goal(gym.Env):
    """Observations with a goal, for a replay that relabels them."""

    vector = gym.spaces.Box(-1.0, 1.0, (1,))
    observation_space = gym.spaces.Dict(
        {"observation": vector, "achieved_goal": vector, "desired_goal": vector}
    )
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def compute_reward(self, achieved, desired, info):
        return 0.0


@pytest.mark.parametrize(
    ("make", "model", "message"),
    [
        (lambda: agent_on(made("Rail-v0")), probes.Drift(), r"not shape \(1,\)"),
        (lambda: agent_on(made("Rail-v0")), Broken(), r"finite number"),
        (lambda: agent_on(made("Rail-v0")), "auto", r"no physics is known for Rail-v0"),
        (lambda: agent_on(made("Rail-v0")), "none", r"leave the callback out"),
        (lambda: agent_on(made("Rail-v0")), "Slide", r"write it as FILE\.py:Class"),
        (lambda: agent_on(probes.Rail()), "auto", r"needs an environment made by gymnasium\.make"),
        (
            lambda: PPO("MlpPolicy", made("Rail-v0"), device="cpu"),
            probes.Slide(),
            r"PPO learns from no replay: DynaCallback is for SAC, TD3 and DDPG",
        ),
        (
            lambda: SAC("MultiInputPolicy", Goal(), device="cpu", buffer_size=10),
            probes.Slide(),
            r"FlattenObservation",
        ),
        (
            lambda: SAC(
                "MultiInputPolicy",
                Goal(),
                device="cpu",
                buffer_size=10,
                replay_buffer_class=HerReplayBuffer,
            ),
            probes.Slide(),
            r"HerReplayBuffer relabels.*FlattenObservation.*leave out replay_buffer_class",
        ),
        (
            lambda: agent_on(
                made("Rail-v0"),
                optimize_memory_usage=True,
                replay_buffer_kwargs={"handle_timeout_termination": False},
            ),
            probes.Slide(),
            r"optimize_memory_usage=False",
        ),
    ],
)
def test_what_cannot_work_is_refused(make, model, message):
    agent = make()
    with pytest.raises(UsageError, match=message) as error:
        agent.learn(1, callback=planning(model))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every": 0}, r"every=0: must be at least 1"),
        ({"horizon": 0}, r"horizon=0"),
        ({"updates": -1}, r"updates=-1: must be at least 0"),
        ({"real_fraction": 1.5}, r"real_fraction=1.5: must be from 0 to 1"),
        ({"exploration": float("nan")}, r"exploration=nan"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UsageError, match=message):
        DynaCallback(probes.Slide(), **settings)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.delitem(sys.modules, "dynasac.integrations.sb3")
    with pytest.raises(UsageError, match=r"pip install 'dynasac\[sb3\]'"):
        importlib.import_module("dynasac.integrations.sb3")


def test_importing_it_is_silent_and_leaves_the_gpu_to_torch():
    program = "import dynasac.integrations.sb3, jax; print(jax.config.jax_platforms, jax.devices())"
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    found = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.startswith("cpu [")
