"""stable-baselines3's SAC on Pendulum-v1, with our planning callback and without.

Both learn from the same real steps with the same settings: the defaults of stable-baselines3's SAC
and the learning rate of rl-baselines3-zoo. They are measured before the first real episode and
after each, by the deterministic policy as it is, until it has been good three times in a row.
"""

import time

from dynasac import Pendulum, evaluation
from dynasac.integrations.sb3 import DynaCallback

from . import report

REGRET = 20.0
SEEDS = range(5)
MOST = 60
"""real episodes; a run that is not good by then counts as if it were"""
IN_A_ROW = 3
"""measurements for "and stays there": at that episode and the next two"""
LEARNING_RATE = 1e-3
EPISODE = 200
"""steps"""


def run(quick: bool) -> dict:
    seeds, most = (SEEDS[:1], 1) if quick else (SEEDS, MOST)
    runs: dict[str, list[dict]] = {"planning": [], "without": []}
    for seed in seeds:
        for name in runs:
            callback = DynaCallback(Pendulum()) if name == "planning" else None
            runs[name].append(one(seed, most, callback))
            last = runs[name][-1]
            print(
                f"  {name}, seed {seed}: {last['episodes']} episodes, {last['seconds']:.0f} s",
                flush=True,
            )
    needed = {
        name: {
            kind: report.mean_interval([one[kind] for one in group])
            for kind in ("episodes", "episodes_stays", "seconds_to_regret")
        }
        for name, group in runs.items()
    }
    targets = []
    for kind, words in (("episodes", ""), ("episodes_stays", " and staying there")):
        ours, theirs = (needed[name][kind]["mean"] for name in ("planning", "without"))
        what = f"real episodes to a regret of {REGRET:g}{words}, {ours:.1f} against {theirs:.1f}"
        targets.append(report.target(f"{what}: share", ours / theirs, 0.5, 0.2, higher=False))
    worst = max(one["episodes"] for one in runs["planning"])
    targets.append(report.target("worst seed with planning", worst, None, 5, higher=False))
    return {
        "regret": REGRET,
        "most_episodes": most,
        "settings": {"learning_rate": LEARNING_RATE},
        "runs": runs,
        "needed": needed,
        "targets": targets,
    }


def one(seed: int, most: int, callback: DynaCallback | None) -> dict:
    """Train one agent until it is good, measuring it after each real episode."""
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.callbacks import BaseCallback

    from .seed_recipe import mean_return

    torch.set_num_threads(1)
    optimum = evaluation.OPTIMAL_RETURN["Pendulum-v1"]

    class Measure(BaseCallback):
        """Stops the clock while it measures, and the training when it has seen enough."""

        def __init__(self):
            super().__init__()
            self.regrets: list[float] = []
            self.seconds: list[float] = []
            self._since = time.perf_counter()

        def _on_training_start(self) -> None:
            self._measure()

        def _on_rollout_end(self) -> None:
            if self.num_timesteps % EPISODE == 0:
                self._measure()

        def _on_step(self) -> bool:
            return not stays(self.regrets)

        def _measure(self) -> None:
            before = self.seconds[-1] if self.seconds else 0.0
            self.seconds.append(before + time.perf_counter() - self._since)
            self.regrets.append(optimum - mean_return(self.model))
            self._since = time.perf_counter()

    agent = SAC("MlpPolicy", "Pendulum-v1", learning_rate=LEARNING_RATE, seed=seed, device="cpu")
    measure = Measure()
    agent.learn(EPISODE * most, callback=[callback, measure] if callback else measure)
    first = next((i for i, regret in enumerate(measure.regrets) if regret <= REGRET), None)
    return {
        "seed": seed,
        "reached": first is not None,
        "episodes": most if first is None else first,
        "stays": stays(measure.regrets),
        "episodes_stays": len(measure.regrets) - IN_A_ROW if stays(measure.regrets) else most,
        "seconds": measure.seconds[-1],
        "seconds_to_regret": measure.seconds[-1 if first is None else first],
        "gradient_updates": agent._n_updates,
        "synthetic_transitions": callback.synthetic_transitions if callback else 0,
        "regrets": measure.regrets,
    }


def stays(regrets: list[float]) -> bool:
    """Whether the last measurements are all good."""
    last = regrets[-IN_A_ROW:]
    return len(last) == IN_A_ROW and max(last) <= REGRET
