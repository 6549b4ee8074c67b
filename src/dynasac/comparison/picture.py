"""The learning curves of a comparison as one picture."""

import io
from pathlib import Path
from typing import Any

from ..checkpoint import write_bytes
from ..errors import UsageError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
"""of Okabe and Ito, which people of all kinds of colour vision can tell apart"""
MARKERS = ("o", "s", "^", "D", "v")
FAR_APART = 10
"""times by which budgets may differ before real steps are drawn on a logarithmic scale"""


def draw(content: dict[str, Any], path: Path) -> None:
    """Draw what comparison.json holds into a PNG.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("curves.png needs matplotlib: pip install 'dynasac[report]'") from None

    figure = Figure(figsize=(8, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    curves = {name: one["curve"] for name, one in content["agents"].items()}
    drawn = {name: curve for name, curve in curves.items() if curve["steps"]}
    for number, (name, curve) in enumerate(curves.items()):
        if name not in drawn:
            continue
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        axes.plot(
            curve["steps"],
            curve["iqm"],
            color=colour,
            marker=marker,
            markevery=max(1, len(curve["steps"]) // 10),
            markersize=5,
            label=_label(name, content["agents"][name]),
        )
        if None not in curve["low"]:
            axes.fill_between(
                curve["steps"], curve["low"], curve["high"], color=colour, alpha=0.2, linewidth=0
            )
    if content["optimum"] is not None:
        axes.axhline(
            content["optimum"], color="black", linestyle="--", linewidth=1, label="optimum"
        )
    if content["threshold"] is not None:
        label = f"threshold {content['threshold']:g}"
        axes.axhline(content["threshold"], color="grey", linestyle=":", linewidth=1.5, label=label)
    ends = [curve["steps"][-1] for curve in drawn.values()]
    if ends and max(ends) > FAR_APART * min(ends):
        first = min(step for curve in drawn.values() for step in curve["steps"] if step > 0)
        axes.set_xscale("symlog", linthresh=first)
        axes.set_xlim(left=0)
    axes.set_xlabel("real steps")
    axes.set_ylabel(f"mean return of {content['evaluation']['episodes']} fixed episodes")
    axes.set_title(
        f"{content['env_id']}: interquartile mean over seeds"
        + (", 95% intervals" if any(None not in one["low"] for one in drawn.values()) else ""),
        parse_math=False,
    )
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    write_bytes(path, image.getvalue())


def _label(name: str, agent: dict[str, Any]) -> str:
    seeds = sum(run["error"] is None for run in agent["runs"])
    return f"{name}, {seeds} seed{'' if seeds == 1 else 's'}"
