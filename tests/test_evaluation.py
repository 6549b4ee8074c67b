"""Evaluation: episodes begin from their seeds, end where they end, and NaN stops at the border."""

import gymnasium as gym
import numpy as np
import probes
import pytest

from dynasac import Evaluation, UsageError
from dynasac.evaluation import FIRST_SEED, environments, evaluate, make, regret


def nothing(observations):
    return np.zeros((len(observations), 1), np.float32)


def test_returns_are_those_of_one_episode_after_another():
    found = evaluate(nothing, lambda: make("Pendulum-v1"), 3, 200, first_seed=50)
    assert found.first_seed == 50
    env = gym.make("Pendulum-v1")
    for k, total in enumerate(found.returns):
        env.reset(seed=50 + k)
        alone = sum(float(env.step(np.zeros(1, np.float32))[1]) for _ in range(200))
        assert total == pytest.approx(alone, rel=1e-6)
    assert len(set(found.returns)) == 3


def test_an_episode_that_ended_earns_nothing_more():
    ends = iter([2, 5, 9])
    found = evaluate(
        lambda o: nothing(o) + 1, lambda: probes.Clock(terminates_at=next(ends)), 3, 7, 0
    )
    assert found.returns == (2.0, 5.0, 7.0)


def test_the_policy_sees_each_episodes_own_observation():
    found = evaluate(lambda o: -1.5 * o, lambda: make("Recall-v0"), 5, 10)
    assert found.mean_return == pytest.approx(0, abs=1e-6)


def test_an_observation_beyond_the_declared_bounds_is_told_of_once():
    def make_env():
        return probes.Clock(terminates_at=30)  # which observes a tenth of the count of steps

    assert evaluate(nothing, make_env, 2, 10).beyond == ""
    told = evaluate(nothing, make_env, 2, 30).beyond
    assert told.startswith("observation[0] was 1.1, but the environment's observation_space is ")
    assert "from -1 to 1 there: put its bounds right" in told
    unbounded = evaluate(lambda o: np.ones((len(o), 2), np.float32), probes.Plane, 1, 5)
    assert unbounded.beyond == ""


def test_summary():
    summary = Evaluation(7, (1.0, 3.0)).summary()
    assert summary == {
        "episodes": 2,
        "first_seed": 7,
        "mean_return": 2.0,
        "std_return": 1.0,
        "returns": [1.0, 3.0],
    }


def test_regret_is_for_the_standard_episodes_alone():
    standard = Evaluation(FIRST_SEED, (-130.0,) * 100)
    assert regret("Pendulum-v1", standard) == pytest.approx(-125.9 + 130.0)
    assert regret("Recall-v0", standard) is None
    assert regret("Pendulum-v1", Evaluation(FIRST_SEED, (-130.0,) * 99)) is None
    assert regret("Pendulum-v1", Evaluation(FIRST_SEED + 1, (-130.0,) * 100)) is None


def test_at_least_one_episode():
    with pytest.raises(UsageError, match="ask for 1 to 1,000,000"):
        evaluate(nothing, probes.Clock, 0, 10)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("BrokenObservation-v0", r"non-finite observation \(evaluation episode 0, step 2\)"),
        ("BrokenReward-v0", r"reward inf \(evaluation episode 0, step 2\)"),
    ],
)
def test_what_is_not_finite_is_refused(env_id, message):
    with pytest.raises(UsageError, match=message):
        evaluate(nothing, lambda: make(env_id), 2, 10)


def test_unknown_environments_get_near_matches():
    assert "Pendulum-v1" in list(environments("Pendulm-v1"))
    with pytest.raises(UsageError, match=r"not known; did you mean Pendulum-v1.* MODULE:ID") as e:
        make("Pendulm-v1")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Zzzzqqq-v0", "write MODULE:ID"),
        ("no_module_of_this_name:Thing-v0", "there is no module no_module_of_this_name"),
        ("what is this", "what is this"),
    ],
)
def test_other_ids_that_cannot_be_made(env_id, message):
    with pytest.raises(UsageError, match=message) as error:
        make(env_id)
    assert "\n" not in str(error.value)


def test_an_environment_from_a_module():
    assert make("probes:Recall-v0").spec.id == "Recall-v0"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('run `pip install "gymnasium[mujoco]"`', r"pip install 'dynasac\[mujoco\]'"),
        ('run `pip install "gymnasium[classic_control]"`', r"'dynasac\[classic-control\]'"),
        ("run `pip install swig`", "pip install swig"),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_how_to_get_it(said, told):
    def lacking():
        raise gym.error.DependencyNotInstalled(f"it is not installed, {said}")

    gym.register("Lacking-v0", entry_point=lacking)
    with pytest.raises(UsageError, match=rf"Lacking-v0 needs a package .*{told}"):
        make("Lacking-v0")
    del gym.registry["Lacking-v0"]
