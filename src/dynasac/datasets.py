"""Logged data as real experience: Minari data sets, and tables with named columns.

What is read is data alone: nothing that a file names is imported, made or downloaded.
"""

import contextlib
import csv
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .errors import UsageError, one_line
from .models import Called, DynamicsModel, HostModel, PhysicsModel, as_arrays
from .spaces import Spaces
from .types import Transition, follows


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a CSV log; one that is named must be there.

    Rows are in the order of time, quantities in the environment's units.
    """

    observation: tuple[str, ...] = ()
    """one for each observed number; observation_0, observation_1, … if not named"""
    action: tuple[str, ...] = ()
    """one for each number of the action that followed; action_0, action_1, … if not named. Left
    empty in the row of an episode's last observation, after which nothing was done"""
    next_observation: tuple[str, ...] = ()
    """observed after the action; `next_` before the names of the observations if not named and
    there, else what the next row of the episode observed"""
    reward: str | None = None
    """of the action; `reward` if not named; without one the model says what the rewards were"""
    terminated: str | None = None
    """1 or true where the action led to an end; `terminated` if not named; never if not there"""
    truncated: str | None = None
    """1 or true where an episode was cut off after the action; `truncated` if not named"""
    episode: str | None = None
    """anything that changes from one episode to the next; `episode` if not named"""
    time: str | None = None
    """rises by equal steps within an episode; `time` or `step` if not named. Where it does not rise
    an episode begins, and where it skips a sample the rows are not joined"""


USUAL_NAMES = Columns()


class Logged(NamedTuple):
    """What a data set holds."""

    transitions: Transition
    """along one leading axis, in the order of time, as NumPy arrays"""
    rewards_of: str | None
    """the model that says what the rewards were; None where they are logged"""
    missing_ends: str = ""
    """what there is to say where the model knows of ends and none is marked"""

    @property
    def episodes(self) -> int:
        """Stretches of transitions each of which begins where the one before it arrived."""
        return int((~follows(self.transitions)).sum())

    def sentence(self, reference: str) -> str:
        """What was read, in one line."""
        rows = len(self.transitions.reward)
        many = "1 episode" if self.episodes == 1 else f"{self.episodes:,} episodes"
        said = f"{reference}: {rows:,} real transitions in {many}"
        if self.rewards_of is not None:
            said += f", without rewards: they are those that {self.rewards_of} gives"
        return f"{said}; {self.missing_ends}" if self.missing_ends else said


def read(
    reference: str | Path,
    spaces: Spaces,
    columns: Columns = USUAL_NAMES,
    model: DynamicsModel | HostModel | None = None,
) -> Logged:
    """Read logged transitions and hold them against an environment's spaces.

    Arguments:
        reference: a CSV file; `minari:ID`, a data set that Minari finds on this machine; or the
            directory of one.
        spaces: the environment's; actions are scaled by them, and clipped where they are beyond the
            bounds by no more than rounding.
        columns: the names in a CSV file.
        model: says what the rewards were where none are logged. Of a `PhysicsModel` they are those
            of the states observed, whatever it would have predicted.

    Raises:
        UsageError: the data cannot be read or are not the environment's; with the file, the line or
            step, and the column.
    """
    name, path = str(reference), Path(reference)
    if name.startswith("minari:") or path.is_dir():
        if columns != USUAL_NAMES:
            raise UsageError(f"{name}: columns have names in CSV files alone, not in Minari's")
        raw, place = _minari(name, spaces)
    elif path.is_file():
        raw, place = _table(path, spaces, columns)
    else:
        raise UsageError(
            f"there is no file {name}: name a CSV file, minari:ID for a Minari data set of this "
            "machine, or the directory of one"
        )
    if raw.reward is None and model is None:
        raise UsageError(
            f"{name} has no column of rewards, and there is no model that says what they were: log "
            "them, name their column with --columns.reward, or give a --model with a reward"
        )
    transitions = _transitions(raw, spaces, place)
    if model is None:
        return Logged(transitions, None)
    missing = "" if transitions.terminated.any() else _missing_ends(transitions, model, spaces)
    if raw.reward is not None:
        return Logged(transitions, None, missing)
    return Logged(_rewarded(transitions, model, spaces), model.name, missing)


def check_rows(transitions: Transition, spaces: Spaces) -> Transition:
    """Transitions of the learner's units as NumPy arrays, if they are an environment's.

    Raises:
        UsageError: a shape or kind of number is another, or a number is not finite or an action not
            in [-1, 1].
    """
    rows = np.shape(transitions.reward)
    sizes = {
        "observation": (spaces.observation.size,),
        "action": (spaces.action.size,),
        "reward": (),
        "next_observation": (spaces.observation.size,),
        "terminated": (),
    }
    fields = {}
    for field, size in sizes.items():
        value = np.asarray(getattr(transitions, field))
        if len(rows) != 1 or value.shape != (*rows, *size):
            wanted = ", ".join(["rows", *map(str, size)])
            raise UsageError(f"the transitions' {field} has shape {value.shape}, not ({wanted})")
        kind, kinds = ("bool", "b") if field == "terminated" else ("real numbers", "fiu")
        if value.dtype.kind not in kinds:
            raise UsageError(f"the transitions' {field} is {value.dtype}, not {kind}")
        fields[field] = value
    unit, low, high = fields["action"], spaces.action.low, spaces.action.high
    centre, half = (np.asarray(high) + low) / 2, (np.asarray(high) - low) / 2
    raw = _Raw(**{**fields, "action": centre + half * unit}, names=_Names.usual(spaces))
    checked = _transitions(raw, spaces, lambda row: f"transition {row}")
    return eqx.tree_at(lambda rows: rows.action, checked, np.clip(unit, -1, 1, dtype=np.float32))


# --- what every source is brought to, and held against


class _Names(NamedTuple):
    """What errors call the quantities."""

    observation: Sequence[str]
    action: Sequence[str]
    reward: str
    next_observation: Sequence[str]

    @classmethod
    def usual(cls, spaces: Spaces) -> "_Names":
        observation = _numbered("observation", spaces.observation.size)
        following = [f"next_{name}" for name in observation]
        return cls(observation, _numbered("action", spaces.action.size), "reward", following)


class _Raw(NamedTuple):
    """Transitions as they are logged: the environment's units, any type of number."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray | None
    next_observation: np.ndarray
    terminated: np.ndarray
    names: _Names


_Place = Callable[[int], str]
"""From the index of a transition to where it is found."""

ROUNDED = 0.01
"""what an action may be beyond its bounds, in halves of their distance, from rounding in a log"""
FAR = 2.0
"""an observation this many halves of its bounds from their middle is in another unit"""


def _transitions(raw: _Raw, spaces: Spaces, place: _Place) -> Transition:
    """The learner's units, checked."""
    names, rows = raw.names, len(raw.terminated)
    reward = np.zeros(rows) if raw.reward is None else raw.reward
    with np.errstate(over="ignore"):
        observation, action, reward, following = (
            np.asarray(field, np.float32)
            for field in (raw.observation, raw.action, reward, raw.next_observation)
        )
    for columns, values in (
        (names.observation, observation),
        (names.action, action),
        (names.next_observation, following),
        ([names.reward], reward[:, None]),
    ):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, column = bad[0]
            raise UsageError(
                f"{place(int(row))}: {columns[column]} is no finite number; put it right, or leave "
                "the row out"
            )
    low, high = np.asarray(spaces.action.low), np.asarray(spaces.action.high)
    unit = (action - (high + low) / 2) / ((high - low) / 2)
    bad = np.argwhere(np.abs(unit) > 1 + ROUNDED)
    if len(bad):
        row, column = bad[0]
        raise UsageError(
            f"{place(int(row))}: {names.action[column]} is {action[row, column]:.6g}, but the "
            f"environment's actions are from {low[column]:.6g} to {high[column]:.6g}: log in its "
            "unit, as what was applied"
        )
    low, high = np.asarray(spaces.observation.low), np.asarray(spaces.observation.high)
    for columns, values in ((names.observation, observation), (names.next_observation, following)):
        far = np.abs(values - (high + low) / 2) > FAR * (high - low) / 2
        bad = np.argwhere(far & np.asarray(spaces.bounded))
        if len(bad):
            row, column = bad[0]
            raise UsageError(
                f"{place(int(row))}: {columns[column]} is {values[row, column]:.6g}, but what the "
                f"environment observes there is from {low[column]:.6g} to {high[column]:.6g}: is "
                "it this quantity, in the environment's unit?"
            )
    return _arrays(observation, np.clip(unit, -1, 1), reward, following, raw.terminated)


def _arrays(observation, action, reward, following, terminated) -> Transition:
    fields = (observation, action, reward, following, np.asarray(terminated, bool))
    return jax.tree.map(np.asarray, Transition(*map(jnp.asarray, fields)))


def _rewarded(
    transitions: Transition, model: DynamicsModel | HostModel, spaces: Spaces
) -> Transition:
    """The same with the rewards that a model gives."""
    name = model.name
    model = Called(model) if isinstance(model, HostModel) else as_arrays(model)
    rows = jax.tree.map(jnp.asarray, transitions)
    reward = np.asarray(_rewards(model, rows, spaces), np.float32)
    bad = np.flatnonzero(~np.isfinite(reward))
    if len(bad):
        raise UsageError(f"{name} gives the reward {reward[bad[0]]} to transition {bad[0]}")
    return _arrays(
        transitions.observation,
        transitions.action,
        reward,
        transitions.next_observation,
        transitions.terminated,
    )


@eqx.filter_jit
def _rewards(model: DynamicsModel, rows: Transition, spaces: Spaces):
    def reward(observation, action, following):
        if isinstance(model, PhysicsModel):
            left, reached = model.state(observation), model.state(following)
            return jnp.asarray(model.reward(left, action, reached), jnp.float32).reshape(())
        return model.step(observation, action, jax.random.key(0)).reward

    action = spaces.action.from_unit(rows.action)
    return jax.vmap(reward)(rows.observation, action, rows.next_observation)


ENDS_TRIED = 1000
"""transitions that a model is asked about, of which some would be ends if there were any"""


def _missing_ends(transitions: Transition, model: DynamicsModel | HostModel, spaces: Spaces) -> str:
    """What to say of transitions that a model takes for ends of episodes, though none is marked."""
    rows = len(transitions.reward)
    picked = np.unique(np.linspace(0, rows - 1, min(rows, ENDS_TRIED)).astype(int))
    # those that an episode is over with are the likeliest
    over = np.flatnonzero(~follows(transitions)) - 1
    picked = np.union1d(picked, over[over >= 0])
    some = jax.tree.map(lambda values: jnp.asarray(values[picked]), transitions)
    if isinstance(model, HostModel):
        actions = np.asarray(spaces.action.from_unit(some.action))
        try:
            states = model.state(np.asarray(some.observation))
        except UsageError:  # observations do not tell them
            return ""
        ends = model.step(states, actions).terminated
    else:
        ends = np.asarray(_ends(as_arrays(model), some, spaces))
    if not ends.any():
        return ""
    return (
        f"logged ends are missing: to {model.name}, {ends.sum()} of {len(picked)} transitions end "
        "an episode, and none is marked `terminated`"
    )


@eqx.filter_jit
def _ends(model: DynamicsModel, rows: Transition, spaces: Spaces):
    def ends(observation, action, following):
        if isinstance(model, PhysicsModel):
            return jnp.asarray(model.terminal(model.state(following)), bool).reshape(())
        return model.step(observation, action, jax.random.key(0)).terminated

    action = spaces.action.from_unit(rows.action)
    return jax.vmap(ends)(rows.observation, action, rows.next_observation)


# --- Minari


def _minari(reference: str, spaces: Spaces) -> tuple[_Raw, _Place]:
    folder = _minari_folder(reference)
    try:
        from minari.dataset.minari_storage import MinariStorage
    except ImportError:
        raise UsageError(f'{reference} needs Minari: pip install "dynasac[minari]"') from None
    try:
        described = MinariStorage.read_raw_metadata(folder)
        if not {"observation_space", "action_space"} <= set(described):
            # Minari would make the environment that the file names, which imports its code
            raise UsageError(f"{reference} does not say what its observations and actions are")
        stored = MinariStorage.read(folder)
        episodes = list(stored.get_episodes(range(stored.total_episodes)))
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"{reference} needs a package that is not installed: {error}") from None
    except Exception as error:  # the files may be anybody's
        raise UsageError(f"{reference} is no Minari data set: {one_line(error)}") from None
    _check_spaces(reference, stored.observation_space, stored.action_space, spaces)
    episodes = [episode for episode in episodes if len(episode["rewards"])]
    if not episodes:
        raise UsageError(f"{reference} holds no episodes: choose another data set")
    for episode in episodes:
        steps = len(episode["rewards"])
        found = (len(episode["observations"]), len(episode["actions"]))
        if found != (steps + 1, steps) or len(episode["terminations"]) != steps:
            raise UsageError(
                f"{reference}, episode {episode['id']}: {steps} rewards, {found[0]} observations "
                f"and {found[1]} actions; an episode has one observation more than rewards"
            )
    lengths = np.array([len(episode["rewards"]) for episode in episodes])
    begins = np.cumsum(lengths) - lengths

    def place(row: int) -> str:
        index = int(np.searchsorted(begins, row, "right")) - 1
        return f"{reference}, episode {episodes[index]['id']}, step {row - begins[index]}"

    def joined(field: str, rows: slice = slice(None)) -> np.ndarray:
        return np.concatenate([np.asarray(episode[field][rows]) for episode in episodes])

    raw = _Raw(
        observation=joined("observations", slice(None, -1)),
        action=joined("actions"),
        reward=joined("rewards"),
        next_observation=joined("observations", slice(1, None)),
        terminated=joined("terminations"),
        names=_Names.usual(spaces),
    )
    return raw, place


def _minari_folder(reference: str) -> Path:
    """The directory of a data set's files, if it is on this machine."""
    if reference.startswith("minari:"):
        try:
            from minari.storage.datasets_root_dir import get_dataset_path
        except ImportError:
            raise UsageError(f'{reference} needs Minari: pip install "dynasac[minari]"') from None
        name = reference.removeprefix("minari:")
        folder = get_dataset_path(name)
        if not (folder / "data").is_dir():
            raise UsageError(
                f"there is no Minari data set {name} in {get_dataset_path()}: `minari list local` "
                f"shows what there is, `minari download {name}` fetches one"
            )
        return folder / "data"
    folder = Path(reference)
    folder = folder / "data" if (folder / "data").is_dir() else folder
    if not (folder / "metadata.json").is_file():
        raise UsageError(f"{reference} is no Minari data set: it has no data/metadata.json")
    return folder


def _check_spaces(reference: str, observation, action, spaces: Spaces) -> None:
    """Raises UsageError if a data set's spaces are not the environment's."""
    import gymnasium as gym

    for kind, space, box in (
        ("observations", observation, spaces.observation),
        ("actions", action, spaces.action),
    ):
        if not isinstance(space, gym.spaces.Box) or space.shape != (box.size,):
            raise UsageError(
                f"{reference} has {kind} {space}; the environment's have shape ({box.size},): is "
                "it this environment's data set?"
            )
    low, high = np.asarray(spaces.action.low), np.asarray(spaces.action.high)
    same = np.allclose(action.low, low, rtol=1e-3) and np.allclose(action.high, high, rtol=1e-3)
    if not same:
        raise UsageError(
            f"{reference} has actions from {action.low} to {action.high}, the environment from "
            f"{low} to {high}: scale them as the environment does, as by "
            "gymnasium.wrappers.RescaleAction"
        )


# --- tables


class _Fields(NamedTuple):
    """The columns of a file, by name; those that it does not have are None or empty."""

    observation: tuple[str, ...]
    action: tuple[str, ...]
    next_observation: tuple[str, ...]
    reward: str | None
    terminated: str | None
    truncated: str | None
    episode: str | None
    time: str | None


def _table(path: Path, spaces: Spaces, columns: Columns) -> tuple[_Raw, _Place]:
    header, delimiter, skipped = _header(path)
    fields = _fields(path, header, columns, spaces)
    values = _values(path, header, delimiter, skipped, fields)

    def line(row: int) -> str:
        return f"{path}, line {_line(path, delimiter, row)}"

    observation = _stacked(values, fields.observation)
    outcome = _outcome(values, fields, line)
    if fields.next_observation:
        following = _stacked(values, fields.next_observation)
    else:
        following = np.roll(observation, -1, axis=0)
    kept = np.flatnonzero(outcome.logged)
    if not len(kept):
        raise UsageError(
            f"{path} has no action whose outcome is logged: no row follows another of its episode, "
            f"which {fields.episode or fields.time or 'the actions'} tells"
        )
    raw = _Raw(
        observation=observation[kept],
        action=_stacked(values, fields.action)[kept],
        reward=None if fields.reward is None else values[fields.reward][kept],
        next_observation=following[kept],
        terminated=outcome.terminated[kept],
        names=_Names(
            fields.observation,
            fields.action,
            fields.reward or "reward",
            fields.next_observation or [f"the next row's {name}" for name in fields.observation],
        ),
    )
    return raw, lambda row: line(int(kept[row]))


def _stacked(values: dict[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    return np.stack([values[name] for name in names], axis=1)


class _Outcome(NamedTuple):
    """What came of the action of each row of a table."""

    logged: np.ndarray  # Bool[rows]: whether there is an action, and what was observed after it
    terminated: np.ndarray  # Bool[rows]


def _outcome(values: dict[str, np.ndarray], fields: _Fields, line: _Place) -> _Outcome:
    """Raises UsageError where an episode misses an action, or the observation that ended it."""
    idle = np.asarray(np.isnan(_stacked(values, fields.action)).all(axis=1))

    def flags(name: str | None) -> np.ndarray:
        return np.zeros(len(idle), bool) if name is None else np.nan_to_num(values[name]) > 0

    episode = values.get(fields.episode or "")
    if episode is not None:
        gaps = np.flatnonzero(idle[:-1] & (episode[1:] == episode[:-1]))
        if len(gaps):
            raise UsageError(
                f"{line(int(gaps[0]))}: {fields.action[0]} is empty, but the episode goes on: only "
                "the row of an episode's last observation has no action"
            )
    terminated = flags(fields.terminated)
    if fields.next_observation:
        return _Outcome(~idle, terminated)
    cut = terminated | flags(fields.truncated)
    begins = _begins(episode, values.get(fields.time or ""), cut, idle)
    logged = np.append(~idle[:-1] & ~begins[1:], False)
    lost = np.flatnonzero(terminated & ~logged & ~idle)
    if len(lost):
        raise UsageError(
            f"{line(int(lost[0]))}: the episode terminated here, but what was observed then is not "
            "logged: add it as a row whose actions are empty, or as next_… columns"
        )
    terminated[:-1] |= terminated[1:] & idle[1:] & ~begins[1:]
    return _Outcome(logged, terminated)


def _begins(
    episode: np.ndarray | None, time: np.ndarray | None, cut: np.ndarray, idle: np.ndarray
) -> np.ndarray:
    """Whether a row does not go on from the one before it, Bool[rows].

    Arguments:
        cut: whether the episode was over after the action of a row.
        idle: whether a row has no action, as that of an episode's last observation.
    """
    begins = np.ones(len(cut), bool)
    begins[1:] = idle[:-1]
    if episode is not None:
        begins[1:] |= episode[1:] != episode[:-1]
    else:
        begins[1:] |= cut[:-1] & ~idle[1:]
    if time is not None:
        passed = np.diff(time)
        usual = np.median(passed[passed > 0]) if (passed > 0).any() else 0.0
        begins[1:] |= ~((passed > 0) & (passed < SKIPPED * usual))
    return begins


SKIPPED = 1.5
"""times the usual step: more, and a sample is missing"""


LONGEST_LINE = 1_000_000
"""letters, of names of columns"""


def _header(path: Path) -> tuple[list[str], str, int]:
    """The names of the columns, what separates them, and how many lines they take."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline(LONGEST_LINE)
            if len(first) == LONGEST_LINE:
                raise UsageError(f"{path} is no CSV file: its first line does not end")
            delimiter = max(",;\t", key=first.count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            names = [name.strip() for name in next(reader, [])]
            lines = reader.line_num
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file: {one_line(error)}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if not any(names):
        raise UsageError(f"{path} is empty: its first line must name the columns")
    return names, delimiter, lines


def _fields(path: Path, header: list[str], columns: Columns, spaces: Spaces) -> _Fields:
    """Which columns are read.

    Raises:
        UsageError: one that is named or needed is not there, or is there twice.
    """
    sizes = {"observation": spaces.observation.size, "action": spaces.action.size}
    sizes["next_observation"] = sizes["observation"]

    def option(kind: str) -> str:
        return f"--columns.{kind.replace('_', '-')}"

    def several(kind: str, usual: Sequence[str]) -> tuple[str, ...]:
        named, size = getattr(columns, kind), sizes[kind]
        if named and len(named) != size:
            raise UsageError(
                f"{option(kind)} names {_count(len(named))}; the environment has "
                f"{size} of them: name {_count(size)}"
            )
        chosen = tuple(named or usual)
        missing = [name for name in chosen if name not in header]
        if missing:
            hint = f"name {_count(size)} with {option(kind)}, in the environment's order"
            raise UsageError(
                f"{path} has no column {_shown(missing[0])}; it has "
                f"{', '.join(map(_shown, header))}: {hint}"
            )
        return chosen

    def one(kind: str, *usual: str) -> str | None:
        named = getattr(columns, kind)
        if named is not None and named not in header:
            raise UsageError(
                f"{path} has no column {_shown(named)}; it has "
                f"{', '.join(map(_shown, header))}: name another with {option(kind)}"
            )
        return named or next((name for name in usual if name in header), None)

    observation = several("observation", _numbered("observation", sizes["observation"]))
    following = [f"next_{name}" for name in observation]
    logged = columns.next_observation or all(name in header for name in following)
    fields = _Fields(
        observation=observation,
        action=several("action", _numbered("action", sizes["action"])),
        next_observation=several("next_observation", following) if logged else (),
        reward=one("reward", "reward"),
        terminated=one("terminated", "terminated"),
        truncated=one("truncated", "truncated"),
        episode=one("episode", "episode"),
        time=one("time", "time", "step"),
    )
    for name in _names(fields):
        if header.count(name) > 1:
            raise UsageError(f"{path} has {header.count(name)} columns {name}: rename all but one")
    return fields


def _names(fields: _Fields) -> list[str]:
    groups = (field if isinstance(field, tuple) else (field,) for field in fields)
    return list(dict.fromkeys(name for group in groups for name in group if name is not None))


def _values(
    path: Path, header: list[str], delimiter: str, skipped: int, fields: _Fields
) -> dict[str, np.ndarray]:
    """Each column as Float64[rows]: episodes numbered, flags as 0 and 1, NaN where a cell is empty.

    Raises:
        UsageError: a cell is not what its column holds.
    """
    seen: dict[str, float] = {}
    special: dict[str, Callable[[str], float]] = {
        name: _flag for name in (fields.terminated, fields.truncated) if name is not None
    }
    if fields.episode is not None:
        special[fields.episode] = lambda text: seen.setdefault(text.strip(), float(len(seen)))
    names = _names(fields)
    optional = {*fields.action, *fields.next_observation, fields.reward}

    def convert(name: str) -> Callable[[str], float]:
        return special.get(name) or (_number_or_none if name in optional else float)

    def load(converted: list[str]) -> np.ndarray:
        with warnings.catch_warnings(), path.open(newline="", encoding="utf-8-sig") as file:
            warnings.simplefilter("ignore")  # of a file without rows, which is told below
            return np.loadtxt(
                file,
                delimiter=delimiter,
                comments=None,
                quotechar='"',
                skiprows=skipped,
                usecols=[header.index(name) for name in names],
                converters={header.index(name): convert(name) for name in converted},
                encoding="utf-8",
                ndmin=2,
            )

    try:
        table = None
        with contextlib.suppress(ValueError):
            table = load(list(special))  # which is much faster where no cell is empty
        if table is None or np.isnan(table).any():
            table = load([name for name in names if name in special or name in optional])
    except (ValueError, csv.Error) as error:
        _explain(path, header, delimiter, {name: convert(name) for name in names})
        raise UsageError(f"{path} cannot be read: {one_line(error)}") from None
    if not len(table):
        raise UsageError(f"{path} has names of columns and no rows below them")
    return dict(zip(names, table.T, strict=True))


def _explain(
    path: Path, header: list[str], delimiter: str, converters: dict[str, Callable[[str], float]]
) -> None:
    """Raises UsageError for the first cell that cannot be read; slow."""
    number = 0
    try:
        for number, row in _rows(path, delimiter):
            for name, convert in converters.items():
                index = header.index(name)
                if index >= len(row):
                    raise UsageError(
                        f"{path}, line {number}: {len(row)} cells, but {_shown(name)} is column "
                        f"{index + 1}: complete the row or remove it"
                    )
                try:
                    convert(row[index])
                except ValueError:
                    kind = "true or false" if convert is _flag else "a number, as in 1.5"
                    if convert is _number_or_none:
                        kind += ", or left empty"
                    raise UsageError(
                        f"{path}, line {number}: {_shown(name)} is {_shown(row[index])!r}, not "
                        f"{kind}"
                    ) from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise UsageError(f"{path}, after line {number}: {one_line(error)}") from None


def _rows(path: Path, delimiter: str):
    """The rows that are not empty, with the numbers of their lines, without the first."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter=delimiter)
        next(reader)
        yield from ((reader.line_num, row) for row in reader if row)


def _line(path: Path, delimiter: str, row: int) -> int:
    """The line of a row of values."""
    return next(number for i, (number, _) in enumerate(_rows(path, delimiter)) if i == row)


def _flag(text: str) -> float:
    word = text.strip().lower()
    if word in ("true", "false", ""):
        return float(word == "true")
    if float(word) not in (0, 1):
        raise ValueError(text)
    return float(word)


def _number_or_none(text: str) -> float:
    """NaN is what an empty cell says; one in which it is written is a fault of a sensor."""
    if not text.strip():
        return np.nan
    if np.isnan(number := float(text)):
        raise ValueError(text)
    return number


def _numbered(kind: str, size: int) -> list[str]:
    return [f"{kind}_{i}" for i in range(size)]


def _count(columns: int) -> str:
    return "1 column" if columns == 1 else f"{columns} columns"


def _shown(text: str) -> str:
    """A string from a file, as it can be printed."""
    return re.sub(r"[^\w .,:;/()\[\]%°+*-]", "?", text)[:40]
