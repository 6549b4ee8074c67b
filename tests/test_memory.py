"""Memory is known before it is allocated, and what does not fit is refused."""

import dataclasses
import inspect
import json
import time
import tracemalloc

import equinox as eqx
import jax
import jax.numpy as jnp
import probes
import pytest
from conftest import SMALL, SMALL_PLANNING, SMALL_SAC, redescribed, untrained_run
from test_simulation import Rail

from dynasac import DynaSAC, UsageError, memory, planning, presets, recording, training
from dynasac.models import ensemble, residual


def with_(**changes):
    return dataclasses.replace(SMALL, **changes)


def sac_(**changes):
    return with_(sac=dataclasses.replace(SMALL_SAC, **changes))


def planning_(**changes):
    return with_(planning=dataclasses.replace(SMALL_PLANNING, **changes))


def held(tree) -> int:
    return sum(getattr(leaf, "nbytes", 0) for leaf in jax.tree.leaves(tree))


BEGINNINGS = {
    "small": ("Rail-v0", probes.Slide(), SMALL),
    "deep": ("Rail-v0", probes.Slide(), sac_(hidden=(9, 20, 5))),
    "another environment": ("Pendulum-v1", "auto", SMALL),
    "stored": ("Pendulum-v1", "auto", planning_(stored_transitions=30)),
    "no model": ("Pendulum-v1", "none", SMALL),
    "to be learned": ("Pendulum-v1", "ensemble", SMALL),
    "the seed's": ("Pendulum-v1", "auto", presets.SEED),
    "on the host": ("Rail-v0", Rail(), planning_(simulations=7)),
    "simulator": ("Pendulum-v1", "simulator", SMALL),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_what_training_begins_with_is_known_to_the_byte(name):
    agent = DynaSAC(*BEGINNINGS[name])
    state, known = agent.state, agent.memory
    assert known.replay == held(state.replay)
    assert known.simulation == held(state.simulation)
    assert known.learner == held((state.sac, state.earlier, state.learning))
    assert known.model == held(state.adaptation)
    began = known.replay + known.simulation + known.learner + known.model
    assert began == held(training.initial(agent.task))
    assert known.total == sum(known)


@pytest.mark.parametrize("env_id", ["Rail-v0", "Pendulum-v1"])
@pytest.mark.parametrize("hidden", [(8,), (32, 16)])
def test_a_learned_model_is_known_to_the_byte(env_id, hidden):
    config = with_(ensemble=ensemble.EnsembleConfig(members=4, hidden=hidden), adapt="ensemble")
    agent = DynaSAC(env_id, "ensemble", config)
    learned = residual.create(None, agent.spaces, config.ensemble)
    assert agent.memory.learned_model == 2 * held(learned)


def compiled(agent) -> int:
    """Bytes that the compiled updates work in."""
    task, state = agent.task, agent.state
    source = state.simulation.replay if state.simulation else state.adaptation.model
    eigen = planning.eigen_is_faster(source, task.config.sac, task.config.planning)
    options = planning.COMPILER_OPTIONS | (planning.EIGEN if eigen else {})
    jitted = eqx.filter_jit(inspect.unwrap(planning.plan), compiler_options=options)
    program = jitted.lower(
        state.sac,
        None if task.config.planning.stored_transitions else source,
        state.replay,
        task.spaces.observation,
        state.adaptation.trust,
        training._span(0, 8, 8),
        task.config.sac,
        task.config.planning,
        task.spaces,
        training.key_for(task, training.PLAN, 0),
    ).compile()
    return program.compiled.memory_analysis().temp_size_in_bytes


def usual(hidden=(64, 64), batch_size=512, adapt="none", **changes):
    learner = dataclasses.replace(presets.DEFAULT.sac, hidden=hidden, batch_size=batch_size)
    planned = dataclasses.replace(presets.DEFAULT.planning, **changes)
    return with_(sac=learner, planning=planned, adapt=adapt)


@pytest.mark.parametrize(
    ("config", "model"),
    [
        (usual(), "auto"),
        (usual(hidden=(2048, 2048), batch_size=64), "auto"),
        (usual(batch_size=4096), "auto"),
        (usual(improvement_states=0), "auto"),
        (usual(improvement_states=512, improvement_candidates=32), "auto"),
        (usual(), "simulator"),
        (presets.MODEL_FREE, "none"),
    ],
)
def test_the_estimate_of_planning_is_within_a_factor_of_two(config, model):
    agent = DynaSAC("Pendulum-v1", model, config)
    found = compiled(agent)
    assert found / 2 < agent.memory.planning < 2 * found


def test_so_it_is_in_a_learned_model():
    agent = DynaSAC("Pendulum-v1", "ensemble", usual(adapt="ensemble"))
    model = residual.create(None, agent.spaces, agent.config.ensemble)
    agent.state = agent.state._replace(adaptation=agent.state.adaptation._replace(model=model))
    found = compiled(agent)
    assert found / 2 < agent.memory.planning < 2 * found


def test_so_it_is_for_fitting_one():
    config = with_(adapt="ensemble", real_episodes=80, replay_capacity=20_000)
    agent = DynaSAC("Pendulum-v1", "ensemble", config)
    rows, (inputs, targets) = 16_384, (4, 4)  # 16,000 padded
    start = ensemble.create(inputs, targets, config.ensemble, 0)
    data = ensemble._Data(
        *(jnp.zeros((rows, size)) for size in (inputs, targets)),
        jnp.ones((rows, targets), bool),
        jnp.zeros((rows, targets)),
        jnp.zeros((config.ensemble.members, rows)),
        jnp.zeros(rows),
        jnp.int32(rows),
    )
    program = ensemble._regressed.lower(start.networks, data).compile()
    found = program.compiled.memory_analysis().temp_size_in_bytes
    assert found / 2 < agent.memory.fitting < 2 * found


def test_without_learning_nothing_is_fitted():
    assert DynaSAC("Pendulum-v1", config=SMALL).memory.fitting == 0


HOSTILE = {
    "--replay-capacity": with_(replay_capacity=10**15),
    "--sac.hidden": sac_(hidden=(10**6, 10**6)),
    "--sac.batch-size": sac_(batch_size=10**14),
    "--planning.simulations": planning_(simulations=10**14),
    "--planning.improvement-candidates": planning_(improvement_candidates=10**13),
    "--ensemble.members": with_(ensemble=ensemble.EnsembleConfig(members=10**12)),
    "--ensemble.hidden": with_(ensemble=ensemble.EnsembleConfig(hidden=(10**7, 10**7))),
}


@pytest.mark.parametrize("setting", HOSTILE)
def test_what_does_not_fit_is_refused_with_the_setting_to_lower(setting):
    host = setting == "--planning.simulations"
    model = Rail() if host else probes.Slide()
    with pytest.raises(UsageError, match=r"training would need .* GB .* lower ") as error:
        DynaSAC("Rail-v0", model, HOSTILE[setting])
    assert setting in str(error.value)
    assert "\n" not in str(error.value)


def hostile_policy(agent, directory, changes):
    """A policy's directory whose file asks for other settings than it was saved with."""
    agent.save(directory)

    def change(description):
        for group, values in changes.items():
            if isinstance(values, dict):
                description["config"][group].update(values)
            else:
                description["config"][group] = values
        return description

    redescribed(directory / "policy.safetensors", change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"replay_capacity": 10**15}, "would need"),
        ({"replay_capacity": 10**4000}, "is not what was written"),
        ({"sac": {"hidden": [10**6, 10**6]}}, "too small for what it describes"),
        ({"sac": {"hidden": [10**3000, 10**3000]}}, "is not what was written"),
        ({"planning": {"improvement_candidates": 10**15}}, "would need"),
        ({"ensemble": {"hidden": [10**9]}}, "would need"),
        # so few members that the sum would fit
        ({"ensemble": {"members": -(10**15)}}, "at least 3"),
    ],
)
def test_a_policy_that_asks_for_too_much_is_refused_before_anything_is_allocated(
    rail, tmp_path, change, message
):
    hostile_policy(rail, tmp_path, change)
    before = time.perf_counter()
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match=message) as error:
            DynaSAC.load(tmp_path, "Rail-v0", probes.Slide())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    assert peak < 5e6
    assert time.perf_counter() - before < 5  # it takes 50 ms, where nobody else computes


def test_a_run_that_asks_for_too_much_is_not_gone_on_with(tmp_path):
    directory = untrained_run(tmp_path / "run", DynaSAC("Pendulum-v1", config=SMALL))
    path = directory / "config.json"
    content = json.loads(path.read_text())
    content["settings"]["replay_capacity"] = 10**15
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match="would need"):
        recording.resume(directory, "Pendulum-v1", "auto")


def test_the_sizes_of_what_is_there(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**5)
    with pytest.raises(UsageError, match=r"and there are 0\.0001 GB"):
        DynaSAC("Pendulum-v1", config=SMALL)


def test_a_containers_limit_counts(tmp_path):
    limit, none = tmp_path / "limit", tmp_path / "none"
    limit.write_text("12345678\n")
    none.write_text("max\n")
    machine = memory.available(())
    assert 10**8 < machine < 10**14
    assert memory.available((none, tmp_path / "missing")) == machine
    assert memory.available((none, limit)) == 12345678


def test_runs_say_how_much_memory_they_need(rail, tmp_path):
    directory = untrained_run(tmp_path / "run", rail)
    told = json.loads((directory / "config.json").read_text())["memory"]
    assert told == {**rail.memory._asdict(), "total": rail.memory.total}
