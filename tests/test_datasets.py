"""Logged data: what is read of Minari's data sets and of tables, and every reason not to read."""

import json
import re
import sys
import warnings

import equinox as eqx
import gymnasium as gym
import jax.numpy as jnp
import minari
import numpy as np
import probes
import pytest

from dynasac import Columns, Pendulum, Transition, UsageError, datasets
from dynasac.models import SimulatorModel, simulator_of
from dynasac.spaces import spaces_of
from dynasac.types import follows

PENDULUM = spaces_of(gym.make("Pendulum-v1"))
RAIL = spaces_of(gym.make("Rail-v0"))
PUSHED = Columns(observation=("x",), action=("force",))


@pytest.fixture
def table(tmp_path):
    """Writes a CSV file and reads it as a log of `Rail-v0`: x in [-1, 1], force in [-2, 2]."""

    def written(text, columns=PUSHED, model=None, spaces=RAIL):
        path = tmp_path / "log.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return datasets.read(path, spaces, columns, model)

    return written


def rows(logged):
    """(x, unit action, reward, next x, terminated) of each transition."""
    found = logged.transitions
    columns = (
        found.observation[:, 0],
        found.action[:, 0],
        found.reward,
        found.next_observation[:, 0],
        found.terminated,
    )
    return [tuple(round(float(value), 5) for value in row) for row in zip(*columns, strict=True)]


# --- tables


def test_the_next_row_is_the_next_observation(table):
    logged = table("x,force,reward\n0.1,2,-1\n0.2,-1,-2\n0.3,0,-3\n")
    assert rows(logged) == [(0.1, 1, -1, 0.2, 0), (0.2, -0.5, -2, 0.3, 0)]
    found = logged.transitions
    assert {type(field) for field in vars(found).values()} == {np.ndarray}
    assert found.observation.dtype == found.action.dtype == found.reward.dtype == np.float32
    assert found.terminated.dtype == bool
    assert logged.rewards_of is None


def test_names_that_need_no_naming(table):
    logged = table("observation_0,action_0,reward\n0.1,2,-1\n0.2,-1,-2\n", Columns())
    assert rows(logged) == [(0.1, 1, -1, 0.2, 0)]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("episode", "1,1,7,7"),
        ("episode", "monday,monday,tuesday,tuesday"),
        ("time", "0.0,0.1,0.0,0.1"),
        ("time", "5.0,5.1,5.4,5.5"),  # two samples are missing
        ("step", "3,4,4,5"),
        ("truncated", "0,1,0,0"),
        ("truncated", "False,True,False,false"),
    ],
)
def test_what_separates_episodes(table, name, cells):
    lines = zip(["0.1", "0.2", "0.5", "0.6"], cells.split(","), strict=True)
    text = f"x,force,reward,{name}\n" + "".join(f"{x},1,0,{cell}\n" for x, cell in lines)
    logged = table(text)
    assert rows(logged) == [(0.1, 0.5, 0, 0.2, 0), (0.5, 0.5, 0, 0.6, 0)]
    assert logged.episodes == 2
    assert list(follows(logged.transitions)) == [False, False]


def test_the_last_observation_of_an_episode_has_no_action(table):
    ended = "x,force,reward,terminated\n0.1,1,-1,\n0.2,2,-2,{}\n0.9,,,{}\n0.4,1,-3,0\n0.5,,,\n"
    for flags in (("1", ""), ("0", "1"), ("true", "true")):
        assert rows(table(ended.format(*flags))) == [
            (0.1, 0.5, -1, 0.2, 0),
            (0.2, 1, -2, 0.9, 1),
            (0.4, 0.5, -3, 0.5, 0),
        ]


def test_next_observations_in_the_same_row(table):
    text = "x,force,reward,next_x,terminated\n0.1,1,-1,0.2,0\n0.2,1,-2,0.9,1\n0.4,1,-3,0.5,0\n"
    expected = [(0.1, 0.5, -1, 0.2, 0), (0.2, 0.5, -2, 0.9, 1), (0.4, 0.5, -3, 0.5, 0)]
    logged = table(text)
    assert rows(logged) == expected
    assert list(follows(logged.transitions)) == [False, True, False]
    other = Columns(observation=("x",), action=("force",), next_observation=("then",))
    assert rows(table(text.replace("next_x", "then"), other)) == expected


def test_every_name_can_be_ones_own(table):
    named = Columns(("x",), ("u",), reward="gain", terminated="fell", episode="run", time="t")
    text = (
        "t,run,u,x,gain,fell,reward,comment\n0,a,1,0.1,5,0,9,\n1,a,2,0.2,6,1,9,# far\n2,a,,1,,,,\n"
    )
    assert rows(table(text, named)) == [(0.1, 0.5, 5, 0.2, 0), (0.2, 1, 6, 1, 1)]


def test_how_spreadsheets_write(table):
    expected = [(0.1, 1, -1, 0.2, 0)]
    assert (
        rows(table(b'\xef\xbb\xbf"x";"force";"reward"\r\n"0.1";2;-1\r\n0.2;0;0\r\n\r\n'))
        == expected
    )
    assert rows(table("x\tforce\treward\n0.1\t2\t-1\n\n0.2\t0\t0\n")) == expected
    assert rows(table(" x , force , reward\n 0.1 , 2 , -1\n0.2,0,0")) == expected


def test_actions_are_clipped_from_rounding_alone(table):
    assert rows(table("x,force,reward\n0.1,2.01,0\n0.2,-2.0001,0\n0.3,0,0\n"))[0][1] == 1
    with pytest.raises(UsageError, match=r"line 3: force is -2\.1, but .* from -2 to 2"):
        table("x,force,reward\n0.1,2,0\n0.2,-2.1,0\n0.3,0,0\n")


def test_rewards_that_the_model_gives(table):
    """Those of the states observed: 0.5 and 0.2, whatever the model would have predicted."""
    text = "x,force\n0.1,2\n0.5,-1\n0.2,0\n"
    logged = table(text, model=probes.Slide(speed=9.0))
    expected = [-(0.5**2) - 0.1 * 2**2, -(0.2**2) - 0.1]
    np.testing.assert_allclose(logged.transitions.reward, expected, rtol=1e-6)
    assert logged.rewards_of == "Slide"
    assert logged.sentence("log.csv") == (
        "log.csv: 2 real transitions in 1 episode, without rewards: they are those that Slide gives"
    )
    with pytest.raises(UsageError, match=r"no column of rewards.*--columns\.reward.*--model"):
        table(text)


def test_ends_that_are_not_marked_are_missed_if_the_model_knows_of_any(table):
    class Ended(probes.Slide):
        def terminal(self, state):
            return state[0] > 0.85

    text = "x,force,reward,episode\n0.5,1,0,0\n0.9,,,0\n0.1,1,0,1\n0.2,1,0,1\n0.3,,,1\n"
    said = table(text, model=Ended()).sentence("log.csv")
    assert said == (
        "log.csv: 3 real transitions in 2 episodes; logged ends are missing: to Ended, 1 of 3 "
        "transitions end an episode, and none is marked `terminated`"
    )
    quiet = "log.csv: 3 real transitions in 2 episodes"
    assert table(text, model=probes.Slide()).sentence("log.csv") == quiet
    assert table(text).sentence("log.csv") == quiet
    marked = "x,force,reward,terminated\n0.5,1,0,1\n0.9,,,\n0.1,1,0,0\n0.2,1,0,0\n0.3,,,\n"
    assert table(marked, model=Ended()).sentence("log.csv") == quiet


def test_ends_that_a_simulator_knows_of(tmp_path):
    env = gym.make("InvertedPendulum-v5")
    model = simulator_of(gym.make("InvertedPendulum-v5"))
    seen = [env.reset(seed=1)[0]]
    for _ in range(30):
        seen.append(env.step(np.array([3.0], np.float32))[0])
    lines = [",".join(f"{value:.9g}" for value in (*row, 3.0, 1.0)) for row in seen]
    names = [*(f"observation_{k}" for k in range(4)), "action_0", "reward"]
    (tmp_path / "log.csv").write_text("\n".join([",".join(names), *lines]))
    logged = datasets.read(tmp_path / "log.csv", spaces_of(env), model=model)
    assert "logged ends are missing: to InvertedPendulum" in logged.sentence("log.csv")


def test_rewards_that_a_simulator_gives(tmp_path):
    env = gym.make("Pendulum-v1")
    seen = [env.reset(seed=1)[0]]
    rewards = []
    for _ in range(5):
        observation, reward, *_ = env.step(np.array([1.5], np.float32))
        seen.append(observation)
        rewards.append(reward)
    np.savetxt(
        tmp_path / "log.csv",
        [(*row, 1.5) for row in seen],
        delimiter=",",
        comments="",
        fmt="%.9g",
        header="observation_0,observation_1,observation_2,action_0",
    )
    model = SimulatorModel(_Pendulum())
    logged = datasets.read(tmp_path / "log.csv", PENDULUM, model=model)
    np.testing.assert_allclose(logged.transitions.reward, rewards, rtol=1e-4)
    assert logged.rewards_of == model.name


class _Pendulum(gym.Wrapper):
    """Gymnasium's pendulum whose state can be set."""

    def __init__(self):
        super().__init__(gym.make("Pendulum-v1").unwrapped)

    def get_state(self):
        return np.array(self.env.state)

    def set_state(self, state):
        self.env.state = np.array(state)

    def state_of(self, observation):
        return np.array([np.arctan2(observation[1], observation[0]), observation[2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"log\.csv is empty: its first line must name the columns"),
        ("x,force,reward\n", r"log\.csv has names of columns and no rows"),
        ("x,torque,reward\n0,0,0\n", r"no column force; it has x, torque, reward: name 1 column"),
        ("x,force,reward\n0.1,2,0\n0.2,two,0\n", r"line 3: force is 'two', not a number"),
        ("x,force,reward\n0.1,2,0\n\n\n,1,0\n", r"line 5: x is '', not a number"),
        ("x,force,reward\n0,2,0\n.2,nan,0\n.3,1,0\n", r"line 3: force is 'nan', .* left empty"),
        ("x,force,reward\n0,2,0\n.2,NaN,0\n.3,,0\n", r"line 3: force is 'NaN', not a number"),
        ("x,force,reward\n0.1,2,0\n0.2,inf,0\n0.3,1,0\n", r"line 3: force is no finite number"),
        ("x,force,reward,episode\n0,,0,0\n0,1,0,0\n", r"line 2: force is empty, but the episode"),
        ("x,force,reward\n0.1,2,0\n\n0.2,1,\n0.3,1,0\n", r"line 4: reward is no finite number"),
        ("x,force,reward\n0.1,2,0\n1e99,1,0\n", r"line 2: the next row's x is no finite number"),
        ("x,force,reward\ninf,2,0\n0.1,1,0\n", r"line 2: x is no finite number; put it right"),
        ("x,force,reward\n0.1,2,0\n45,1,0\n1,1,1\n", r"line 3: x is 45, .* from -1 to 1: is it"),
        ("x,force,reward\n0.1,2,0\n0.2,1\n", r"line 3: 2 cells, but reward is column 3"),
        ("x,force,x,reward\n0.1,2,0.1,0\n", r"has 2 columns x: rename all but one"),
        ("x;force;reward\n0,1;2;0\n", r"line 2: x is '0,1', not a number, as in 1\.5"),
        ("x,force,reward,terminated\n0,1,0,maybe\n", r"line 2: terminated is 'maybe', not true or"),
        ("x,force,reward,terminated\n0,1,0,2\n", r"line 2: terminated is '2', not true or false"),
        (
            "x,force,reward,terminated,episode\n0,1,0,0,0\n.9,1,0,1,0\n0,1,0,0,1\n.1,1,0,0,1\n",
            r"line 3: the episode terminated here, but what was observed then is not logged: add",
        ),
        ("x,force,reward,episode\n0,1,0,0\n0,1,0,1\n", r"no row follows another.*which episode"),
        (b"\xff\xfe\x00x", r"is no CSV file: UnicodeDecodeError"),
        (b"x,force,reward\n0,1,0\n0,1,\xff\n", r"cannot be read|after line|no CSV"),
        ('x,force,reward\n0,1,"0\n', r"log\.csv"),
        ("\x1b[31mx,force,reward\n0,1,0\n", r"no column x; it has \?\[31mx, force, reward"),
    ],
)
def test_tables_that_are_refused(table, text, message):
    with pytest.raises(UsageError, match=message) as error:
        table(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(("x", "force"), ("force",)), r"observation names 2 columns; .* has 1 of them"),
        (Columns(("x",), ("speed",)), r"no column speed; it has x, force, reward"),
        (
            Columns(("x",), ("force",), ("after",)),
            r"no column after; .*--columns\.next-observation",
        ),
        (Columns(("x",), ("force",), reward="gain"), r"no column gain; .*--columns\.reward"),
        (Columns(("x",), ("force",), terminated="end"), r"no column end; .*--columns\.terminated"),
        (
            Columns(),
            r"no column observation_0; it has x, force, reward: name 1 column with --colum",
        ),
    ],
)
def test_columns_that_are_not_there(table, columns, message):
    with pytest.raises(UsageError, match=message):
        table("x,force,reward\n0.1,2,0\n0.2,1,0\n", columns)


def test_large_tables_keep_their_order(table):
    count = 20_000
    x = np.arange(count + 1) / count
    lines = "".join(f"{value:.6f},{i % 3 - 1},{i % 7}\n" for i, value in enumerate(x))
    found = table("x,force,reward\n" + lines).transitions
    assert found.reward.shape == (count,)
    np.testing.assert_allclose(found.observation[:, 0], x[:-1], atol=1e-6)
    np.testing.assert_array_equal(found.reward, np.arange(count) % 7)
    assert follows(found).sum() == count - 1


# --- Minari


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A data set of two episodes of `Timer-v0` and one that is cut off, and its folder."""
    root = tmp_path_factory.mktemp("minari")
    patch = pytest.MonkeyPatch()
    patch.setenv("MINARI_DATASETS_PATH", str(root))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari misses an author and leaves a folder to be cleaned
        collector = minari.DataCollector(gym.wrappers.TimeLimit(probes.Clock(4), 10))
        for episode, steps in enumerate((4, 4, 2)):
            collector.reset(seed=episode)
            for step in range(steps):
                collector.step(np.array([(step - episode) / 2], np.float32))
        collector.create_dataset("probes/timer-v0", algorithm_name="none")
        collector.close()
        del collector
    yield root
    patch.undo()


@pytest.mark.parametrize("by", ["id", "directory", "data"])
def test_a_minari_data_set_is_read_to_the_last_step(recorded, by):
    folder = recorded / "probes" / "timer-v0"
    references = {"id": "minari:probes/timer-v0", "directory": folder, "data": folder / "data"}
    logged = datasets.read(references[by], RAIL)
    found = logged.transitions
    times = np.array([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], np.float32)
    episodes = np.array([0] * 4 + [1] * 4 + [2] * 2)
    np.testing.assert_allclose(found.observation[:, 0], times / 10, atol=1e-6)
    np.testing.assert_allclose(found.next_observation[:, 0], (times + 1) / 10, atol=1e-6)
    np.testing.assert_allclose(found.action[:, 0], (times - episodes) / 4, atol=1e-6)
    np.testing.assert_allclose(found.reward, (times - episodes) / 2, atol=1e-6)
    assert list(np.flatnonzero(found.terminated)) == [3, 7]
    assert logged.episodes == 3


def changed(recorded, tmp_path, change):
    """A copy of the data set whose metadata `change` has changed."""
    folder = tmp_path / "copy" / "data"
    folder.mkdir(parents=True)
    for path in (recorded / "probes" / "timer-v0" / "data").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    content = json.loads((folder / "metadata.json").read_text())
    change(content)
    (folder / "metadata.json").write_text(json.dumps(content))
    return folder.parent


def test_what_a_minari_data_set_names_is_not_imported(recorded, tmp_path, monkeypatch):
    """Without spaces of its own Minari makes the environment that its file names."""
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)

    def change(content):
        del content["observation_space"]
        spec = json.loads(gym.spec("Pendulum-v1").to_json())
        content["env_spec"] = json.dumps({**spec, "entry_point": "evil:Evil"})

    with pytest.raises(UsageError, match="does not say what its observations and actions are"):
        datasets.read(changed(recorded, tmp_path, change), RAIL)


def other_actions(content):
    space = {**json.loads(content["action_space"]), "low": [-1.0], "high": [1.0]}
    content["action_space"] = json.dumps(space)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(data_format="tape"), r"is no Minari data set"),
        (lambda content: content.update(total_episodes=0), r"holds no episodes"),
        (lambda content: content.update(total_episodes=4), r"is no Minari data set: KeyError"),
        (other_actions, r"actions from \[-1\.\] to \[1\.\], the environment from \[-2\.\] to"),
    ],
)
def test_minari_data_sets_that_are_refused(recorded, tmp_path, change, message):
    with pytest.raises(UsageError, match=message) as error:
        datasets.read(changed(recorded, tmp_path, change), RAIL)
    assert "\n" not in str(error.value)


def test_a_minari_data_set_of_another_environment(recorded):
    with pytest.raises(UsageError, match=r"has observations Box.*have shape \(3,\): is it this"):
        datasets.read("minari:probes/timer-v0", PENDULUM)


def test_a_value_is_named_by_episode_and_step(recorded, tmp_path):
    import h5py

    folder = changed(recorded, tmp_path, lambda content: None)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_1"]["observations"][2] = np.nan
    with pytest.raises(UsageError, match=r"copy, episode 1, step 2: observation_0 is no finite"):
        datasets.read(folder, RAIL)
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]["actions"]
        file["episode_1"]["actions"] = np.zeros((3, 1), np.float32)
    with pytest.raises(UsageError, match=r"episode 1: 4 rewards, 5 observations and 3 actions"):
        datasets.read(folder, RAIL)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("gone.csv", r"there is no file gone\.csv: name a CSV file, minari:ID"),
        ("minari:gone-v0", r"there is no Minari data set gone-v0 in .*minari download gone-v0"),
        (".", r"\. is no Minari data set: it has no data/metadata\.json"),
    ],
)
def test_data_sets_that_are_not_there(recorded, tmp_path, monkeypatch, reference, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        datasets.read(reference, RAIL)


def test_columns_of_a_minari_data_set(recorded):
    with pytest.raises(UsageError, match="in CSV files alone"):
        datasets.read("minari:probes/timer-v0", RAIL, PUSHED)


def test_without_minari_the_error_names_the_extra(monkeypatch, recorded):
    for name in ("minari.storage.datasets_root_dir", "minari.dataset.minari_storage"):
        monkeypatch.setitem(sys.modules, name, None)
    message = re.escape('pip install "dynasac[minari]"')
    for reference in ("minari:probes/timer-v0", recorded / "probes" / "timer-v0"):
        with pytest.raises(UsageError, match=message):
            datasets.read(reference, RAIL)


# --- transitions that are there already


def transitions(**changes):
    fields = {
        "observation": np.zeros((2, 1), np.float32),
        "action": np.array([[1.0], [-0.25]], np.float32),
        "reward": np.zeros(2, np.float32),
        "next_observation": np.ones((2, 1), np.float32),
        "terminated": np.array([False, True]),
    }
    return Transition(**{name: jnp.asarray(v) for name, v in {**fields, **changes}.items()})


def test_transitions_are_taken_as_they_are():
    found = datasets.check_rows(transitions(), RAIL)
    np.testing.assert_array_equal(found.action, [[1.0], [-0.25]])
    np.testing.assert_array_equal(found.next_observation, [[1.0], [1.0]])
    np.testing.assert_array_equal(found.terminated, [False, True])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.float32([[2.0], [0.0]])}, r"transition 0: action_0 is 4, but .* -2 to 2"),
        ({"reward": np.float32([0.0, np.nan])}, r"transition 1: reward is no finite number"),
        ({"observation": np.float32([[0], [np.inf]])}, r"transition 1: observation_0 is no finite"),
        ({"next_observation": np.float32([[np.nan], [0]])}, r"transition 0: next_observation_0 is"),
        ({"action": np.float32([[np.nan], [0]])}, r"transition 0: action_0 is no finite number"),
    ],
)
def test_transitions_that_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        datasets.check_rows(transitions(**changes), RAIL)
    with pytest.raises(UsageError, match=r"observation has shape \(2, 1\), not \(rows, 3\)"):
        datasets.check_rows(transitions(), PENDULUM)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("reward", np.zeros(2, complex), "reward is complex128, not real numbers"),
        ("observation", np.array([["a"], ["b"]]), "observation is <U1, not real numbers"),
        ("terminated", np.array([0.0, np.nan]), "terminated is float64, not bool"),
        ("reward", np.zeros(3), r"observation has shape"),
    ],
)
def test_transitions_of_another_kind_are_refused(field, value, message):
    other = eqx.tree_at(lambda rows: getattr(rows, field), transitions(), value)
    with pytest.raises(UsageError, match=message):
        datasets.check_rows(other, RAIL)


def test_the_known_rewards_are_those_of_the_environment(tmp_path):
    env = gym.make("Pendulum-v1")
    seen, rewards = [env.reset(seed=2)[0]], []
    for _ in range(20):
        observation, reward, *_ = env.step(np.array([-1.0], np.float32))
        seen.append(observation)
        rewards.append(reward)
    header = "cos,sin,speed,torque"
    values = [(*row, -1.0) for row in seen]
    np.savetxt(tmp_path / "p.csv", values, "%.9g", ",", header=header, comments="")
    columns = Columns(observation=("cos", "sin", "speed"), action=("torque",))
    logged = datasets.read(tmp_path / "p.csv", PENDULUM, columns, Pendulum(m=3.0))
    np.testing.assert_allclose(logged.transitions.reward, rewards, rtol=1e-4)
