"""What policies are worth that were trained on the exact model without one real step."""

import dataclasses
import time

from dynasac import DynaSAC, evaluation, presets

from . import report

SEEDS = range(10)


def run(quick: bool) -> dict:
    seeds = SEEDS[:2] if quick else SEEDS
    config = presets.DEFAULT
    if quick:
        planning = dataclasses.replace(config.planning, first_updates=100)
        config = dataclasses.replace(config, planning=planning)
    pendulum = trained("Pendulum-v1", config, seeds, lookaheads=(0, 1))
    mountain = trained("MountainCarContinuous-v0", config, seeds, lookaheads=(0,))
    regret, ahead = pendulum["regret"]["raw"], pendulum["lookahead_regret"]["raw"]
    returns = mountain["return"]["raw"]

    def mean(values):
        return sum(values) / len(values)

    targets = [
        report.target("Pendulum-v1 regret, worst seed", max(regret), 12, 5, higher=False),
        report.target("Pendulum-v1 regret, mean", mean(regret), 7, 3, higher=False),
        report.target("… with lookahead 1, worst seed", max(ahead), 6, 2, higher=False),
        report.target("… with lookahead 1, mean", mean(ahead), 4, 1, higher=False),
        report.target("MountainCarContinuous-v0 return, worst seed", min(returns), 94, 94, True),
        report.target("MountainCarContinuous-v0 return, mean", mean(returns), 95.5, 97.5, True),
    ]
    return {
        "seeds": list(seeds),
        "settings": dataclasses.asdict(config),
        "tasks": {"Pendulum-v1": pendulum, "MountainCarContinuous-v0": mountain},
        "targets": targets,
    }


def trained(env_id: str, config: presets.Config, seeds: range, lookaheads: tuple[int, ...]) -> dict:
    """Train with each seed, measure each policy; returns, regrets and seconds of training."""
    returns: dict[int, list[float]] = {lookahead: [] for lookahead in lookaheads}
    seconds = []
    for seed in seeds:
        started = time.perf_counter()
        agent = DynaSAC(env_id, config=config, seed=seed).learn(real_episodes=0)
        seconds.append(round(time.perf_counter() - started, 2))
        for lookahead in lookaheads:
            mean = agent.evaluate(100, lookahead=lookahead).mean_return
            returns[lookahead].append(mean)
        shown = ", ".join(f"{values[-1]:.2f}" for values in returns.values())
        print(f"  {env_id} seed {seed}: return {shown}", flush=True)
    found: dict = {"seconds_of_training": seconds}
    for lookahead, values in returns.items():
        name = "lookahead_" if lookahead else ""
        found[f"{name}return"] = report.mean_interval(values)
        regrets = [evaluation.OPTIMAL_RETURN[env_id] - value for value in values]
        found[f"{name}regret"] = report.mean_interval(regrets)
    return found
