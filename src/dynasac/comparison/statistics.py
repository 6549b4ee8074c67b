"""What several seeds say: interquartile means, bootstrap intervals, probabilities of improvement.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
GRID = 101
"""points of an aggregated curve at most"""


class Interval(NamedTuple):
    """An estimate with its 95% percentile bootstrap interval over seeds.

    With a single seed there is no interval: both ends are None.
    """

    value: float
    low: float | None
    high: float | None


class Curve(NamedTuple):
    """The interquartile mean of the return, and its interval, after so many real steps."""

    steps: list[int]
    iqm: list[float]
    low: list[float | None]
    high: list[float | None]


class Learning(NamedTuple):
    """The learning curve of one run: `returns[i]` after `steps[i]` real steps, which ascend."""

    steps: Sequence[int]
    returns: Sequence[float]


def iqm(values: np.ndarray, axis: int = -1) -> Any:
    """The mean of the middle half; of less than four values, of all of them."""
    from scipy.stats import trim_mean

    return trim_mean(values, 0.25, axis=axis)


def mean(values: np.ndarray, axis: int = -1) -> Any:
    return np.mean(values, axis=axis)


def estimate(values: Sequence[float], statistic: Callable[..., Any]) -> Interval:
    """A statistic of one value for each seed."""
    found = np.asarray(values, float)
    low, high = _bootstrap((found,), statistic)
    return Interval(float(statistic(found)), low, high)


def improvement(better: Sequence[float], than: Sequence[float]) -> Interval:
    """P(X > Y) + P(X = Y) / 2, X and Y the values of two agents with seeds of their own."""
    x, y = np.asarray(better, float), np.asarray(than, float)
    low, high = _bootstrap((x, y), _wins)
    return Interval(float(_wins(x, y)), low, high)


def _wins(x: np.ndarray, y: np.ndarray, axis: int = -1) -> Any:
    x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
    return np.mean((x > y) + 0.5 * (x == y), axis=(-2, -1))


def curve(runs: Sequence[Learning]) -> Curve:
    """Several runs on one grid of real steps, each run's last evaluation carried forward."""
    steps = grid(runs)
    values = np.stack([carried_forward(run, steps) for run in runs], axis=-1)
    centre = [float(value) for value in iqm(values)]
    if len(runs) == 1:
        return Curve(steps, centre, [None] * len(steps), [None] * len(steps))
    low, high = _ends((values,), iqm)
    return Curve(steps, centre, [float(value) for value in low], [float(value) for value in high])


def grid(runs: Sequence[Learning]) -> list[int]:
    """The steps at which any run was evaluated; as many evenly spread ones if they are too many."""
    union = np.unique(np.concatenate([np.asarray(run.steps, int) for run in runs]))
    if len(union) > GRID:
        union = np.unique(np.linspace(union[0], union[-1], GRID).round().astype(int))
    return [int(step) for step in union]


def carried_forward(run: Learning, steps: Sequence[int]) -> np.ndarray:
    """The return of the last evaluation at or before each of `steps`; before any, of the first."""
    last = np.searchsorted(run.steps, steps, side="right") - 1
    return np.asarray(run.returns, float)[np.maximum(last, 0)]


def steps_to(threshold: float, run: Learning) -> int | None:
    """The real steps after which an evaluation first reached the threshold, if one did."""
    reached = [s for s, value in zip(run.steps, run.returns, strict=True) if value >= threshold]
    return reached[0] if reached else None


def median(values: Sequence[float | int | None]) -> float | None:
    """The median, where None is beyond all numbers; None if that is the median."""
    if not values:
        return None
    middle = np.median([np.inf if value is None else value for value in values])
    return float(middle) if np.isfinite(middle) else None


def _bootstrap(
    samples: tuple[np.ndarray, ...], statistic: Callable[..., Any]
) -> tuple[float | None, float | None]:
    if min(len(sample) for sample in samples) < 2:
        return None, None
    low, high = _ends(samples, statistic)
    return float(low), float(high)


def _ends(samples: tuple[np.ndarray, ...], statistic: Callable[..., Any]) -> tuple[Any, Any]:
    """Along the last axis; the same numbers for the same samples."""
    from scipy.stats import bootstrap

    interval = bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        method="percentile",
        axis=-1,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high
