"""Where rollouts begin, where they end, and that the compiled loop is the loop it stands for."""

import dataclasses
import pathlib
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import probes
import pytest
from conftest import SMALL_PLANNING, SMALL_SAC, beside_tests

from dynasac import Pendulum, StartWeights, UsageError, planning, replay, sac
from dynasac.processes import THREADS, processors
from dynasac.spaces import Box
from dynasac.types import Transition

KEY = jax.random.key(5)
SPACES = probes.probe_spaces()
SENTINEL = 0.875  # the action of every real row, so that real rows can be told


def with_(**changes) -> planning.PlanningConfig:
    return dataclasses.replace(SMALL_PLANNING, **changes)


def trusting(fraction=0.25, horizon=3, expansion=2, uncertainty=np.inf) -> planning.Trust:
    return planning.Trust(
        jnp.float32(fraction), jnp.int32(horizon), jnp.int32(expansion), jnp.float32(uncertainty)
    )


def memory(rows: int = 20, observation: float = -0.75) -> replay.ReplayState:
    """A replay of real rows that can be told from everything a model makes."""
    state = replay.create(40, 1, 1)
    if not rows:
        return state
    column = jnp.full((rows, 1), observation)
    ends = jnp.arange(rows) % 5 == 0
    real = Transition(column, jnp.full((rows, 1), SENTINEL), jnp.ones(rows), column / 2, ends)
    return replay.add(state, real)


@pytest.fixture(scope="module")
def learner():
    return sac.create(SMALL_SAC, SPACES, 1)


starts = eqx.filter_jit(planning.start_observations)
rollout = eqx.filter_jit(planning.rollout)
mixed_batches = eqx.filter_jit(planning.mixed_batches)
better_actions = eqx.filter_jit(planning.better_actions)
expanded = eqx.filter_jit(planning.expanded)
update = eqx.filter_jit(sac.update)
model = jax.tree.map(jnp.asarray, probes.Slide())
NARROW = Box(jnp.array([-0.3]), jnp.array([0.1]))  # away from resets (0.4 to 0.5) and replay
VISITED = Box(jnp.array([0.6]), jnp.array([0.7]))


def sources(weights: StartWeights, rows: int = 20, count: int = 4000) -> dict[str, float]:
    """The share of starts that lie where each source puts them; they must add up to 1."""
    x = np.asarray(starts(model, memory(rows), weights, NARROW, VISITED, count, KEY))[:, 0]
    found = {
        "replay": float((x == -0.75).mean()),
        "reset": float(((x >= 0.4) & (x <= 0.5)).mean()),
        "space": float(((x >= -0.3) & (x <= 0.1)).mean()),
        "visited": float(((x >= 0.6) & (x <= 0.7)).mean()),
    }
    assert sum(found.values()) == pytest.approx(1.0)
    return found


SOURCES = ("replay", "reset", "space", "visited")


@pytest.mark.parametrize("source", SOURCES)
def test_each_source_alone(source):
    weights = StartWeights(**(dict.fromkeys(SOURCES, 0.0) | {source: 2.0}))
    assert sources(weights)[source] == 1.0


def test_a_mixture_has_the_shares_that_were_asked_for():
    found = sources(StartWeights(replay=1.0, reset=2.0, space=4.0, visited=3.0))
    assert found["replay"] == pytest.approx(1 / 10, abs=0.03)
    assert found["reset"] == pytest.approx(2 / 10, abs=0.03)
    assert found["space"] == pytest.approx(4 / 10, abs=0.03)
    assert found["visited"] == pytest.approx(3 / 10, abs=0.03)


def test_an_empty_replay_is_passed_over():
    found = sources(StartWeights(replay=3.0, reset=1.0, space=1.0), rows=0)
    assert found["replay"] == 0
    assert found["reset"] == pytest.approx(0.5, abs=0.04)


def test_with_replay_alone_the_first_plan_begins_where_episodes_do():
    assert sources(StartWeights(replay=1.0, space=0.0), rows=0)["reset"] == 1.0


def test_bounds_decide_whether_half_of_the_starts_are_resets_or_where_the_policy_goes():
    bounded = probes.probe_spaces(4, 2)
    config = planning.PlanningConfig()
    assert planning.for_spaces(bounded, config).starts == StartWeights(0.0, 0.0, 1.0, 1.0)
    unbounded = bounded._replace(bounded=(True, False, True, True))
    assert planning.for_spaces(unbounded, config).starts == StartWeights(0.0, 1.0, 1.0, 0.0)
    asked = with_(starts=StartWeights(reset=0.25, visited=0.5))
    assert planning.for_spaces(unbounded, asked) == planning.for_spaces(bounded, asked) == asked


def test_episodes_in_a_model_are_what_a_loop_makes_of_it(learner):
    spaces = SPACES._replace(episode_steps=7)
    key = jax.random.key(2)
    found = planning.episodes(learner.actor, model, spaces, key, count=5)
    returns, seen = [], []
    for reset in jax.random.split(jax.random.split(key)[0], 5):
        observation, total = model.initial_observation(reset), 0.0
        for _ in range(7):
            seen.append(float(observation[0]))
            unit = learner.actor.mode(spaces.observation.to_unit(observation))
            result = model.step(observation, spaces.action.from_unit(unit), key)  # it has no noise
            observation, total = result.next_observation, total + float(result.reward)
            if result.terminated:
                break
        returns.append(total)
    assert float(found.mean_return) == pytest.approx(np.mean(returns), rel=1e-5)
    assert float(found.visited.low[0]) == pytest.approx(min(seen), rel=1e-5)
    assert float(found.visited.high[0]) == pytest.approx(max(seen), rel=1e-5)


def test_an_episode_in_a_model_ends_where_it_terminates(learner):
    assert SPACES.episode_steps > 3
    found = planning.episodes(learner.actor, probes.Countdown(), SPACES, KEY)
    assert float(found.mean_return) == 3.0
    assert (float(found.visited.low[0]), float(found.visited.high[0])) == (1.0, 3.0)


def test_starts_in_space_fill_it():
    weights = StartWeights(space=1.0)
    x = np.asarray(starts(model, memory(), weights, SPACES.observation, VISITED, 4000, KEY))
    counts, _ = np.histogram(x, bins=10, range=(-1, 1))
    assert counts.sum() == 4000
    assert counts.min() > 300


def test_starts_in_space_are_possible_observations():
    box = Box(jnp.array([-1.0, -1, -8]), jnp.array([1.0, 1, 8]))
    empty = replay.create(4, 3, 1)
    x = np.asarray(starts(Pendulum(), empty, StartWeights(), box, box, 500, KEY))
    np.testing.assert_allclose(np.hypot(x[:, 0], x[:, 1]), 1, atol=1e-5)
    assert np.abs(x[:, 2]).max() > 7


def test_a_rollout_stops_at_termination(learner):
    first = jnp.array([[1.0], [2.0], [4.0], [9.0]])
    countdown = probes.Countdown()
    moves, happened = rollout(
        countdown, learner.actor, first, 5, 0.0, SPACES, trusting(horizon=5), KEY
    )
    assert happened.shape == (5, 4)
    np.testing.assert_array_equal(happened.sum(0), [1, 2, 4, 5])
    steps = np.arange(5)[:, None]
    np.testing.assert_array_equal(happened, steps < np.array([[1, 2, 4, 5]]))
    np.testing.assert_allclose(moves.observation[..., 0], first.T - steps)
    np.testing.assert_allclose(moves.next_observation[..., 0], first.T - steps - 1)
    ended = np.asarray(moves.terminated & happened)
    np.testing.assert_array_equal(ended.sum(0), [1, 1, 1, 0])
    assert ended[[0, 1, 3], [0, 1, 2]].all()


def test_a_rollout_obeys_the_model_and_the_scale_of_actions(learner):
    first = jnp.linspace(-0.9, 0.9, 50)[:, None]
    moves, _ = rollout(model, learner.actor, first, 3, 0.5, SPACES, trusting(horizon=3), KEY)
    assert np.abs(moves.action).max() <= 1
    np.testing.assert_allclose(
        moves.next_observation, moves.observation + 0.5 * 2.0 * moves.action, atol=1e-6
    )
    expected = -(moves.next_observation[..., 0] ** 2) - 0.1 * (2 * moves.action[..., 0]) ** 2
    np.testing.assert_allclose(moves.reward, expected, atol=1e-5)
    np.testing.assert_array_equal(moves.terminated, np.abs(moves.next_observation[..., 0]) > 1)


@pytest.mark.parametrize("exploration", [0.0, 0.4, 1.0])
def test_exploration_is_a_share_of_first_actions(exploration):
    state = sac.create(SMALL_SAC, SPACES, 0)
    still = probes.constant_actor(state.actor, [2.0], [-10.0])  # always about tanh(2) = 0.964
    moves, _ = rollout(
        model, still, jnp.zeros((3000, 1)), 2, exploration, SPACES, trusting(horizon=2), KEY
    )
    first, second = np.abs(np.asarray(moves.action[..., 0]) - np.tanh(2.0)) > 0.02
    assert first.mean() == pytest.approx(0.98 * exploration, abs=0.04)
    assert second.mean() == 0


@pytest.mark.parametrize("horizon", [1, 3, 16])
def test_a_batch_has_its_size_whatever_the_horizon(learner, horizon):
    batch, happened = eqx.filter_jit(planning.synthetic_batch)(
        learner,
        model,
        memory(),
        16,
        with_(horizon=horizon),
        SPACES,
        VISITED,
        trusting(horizon=horizon),
        KEY,
    )
    assert batch.reward.shape == happened.shape == (16,)
    assert happened.any()


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.25, 4), (0.5, 8), (1.0, 16)])
def test_real_fraction_is_the_share_of_real_rows(learner, fraction, count):
    batch, valid, used = mixed_batches(
        learner, model, memory(), VISITED, trusting(fraction), 3, SMALL_SAC, with_(), SPACES, KEY
    )
    real = np.asarray(batch.action[..., 0] == SENTINEL)
    assert (real.sum(1) == count).all()
    assert valid[real].all()
    np.testing.assert_array_equal(used, valid.sum(1) - count)
    for field in ("observation", "next_observation"):
        held = np.asarray(getattr(memory().transitions, field)[0])
        assert (np.asarray(getattr(batch, field))[real] == held).all()


def test_an_empty_replay_gives_no_real_rows(learner):
    batch, valid, used = mixed_batches(
        learner, model, memory(0), VISITED, trusting(0.5), 1, SMALL_SAC, with_(), SPACES, KEY
    )
    assert int(used[0]) == int(valid.sum()) > 0
    assert np.abs(batch.observation).min() > 0  # rows of zeros were never written


def test_without_a_model_a_batch_is_real(learner):
    batch, valid, used = mixed_batches(
        learner, None, memory(), VISITED, trusting(0.1), 1, SMALL_SAC, with_(), SPACES, KEY
    )
    assert (batch.action == SENTINEL).all()
    assert valid.all()
    assert int(used[0]) == 0


def span(first, last, total):
    return jnp.int32(first), jnp.int32(last), jnp.int32(total)


def planned(
    state, first, last, total, fraction=0.25, config=None, known=model, learner_config=SMALL_SAC
):
    return planning.plan(
        state,
        known,
        memory(),
        VISITED,
        trusting(fraction),
        span(first, last, total),
        learner_config,
        config or with_(horizon=3),
        SPACES,
        KEY,
    )


def test_batches_are_spread_where_that_is_faster(monkeypatch):
    def devices(units=64, known=model, batch=256, backend="cpu"):
        monkeypatch.setattr(jax, "local_device_count", lambda: 2)
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        config = dataclasses.replace(SMALL_SAC, hidden=(16, units), batch_size=batch)
        return planning.devices_for(known, config, with_(improvement_states=32))

    assert devices() == devices(128) == devices(known=memory()) == 2
    assert devices(256) == devices(known=None) == 1
    assert devices(batch=255) == 1  # rows that cannot be shared evenly
    assert devices(backend="gpu") == 1


ON_TWO_DEVICES = """
import threading
import jax, numpy as np
from conftest import SMALL_SAC, CompileCounter
from dynasac import sac
from test_planning import SPACES, planned

assert jax.device_count() == 2
compilations = CompileCounter()
start = sac.create(SMALL_SAC, SPACES, 0)
whole, learning, made = planned(start, 0, 48, 48, fraction=0.0)
compiled = compilations.count
half, _, first = planned(start, 0, 16, 48, fraction=0.0)
rest, _, second = planned(half, 16, 48, 48, fraction=0.0)
assert compilations.count == compiled > 0, "a count or a result of its own compiled it anew"
jax.tree.map(np.testing.assert_array_equal, whole, rest)
assert int(made) == int(first) + int(second)
assert 0.5 * 48 * 16 < int(made) <= 48 * 16, int(made)
assert np.isfinite(float(learning.critic_loss)) and float(learning.largest_reward) > 0
assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves((whole, learning, made)))

found = [None] * 4
def work(index):
    for _ in range(20):
        found[index] = planned(start, 0, 48, 48, fraction=0.0)[0]
threads = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join(60)
assert not any(thread.is_alive() for thread in threads), "two programs wait for each other"
for one in found: jax.tree.map(np.testing.assert_array_equal, whole, one)
"""


def test_on_two_devices_planning_is_the_same_whichever_way_it_is_cut():
    environment = {**beside_tests(), "JAX_NUM_CPU_DEVICES": "2"}
    done = subprocess.run(
        [sys.executable, "-c", ON_TWO_DEVICES], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_commands_plan_on_two_cores_unless_told_otherwise():
    program = "import jax; from dynasac.cli import start; start.configure(); print(jax.devices())"

    def devices(**variables) -> int:
        environment = {**beside_tests(), **variables}
        if not variables:
            del environment["JAX_NUM_CPU_DEVICES"]
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.count("CpuDevice")

    assert devices() == min(2, processors())
    assert devices(JAX_NUM_CPU_DEVICES="1") == devices(**THREADS) == 1


@pytest.mark.parametrize("avx512", [False, True])
def test_products_are_made_by_the_faster_kernels(avx512, monkeypatch):
    """Eigen's for wide networks, unless what counts are the thousands of rows of a search, or the
    processor computes with AVX-512 and networks are wider."""
    monkeypatch.setattr(planning, "has_avx512", lambda: avx512)

    def eigen(units, known, **settings):
        config = dataclasses.replace(SMALL_SAC, hidden=(16, units))
        return planning.eigen_is_faster(known, config, with_(**settings))

    assert not eigen(64, None)
    assert eigen(128, model, improvement_states=256)
    assert not eigen(256, model, improvement_states=256)
    assert eigen(256, None) == eigen(256, model, improvement_states=0) == (not avx512)
    # nothing is searched in a replay
    assert eigen(256, memory(), improvement_states=256) == (not avx512)


def test_avx512_is_known_from_what_numpy_found():
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("there is no /proc/cpuinfo here")
    assert planning.has_avx512() == ("avx512vl" in cpuinfo.read_text().split())


def test_wide_networks_learn_the_same_by_either_kernels(monkeypatch):
    """Up to the order in which products are summed."""
    config = dataclasses.replace(SMALL_SAC, hidden=(96, 96))

    def learned(eigen):
        monkeypatch.setattr(planning, "eigen_is_faster", lambda *_: eigen)
        known = with_(improvement_states=0)
        state = sac.create(config, SPACES, 0)
        return planned(state, 0, 9, 9, config=known, learner_config=config)[0]

    one, other = learned(True), learned(False)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_batches_made_together_are_alike(learner):
    """Each has its share of real rows, of explored actions and of later steps of rollouts."""
    config = with_(horizon=4, exploration=0.5)
    batches, _, _ = mixed_batches(
        learner,
        probes.Countdown(),
        memory(),
        VISITED,
        trusting(0.25, horizon=4),
        4,
        SMALL_SAC,
        config,
        SPACES,
        KEY,
    )
    assert batches.reward.shape == (4, SMALL_SAC.batch_size)
    real = np.asarray(batches.action[..., 0] == SENTINEL)
    assert (real.sum(1) == SMALL_SAC.batch_size // 4).all()
    every = sac.create(SMALL_SAC, SPACES, 0)
    still = eqx.tree_at(
        lambda s: s.actor, every, probes.constant_actor(every.actor, [2.0], [-10.0])
    )
    batches, _, _ = mixed_batches(
        still, model, memory(0), VISITED, trusting(0, horizon=4), 4, SMALL_SAC, config, SPACES, KEY
    )
    explored = np.abs(np.asarray(batches.action[..., 0]) - np.tanh(2.0)) > 0.02
    assert (np.abs(explored.mean(1) - 0.5 / 4) < 0.07).all()


class Doubtful(probes.Slide):
    """Uncertain to the right of 0.2."""

    def step(self, observation, action, key):
        doubt = jnp.where(observation[0] > 0.2, 2.0, 0.5)
        return dataclasses.replace(super().step(observation, action, key), uncertainty=doubt)


def test_planning_uses_nothing_that_the_model_doubts_or_that_is_too_far_ahead(learner):
    first = jnp.linspace(-0.9, 0.9, 50)[:, None]
    allowed = trusting(horizon=2, uncertainty=1.0)
    moves, happened = rollout(Doubtful(), learner.actor, first, 4, 0.5, SPACES, allowed, KEY)
    certain = np.asarray(moves.observation[..., 0] <= 0.2)
    np.testing.assert_array_equal(happened[0], certain[0])
    np.testing.assert_array_equal(
        happened[1], certain[0] & certain[1] & ~np.asarray(moves.terminated[0])
    )
    assert happened[1].any()
    assert not happened[2:].any()
    found = better_actions(
        learner, Doubtful(), first, SMALL_SAC, with_(), SPACES, trusting(uncertainty=1.0), KEY
    )
    assert np.isfinite(found.gain).all()
    assert (np.asarray(found.gain)[first[:, 0] > 0.2] == 0).all()
    assert np.asarray(found.gain).max() > 0


def moves_from(positions) -> Transition:
    """One step of the model from each, with the action 0.3."""
    first, action = jnp.asarray(positions)[:, None], jnp.full((len(positions), 1), 0.3)
    made = jax.vmap(model.step)(
        first, SPACES.action.from_unit(action), jax.random.split(KEY, len(first))
    )
    return Transition(first, action, made.reward, made.next_observation, made.terminated)


@pytest.mark.parametrize("entropy", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_target_follows_the_policy_as_a_loop_does(learner, steps, entropy):
    config = dataclasses.replace(SMALL_SAC, entropy_in_target=entropy)
    batch = moves_from([-0.9, -0.5, 0.1, 0.65, 0.9])
    assert np.asarray(batch.terminated).any()
    found = expanded(learner, model, batch, config, SPACES, trusting(expansion=steps), KEY)
    noises = [
        jax.random.normal(jax.random.split(jax.random.fold_in(KEY, step))[0], (5, 1))
        for step in range(steps - 1)
    ]
    for row in range(5):
        x, total = batch.next_observation[row], 0.0
        weight = 0.0 if batch.terminated[row] else config.discount
        for noise in noises:
            if not weight:
                break
            unit = SPACES.observation.to_unit(x[None])
            action, log_prob = learner.actor.sample(unit, noise[row][None])
            action = action if entropy else learner.actor.mode(unit)
            step = model.step(x, SPACES.action.from_unit(action[0]), KEY)
            total += weight * config.reward_scale * step.reward
            total -= weight * entropy * jnp.exp(learner.log_temperature) * log_prob[0]
            weight *= 0.0 if step.terminated else config.discount
            x = step.next_observation
        np.testing.assert_allclose(found.reward[row], total, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.observation[row], x, rtol=1e-5)
        np.testing.assert_allclose(found.discount[row], weight, rtol=1e-6)
    assert 0 < np.count_nonzero(found.discount) < 5  # some go on, some have ended


def test_a_target_takes_no_step_that_the_model_doubts(learner):
    batch = moves_from([-0.9, -0.2, 0.3])
    doubted = np.asarray(batch.next_observation[:, 0] > 0.2)
    assert sorted(set(doubted)) == [False, True]
    found = expanded(
        learner, Doubtful(), batch, SMALL_SAC, SPACES, trusting(expansion=2, uncertainty=1.0), KEY
    )
    gamma = SMALL_SAC.discount
    np.testing.assert_allclose(found.discount, np.where(doubted, gamma, gamma**2), rtol=1e-6)
    np.testing.assert_array_equal(
        found.observation[doubted], np.asarray(batch.next_observation)[doubted]
    )


def test_a_replay_that_a_host_model_filled_is_a_source_of_synthetic_rows(learner):
    filled = memory(30, observation=0.6)
    batch, valid, used = mixed_batches(
        learner, filled, memory(), VISITED, trusting(0.25), 2, SMALL_SAC, with_(), SPACES, KEY
    )
    assert ((batch.observation[..., 0] == -0.75).sum(1) == 4).all()
    assert ((batch.observation[..., 0] == 0.6).sum(1) == 12).all()
    assert valid.all()
    np.testing.assert_array_equal(used, [12, 12])


def test_the_compiled_loop_equals_a_naive_one():
    config = dataclasses.replace(SMALL_SAC, hidden=(8, 16, 16))  # every kind of layer
    learner = sac.create(config, SPACES, 1)
    count = planning.ROUND + 3
    fast, means, synthetic = planned(learner, 0, count, 20, learner_config=config)
    state, sums, made = learner, [], 0
    for index in range(count):
        if index % planning.ROUND == 0:
            keys = jax.random.split(jax.random.fold_in(KEY, index // planning.ROUND), 4)
            batches, valid, used = mixed_batches(
                state,
                model,
                memory(),
                VISITED,
                trusting(0.25),
                planning.ROUND,
                config,
                with_(horizon=3),
                SPACES,
                keys[0],
            )
            rows = batches.observation[:, : with_().improvement_states]
            better = better_actions(
                state, model, rows, config, with_(horizon=3), SPACES, trusting(), keys[1]
            )
            better = dataclasses.replace(
                better, gain=better.gain * valid[:, : with_().improvement_states]
            )
            noise = jax.random.normal(keys[2], (planning.ROUND, 2, config.batch_size, 1))
            after = expanded(state, model, batches, config, SPACES, trusting(), keys[3])
        turn = index % planning.ROUND
        batch, counted, improvement, drawn, following = jax.tree.map(
            lambda rows, turn=turn: rows[turn], (batches, valid, better, noise, after)
        )
        cosine = 0.5 * (1 + np.cos(np.pi * index / 20))
        low, high = config.final_learning_rate, config.learning_rate
        rate = jnp.float32(low + (high - low) * cosine)
        state, metrics = update(
            state, batch, counted, rate, config, SPACES, drawn, improvement, following
        )
        sums.append(metrics)
        made += int(used[turn])
    compare = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5)  # noqa: E731
    jax.tree.map(compare, fast, state)
    jax.tree.map(compare, means, jax.tree.map(lambda *rows: np.mean(rows), *sums))
    assert int(synthetic) == made
    assert made > count  # and it did something
    changed = np.abs(np.asarray(fast.actor.body.weights[0] - learner.actor.body.weights[0]))
    assert changed.max() > 1e-3


def test_a_phase_cut_between_rounds_is_the_same_phase(learner):
    end = 3 * planning.ROUND + 1
    whole, _, made = planned(learner, 0, end, end)
    state, total = learner, 0
    for first, last in ((0, planning.ROUND), (planning.ROUND, 2 * planning.ROUND)):
        state, _, synthetic = planned(state, first, last, end)
        total += int(synthetic)
    state, _, synthetic = planned(state, 2 * planning.ROUND, end, end)
    jax.tree.map(np.testing.assert_array_equal, whole, state)
    assert total + int(synthetic) == int(made)


def test_no_updates_change_nothing(learner):
    state, means, synthetic = planned(learner, 4, 4, 8)
    jax.tree.map(np.testing.assert_array_equal, state, learner)
    assert int(synthetic) == 0
    assert np.isfinite(np.asarray(means.critic_loss))


def test_counts_shares_and_parameters_do_not_recompile(learner, compilations):
    planned(learner, 0, 2, 8)
    faster = probes.Slide(speed=jnp.float32(0.9))
    planned(learner, 0, 2, 8, known=faster)
    arguments = [(0, 5, 7, 0.5), (3, 4, 100, 0.0), (0, 1, 0, 1.0)]
    before = compilations.count
    for *counts, fraction in arguments:
        planned(learner, *counts, fraction, known=faster)
    assert compilations.count == before
    planned(learner, 0, 2, 8, config=with_(horizon=5))
    assert compilations.count > before  # the counter does count


def test_the_learning_rate_falls_along_half_a_cosine():
    def rates(total, final=0.5):
        config = dataclasses.replace(SMALL_SAC, learning_rate=1.0, final_learning_rate=final)
        done = (0, total // 2, total)
        return [float(planning.annealed(config, jnp.array(n), jnp.array(total))) for n in done]

    assert rates(10) == rates(3000) == pytest.approx([1.0, 0.75, 0.5])
    assert rates(12_000) == pytest.approx([0.25, 0.1875, 0.125])  # lower in a longer phase
    assert rates(0) == pytest.approx([0.5, 0.5, 0.5])
    assert rates(12_000, final=1.0) == pytest.approx([1.0, 1.0, 1.0])  # not to fall


def test_stored_transitions_are_written_behind_the_real_ones(learner):
    config = with_(stored_transitions=12, horizon=1, starts=StartWeights(reset=1.0, space=0.0))
    state, written = planning.store_synthetic(
        learner, model, memory(20), config, SPACES, trusting(), KEY
    )
    assert (int(written), int(state.size)) == (12, 32)
    rows = jax.tree.map(np.asarray, state.transitions)
    assert (rows.action[:20] == SENTINEL).all()
    assert ((rows.observation[20:32] >= 0.4) & (rows.observation[20:32] <= 0.5)).all()
    moved = rows.observation[20:32] + rows.action[20:32]  # half of an action in ±2
    np.testing.assert_allclose(rows.next_observation[20:32], moved, atol=1e-6)


def test_steps_after_a_termination_are_not_stored(learner):
    config = with_(stored_transitions=12, horizon=4, starts=StartWeights(reset=1.0, space=0.0))
    state, written = planning.store_synthetic(
        learner, probes.Countdown(length=2.0), memory(0), config, SPACES, trusting(horizon=4), KEY
    )
    assert int(written) == int(state.size) == 6  # three rollouts of two steps
    assert (state.transitions.observation[:6] > 0.5).all()
    assert int(state.transitions.terminated.sum()) == 3


def test_lookahead_takes_the_action_that_brute_force_takes(learner):
    seen = jnp.array([[-0.9], [-0.2], [0.1], [0.45], [0.95]])
    found = np.asarray(
        planning.lookahead_action(
            learner, model, seen, SMALL_SAC, with_(lookahead_tail=0), SPACES, trusting()
        )
    )
    assert found.shape == (5, 1)

    def worth(x, action):
        reached = x + 0.5 * action
        reward = -(reached**2) - 0.1 * action**2
        ahead = jnp.array([[reached]], jnp.float32)
        q = learner.target_critics(ahead, learner.averaged_actor.mode(ahead))[:, 0]
        value = float(q.min() if SMALL_SAC.critic_reduction == "min" else q.mean())
        alive = abs(reached) <= 1
        return SMALL_SAC.reward_scale * reward + SMALL_SAC.discount * value * alive

    for x, action in zip(np.asarray(seen)[:, 0], found[:, 0], strict=True):
        best = max(worth(x, a) for a in np.linspace(-2, 2, 41))
        assert worth(x, action) >= best - 0.01


def test_lookahead_in_two_dimensions_stays_in_the_box():
    box = Box(jnp.array([-1.0, -3.0]), jnp.array([1.0, 5.0]))
    spaces = probes.probe_spaces(4, 2)._replace(action=box)
    state = sac.create(SMALL_SAC, spaces, 0)
    critics = probes.constant_critics(state.critics, [0.0, 0.0])
    state = eqx.tree_at(lambda s: (s.critics, s.target_critics), state, (critics, critics))
    still = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.5, -0.4]])
    found = np.asarray(
        planning.lookahead_action(
            state, probes.Drift(), still, SMALL_SAC, with_(lookahead_tail=0), spaces, trusting()
        )
    )
    assert (found >= np.asarray(box.low)).all()
    assert (found <= np.asarray(box.high)).all()
    assert found[1] == pytest.approx([-1.0, 4.0], abs=0.9)  # what stops it: -5 and 4


def test_visited_box_leaves_what_the_environment_bounds():
    spaces = probes.probe_spaces()
    assert planning.visited_box(model, spaces, 5) is spaces


def test_visited_box_measures_what_it_does_not():
    spaces = probes.probe_spaces(4, 2)._replace(bounded=(False, True, False, False))
    found = planning.visited_box(probes.Drift(), spaces, 5)
    low, high = np.asarray(found.observation.low), np.asarray(found.observation.high)
    assert (low[1], high[1]) == (-1, 1)
    # starts are in [-1, 1]; ten steps of velocity up to 1 + 10 * 0.2 reach no further than 4
    for index in (0, 2, 3):
        assert -7 < low[index] < -1.2
        assert 1.2 < high[index] < 7
    assert found.action is spaces.action


def test_visited_box_refuses_a_model_that_explodes():
    class Rocket(probes.Drift):
        def transition(self, state, action):
            return 1e30 * (state + 1)

    spaces = probes.probe_spaces(4, 2)._replace(bounded=(False,) * 4)
    with pytest.raises(UsageError, match=r"Rocket\.step returns numbers that are not finite"):
        planning.visited_box(Rocket(), spaces, 5)


def test_the_size_of_rewards_is_a_mean_over_the_observation_space():
    box = Box(jnp.array([-2.0]), jnp.array([2.0]))
    spaces = probes.probe_spaces(1)._replace(observation=box)
    # position and action are uniform in ±2, the next position is one plus half of the other
    found = planning.reward_size(probes.Slide(), spaces)
    assert found == pytest.approx(4 / 3 + 1 / 3 + 0.4 / 3, rel=0.05)


def test_the_size_of_rewards_is_of_those_that_are_numbers():
    class Cliff(probes.Slide):
        def reward(self, state, action, next_state):
            return jnp.where(state[0] > 0, -3.0, jnp.nan)

    class Abyss(probes.Slide):
        def reward(self, state, action, next_state):
            return jnp.asarray(jnp.inf)

    assert planning.reward_size(Cliff(), probes.probe_spaces(1)) == 3.0
    assert planning.reward_size(Abyss(), probes.probe_spaces(1)) == 0.0


def worth(learner, seen, action, tail):
    return planning.action_values(
        learner.actor,
        learner.target_critics,
        model,
        seen,
        action[None],
        tail,
        SMALL_SAC,
        SPACES,
        trusting(),
        KEY,
    )[0]


def test_better_actions_are_the_best_of_those_tried(learner):
    seen = jnp.array([[-0.9], [-0.2], [0.45]])
    config = with_(improvement_candidates=64)
    found = better_actions(learner, model, seen, SMALL_SAC, config, SPACES, trusting(), KEY)
    own = learner.actor.mode(SPACES.observation.to_unit(seen))

    np.testing.assert_allclose(
        found.gain, worth(learner, seen, found.action, 0) - worth(learner, seen, own, 0), atol=1e-5
    )
    grid = [worth(learner, seen, jnp.full((3, 1), a), 0) for a in np.linspace(-1, 1, 41)]
    assert (worth(learner, seen, found.action, 0) >= np.max(grid, axis=0) - 0.02).all()


def test_a_tail_follows_the_policy_and_stops_at_the_end(learner):
    seen, action = jnp.array([[-0.9], [-0.2], [0.45]]), jnp.array([[0.3], [-1.0], [1.0]])
    found = worth(learner, seen, action, 3)
    for row in range(3):
        x, a, total, weight = seen[row], action[row], 0.0, 1.0
        for _ in range(4):
            step = model.step(x, SPACES.action.from_unit(a), KEY)
            total += weight * SMALL_SAC.reward_scale * step.reward
            weight *= 0.0 if step.terminated else SMALL_SAC.discount
            x = step.next_observation
            a = learner.actor.mode(SPACES.observation.to_unit(x[None]))[0]
        q = learner.target_critics(SPACES.observation.to_unit(x[None]), a[None]).min()
        np.testing.assert_allclose(found[row], total + weight * q, rtol=1e-4, atol=1e-5)
