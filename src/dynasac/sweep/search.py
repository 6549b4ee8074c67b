"""Which settings come next: a grid's in their order, or what Optuna makes of earlier ones."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from .. import presets, runs
from ..errors import UsageError
from .spec import Choices, Range, Settings, Sweep, combinations

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

State = Literal["open", "complete", "pruned", "failed"]

STARTUP_TRIALS = 10
"""drawn at random before a model of the settings is made"""
UNPRUNED_TRIALS = 5
"""of which the whole is needed before others are held against their median"""

MOST_REPEATS = 30
"""of earlier trials, one after the other, until there is taken to be nothing else"""
REPEATS = "repeats"
"""marks a trial whose settings were tried before"""


class Trial(NamedTuple):
    """Settings, and the number they are known by."""

    number: int
    settings: Settings
    state: State = "open"


@runtime_checkable
class Source(Protocol):
    """Where trials come from, and who is told what came of them."""

    def earlier(self) -> list[Trial]:
        """Those that were begun before this process was, the open ones to be gone on with."""
        ...

    def ask(self) -> Trial | None:
        """Another one, with settings that none had before; None if there are no more."""
        ...

    def report(self, number: int, step: int, value: float) -> bool:
        """Tell of an open trial what it seems to be worth; returns whether it is to be pruned."""
        ...

    def tell(self, number: int, state: State, value: float | None) -> None:
        """Tell what came of a trial."""
        ...


class Grid:
    """Every combination in its order, whatever comes of others."""

    def __init__(self, sweep: Sweep):
        self._next: Iterator[tuple[int, Settings]] = enumerate(combinations(sweep))

    def earlier(self) -> list[Trial]:
        return []

    def ask(self) -> Trial | None:
        found = next(self._next, None)
        return None if found is None else Trial(*found)

    def report(self, number: int, step: int, value: float) -> bool:
        del number, step, value
        return False

    def tell(self, number: int, state: State, value: float | None) -> None:
        pass


def check_installed() -> None:
    """Say how to get Optuna.

    Raises:
        UsageError: it cannot be imported.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UsageError(
            "a search needs Optuna: pip install 'dynasac[scale]', or try a grid, which does not"
        )


class Search:
    """Optuna's TPE, its median pruner, and its journal, one line of JSON for all that happens.

    A study that is gone on with has other random numbers than it began with: with the same ones it
    would ask for the same trials again.
    """

    def __init__(self, sweep: Sweep, journal: Path):
        """Open the journal, or begin it.

        Nobody else writes to it meanwhile: who calls this holds its directory, and has seen to it
        that Optuna is there (`check_installed`).

        Raises:
            UsageError: the journal cannot be read.
        """
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep = sweep
        self._distributions = {
            name: _distribution(one, optuna) for name, one in sweep.search.items()
        }
        self._states = optuna.trial.TrialState
        try:
            _cut_off_half_a_line(journal)
            held: Any = _Held()
            self._storage = JournalStorage(JournalFileBackend(str(journal), held))
            self._study = optuna.create_study(
                storage=self._storage,
                study_name="dynasac",
                direction="maximize",
                load_if_exists=True,
                pruner=optuna.pruners.MedianPruner(UNPRUNED_TRIALS),
            )
            begun = len(self._study.get_trials(deepcopy=False))
            for one in self._study.get_trials(deepcopy=False):
                if one.state == self._states.RUNNING and not set(sweep.search) <= set(one.params):
                    self._study.tell(one.number, state=self._states.FAIL)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{journal} is damaged ({error}): choose another --output, or remove it with its "
                "trials to search anew"
            ) from None
        self._study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP_TRIALS,
            multivariate=True,
            constant_liar=True,
            seed=sweep.first_seed + begun,
        )
        if not begun:
            self._study.enqueue_trial(self._of_the_preset())

    def earlier(self) -> list[Trial]:
        states: dict[Any, State] = {
            self._states.RUNNING: "open",
            self._states.COMPLETE: "complete",
            self._states.PRUNED: "pruned",
            self._states.FAIL: "failed",
        }
        return [
            Trial(one.number, self._settings(one.params), states[one.state])
            for one in self._begun()
        ]

    def ask(self) -> Trial | None:
        begun = self._begun()
        if len(begun) >= self._sweep.trials:
            return None
        for _ in range(MOST_REPEATS):
            asked = self._study.ask(self._distributions)
            if all(asked.params != one.params for one in begun):
                return Trial(asked.number, self._settings(asked.params))
            # what comes of the same settings and seeds is known
            asked.set_user_attr(REPEATS, True)
            self._study.tell(asked, state=self._states.FAIL)
        return None

    def report(self, number: int, step: int, value: float) -> bool:
        self._storage.set_trial_intermediate_value(self._trial(number)._trial_id, step, value)
        return bool(self._study.pruner.prune(self._study, self._trial(number)))

    def tell(self, number: int, state: State, value: float | None) -> None:
        states = {
            "complete": self._states.COMPLETE,
            "pruned": self._states.PRUNED,
            "failed": self._states.FAIL,
        }
        if self._trial(number).state == self._states.RUNNING:
            told = value if state == "complete" else None
            self._study.tell(number, told, state=states[state])

    def _trial(self, number: int) -> "FrozenTrial":
        return self._study.get_trials(deepcopy=False)[number]

    def _begun(self) -> "list[FrozenTrial]":
        """All but the one that is still to be begun, those that repeat others, and those that
        nobody got to know: a process was killed while it asked for one."""
        names = set(self._sweep.search)
        everything = self._study.get_trials(deepcopy=False)
        return [
            one
            for one in everything
            if one.state != self._states.WAITING
            and names <= set(one.params)
            and REPEATS not in one.user_attrs
        ]

    def _settings(self, params: dict[str, Any]) -> Settings:
        """Of a trial. Names and values are looked up in what was asked for."""
        found = dict(self._sweep.fixed)
        for name, one in self._sweep.search.items():
            value = params.get(name)
            if isinstance(one, Choices):
                value = next((each for each in one.values if _as_param(each) == value), None)
            found[name] = value
        return found

    def _of_the_preset(self) -> dict[str, Any]:
        """The preset's own values of what is searched, as far as they are among them."""
        sweep = self._sweep
        values = runs.flat(runs.plain(presets.preset(sweep.preset, sweep.model)))
        values = {name: runs.listed(values[name]) for name in sweep.search}
        return {
            name: _as_param(value)
            for name, value in values.items()
            if self.holds(sweep.search[name], value)
        }

    @staticmethod
    def holds(one: Range | Choices, value: Any) -> bool:
        if isinstance(one, Choices):
            return value in one.values
        return type(value) in (int, float) and one.low <= value <= one.high


def _as_param(value: Any) -> Any:
    """A choice as Optuna takes it: lists are words."""
    return str(value) if isinstance(value, list) else value


def _distribution(one: Range | Choices, optuna: Any) -> "BaseDistribution":
    if isinstance(one, Choices):
        return optuna.distributions.CategoricalDistribution([_as_param(v) for v in one.values])
    kind = optuna.distributions.IntDistribution if one.whole else None
    kind = kind or optuna.distributions.FloatDistribution
    return kind(one.low, one.high, log=one.log)


class _Held:
    """In place of a lock: a file of a lock outlives who is killed, and the directory is held."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _cut_off_half_a_line(journal: Path) -> None:
    """What a process left that was killed while it wrote: the next line would be added to it."""
    if not journal.exists():
        return
    with journal.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
