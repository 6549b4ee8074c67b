"""Which physics the real transitions speak for: the parameters of a model, fitted to them.

The model predicts a few steps open loop from every real state, with the real actions; what it
predicts is compared with what was observed, robustly. One step alone would do for exact data, but
the noise of observations is as large after one step as after sixteen; what parameters do is not.

Sources: Huber & Ronchetti, Robust Statistics, 2009 (M-estimation with a scale from the median
absolute deviation); Newey & West, Econometrica 55, 1987 (standard errors when the errors of
overlapping windows are correlated); Branch, Coleman & Li, SIAM J. Sci. Comput. 21, 1999 (the solver
behind `scipy.optimize.least_squares`).
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts load when they are first used: nothing is fitted without real data
from jaxtyping import Array, Bool, Float

from ..errors import UsageError
from ..models.base import PhysicsModel
from ..models.turned import Turned
from ..spaces import Box
from ..types import Transition, follows

WINDOW = 16
"""steps predicted open loop from each real state, as far as the transitions are contiguous"""
MAX_WINDOWS = 4096
"""windows compared at most; of more transitions, every second, third, ... one begins a window"""
RESOLUTION = 1e-6
"""the smallest noise assumed, as a part of a quantity's range: what float32 leaves of it"""
CANCELLATION = 1e-4
"""a direction whose effects cancel to this part of what its parameters do alone has no effect"""
ROBUSTNESS = 2.4
"""errors beyond this many standard deviations lose their influence"""
COOLING = 0.2
"""how fast the scale of errors may shrink from one round to the next: faster would take the rows
that a wrong model explains for the truth, and the others for outliers"""
SETTLED = 0.02
"""the scale of errors stands when it changes by no more than this part"""
ROUNDS = 20
EVALUATIONS = 15
"""of the errors, at most, in each round"""
FAR = 1e9
"""the error of a prediction that is not finite, in units of noise"""
FARTHEST = 20.0
"""how far the logarithm of a parameter may move"""
TINY = 1e-30
INSIDE = 1e-3
"""how far inside its bounds the search for a parameter begins, in its unit of search"""


@dataclass(frozen=True)
class Parameter:
    """One parameter of a model, before and after identification, in its own unit."""

    name: str
    before: float
    after: float
    standard_error: float
    """inf where the data do not tell it apart"""


@dataclass(frozen=True)
class Identification:
    """What the transitions say about the parameters of a model."""

    model: PhysicsModel
    """the model given with other values: same structure and types, so nothing compiles again"""
    parameters: tuple[Parameter, ...]
    unidentified: tuple[str, ...]
    """a sentence for each combination of parameters that the data cannot tell; along it the
    parameters stay about where they were"""
    blurred: bool
    """whether the effect of some combination is lost in the noise; it may be anything then"""
    transitions: int

    def sentence(self) -> str:
        """All of it in one line."""
        values = ", ".join(_told(parameter) for parameter in self.parameters)
        missing = "; ".join(self.unidentified)
        return f"{values}; not told apart by the data: {missing}" if missing else values


def parameter_names(model: PhysicsModel) -> tuple[str, ...]:
    """The parameters of a model, its scalar float leaves, as in `g` or `engine.power`."""
    return tuple(place.name for place in _places(model))


def identify(model: PhysicsModel, transitions: Transition, action: Box) -> Identification:
    """The values of a model's parameters under which it predicts real transitions best.

    A parameter that is positive before stays so; `eqx.field(metadata={"bounds": (low, high)})`
    bounds a field. Where the data say nothing a weak prior, a factor of e either way for positive
    parameters, keeps the values of before.

    Args:
        model: the physics, with the parameters as they are believed to be.
        transitions: real ones, along one leading axis in the order of time; gaps do no harm.
        action: the environment's actions, whose unit the model speaks.

    Raises:
        UsageError: the model has no parameters, a value lies outside its bounds, there are too few
            transitions, or the predictions of the model as given are not finite.
    """
    places = _places(model)
    name = model.name
    if not places:
        raise UsageError(f"{name} has no float fields to identify: write its constants as fields")
    count = transitions.reward.shape[0]
    needed = 2 * len(places) + 3
    if count < needed:
        raise UsageError(
            f"{count} transitions are too few to identify the {len(places)} parameters of {name}: "
            f"collect at least {needed}"
        )
    before = np.array([place.value for place in places])
    template = _with_values(model, jax.device_put(np.float32(before)))
    windows, sizes = _windows(transitions, action)

    def errors(units: _Units, point: np.ndarray) -> _Errors:
        found, slopes = _errors(template, units, jax.device_put(np.float32(point)), windows)
        return _Errors(np.asarray(found, np.float64), np.asarray(slopes, np.float64))

    start = np.zeros(len(places))
    ones = np.ones(len(places), np.float32)
    plain = _Units(*jax.device_put((np.float32(before), ones, before > 0)))
    first = errors(plain, start)
    valid = np.asarray(windows.valid)[..., None] & np.isfinite(first.values)
    if valid[:, 0].sum() < 0.5 * np.asarray(windows.valid)[:, 0].sum() * sizes.size:
        raise UsageError(
            f"{name} predicts numbers that are not finite from the transitions given: check its "
            "parameters and methods"
        )
    units = dataclasses.replace(plain, unit=jnp.asarray(_unit(first, valid, sizes, before)))
    low, high = _limits(places, units)
    point, fit = _fitted(lambda point: errors(units, point), valid, sizes, low, high)
    directions = _directions(fit)
    silent = ~np.any(fit.slopes, axis=(0, 1, 2))
    after = np.where(silent, before, np.asarray(units.values(jax.device_put(np.float32(point)))))
    after = np.clip(after, *np.array([place.bounds for place in places]).T)
    unit = np.where(before > 0, after, np.asarray(units.unit))
    rounding = np.finfo(np.float32).eps * unit
    spread = np.where(directions.blurred, np.inf, unit * directions.standard_errors + rounding)
    return Identification(
        model=_with_values(model, after),
        parameters=tuple(
            Parameter(place.name, place.value, float(value), float(error))
            for place, value, error in zip(places, after, spread, strict=True)
        ),
        unidentified=_sentences(directions, places, unit),
        blurred=bool(len(directions.within_noise)),
        transitions=count,
    )


# --- parameters


class _Place(NamedTuple):
    """Where a parameter sits in its model."""

    name: str
    value: float
    bounds: tuple[float, float]


def _is_parameter(leaf: Any) -> bool:
    is_float = isinstance(leaf, float) or (
        eqx.is_array_like(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    )
    return is_float and np.ndim(leaf) == 0


def _places(model: PhysicsModel) -> list[_Place]:
    within = 1 if isinstance(model, Turned) else 0  # names are those that the user wrote
    return [
        _Place(
            jax.tree_util.keystr(path[within:], simple=True, separator="."),
            float(leaf),
            _bounds(model, path),
        )
        for path, leaf in jax.tree_util.tree_flatten_with_path(model)[0]
        if _is_parameter(leaf)
    ]


def _bounds(model: PhysicsModel, path: tuple) -> tuple[float, float]:
    """What the innermost field on the way to a leaf says, or no bounds."""
    bounds: tuple[float, float] = (-np.inf, np.inf)
    node: Any = model
    for key in path:
        match key:
            case jax.tree_util.GetAttrKey(name=name):
                fields = {field.name: field for field in dataclasses.fields(node)}
                bounds = fields[name].metadata.get("bounds", bounds)
                node = getattr(node, name)
            case jax.tree_util.SequenceKey(idx=index):
                node = node[index]
            case jax.tree_util.DictKey(key=index):
                node = node[index]
            case _:
                return bounds
    return bounds


def _with_values(model: PhysicsModel, values: Array | np.ndarray) -> PhysicsModel:
    """The model with other parameters; NumPy values take the type of what they replace."""
    leaves, structure = jax.tree.flatten(model)
    indices = [index for index, leaf in enumerate(leaves) if _is_parameter(leaf)]
    for index, value in zip(indices, values, strict=True):
        if isinstance(values, jax.Array):
            leaves[index] = value
        elif isinstance(leaves[index], float):
            leaves[index] = float(value)
        else:
            leaves[index] = jnp.full_like(leaves[index], value)
    return jax.tree.unflatten(structure, leaves)


class _Units(eqx.Module):
    """The coordinates of the search: each is 0 at the value of before, and about 1 is far.

    Positive parameters are searched by their logarithm, others in a unit of their own.
    """

    before: Float[Array, " parameters"]
    unit: Float[Array, " parameters"]
    logarithmic: Bool[Array, " parameters"]

    def values(self, point: Float[Array, " parameters"]) -> Float[Array, " parameters"]:
        factor = jnp.exp(jnp.where(self.logarithmic, point, 0.0))
        return jnp.where(self.logarithmic, self.before * factor, self.before + self.unit * point)


def _limits(places: list[_Place], units: _Units) -> tuple[np.ndarray, np.ndarray]:
    """The bounds of the parameters in the coordinates of the search."""
    unit = np.asarray(units.unit, np.float64)
    limits = np.empty((2, len(places)))
    for index, (name, value, (low, high)) in enumerate(places):
        if not np.float32(low) <= np.float32(value) <= np.float32(high) or low == high:
            raise UsageError(
                f"{name} = {value:g} is not within its bounds, {low:g} to {high:g}: change one"
            )
        if value > 0:
            ratios = np.clip(np.array([low, high]) / value, np.exp(-FARTHEST), np.exp(FARTHEST))
            limits[:, index] = np.log(ratios)
        else:
            limits[:, index] = (np.array([low, high]) - value) / unit[index]
    return limits[0], limits[1]


# --- predictions


class _Windows(eqx.Module):
    """Some consecutive real steps from each of some real states; rows of padding are not valid."""

    observation: Float[Array, "windows observation"]
    action: Float[Array, "windows steps action"]
    next_observation: Float[Array, "windows steps observation"]
    reward: Float[Array, "windows steps"]
    valid: Bool[Array, "windows steps"]


def _windows(transitions: Transition, action: Box) -> tuple[_Windows, np.ndarray]:
    """The windows, a power of two of them, and the range of each predicted quantity."""
    observation, next_observation, reward, unit_action = (
        np.asarray(field, np.float32)
        for field in (
            transitions.observation,
            transitions.next_observation,
            transitions.reward,
            transitions.action,
        )
    )
    count = reward.shape[0]
    stride = -(-count // MAX_WINDOWS)
    starts = np.arange(0, count, stride)
    padded = np.zeros(1 << (starts.size - 1).bit_length(), int)
    padded[: starts.size] = starts
    rows = padded[:, None] + np.arange(WINDOW)
    joined = np.pad(follows(transitions), (0, WINDOW))
    valid = np.ones(rows.shape, bool)
    valid[:, 1:] = np.logical_and.accumulate(joined[rows[:, 1:]], axis=1)
    valid[starts.size :] = False
    rows = np.minimum(rows, count - 1)
    seen = np.concatenate([next_observation, reward[:, None]], axis=1).astype(np.float64)
    seen = np.where(np.isfinite(seen), seen, 0.0)
    # a constant has no range: what float32 leaves of it depends on its size
    sizes = np.ptp(seen, axis=0) + 0.1 * np.abs(seen).max(0) + TINY
    windows = _Windows(
        observation=jax.device_put(observation[padded]),
        action=action.from_unit(jax.device_put(unit_action[rows])),
        next_observation=jax.device_put(next_observation[rows]),
        reward=jax.device_put(reward[rows]),
        valid=jax.device_put(valid),
    )
    return windows, sizes


class _Errors(NamedTuple):
    """How far predictions lie from what was observed, and how that changes with the point."""

    values: np.ndarray
    """windows, steps, quantities: the observation's components and the reward"""
    slopes: np.ndarray
    """windows, steps, quantities, parameters"""


@eqx.filter_jit
def _errors(
    model: PhysicsModel, units: _Units, point: Float[Array, " parameters"], windows: _Windows
) -> tuple[
    Float[Array, "windows steps quantities"], Float[Array, "windows steps quantities parameters"]
]:
    def errors(point):
        there = _with_values(model, units.values(point))

        def forward(observation, target):
            action, next_observation, reward = target
            step = there.step(observation, action, jax.random.key(0))
            error = jnp.append(step.next_observation - next_observation, step.reward - reward)
            return step.next_observation, error

        def window(observation, *targets):
            return jax.lax.scan(forward, observation, targets)[1]

        found = jax.vmap(window)(
            windows.observation, windows.action, windows.next_observation, windows.reward
        )
        return found, found

    slopes, found = jax.jacfwd(errors, has_aux=True)(point)
    return found, slopes


# --- the fit


def _unit(first: _Errors, valid: np.ndarray, sizes: np.ndarray, before: np.ndarray) -> np.ndarray:
    """For each parameter searched as it is, a change that matters as much as the data's range."""
    slopes = np.where(valid[..., None] & np.isfinite(first.slopes), first.slopes, 0.0)
    effect = np.sqrt(np.mean((slopes[:, 0] / sizes[:, None]) ** 2, axis=0).max(0))
    return np.where(effect > 0, 1 / np.maximum(effect, TINY), np.maximum(np.abs(before), 1.0))


class _Fit(NamedTuple):
    """What the data say at the solution, each error in units of its noise; not valid ones are 0."""

    slopes: np.ndarray
    """windows, steps, quantities, parameters; each row by the root of its robust weight"""
    scores: np.ndarray
    """windows, parameters: the gradient of each window's loss"""


def _fitted(
    errors: Callable[[np.ndarray], _Errors],
    valid: np.ndarray,
    sizes: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> tuple[np.ndarray, _Fit]:
    """The point of least robust loss, the prior included, and the data's part of it there."""
    margin = np.minimum(INSIDE, 0.1 * (high - low))
    point = np.clip(np.zeros(low.size), low + margin, high - margin)
    found = errors(point)
    trusted = valid & np.isfinite(found.values)
    sums = np.abs(found.values, where=trusted, out=np.zeros(trusted.shape)).sum(0)
    scale = sums / np.maximum(trusted.sum(0), 1) / COOLING  # the rare large error counts at first
    for count in range(ROUNDS):
        noise = _noise(found.values, trusted, sizes)
        reach = 2**count  # a wrong model is soon lost: its first steps teach first
        if reach > WINDOW and np.all(np.abs(noise - scale) <= SETTLED * scale):
            break
        scale = np.maximum(noise, COOLING * scale)
        near = trusted & (np.arange(WINDOW) < reach)[:, None]
        point = _solved(errors, point, near, scale, low, high)
        found = errors(point)
        trusted = valid & np.isfinite(found.values)
    residuals = np.where(trusted, found.values / scale, 0.0)
    slopes = np.where(trusted[..., None], np.nan_to_num(found.slopes) / scale[..., None], 0.0)
    weights = 1 / (1 + (residuals / ROBUSTNESS) ** 2)
    scores = np.einsum("wsq,wsqp->wp", weights * residuals, slopes)
    return point, _Fit(np.sqrt(weights)[..., None] * slopes, scores)


def _solved(
    errors: Callable[[np.ndarray], _Errors],
    start: np.ndarray,
    trusted: np.ndarray,
    scale: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
) -> np.ndarray:
    """The point of least robust loss for a given scale of errors."""
    scales = np.broadcast_to(scale, trusted.shape)[trusted]
    prior = np.sqrt(WINDOW)  # each real step is predicted by that many windows
    latest: dict[bytes, tuple[np.ndarray, np.ndarray]] = {}

    def residuals(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        key = point.tobytes()
        if key not in latest:  # the solver asks for the slopes at a point that it has just tried
            found = errors(point)
            values = np.clip(found.values[trusted] / scales, -FAR, FAR)
            slopes = np.nan_to_num(found.slopes[trusted] / scales[:, None], posinf=0.0, neginf=0.0)
            latest.clear()
            latest[key] = (
                np.append(np.nan_to_num(values, nan=FAR), prior * point),
                np.append(slopes, prior * np.eye(point.size), axis=0),
            )
        return latest[key]

    return scipy.optimize.least_squares(
        lambda point: residuals(point)[0],
        start,
        lambda point: residuals(point)[1],  # pyright: ignore[reportArgumentType]
        bounds=(low, high),
        loss="cauchy",
        f_scale=ROBUSTNESS,
        ftol=1e-5,
        max_nfev=EVALUATIONS,
    ).x


def _noise(values: np.ndarray, trusted: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The robust standard deviation of the errors, for each step and quantity."""
    magnitudes = np.where(trusted, np.abs(values), np.nan)
    magnitudes[:, ~trusted.any(0)] = 0.0
    return np.maximum(1.4826 * np.nanmedian(magnitudes, axis=0), RESOLUTION * sizes)


# --- what the data tell


class _Directions(NamedTuple):
    """The combinations of parameters, in coordinates of the search, that the data do not tell."""

    without_effect: np.ndarray
    """one in each row; nothing that was predicted changes along them"""
    within_noise: np.ndarray
    """one in each row; what changes along them is less than the noise, or than the prior knows"""
    blurred: Any
    """which parameters they move"""
    standard_errors: np.ndarray
    """of the parameters, in their unit of search, as far as the data tell them"""


def _directions(fit: _Fit) -> _Directions:
    count = fit.scores.shape[1]
    slopes = fit.slopes.reshape(-1, count)
    _, strengths, basis = np.linalg.svd(slopes, full_matrices=False)
    scores = fit.scores @ basis.T / np.maximum(strengths, TINY) ** 2
    # neighbouring windows share their noise: their products count too, less the farther apart
    covariance = scores.T @ scores
    for lag in range(1, min(2 * WINDOW, len(scores))):
        product = (1 - lag / (2 * WINDOW)) * scores[lag:].T @ scores[:-lag]
        covariance += product + product.T
    alone = np.linalg.norm(basis * np.linalg.norm(slopes, axis=0), axis=1)
    without_effect = strengths <= CANCELLATION * alone
    within_noise = ~without_effect & (np.diag(covariance) > 1)
    told = ~(without_effect | within_noise)
    covariance = basis[told].T @ covariance[np.ix_(told, told)] @ basis[told]
    lost = _simple(basis[without_effect]), _simple(basis[within_noise])
    blurred = np.concatenate(lost).any(axis=0)
    return _Directions(*lost, blurred, np.sqrt(np.maximum(np.diag(covariance), 0)))


def _simple(directions: np.ndarray) -> np.ndarray:
    """The same space spanned by directions with few components, the largest of which is 1."""
    if not directions.size:
        return directions
    _, upper, order = scipy.linalg.qr(directions, pivoting=True)  # pyright: ignore
    rank = len(directions)
    simple = np.empty_like(directions)
    simple[:, order] = scipy.linalg.solve_triangular(upper[:, :rank], upper)
    simple /= np.abs(simple).max(1, keepdims=True)
    return np.where(np.abs(simple) > 0.1, simple, 0.0)


def _sentences(directions: _Directions, places: list[_Place], unit: np.ndarray) -> tuple[str, ...]:
    kinds = (
        (directions.without_effect, "change no prediction"),
        (directions.within_noise, "change predictions less than the noise"),
    )
    return tuple(
        _sentence(direction, places, unit, says) for rows, says in kinds for direction in rows
    )


def _sentence(direction: np.ndarray, places: list[_Place], unit: np.ndarray, says: str) -> str:
    moved = np.flatnonzero(direction)
    if moved.size == 1:
        return f"{places[moved[0]].name} alone {says.replace('change', 'changes', 1)}"
    direction = direction / np.abs(direction[moved]).min() * np.sign(direction[moved[0]])
    parts = [
        f"{places[index].name} {direction[index]:+.2g}%"
        if places[index].value > 0
        else f"{places[index].name} {0.01 * unit[index] * direction[index]:+.2g}"
        for index in moved
    ]
    return f"{', '.join(parts)} together {says}"


def _told(parameter: Parameter) -> str:
    before, after, error = parameter.before, parameter.after, parameter.standard_error
    if not np.isfinite(error):
        return f"{parameter.name} {before:.4g} → {after:.4g}"
    digits = np.clip(1 + np.floor(np.log10(abs(after) + TINY)) - np.floor(np.log10(error)), 2, 6)
    return f"{parameter.name} {before:.4g} → {after:.{digits:.0f}g} ± {error:.1g}"
