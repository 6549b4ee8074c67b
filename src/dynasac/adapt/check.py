"""A model tried against the real environment: where it is wrong, by how much, and what is noise.

The error of a prediction has two parts. What could have been foretold of it is the model's own; the
rest is noise, of the sensors or of the environment, and no model does better. They are told apart
by foretelling errors from where the model, one step earlier, said that the state would be: the
noise in that is none of the noise in the error. Walls, limits and goals are met too rarely to be
foretold. They are looked for row by row: a row is a mismatch when the model, from no observation
within the sensors' noise, predicts about what was found.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UsageError
from ..models import DynamicsModel, PhysicsModel, as_arrays
from ..spaces import Spaces
from ..types import Transition, follows, padded

HORIZONS = (1, 2, 4, 8, 16)
"""steps of the open-loop errors"""

TOLERANCE = 2e-3
"""an error below this share of how much a quantity moves is nobody's business"""

FEWEST = 200
"""transitions, each following another, that a model can be judged by"""

SHOWN = 3
"""mismatches of each kind that a report shows, the largest"""


# --- what the model says, compiled ---


class _Rows(NamedTuple):
    """Transitions as NumPy arrays, in the environment's units."""

    observation: np.ndarray  # Float[rows, observation]
    action: np.ndarray  # Float[rows, action]
    found: np.ndarray  # Float[rows, observation + 1]: the next observation, and the reward
    ended: np.ndarray  # Bool[rows]
    follows: np.ndarray  # Bool[rows]: whether a row begins where the one before it arrived


def _rows(transitions: Transition, spaces: Spaces) -> _Rows:
    observation, following = map(
        np.asarray, (transitions.observation, transitions.next_observation)
    )
    ended, reward = np.asarray(transitions.terminated), np.asarray(transitions.reward)
    found = np.concatenate([following, reward[:, None]], axis=1)
    action = np.asarray(spaces.action.from_unit(_padded(np.asarray(transitions.action))))
    return _Rows(observation, action[: len(ended)], found, ended, follows(transitions))


def _padded(array: np.ndarray) -> jax.Array:
    return jax.device_put(padded(array, 256))


def _keys(count: int) -> jax.Array:
    """The same keys every time, for models that draw; made on the host, so nothing is compiled."""
    words = np.random.SeedSequence(0).generate_state(4 * count).reshape(count, 4)
    return jax.random.wrap_key_data(jax.device_put(words), impl="rbg")


def _step(model, observations, actions, keys):
    """Next observations and rewards, Float[rows, observation + 1]; and terminated, Bool[rows]."""
    said = jax.vmap(model.step)(observations, actions, keys)
    return jnp.concatenate([said.next_observation, said.reward[:, None]], 1), said.terminated


_one_step = eqx.filter_jit(_step)


@eqx.filter_jit
def _open_loop(model, observations, actions, keys):
    """From each row, with the actions of the rows after it, as many steps as HORIZONS says.

    Returns what `_step` does of the first, and the observations that are reached after each number
    of steps, Float[horizons, rows, observation].
    """

    def advance(observations, ahead):
        said = _step(model, observations, jnp.roll(actions, -ahead, axis=0), keys)
        return said[0][:, :-1], said

    _, (predicted, terminated) = jax.lax.scan(advance, observations, jnp.arange(HORIZONS[-1]))
    return (predicted[0], terminated[0]), predicted[np.array(HORIZONS) - 1, :, :-1]


def _least_error(
    model: DynamicsModel, rows: _Rows, noise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of the errors if each observation may be another within the noise.

    Returns the least error of each column, Float[rows, columns], and whether the end is predicted
    wrong from everywhere, Bool[rows].
    """
    rng, count = np.random.default_rng(1), len(rows.ended)
    least, never = np.full(rows.found.shape, np.inf), np.ones(count, bool)
    observation, action = _padded(rows.observation), _padded(rows.action)
    keys = _keys(len(action))
    for _ in range(NEARBY if count else 0):
        offset = (noise * rng.normal(size=observation.shape)).astype(np.float32)
        predicted, terminated = _one_step(model, observation + jnp.asarray(offset), action, keys)
        error = np.abs(rows.found - np.asarray(predicted)[:count])
        least = np.fmin(least, error)  # NaN is no prediction
        never &= np.asarray(terminated)[:count] != rows.ended
    return least, never


NEARBY = 128
"""observations drawn within the noise, twice as wide as it is, to explain an error by"""


@eqx.filter_jit
def _project(model, observations):
    once = jax.vmap(model.project)(observations)
    return once, jax.vmap(model.project)(once)


# --- what of the error is the model's ---


class _Judged(NamedTuple):
    """Predictions and their errors; columns are the observation's components and the reward.

    In the environment's units where nothing else is said.
    """

    predicted: np.ndarray  # Float[rows, columns]
    terminated: np.ndarray  # Bool[rows], predicted
    unit: np.ndarray  # Float[columns]: how much a component moves; the reward's deviation
    total: np.ndarray  # Float[columns], RMS error
    systematic: np.ndarray  # Float[columns], RMS of the model's part of it
    noise: np.ndarray  # Float[columns], RMS of the rest
    sensor: np.ndarray  # Float[columns], deviation of the noise of what is observed
    turning: np.ndarray  # Float[columns], the same, by the errors that could be foretold too
    gross: np.ndarray  # Bool[rows, columns], mismatches
    misjudged: np.ndarray  # Bool[rows], mismatches of termination
    not_finite: np.ndarray  # Bool[rows], predictions
    wrong: np.ndarray  # Bool[columns]
    k_step: dict[int, np.ndarray]  # Float[components], as a share of movement in k steps


def _predicted(model: DynamicsModel, rows: _Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_open_loop` says of the rows."""
    count = len(rows.ended)
    action = _padded(rows.action)
    (predicted, terminated), reached = _open_loop(
        model, _padded(rows.observation), action, _keys(len(action))
    )
    return (
        np.asarray(predicted)[:count],
        np.asarray(terminated)[:count],
        np.asarray(reached)[:, :count],
    )


def _judged(model: DynamicsModel, rows: _Rows) -> _Judged:
    """Predict every row, and split the errors into the model's, noise and mismatches."""
    model = as_arrays(model)
    predicted, terminated, reached = _predicted(model, rows)
    not_finite = np.any(~np.isfinite(predicted), axis=1)
    error = np.where(not_finite[:, None], 0.0, rows.found - predicted)

    moves = _rms(rows.found[:, :-1] - rows.observation)
    spread = rows.found[:, -1].std()
    # a rare large reward must not hide an error in the usual small ones
    small = np.append(moves, min(spread, _middle(rows.found[:, -1]) or spread))
    rounding = ROUNDING * np.abs(rows.found).max(0)
    tolerance = np.maximum(TOLERANCE * small, 10 * rounding)
    unit = np.maximum(np.append(moves, spread), 1e3 * rounding + 1e-30)

    limit = GROSS * _deviation(error) + tolerance / 2
    usual = np.clip(error, -limit, limit)  # what is rare and gross is counted by itself
    pairs = np.flatnonzero(rows.follows & ~np.roll(not_finite, 1))
    if len(pairs) >= FEWEST_PAIRS:
        before = predicted[pairs - 1, :-1]
        features = np.concatenate([before, rows.action[pairs]], axis=1)
        foretold, share, certainty = _foretold(usual[pairs], features)
    else:
        foretold, share, certainty = usual[pairs], np.ones_like(limit), np.full_like(limit, np.inf)
    evident = (certainty > DOUBTFUL) & (share > BENT**2)
    mean = np.where(evident, share * _rms(usual) ** 2, 0.0)
    sensor = _sensor(usual[pairs] - foretold, pairs)

    gross, misjudged = np.zeros(error.shape, bool), terminated != rows.ended
    suspects = np.flatnonzero(np.any(np.abs(error) > limit, axis=1) | misjudged)
    nearby = np.maximum(2 * sensor, 4 * rounding)[:-1]
    least, never = _least_error(model, _Rows(*(array[suspects] for array in rows)), nearby)
    gross[suspects] = (least > limit) & ~not_finite[suspects, None]
    misjudged[suspects] = never

    total = _rms(error)
    excess = (gross * (error**2 - usual**2)).mean(0)
    systematic = np.minimum(np.sqrt(mean + excess), total)
    foretellable = (certainty > CERTAIN) & (np.sqrt(mean) > tolerance)
    return _Judged(
        predicted=predicted,
        terminated=terminated,
        unit=unit,
        total=total,
        systematic=systematic,
        noise=np.sqrt(total**2 - systematic**2),
        sensor=sensor,
        turning=_sensor(usual[pairs], pairs),
        gross=gross,
        misjudged=misjudged,
        not_finite=not_finite,
        wrong=foretellable | gross.any(0),
        k_step=_k_step(rows, reached),
    )


ROUNDING = 1e-7
"""of float32, as a share of the largest value"""
FEWEST_PAIRS = 40
"""transitions, each following another, below which error and noise are not told apart"""
DOUBTFUL, CERTAIN = 3.0, 4.5
"""standard errors above nothing: below the one an error is no evidence, above the other it is"""
GROSS = 12
"""deviations of the noise that an error must exceed to be looked into by itself"""
BENT = 0.12
"""what an exact model's errors may have, as a share of the noise, that could have been foretold:
through a limit or a curve, noise that is zero on average becomes an error that is not"""


def _foretold(error: np.ndarray, features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a smooth function of the features says of errors that it was not fitted to.

    Ridge regression on the features and random waves in them, of the ridge that says most, fitted
    to four fifths of the rows for the last.

    Arguments:
        error: Float[rows, columns]; features: Float[rows, features]; rows in time order.

    Returns:
        What is foretold, Float[rows, columns]; and, Float[columns], which share of the mean square
        that is, and how many standard errors its correlation with the errors is above none.
    """
    rng = np.random.default_rng(0)
    features = _standard(features)
    count, size = features.shape
    waves = [
        np.cos(features @ rng.normal(0, rate, (size, WAVES)) + rng.uniform(0, 2 * np.pi, WAVES))
        for rate in WAVE_RATES
    ]
    inputs = _standard(np.concatenate([features, *waves], axis=1))
    inputs = np.concatenate([np.ones((count, 1)), inputs], axis=1)
    parts = np.array_split(np.arange(count), FOLDS)
    grams = [inputs[part].T @ inputs[part] for part in parts]
    moments = [inputs[part].T @ error[part] for part in parts]

    def said(ridge: float) -> np.ndarray:
        added = ridge * count * np.eye(inputs.shape[1])
        return np.concatenate(
            [
                inputs[part] @ np.linalg.solve(sum(grams) - gram + added, sum(moments) - moment)
                for part, gram, moment in zip(parts, grams, moments, strict=True)
            ]
        )

    candidates = np.stack([said(ridge) for ridge in RIDGES])
    gains = (2 * error * candidates - candidates**2).mean(1)
    best = gains.argmax(0)
    columns = np.arange(error.shape[1])
    foretold = candidates[best, :, columns].T
    share = gains[best, columns] / np.maximum((error**2).mean(0), 1e-300)
    product = error * foretold
    deviation = np.maximum(product.std(0) / np.sqrt(count), 1e-300)
    return foretold, np.clip(share, 0, 1), product.mean(0) / deviation


FOLDS = 5
WAVES, WAVE_RATES = 32, (0.3, 1.0)
RIDGES = (1e-5, 1e-3, 1e-1, 10.0)


def _sensor(rest: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The deviation of the observation's noise, from errors that nothing foretells.

    The same noise is in the error of the step to an observation and, with the other sign, in that
    of the step from it. Neither noise of the environment nor a wrong model does that.
    """
    second = np.flatnonzero(np.diff(pairs, prepend=-2) == 1)
    if not len(second):
        return np.zeros(rest.shape[1])
    return np.sqrt(np.maximum(-(rest[second] * rest[second - 1]).mean(0), 0))


def _displaced(
    model: DynamicsModel, rows: _Rows, sensor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What `project` makes of the observations, and which it moves by more than noise, Bool[rows].

    What is possible already, as what it has just made is, must not be moved at all.
    """
    once, twice = (
        np.asarray(a)[: len(rows.ended)] for a in _project(model, _padded(rows.observation))
    )
    tolerance = 1e-3 * rows.observation.std(0) + 10 * ROUNDING * np.abs(rows.observation).max(0)
    still = np.abs(twice - once) <= tolerance
    near = np.abs(once - rows.observation) <= tolerance + 10 * sensor[:-1]
    return once, ~(still & near).all(1)


def _k_step(rows: _Rows, reached: np.ndarray) -> dict[int, np.ndarray]:
    """Open-loop errors over the stretches of at least k rows, Float[components] for each k."""
    errors = {}
    starts = np.arange(len(rows.ended))
    for ahead in range(HORIZONS[-1]):
        if ahead:
            starts = starts[starts + ahead < len(rows.ended)]
            starts = starts[rows.follows[starts + ahead]]
        if ahead + 1 in HORIZONS and len(starts):
            predicted = reached[HORIZONS.index(ahead + 1), starts]
            found = rows.found[starts + ahead, :-1]
            error = np.where(np.isfinite(predicted), found - predicted, np.inf)
            moved = _rms(found - rows.observation[starts])
            errors[ahead + 1] = _rms(error) / np.maximum(moved, 1e-9)
    return errors


def _rms(values: np.ndarray) -> Any:
    """Over the rows; of a vector, a number."""
    return np.sqrt(np.square(values, dtype=float).mean(0))


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / np.maximum(values.std(0), 1e-12)


def _deviation(values: np.ndarray) -> np.ndarray:
    """The standard deviation if most values are normal, whatever the others are."""
    return 1.4826 * np.median(np.abs(values - np.median(values, axis=0)), axis=0)


def _middle(values: np.ndarray) -> float:
    """The standard deviation if the middle nine tenths are normal."""
    low, high = np.quantile(values, [0.05, 0.95])
    return float(high - low) / 3.29


# --- what people and adaptation are told ---


@dataclass(frozen=True)
class DimensionError:
    """How wrong a model is about one component of the observation, or about the reward.

    Errors are root mean squares, as a share of that of the component's real change over the same
    number of steps: 1 is no better than predicting that nothing changes. The reward's are a share
    of its standard deviation.
    """

    name: str
    one_step: float
    """all of it"""
    systematic: float
    """the model's part of `one_step`: what could have been foretold, and mismatches"""
    noise: float
    """the rest of it: one_step² = systematic² + noise²"""
    k_step: dict[int, float]
    """by number of steps, with the real actions and without looking in between, noise included"""
    worst: float
    """the largest error of one step, in the environment's unit"""
    mismatches: int
    """transitions that no noise of the observations explains"""
    wrong: bool
    """whether the model is, beyond reasonable doubt"""


@dataclass(frozen=True)
class Mismatch:
    """A transition that the model gets wrong; everything in the environment's units."""

    kind: str
    """a component of the observation, "reward", "termination", "inverse" or "not finite" """
    index: int
    """of the transition"""
    observation: tuple[float, ...]
    action: tuple[float, ...]
    predicted: float | bool | tuple[float, ...]
    found: float | bool | tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """What `check` found."""

    model: str
    transitions: int
    dimensions: tuple[DimensionError, ...]
    reward: DimensionError
    missed_ends: int
    """real ends of episodes that the model does not predict"""
    invented_ends: int
    """ends that it predicts and that are none"""
    not_inverse: int
    """observations that `project`, which is observation(state(o)), does not leave as they are"""
    not_finite: int
    """transitions for which it predicts no numbers"""
    mismatches: tuple[Mismatch, ...]
    """at most SHOWN of each kind"""
    verdict: str
    """the worst problem and what to do, in one sentence"""
    agrees: bool

    def lines(self) -> list[str]:
        """For people: a table, the mismatches and the verdict."""
        counts = [k for k in HORIZONS[1:] if any(k in d.k_step for d in self.dimensions)]
        titles = ("error of", "1 step", *(f"{k} steps" for k in counts), "noise", "worst row")
        table: list[tuple[str, ...]] = [titles]
        for row in (*self.dimensions, self.reward):
            steps = (_percent(row.k_step[k]) if k in row.k_step else "" for k in counts)
            errors = (_percent(row.one_step), *steps, _percent(row.noise))
            table.append((row.name, *errors, f"{row.worst:.3g}"))
        widths = [max(len(line[i]) for line in table) for i in range(len(titles))]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in table
        ]
        lines.append("(% of how much each changes in as many steps; noise: nothing foretells it)")
        if self.mismatches:
            lines += ["", "mismatches:"]
        for row in self.mismatches:
            lines.append(
                f"  transition {row.index}, {row.kind}: from {_numbers(row.observation)} with "
                f"action {_numbers(row.action)} predicted {_numbers(row.predicted)}, "
                f"found {_numbers(row.found)}"
            )
        return [*lines, "", self.verdict]

    def summary(self) -> dict:
        """For JSON; numbers that are not finite become None."""
        return {name: _jsonable(value) for name, value in asdict(self).items()}


@dataclass(frozen=True)
class PredictionError:
    """The numbers that adaptation decides by; shares as in `DimensionError`."""

    one_step: tuple[float, ...]
    """all of the error, by component of the observation"""
    systematic_by_dimension: tuple[float, ...]
    """without noise; 0 where there is no evidence of any"""
    systematic: float
    """root mean square of these; infinite where the model predicts no numbers"""
    beyond_sensors: float
    """what `one_step` is, root mean square, without the part whose sign turns from one step to the
    next, as the noise of sensors does; 0 where that may be all. Less certain than `systematic`, but
    sound where actions follow the observations, and so foretell the noise in them"""
    reward: float
    """systematic"""
    terminations: float
    """share of transitions on which the model is wrong about the episode's end"""
    k_step: dict[int, float]
    """root mean square over components, noise included"""


def check(model: DynamicsModel, transitions: Transition, spaces: Spaces) -> Report:
    """Try a model on real transitions in time order, and say what is wrong with it.

    Raises:
        UsageError: too few transitions follow one another to tell error and noise apart.
    """
    rows = _rows(transitions, spaces)
    name = model.name
    if rows.follows.sum() < FEWEST:
        raise UsageError(
            f"{len(rows.ended)} transitions, {rows.follows.sum()} of them following another, are "
            f"too few to judge {name} by: at least {FEWEST} must follow another"
        )
    judged = _judged(model, rows)
    dimensions = [
        _dimension(f"observation[{i}]", i, rows, judged) for i in range(rows.observation.shape[1])
    ]
    reward = _dimension("reward", -1, rows, judged)
    projected, displaced = _displaced(model, rows, judged.sensor)
    kinds = [("not finite", judged.not_finite, judged.predicted[:, :-1], rows.found[:, :-1])]
    kinds.append(("inverse", displaced, projected, rows.observation))
    for i, dimension in enumerate((*dimensions, reward)):
        columns = judged.predicted[:, i], rows.found[:, i]
        kinds.append((dimension.name, judged.gross[:, i], *columns))
    kinds.append(("termination", judged.misjudged, judged.terminated, rows.ended))
    mismatches = [shown for kind in kinds for shown in _shown(rows, *kind)]
    report = Report(
        model=name,
        transitions=len(rows.ended),
        dimensions=tuple(dimensions),
        reward=reward,
        missed_ends=int((judged.misjudged & rows.ended).sum()),
        invented_ends=int((judged.misjudged & ~rows.ended).sum()),
        not_inverse=int(displaced.sum()),
        not_finite=int(judged.not_finite.sum()),
        mismatches=tuple(mismatches),
        verdict="",
        agrees=False,
    )
    problem = _problem(report, isinstance(model, PhysicsModel))
    agreement = f"{name} agrees with the environment on {report.transitions:,} transitions"
    return replace(report, agrees=not problem, verdict=problem or agreement)


def prediction_error(
    model: DynamicsModel, transitions: Transition, spaces: Spaces
) -> PredictionError:
    """How wrong a model is about real transitions, in time order; of at least one.

    Where too few follow one another to tell error and noise apart, all of it is called systematic.
    """
    rows = _rows(transitions, spaces)
    judged = _judged(model, rows)
    systematic = judged.systematic / judged.unit
    overall = float(_rms(systematic[:-1])) if not judged.not_finite.any() else float("inf")
    beyond = judged.total**2 - 2 * judged.turning**2
    pairs = rows.follows.sum()
    chance = 3 * judged.total**2 / np.sqrt(pairs) if pairs >= FEWEST_PAIRS else 0.0
    beyond = np.sqrt(np.where(beyond > chance, beyond, 0)) / judged.unit
    return PredictionError(
        one_step=tuple((judged.total / judged.unit)[:-1].tolist()),
        systematic_by_dimension=tuple(systematic[:-1].tolist()),
        systematic=overall,
        beyond_sensors=float(_rms(beyond[:-1])),
        reward=float(systematic[-1]),
        terminations=float(judged.misjudged.mean()),
        k_step=_over_components(judged.k_step),
    )


def k_step_errors(
    model: DynamicsModel, transitions: Transition, spaces: Spaces
) -> dict[int, float]:
    """`PredictionError.k_step` alone, which is cheap."""
    rows = _rows(transitions, spaces)
    *_, reached = _predicted(as_arrays(model), rows)
    return _over_components(_k_step(rows, reached))


def _over_components(k_step: dict[int, np.ndarray]) -> dict[int, float]:
    return {k: float(_rms(errors)) for k, errors in k_step.items()}


def _dimension(name: str, column: int, rows: _Rows, judged: _Judged) -> DimensionError:
    share = 1 / judged.unit[column]
    error = np.abs(rows.found - judged.predicted)[~judged.not_finite, column]
    k_step = {} if column == -1 else {k: float(e[column]) for k, e in judged.k_step.items()}
    return DimensionError(
        name=name,
        one_step=float(judged.total[column] * share),
        systematic=float(judged.systematic[column] * share),
        noise=float(judged.noise[column] * share),
        k_step=k_step,
        worst=float(error.max(initial=0)),
        mismatches=int(judged.gross[:, column].sum()),
        wrong=bool(judged.wrong[column]),
    )


def _problem(report: Report, physics: bool) -> str:
    """What must be put right first, because the rest may follow from it; empty if nothing."""
    name, of_all = report.model, f"of {report.transitions:,} transitions"
    first = {row.kind: row for row in reversed(report.mismatches)}
    if report.not_finite:
        at = first["not finite"]
        return (
            f"{name} predicts numbers that are not finite for {report.not_finite:,} {of_all}, as "
            f"from {_numbers(at.observation)}: look for roots and logarithms of negative numbers "
            "and divisions by 0"
        )
    if report.not_inverse:
        at = first["inverse"]
        method = "observation(state(o))" if physics else "project(o)"
        pair = f"observation and state of {name} are not inverses"
        return (
            f"{pair if physics else f'{name}.project moves real observations'}: {method} gives "
            f"{_numbers(at.predicted)} for {_numbers(at.found)}; put "
            f"{'state' if physics else 'project'}() right"
        )
    wrong = [dimension for dimension in report.dimensions if dimension.wrong]
    if wrong:
        worst = max(wrong, key=lambda dimension: dimension.systematic)
        if worst.mismatches and worst.mismatches < 0.2 * report.transitions:
            return (
                f"{name} is wrong about {worst.name} in {worst.mismatches:,} {of_all}, by up to "
                f"{worst.worst:.3g}: look for a wall, a limit or another event in the mismatches "
                "above and add it to the model"
            )
        return (
            f"{name} is wrong about {worst.name}: one step's error is {_percent(worst.systematic)} "
            "of how much it moves, noise apart; check the equation that moves it and its parameters"
        )
    if report.missed_ends or report.invented_ends:
        return (
            f"{name} is wrong about when episodes end: it misses {report.missed_ends:,} real ends "
            f"and invents {report.invented_ends:,} in {report.transitions:,} transitions; "
            "check where the model says terminated"
        )
    if report.reward.wrong:
        return (
            f"{name} is wrong about the reward, by up to {report.reward.worst:.3g}: check its "
            "terms, whether it counts the action as asked for or as limited, and the state that is "
            "left or the one that is reached"
        )
    return ""


def _shown(rows: _Rows, kind: str, where: np.ndarray, predicted, found) -> list[Mismatch]:
    """The largest SHOWN mismatches of a kind, in time order."""
    size = np.abs(np.subtract(found, predicted, dtype=float)).reshape(len(where), -1).max(1)
    ranked = sorted(np.flatnonzero(where), key=lambda i: -size[i])
    return [
        Mismatch(
            kind=kind,
            index=int(i),
            observation=_plain(rows.observation[i]),
            action=_plain(rows.action[i]),
            predicted=_plain(predicted[i]),
            found=_plain(found[i]),
        )
        for i in sorted(ranked[:SHOWN])
    ]


def _plain(value):
    """Python numbers for NumPy's; a tuple for a vector."""
    return tuple(value.tolist()) if np.ndim(value) else value.item()


def _jsonable(value):
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [_jsonable(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _numbers(value) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(_numbers(item) for item in value)})"
    return str(value) if isinstance(value, bool) else f"{value:.4g}"


def _percent(share: float) -> str:
    if share < 5e-6:
        return "0"
    return f"{100 * share:.2g}%" if share < 1 else f"{100 * share:,.0f}%"
