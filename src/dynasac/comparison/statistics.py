"""What several seeds say: interquartile means, probabilities of improvement, and their intervals.

After Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice";
docs/compare.md says how often the intervals hold the truth with how many seeds.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 2000
FEWEST_SEEDS = 5
"""from which on there are intervals; those of fewer miss the truth far too often"""
GRID = 101
"""points of an aggregated curve at most"""


class Interval(NamedTuple):
    """An estimate with its 95% interval over seeds; both ends are None with too few of them."""

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
    """A statistic of one value for each seed, with its percentile bootstrap interval."""
    found = np.asarray(values, float)
    value = float(statistic(found))
    if len(found) < FEWEST_SEEDS:
        return Interval(value, None, None)
    low, high = _ends(found, statistic)
    return Interval(value, float(low), float(high))


def improvement(better: Sequence[float], than: Sequence[float]) -> Interval:
    """P(X > Y) + P(X = Y) / 2, X and Y the values of two agents with seeds of their own.

    The interval is Newcombe's for the Mann-Whitney statistic (2006, "Confidence intervals for an
    effect size measure based on the Mann-Whitney statistic. Part 2", method 5): like Wilson's for a
    proportion it does not shrink to nothing where every run of one is better than all of the other.
    """
    x, y = np.asarray(better, float)[:, None], np.asarray(than, float)
    probability = float(np.mean((x > y) + 0.5 * (x == y)))
    if min(len(x), len(y)) < FEWEST_SEEDS:
        return Interval(probability, None, None)
    return Interval(probability, *_score_ends(probability, len(x), len(y)))


def _score_ends(probability: float, m: int, n: int) -> tuple[float, float]:
    """Between them lie the probabilities that are 1.96 of their own standard errors away."""
    from scipy.optimize import root_scalar

    def excess(p: float) -> float:
        alike = (m + n) / 2 - 1
        variance = p * (1 - p) * (1 + alike * ((1 - p) / (2 - p) + p / (1 + p))) / (m * n)
        return (probability - p) ** 2 - 1.96**2 * variance

    near = 1e-9  # at 0 and at 1 the estimate itself is a root too
    below, above = (0.0, probability - near), (probability + near, 1.0)
    low = root_scalar(excess, bracket=below).root if probability > 0 else 0.0
    high = root_scalar(excess, bracket=above).root if probability < 1 else 1.0
    return low, high


def curve(runs: Sequence[Learning]) -> Curve:
    """Several runs on one grid of real steps, each run's last evaluation carried forward."""
    steps = grid(runs)
    values = np.stack([carried_forward(run, steps) for run in runs], axis=-1)
    centre = [float(value) for value in iqm(values)]
    if len(runs) < FEWEST_SEEDS:
        return Curve(steps, centre, [None] * len(steps), [None] * len(steps))
    low, high = _ends(values, iqm)
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


def _ends(values: np.ndarray, statistic: Callable[..., Any]) -> tuple[Any, Any]:
    """Of the bootstrap interval along the last axis; the same numbers for the same values."""
    from scipy.stats import bootstrap

    interval = bootstrap(
        (values,),
        statistic,
        n_resamples=RESAMPLES,
        method="percentile",
        axis=-1,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return interval.low, interval.high
