"""How often the intervals of comparisons hold the truth: the table of docs/compare.md.

`python -m benchmarks.coverage` simulates comparisons whose truth is known, and prints the share of
95% intervals that hold it, for each number of seeds. About three minutes.
"""

from collections.abc import Callable

import numpy as np

from dynasac.comparison import statistics

COMPARISONS = 2000
SEEDS = (2, 3, 5, 10, 20)

Returns = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
"""So many final returns, in an array of that shape."""


def normal(mean: float, spread: float = 1.0) -> Returns:
    return lambda rng, shape: rng.normal(mean, spread, shape)


def exponential(spread: float) -> Returns:
    return lambda rng, shape: -rng.exponential(spread, shape)


def student(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_t(3, shape)


def failing(share: float) -> Returns:
    """As on Pendulum-v1, where what was learned is good or nothing."""

    def returns(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        failed = rng.random(shape) < share
        return np.where(failed, rng.normal(-600, 150, shape), rng.normal(-140, 5, shape))

    return returns


ALONE = {
    "normal": normal(0),
    "exponential": exponential(1),
    "Student's t": student,
    "one in five fails": failing(0.2),
}
PAIRS = {
    **{f"normal, {shift} apart": (normal(shift), normal(0)) for shift in (0, 0.5, 1, 1.5, 2, 3)},
    "exponential, 1 and 3 wide": (exponential(1), exponential(3)),
    "exponential, 1 and 10 wide": (exponential(1), exponential(10)),
    "one in five fails, both": (failing(0.2), failing(0.2)),
    "none fails and one in five": (failing(0), failing(0.2)),
    "one in five fails and half": (failing(0.2), failing(0.5)),
    "normal, 1 apart, 1 and 5 wide": (normal(1), normal(0, 5)),
    "normal, 3 apart, 1 and 5 wide": (normal(3), normal(0, 5)),
}


def of_one(returns: Returns, statistic: Callable, seeds: int, truth: float) -> float:
    rng = np.random.default_rng(seeds)
    found = [
        statistics.estimate(values.tolist(), statistic)
        for values in returns(rng, (COMPARISONS, seeds))
    ]
    return held(found, truth)


def of_pair(ours: Returns, theirs: Returns, seeds: int, truth: float) -> float:
    rng = np.random.default_rng(seeds)
    pairs = zip(ours(rng, (COMPARISONS, seeds)), theirs(rng, (COMPARISONS, seeds)), strict=True)
    return held([statistics.improvement(x.tolist(), y.tolist()) for x, y in pairs], truth)


def held(found: list[statistics.Interval], truth: float) -> float:
    return float(np.mean([low <= truth <= high for _, low, high in found]))


def main() -> None:
    statistics.FEWEST_SEEDS = 2  # what comparisons themselves do not show
    rng = np.random.default_rng(0)
    print(f"{'seeds':44}" + "".join(f"{seeds:7}" for seeds in SEEDS))
    for statistic in (statistics.iqm, statistics.mean):
        for name, returns in ALONE.items():
            truth = float(statistic(returns(rng, (2_000_000,))))
            shares = [of_one(returns, statistic, seeds, truth) for seeds in SEEDS]
            show(f"{statistic.__name__}: {name}", shares)
    for name, (ours, theirs) in PAIRS.items():
        x, y = np.sort(ours(rng, (2_000_000,))), theirs(rng, (2_000_000,))
        truth = 1 - float(np.mean(np.searchsorted(x, y))) / len(x)
        shares = [of_pair(ours, theirs, seeds, truth) for seeds in SEEDS]
        show(f"improvement: {name} ({truth:.2f})", shares)


def show(name: str, shares: list[float]) -> None:
    print(f"{name:44}" + "".join(f"{share:7.3f}" for share in shares), flush=True)


if __name__ == "__main__":
    main()
