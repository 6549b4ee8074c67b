"""The examples: environments that Gymnasium accepts, models that fit them, training that runs."""

import json
import sys
import warnings
from pathlib import Path

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from test_cli import TINY

from dynasac import cli
from dynasac.models import check_contract, model_from_file

EXAMPLES = Path(__file__).parent.parent / "examples"
PAIRS = [
    ("cart:Cart-v0", "cart.py:Cart"),
    ("swing_up_env:SwingUp-v0", "swing_up_model.py:SwingUp"),
    ("swing_up_env:SwingUp-v0", "swing_up_model.py:WithFriction"),
]


SMALL_CORRECTION = ["--ensemble.members=3", "--ensemble.hidden", "8", "--ensemble.updates=10"]

# a file with both environment and model is imported as either
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Overriding environment Cart-v0 already in registry:UserWarning"
)


@pytest.fixture(autouse=True)
def _in_reach(tmp_path, monkeypatch):
    """As when started in examples/, but for the runs, which go to a directory of the test's own."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.chdir(tmp_path)


def model(name: str):
    return model_from_file(str(EXAMPLES / name))


@pytest.mark.parametrize("name", ["cart:Cart-v0", "swing_up_env:SwingUp-v0"])
def test_gymnasium_accepts_the_environment(name):
    env = gym.make(name, disable_env_checker=True)
    with warnings.catch_warnings():
        # the cart has no bounds, and neither has actions in [-1, 1]: advice, not errors
        for advice in (
            r".*A Box observation space (m.n|max)imum value is -?infinity",
            r".*For Box action spaces, we recommend using a symmetric and normalized space",
        ):
            warnings.filterwarnings("ignore", message=advice, category=UserWarning)
        check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize(("env_id", "name"), PAIRS)
def test_the_model_has_the_shapes_of_the_environment(env_id, name):
    env = gym.make(env_id, disable_env_checker=True)
    check_contract(model(name), env.observation_space.shape[0], env.action_space.shape[0])
    env.close()


def real_steps(env, states, actions):
    """Each state and action through the environment: observations, rewards, ends."""
    env.reset(seed=0)
    results = []
    for state, action in zip(states, actions, strict=True):
        env.state = state.astype(float)
        results.append(env.step(action)[:3])
    observations, rewards, ends = zip(*results, strict=True)
    return np.array(observations), np.array(rewards), np.array(ends)


@pytest.mark.parametrize("friction", [False, True])
def test_with_the_right_numbers_the_swing_up_model_is_the_environment(friction):
    import swing_up_env

    if friction:
        env = swing_up_env.SwingUpEnv()
        right = eqx.tree_at(
            lambda m: (m.cart, m.pole, m.cart_friction, m.pole_friction),
            model("swing_up_model.py:WithFriction"),
            (env.cart, env.pole, env.cart_friction, env.pole_friction),
        )
    else:
        right = model("swing_up_model.py:SwingUp")
        env = swing_up_env.SwingUpEnv(right.cart, right.pole, 0.0, 0.0)
    rng = np.random.default_rng(0)
    farthest = np.array([2.4, np.pi, 5.0, 9.0])
    states = rng.uniform(-farthest, farthest, (1000, 4)).astype(np.float32)
    actions = rng.uniform(-12, 12, (1000, 1)).astype(np.float32)
    observations, rewards, ends = real_steps(env, states, actions)
    step = eqx.filter_jit(jax.vmap(lambda o, a: right.step(o, a, jax.random.key(0))))
    said = step(jax.vmap(right.observation)(jnp.asarray(states)), jnp.asarray(actions))
    np.testing.assert_allclose(said.next_observation, observations, rtol=0, atol=1e-4)
    np.testing.assert_allclose(said.reward, rewards, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(said.terminated, ends)
    assert 10 < ends.sum() < 500


def test_state_is_the_inverse_of_observation():
    swing_up = model("swing_up_model.py:SwingUp")
    states = jax.random.uniform(jax.random.key(0), (100, 4), minval=-2.0, maxval=2.0)
    back = jax.vmap(lambda state: swing_up.state(swing_up.observation(state)))(states)
    np.testing.assert_allclose(back, states, atol=1e-5)


def test_episodes_begin_alike():
    import swing_up_env

    env, swing_up = swing_up_env.SwingUpEnv(), model("swing_up_model.py:SwingUp")
    found = np.array([env.reset(seed=seed)[0] for seed in range(200)])
    said = jax.vmap(swing_up.initial_observation)(jax.random.split(jax.random.key(0), 200))
    np.testing.assert_allclose(said.mean(0), found.mean(0), atol=0.03)
    np.testing.assert_allclose(said.std(0), found.std(0), atol=0.02)


def test_the_readers_commands_train(tmp_path, capsys):
    reference = f"--model={EXAMPLES}/swing_up_model.py:SwingUp"
    arguments = [*TINY, *SMALL_CORRECTION, "--real-episodes=1", "--output=run"]
    assert cli.run(["train", "swing_up_env:SwingUp-v0", reference, *arguments]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["real_episodes"] == 1
    assert {found["name"] for found in summary["model"]["identified"]} == {
        "cart",
        "pole",
        "half_length",
    }
    assert cli.run(["evaluate", "run", "--env=swing_up_env:SwingUp-v0", "--episodes=2"]) == 0
    assert "over 2 episodes" in capsys.readouterr().out


def test_the_cart_trains(tmp_path):
    arguments = [f"--model={EXAMPLES}/cart.py:Cart", *TINY, "--adapt=none", "--output=run"]
    assert cli.run(["train", "cart:Cart-v0", *arguments]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["model"]["name"] == "Cart"


def test_the_check_says_that_the_rough_model_is_wrong(capsys):
    reference = f"--model={EXAMPLES}/swing_up_model.py:SwingUp"
    assert cli.run(["check-model", "swing_up_env:SwingUp-v0", reference, "--steps=600"]) == 1
    assert "SwingUp is wrong about observation[3]" in capsys.readouterr().out
