"""Charts of a run and of a comparison: Plotly's JSON, and the same in words and in a table.

Colours are names of CSS variables, which `charts.js` looks up, so that charts follow the page from
light to dark.
"""

import itertools
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ..adapt.ladder import NAMES
from .directories import ComparisonData, Json, RunData, listing, mapping, number, numbers, text
from .phase import PhaseMap, unbroken
from .words import count, duration, in_chart, isolated, labels, told

SERIES = 6
"""colours that can be told apart; `style.css` has them"""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
INK, MUTED, SURFACE = "var(--ink)", "var(--muted)", "var(--surface)"
LEAST_ROWS = 2
"""points that make a curve"""
TAGS, WORDS = 12, 3000
"""bytes of the HTML of a table's cell, and of what stands around a figure"""


@dataclass(frozen=True)
class Table:
    """A table of a page; the first column has the names of the rows."""

    kind: ClassVar[str] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A chart, what it shows in words, and its numbers."""

    kind: ClassVar[str] = "figure"
    name: str
    """that no other figure of the page has"""
    title: str
    says: str
    """what is to be seen, with the numbers"""
    data: list[Json]
    layout: Json
    table: Table
    height: int = 340

    @property
    def weight(self) -> int:
        """About how many bytes of a page it takes."""
        drawn = json.dumps([self.data, self.layout, self.says, self.table.note])
        cells = [len(cell) + TAGS for row in self.table.rows for cell in row]
        return len(drawn) + sum(cells) + WORDS


TEMPLATE: Json = {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--ink)"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
    "dragmode": False,
    "hovermode": "closest",
    "hoverlabel": {
        "bgcolor": SURFACE,
        "bordercolor": "var(--line)",
        "font": {"color": INK, "size": 13},
        "align": "left",
    },
    "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"color": INK}},
    "colorway": [f"var(--series-{k})" for k in range(1, SERIES + 1)],
}
"""what all charts have in common"""


def axis(title: str = "", **more: Any) -> Json:
    return {
        "title": {"text": title, "standoff": 14, "font": {"color": MUTED, "size": 13}},
        "automargin": True,
        "gridcolor": "var(--grid)",
        "linecolor": "var(--line)",
        "zeroline": False,
        "tickfont": {"color": MUTED, "size": 12},
        "fixedrange": True,
        **more,
    }


def colour(index: int) -> str:
    return f"var(--series-{index % SERIES + 1})"


def faint(index: int) -> str:
    """The colour of a series, for the band around it."""
    return f"var(--band-{index % SERIES + 1})"


def curve(name: str, x: Sequence, y: Sequence, index: int, **more: Any) -> Json:
    """A line that colour, dashes and symbols tell from the others."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour(index), "width": 2, "dash": DASHES[index % len(DASHES)]},
        "marker": {"color": colour(index), "size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
        "hovertemplate": "%{y:.4~g}<extra>%{fullData.name}</extra>",
        **more,
    }


def level(value: float, label: str, above: bool = True) -> tuple[Json, Json]:
    """A dashed line across the chart, and what it says: a shape and an annotation."""
    line = {"color": MUTED, "width": 1.5, "dash": "dash"}
    shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
    said = {
        "xref": "paper",
        "x": 1,
        "xanchor": "right",
        "y": value,
        "yanchor": "bottom" if above else "top",
        "yshift": 2 if above else -2,
        "text": label,
        "showarrow": False,
        "font": {"color": MUTED, "size": 12},
    }
    return {**shape, "line": line}, said


def learning_curve(name: str, run: RunData, optimum: float | None) -> Figure | None:
    """Mean return of the evaluations over real episodes."""
    points = [
        (row, episodes, steps, value)
        for row, episodes, steps, value in zip(
            run.rows,
            run.column("real_episodes"),
            run.column("real_steps"),
            run.column("eval_mean_return"),
            strict=True,
        )
        if value is not None and episodes is not None
    ]
    if len(points) < LEAST_ROWS:
        return None
    _, first, _, before = points[0]
    _, last, _, after = points[-1]
    says = (
        f"Mean return of the deterministic policy over the fixed evaluation episodes: "
        f"{told(before)} after {count(first, 'real episode')}, {told(after)} after "
        f"{count(last, 'real episode')}."
    )
    episodes = [point[1] for point in points]
    data = [
        curve(
            "policy",
            episodes,
            [point[3] for point in points],
            0,
            showlegend=False,
            customdata=[point[2] for point in points],
            hovertemplate="mean return %{y:.2f}<br>after %{x} real episodes, "
            "%{customdata:,} steps<extra></extra>",
        )
    ]
    layout: Json = {
        "xaxis": axis("real episodes", **whole(episodes)),
        "yaxis": axis("return"),
    }
    if optimum is not None:
        shape, said = level(optimum, f"optimum {told(optimum)}")
        layout |= {"shapes": [shape], "annotations": [said]}
        data.append(invisible(episodes[0], optimum))
        says += f" The optimum, by dynamic programming, is {told(optimum)}."
    rows = tuple(
        (
            told(e),
            told(steps),
            told(value),
            told(number(row.get("eval_regret"))),
            told(number(row.get("train_return"))),
        )
        for row, e, steps, value in points
    )
    columns = ("real episodes", "real steps", "mean return", "regret", "return of the real episode")
    title = "Learning curve"
    return Figure(name, title, says, data, layout, Table(title, columns, rows))


def whole(values: Sequence[float]) -> Json:
    """Ticks at whole numbers alone, where there are few of them."""
    return {"dtick": 1} if max(values) - min(values) <= 12 else {}


def invisible(x: float, y: float) -> Json:
    """A point that only makes sure that the axes reach it."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [x],
        "y": [y],
        "marker": {"opacity": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }


RUNGS = ("exact", "identified", "residual", "ensemble")
SMALLEST_ERROR = 1e-4
"""that a logarithmic axis shows: smaller ones are drawn there"""


def model_error(name: str, run: RunData) -> Figure | None:
    """Error of the model at each rung that was tried, by real episode."""
    episodes = run.column("real_episodes")
    data, tried = [], []
    for index, rung in enumerate(RUNGS):
        column = run.column(f"error_{rung}")
        points = [
            (e, value)
            for e, value in zip(episodes, column, strict=True)
            if e is not None and value is not None
        ]
        if points:
            tried.append(f"{NAMES[rung]} {told(100 * points[-1][1], 2)}%")
            data.append(
                curve(
                    NAMES[rung],
                    [e for e, _ in points],
                    [max(100 * value, 100 * SMALLEST_ERROR) for _, value in points],
                    index,
                    customdata=[100 * value for _, value in points],
                    hovertemplate="%{customdata:.3~g}%<extra>%{fullData.name}</extra>",
                )
            )
    if not data:
        return None
    rungs = [text(row.get("adapt_rung")) for row in run.rows]
    used = [rung for rung in rungs if rung]
    says = (
        "Error of one step ahead, on real transitions that the model was not fitted to, as a share "
        f"of how much they move. After the last real episode: {', '.join(tried)}."
    )
    if used:
        says += f" Planned with: {NAMES.get(used[-1], isolated(used[-1]))}."
    known = [e for e in episodes if e is not None]
    rows = tuple(
        (
            told(e),
            *(percent(number(row.get(f"error_{rung}"))) for rung in RUNGS),
            percent(number(row.get("model_error"))),
            isolated(rung) if rung else "–",
        )
        for e, row, rung in zip(episodes, run.rows, rungs, strict=True)
    )
    title = "Model error by real episode"
    layout = {
        "xaxis": axis("real episodes", **whole(known)),
        "yaxis": axis("error, %", type="log", dtick=1, tickformat=",.3~f"),
    }
    columns = ("real episodes", *RUNGS, "model used", "rung")
    return Figure(name, title, says, data, layout, Table(title, columns, rows))


def percent(share: float | None) -> str:
    return "–" if share is None else f"{told(100 * share, 2)}%"


@dataclass(frozen=True)
class Identified:
    """A parameter before and after it was fitted."""

    name: str
    before: float
    after: float
    margin: float | None
    """1.96 standard errors; None where the data do not tell it apart"""


def identified(run: RunData) -> list[Identified]:
    """What summary.json says of them."""
    found = []
    for item in listing(mapping(run.summary.get("model")).get("identified")):
        before, after = number(item.get("before")), number(item.get("after"))
        error = number(item.get("standard_error"))
        if before is not None and after is not None:
            margin = None if error is None else 1.96 * error
            found.append(Identified(text(item.get("name")), before, after, margin))
    return found


def parameters(name: str, found: list[Identified]) -> Figure | None:
    """Each parameter as a share of what it was before, with its interval."""
    shown = [p for p in found if p.before]
    if not shown:
        return None

    def share(p: Identified, value: float) -> float:
        return 100 * value / p.before

    known = [p for p in shown if p.margin is not None]
    apart = [p for p in shown if p.margin is None]
    data: list[Json] = []
    if known:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "fitted, 95% interval",
                "x": [share(p, p.after) for p in known],
                "y": [in_chart(p.name) for p in known],
                "error_x": {
                    "type": "data",
                    "array": [abs(share(p, p.margin or 0.0)) for p in known],
                    "color": colour(0),
                    "thickness": 2,
                    "width": 6,
                },
                "marker": {"color": colour(0), "size": 10},
                "hovertemplate": "%{y}: %{x:.2f}% of what was given<extra></extra>",
            }
        )
    if apart:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "not told apart by the data",
                "x": [share(p, p.after) for p in apart],
                "y": [in_chart(p.name) for p in apart],
                "marker": {"color": colour(1), "size": 11, "symbol": "diamond-open"},
                "hovertemplate": "%{y}: %{x:.2f}% of what was given; not told apart<extra></extra>",
            }
        )
    said = ", ".join(
        f"{isolated(p.name)} {told(p.before)} → {told(p.after)}"
        + (" (not told apart by the data)" if p.margin is None else f" {_margin(p.margin)}")
        for p in shown
    )
    title = "Fitted parameters, relative to the model as given"
    rule = {"type": "line", "yref": "paper", "x0": 100, "x1": 100, "y0": 0, "y1": 1}
    return Figure(
        name,
        title,
        f"The dashed line is each parameter as given. {said}.",
        data,
        {
            "xaxis": axis("% of the value given"),
            "yaxis": axis(autorange="reversed", type="category"),
            "shapes": [{**rule, "line": {"color": MUTED, "width": 1.5, "dash": "dash"}}],
        },
        identified_table(found),
        height=120 + 44 * len(shown),
    )


def identified_table(found: list[Identified]) -> Table:
    return Table(
        "Identified parameters, in the model's own units",
        ("parameter", "given", "fitted", "± 1.96 standard errors"),
        tuple(
            (
                isolated(p.name),
                told(p.before),
                told(p.after),
                "not told apart by the data" if p.margin is None else _margin(p.margin),
            )
            for p in found
        ),
    )


def _margin(value: float) -> str:
    return f"± {value:.2g}".replace("-", "−")


def transition_counts(name: str, run: RunData) -> Figure | None:
    """Real, logged and synthetic transitions that were learned from."""
    kinds = {
        "real": run.last("real_steps"),
        "logged": run.last("logged_transitions"),
        "synthetic": run.last("synthetic_transitions"),
    }
    shown = {kind: value for kind, value in kinds.items() if value or kind == "real"}
    if not any(shown.values()):
        return None
    kind_names = list(shown)
    values = [value or 0.0 for value in shown.values()]
    real = kinds["real"] or 0.0
    made = kinds["synthetic"] or 0.0
    says = f"Learned from {count(real, 'real transition')}"
    if kinds["logged"]:
        says += f", {told(kinds['logged'])} logged ones"
    says += f" and {told(made)} synthetic ones"
    says += f": {told(made / real, 0)} for each real one." if real and made else "."
    says += " The scale is logarithmic."
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": kind_names,
            "x": [max(value, 1.0) for value in values],
            "text": [told(value) for value in values],
            "textposition": ["inside" if value > 1e3 else "outside" for value in values],
            "insidetextfont": {"color": SURFACE},
            "outsidetextfont": {"color": INK},
            "marker": {"color": [colour(k) for k in range(len(kind_names))]},
            "cliponaxis": False,
            "hovertemplate": "%{y}: %{text}<extra></extra>",
            "showlegend": False,
        }
    ]
    top = float(np.log10(max(max(values), 10)))
    layout = {
        "xaxis": axis("transitions", type="log", range=[0, top * 1.12], tickformat="~s", nticks=6),
        "yaxis": axis(autorange="reversed", showgrid=False),
        "bargap": 0.35,
    }
    columns = ("real episodes", "real steps", "synthetic transitions", "gradient updates")
    names = ("real_episodes", "real_steps", "synthetic_transitions", "gradient_updates")
    rows = tuple(tuple(told(number(row.get(n))) for n in names) for row in run.rows)
    title = "Real and synthetic data"
    table = Table(f"{title}, sums after each real episode", columns, rows)
    return Figure(name, title, says, data, layout, table, height=120 + 48 * len(kind_names))


def time_spent(name: str, run: RunData) -> Figure | None:
    """Seconds of each phase."""
    phases = {
        "collecting": "collect_seconds",
        "adapting": "adapt_seconds",
        "planning": "plan_seconds",
        "evaluating": "evaluate_seconds",
    }
    spent = {phase: run.last(column) for phase, column in phases.items()}
    known = {phase: seconds for phase, seconds in spent.items() if seconds is not None}
    total = run.last("wall_seconds")
    if number(run.summary.get("wall_seconds")) is not None:
        total = number(run.summary.get("wall_seconds"))
    if not known or not total:
        return None
    known["other"] = max(0.0, total - sum(known.values()))
    compiling = number(run.summary.get("compile_seconds"))
    shares = ", ".join(f"{phase} {duration(seconds)}" for phase, seconds in known.items())
    says = f"{duration(total)} in all: {shares}."
    if compiling is not None:
        says += f" {duration(compiling)} of them went into compiling."
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "y": list(known),
            "x": list(known.values()),
            "text": [duration(seconds) for seconds in known.values()],
            "textposition": [
                "inside" if seconds > 0.4 * max(known.values()) else "outside"
                for seconds in known.values()
            ],
            "insidetextfont": {"color": SURFACE},
            "outsidetextfont": {"color": INK},
            "marker": {"color": colour(0)},
            "cliponaxis": False,
            "hovertemplate": "%{y}: %{text}<extra></extra>",
            "showlegend": False,
        }
    ]
    layout = {
        "xaxis": axis("seconds", range=[0, 1.15 * max(known.values())]),
        "yaxis": axis(autorange="reversed", showgrid=False),
        "bargap": 0.35,
    }
    rows = [
        (phase, duration(seconds), percent(seconds / total)) for phase, seconds in known.items()
    ]
    if compiling is not None:
        rows.append(("compiling, within these", duration(compiling), percent(compiling / total)))
    title = "Where the time went"
    table = Table(title, ("phase", "time", "share"), tuple(rows))
    return Figure(name, title, says, data, layout, table, height=120 + 40 * len(known))


LEARNER = {
    "critic_loss": "critic loss",
    "actor_loss": "actor loss",
    "q_value": "mean Q value",
    "entropy": "entropy, nats",
    "temperature": "temperature α",
}


def learner(name: str, run: RunData) -> Figure | None:
    """Losses, values, entropy and temperature by real episode, one below another."""
    episodes = run.column("real_episodes")
    shown = {}
    for column, label in LEARNER.items():
        points = [
            (e, value)
            for e, value in zip(episodes, run.column(column), strict=True)
            if e is not None and value is not None
        ]
        if len(points) >= LEAST_ROWS:
            shown[label] = points
    if not shown:
        return None
    data, layout = [], {}
    gap, rows = 0.09, len(shown)
    each = (1 - gap * (rows - 1)) / rows
    notes = []
    for index, (label, points) in enumerate(shown.items()):
        number_ = "" if index == 0 else str(index + 1)
        top = 1 - index * (each + gap)
        layout[f"yaxis{number_}"] = axis(domain=[max(0.0, top - each), top], nticks=4)
        x, y = [e for e, _ in points], [value for _, value in points]
        data.append(curve(label, x, y, 0, yaxis=f"y{number_}", showlegend=False))
        notes.append(
            {
                "xref": "paper",
                "yref": "paper",
                "x": 0,
                "y": top,
                "yanchor": "bottom",
                "xanchor": "left",
                "text": label,
                "showarrow": False,
                "font": {"color": INK, "size": 13},
            }
        )
    known = [e for e in episodes if e is not None]
    layout["xaxis"] = axis("real episodes", anchor=f"y{rows if rows > 1 else ''}", **whole(known))
    layout |= {"annotations": notes, "margin": {"l": 56, "r": 12, "t": 28, "b": 48}}
    says = (
        "At the end of planning after each real episode, in the learner's unit of reward; from the "
        "first to the last: "
        + ", ".join(
            f"{label} {told(points[0][1])} → {told(points[-1][1])}"
            for label, points in shown.items()
        )
        + "."
    )
    columns = ("real episodes", *LEARNER.values())
    table = tuple(
        (told(e), *(told(number(row.get(column))) for column in LEARNER))
        for e, row in zip(episodes, run.rows, strict=True)
    )
    title = "Losses, values, entropy and temperature"
    return Figure(
        name, title, says, data, layout, Table(title, columns, table), height=90 + 118 * rows
    )


def returns(name: str, run: RunData, optimum: float | None) -> Figure | None:
    """How the returns of the last evaluation are spread."""
    found = numbers(run.evaluation.get("returns"))
    if len(found) < LEAST_ROWS:
        return None
    counts, edges = np.histogram(found, bins=min(24, max(5, len(found) // 4)))
    mean, median = float(np.mean(found)), float(np.median(found))
    says = (
        f"Returns of {count(len(found), 'evaluation episode')}: mean {told(mean)}, median "
        f"{told(median)}, from {told(min(found))} to {told(max(found))}."
    )
    bins = [f"{told(a)} to {told(b)}" for a, b in itertools.pairwise(edges)]
    data = [
        {
            "type": "bar",
            "x": ((edges[:-1] + edges[1:]) / 2).tolist(),
            "y": counts.tolist(),
            "width": np.diff(edges).tolist(),
            "text": bins,
            "textposition": "none",
            "marker": {"color": colour(0), "line": {"color": SURFACE, "width": 1}},
            "hovertemplate": "%{y} episodes with %{text}<extra></extra>",
            "showlegend": False,
        }
    ]
    lines = {f"mean {told(mean)}": (mean, INK)}
    if optimum is not None:
        lines[f"optimum's mean {told(optimum)}"] = (optimum, MUTED)
        says += f" The optimal policy's mean over the same starts is {told(optimum)}."
    for index, (label, (at, ink)) in enumerate(lines.items()):
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": [at, at],
                "y": [0, int(counts.max())],
                "line": {"color": ink, "width": 2, "dash": DASHES[index]},
                "hoverinfo": "name",
            }
        )
    layout = {"xaxis": axis("return"), "yaxis": axis("episodes"), "bargap": 0}
    title = "Returns of the last evaluation"
    rows = tuple((b, told(int(c))) for b, c in zip(bins, counts, strict=True))
    return Figure(name, title, says, data, layout, Table(title, ("return", "episodes"), rows))


TABLE_POINTS = 7
"""of a map's grid, along each axis, that its table has"""


def policy_map(name: str, plane: PhaseMap) -> Figure:
    """The action in each state, with the paths of a few episodes."""
    low, high = plane.bounds
    share = float((plane.action > (low + high) / 2).mean())
    which = "the action" if plane.actions == 1 else "component 0 of the action"
    says = (
        f"Colour is {which} that the policy takes in each state, from {told(low)} to {told(high)}; "
        f"it is above the middle in {share:.0%} of the plane. {_told_paths(plane)}"
    )
    scale = [[0, "var(--low)"], [0.5, "var(--middle)"], [1, "var(--high)"]]
    label = "action" if plane.actions == 1 else "action[0]"
    return _map(
        name,
        "Policy: the action in each state",
        says,
        plane,
        plane.action,
        scale,
        label,
        (low, high),
    )


def value_map(name: str, plane: PhaseMap) -> Figure:
    """The return that the critics expect from each state, with the same paths."""
    row, column = np.unravel_index(np.argmax(plane.value), plane.value.shape)
    best = ", ".join(
        f"{isolated(n)} {told(float(axis_[k]), 2)}"
        for n, axis_, k in zip(plane.names, plane.axes, (column, row), strict=True)
    )
    says = (
        "Colour is the return that the critics expect of the policy from each state, discounted by "
        f"{plane.discount:.4g} a step: from {told(float(plane.value.min()))} to "
        f"{told(float(plane.value.max()))}, the highest at {best}. Lines are the same episodes."
    )
    scale = [[k / 4, f"var(--value-{k + 1})"] for k in range(5)]
    return _map(
        name,
        "Value: the return expected from each state",
        says,
        plane,
        plane.value,
        scale,
        "value",
        None,
    )


def _map(
    name: str,
    title: str,
    says: str,
    plane: PhaseMap,
    z: np.ndarray,
    scale: list,
    label: str,
    bounds: tuple[float, float] | None,
) -> Figure:
    x, y = plane.axes
    across, up = (in_chart(n) for n in plane.names)
    heat: Json = {
        "type": "heatmap",
        "x": _short(x),
        "y": _short(y),
        "z": [_short(row) for row in z],
        "zsmooth": "best",
        "colorscale": scale,
        "colorbar": {
            "orientation": "h",
            "y": 1.02,
            "yanchor": "bottom",
            "thickness": 10,
            "len": 1,
            "outlinewidth": 0,
            "tickfont": {"color": MUTED, "size": 12},
            "ypad": 4,
            "xpad": 0,
        },
        "hovertemplate": f"{across} %{{x:.3~g}}<br>{up} %{{y:.3~g}}<br>"
        f"{label} %{{z:.3~g}}<extra></extra>",
    }
    if bounds:
        heat |= {"zmin": bounds[0], "zmax": bounds[1]}
    data = [heat]
    for path in plane.paths:
        line = unbroken(path.states, plane.axes)
        points = [[_round(value) for value in column] for column in line.T]
        common = {
            "type": "scatter",
            "mode": "lines",
            "x": points[0],
            "y": points[1],
            "hoverinfo": "skip",
            "showlegend": False,
        }
        data.append({**common, "line": {"color": SURFACE, "width": 4}, "opacity": 0.7})
        data.append({**common, "line": {"color": INK, "width": 1.6}})
    starts = np.array([path.states[0] for path in plane.paths])
    ends = np.array([path.states[-1] for path in plane.paths])
    for points, symbol, what in ((starts, "circle", "start"), (ends, "square-open", "end")):
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": _short(points[:, 0]),
                "y": _short(points[:, 1]),
                "text": [
                    f"{what} of the episode from seed {path.seed}, return {told(path.total)}"
                    for path in plane.paths
                ],
                "marker": {
                    "symbol": symbol,
                    "size": 9,
                    "color": INK,
                    "line": {"color": SURFACE if symbol == "circle" else INK, "width": 1.5},
                },
                "hovertemplate": "%{text}<extra></extra>",
                "showlegend": False,
            }
        )
    layout = {
        "xaxis": axis(across, range=[float(x[0]), float(x[-1])], showgrid=False, ticks=""),
        "yaxis": axis(up, range=[float(y[0]), float(y[-1])], showgrid=False, ticks=""),
    }
    picked = np.linspace(0, len(x) - 1, TABLE_POINTS).round().astype(int)
    columns = (
        f"{isolated(plane.names[1])} \\ {isolated(plane.names[0])}",
        *(told(float(x[k]), 2) for k in picked),
    )
    rows = tuple(
        (told(float(y[j]), 2), *(told(float(z[j, k]), 2) for k in picked)) for j in picked[::-1]
    )
    table = Table(f"{title}, at some of them", columns, rows)
    return Figure(name, title, says, data, layout, table, height=430)


def _told_paths(plane: PhaseMap) -> str:
    totals = ", ".join(told(path.total) for path in plane.paths)
    seeds = f"{plane.paths[0].seed} to {plane.paths[-1].seed}"
    return (
        f"Lines are {count(len(plane.paths), 'evaluation episode')}, seeds {seeds}, from dot to "
        f"square, with returns {totals}."
    )


def paths_table(plane: PhaseMap) -> Table:
    def state(values: np.ndarray) -> str:
        return ", ".join(
            f"{isolated(n)} {told(float(v), 2)}" for n, v in zip(plane.names, values, strict=True)
        )

    return Table(
        "The episodes drawn",
        ("seed", "start", "end", "steps", "return"),
        tuple(
            (
                str(path.seed),
                state(path.states[0]),
                state(path.states[-1]),
                str(len(path.states) - 1),
                told(path.total),
            )
            for path in plane.paths
        ),
    )


def _round(value: float) -> float | None:
    return None if not np.isfinite(value) else float(f"{value:.4g}")


def _short(values: np.ndarray) -> list[float | None]:
    """Four digits are more than a screen shows."""
    return [_round(value) for value in np.asarray(values, float)]


def several_runs(name: str, env_id: str, found: Sequence[RunData]) -> Figure | None:
    """The learning curves of runs on one environment."""
    data, rows = [], []
    names = list(labels(str(run.directory) for run in found).values())
    if len({run.name for run in found}) == len(found):
        names = list(labels(run.name for run in found).values())
    for index, run in enumerate(found):
        points = [
            (steps, value)
            for steps, value in zip(
                run.column("real_steps"), run.column("eval_mean_return"), strict=True
            )
            if steps is not None and value is not None
        ]
        if points:
            x, y = [s for s, _ in points], [v for _, v in points]
            data.append(curve(names[index], x, y, index))
            rows += [(isolated(run.name), told(s), told(v)) for s, v in points]
    if not data:
        return None
    ends = "; ".join(
        f"{isolated(run.name)} {told(run.last('eval_mean_return'))} after "
        f"{count(run.last('real_steps'), 'real step')}"
        for run in found
        if run.last("eval_mean_return") is not None
    )
    title = f"Learning curves on {isolated(env_id)}"
    return Figure(
        name,
        title,
        f"Mean return of the evaluations over real steps; the last of each run: {ends}.",
        data,
        {"xaxis": axis("real steps", rangemode="tozero"), "yaxis": axis("mean return")},
        Table(title, ("run", "real steps", "mean return"), tuple(rows)),
        height=380,
    )


def comparison_curves(name: str, comparison: ComparisonData) -> Figure | None:
    """Interquartile mean over seeds, with its interval, by real steps."""
    data: list[Json] = []
    rows: list[tuple[str, ...]] = []
    ends, banded = [], False
    place, axis_of_steps, remark = _steps_axis(comparison)
    names = labels(comparison.agents)
    for index, (agent, content) in enumerate(comparison.agents.items()):
        drawn = mapping(content.get("curve"))
        columns = [drawn.get(part) for part in ("steps", "iqm", "low", "high")]
        listed = [column if isinstance(column, list) else [] for column in columns]
        points = [
            (steps, iqm, number(low), number(high))
            for steps, iqm, low, high in (
                (number(a), number(b), c, d) for a, b, c, d in zip(*listed, strict=False)
            )
            if steps is not None and iqm is not None
        ]
        if not points:
            continue
        band = [p for p in points if p[2] is not None and p[3] is not None]
        if band:
            banded = True
            data.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "x": [place(p[0]) for p in (*band, *reversed(band))],
                    "y": [p[3] for p in band] + [p[2] for p in reversed(band)],
                    "fill": "toself",
                    "fillcolor": faint(index),
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
        line = curve(
            names[agent],
            [place(p[0]) for p in points],
            [p[1] for p in points],
            index,
            customdata=[[told(p[2]), told(p[3]), told(p[0])] for p in points],
            hovertemplate="%{y:.4~g} (%{customdata[0]} to %{customdata[1]})<br>"
            "after %{customdata[2]} steps<extra>%{fullData.name}</extra>",
        )
        if len(points) > 25:
            line["mode"] = "lines"
        data.append(line)
        rows += [(isolated(agent), told(p[0]), told(p[1]), told(p[2]), told(p[3])) for p in points]
        steps, iqm, _, _ = points[-1]
        ends.append(f"{isolated(agent)} {told(iqm)} after {count(steps, 'real step')}")
    if not data:
        return None
    layout: Json = {
        "xaxis": axis_of_steps,
        "yaxis": axis("return, IQM over seeds"),
    }
    says = (
        "Interquartile mean over seeds of the mean return, after so many real steps"
        f"{'; bands are 95% bootstrap intervals' if banded else ''}. "
        f"At the end: {'; '.join(ends)}.{remark}"
    )
    shapes, notes = [], []
    for key, label in (("optimum", "optimum"), ("threshold", "threshold")):
        value = number(comparison.content.get(key))
        if value is not None:
            shape, note = level(value, f"{label} {told(value)}", above=key == "optimum")
            shapes.append(shape)
            notes.append(note)
            data.append(invisible(place(0), value))
            says += f" The {label} is {told(value)}."
    layout |= {"shapes": shapes, "annotations": notes}
    title = "Learning curves"
    columns_ = ("agent", "real steps", "IQM", "95% low", "95% high")
    table = Table(title, columns_, tuple(rows))
    return Figure(name, title, says, data, layout, table, height=430)


UNEQUAL = 4.0
"""times as many real steps of one agent as of another, from which their axis is logarithmic"""


def _steps_axis(comparison: ComparisonData) -> tuple[Callable[[float], float], Json, str]:
    """Where counts of steps are drawn, the axis for them, and what a caption must say of it.

    On a logarithmic axis 0 has a place of its own at the left end.
    """
    steps = [
        sorted(numbers(mapping(agent.get("curve")).get("steps")))
        for agent in comparison.agents.values()
    ]
    longest = [listed[-1] for listed in steps if listed and listed[-1] > 0]
    if not longest or max(longest) < UNEQUAL * min(longest):
        return float, axis("real steps", rangemode="tozero", tickformat="~s"), ""
    least = min(step for listed in steps for step in listed if step > 0)
    start = least / 2
    powers = [10.0**k for k in range(13) if 1.5 * start < 10**k <= 1.2 * max(longest)]
    ticks = {"tickvals": [start, *powers], "ticktext": ["0", *(f"{p:,.0f}" for p in powers)]}
    shown = axis("real steps", type="log", **ticks)
    return lambda step: step or start, shown, " The scale of steps is logarithmic, but for 0."


def improvement(name: str, comparison: ComparisonData) -> Figure | None:
    """How likely one agent's run beats another's."""
    items = listing(comparison.content.get("improvement"))
    sides = ("better_steps", "than_steps")
    equal = len({number(item.get(side)) for item in items for side in sides}) < 2
    pairs = [
        (text(item.get("better")), text(item.get("than")), p, low, high, "" if equal else _on(item))
        for item in items
        if (p := number(item.get("probability"))) is not None
        for low, high in [(number(item.get("low")), number(item.get("high")))]
    ]
    if not pairs:
        return None
    names = labels(name for a, b, *_ in pairs for name in (a, b))
    data = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [p for _, _, p, *_ in pairs],
            "y": [f"{names[a]}<br>over {names[b]}{on and f'<br>{on}'}" for a, b, *_, on in pairs],
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [
                    0 if high is None else max(0.0, high - p) for _, _, p, _, high, _ in pairs
                ],
                "arrayminus": [
                    0 if low is None else max(0.0, p - low) for _, _, p, low, _, _ in pairs
                ],
                "color": colour(0),
                "thickness": 2,
                "width": 6,
            },
            "marker": {"color": colour(0), "size": 10},
            "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
            "showlegend": False,
        }
    ]
    rule = {"type": "line", "yref": "paper", "x0": 0.5, "x1": 0.5, "y0": 0, "y1": 1}
    layout = {
        "xaxis": axis("probability", range=[-0.03, 1.03], tickformat=".0%", dtick=0.25),
        "yaxis": axis(autorange="reversed", type="category"),
        "shapes": [{**rule, "line": {"color": MUTED, "width": 1.5, "dash": "dash"}}],
    }
    rows = tuple(
        (
            f"{isolated(a)} over {isolated(b)}{on and f', after {on}'}",
            *(_share(v) for v in (p, low, high)),
        )
        for a, b, p, low, high, on in pairs
    )
    says = (
        "Probability that a run of the first agent ends with a higher return than one of the "
        f"second{_with_intervals(low for *_, low, _, _ in pairs)}; at the dashed line neither is "
        "better. " + "; ".join(f"{row[0]} {row[1]}" for row in rows) + "."
    )
    if not equal:
        says += (
            " Where it is after different numbers of real steps, more steps may be all there is."
        )
    title = "Probability of improvement"
    table = Table(title, ("pair", "probability", "95% low", "95% high"), rows)
    return Figure(
        name, title, says, data, layout, table, height=110 + (48 if equal else 64) * len(pairs)
    )


def _on(item: Json) -> str:
    """After how many real steps of each two agents are told apart."""
    ours, theirs = number(item.get("better_steps")), number(item.get("than_steps"))
    return (
        f"{told(ours)} steps each" if ours == theirs else f"{told(ours)} and {told(theirs)} steps"
    )


def _with_intervals(lows: Iterable[float | None]) -> str:
    known = any(low is not None for low in lows)
    return ", with 95% intervals" if known else " (too few seeds for an interval)"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.0%}"


def final_returns(name: str, comparison: ComparisonData) -> Figure | None:
    """The final return of every seed, none left out, and the IQM with its interval."""
    data: list[Json] = []
    rows: list[tuple[str, ...]] = []
    said, lows = [], []
    names = labels(comparison.agents)
    for index, (agent, content) in enumerate(comparison.agents.items()):
        found = [
            (run.get("seed"), number(run.get("final"))) for run in listing(content.get("runs"))
        ]
        rows += [(isolated(agent), _seed(seed), told(final)) for seed, final in found]
        known = [(seed, final) for seed, final in found if final is not None]
        label = names[agent]
        if known:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [final for _, final in known],
                    "y": [label] * len(known),
                    "text": [f"seed {_seed(seed)}: {told(final)}" for seed, final in known],
                    "marker": {
                        "color": colour(index),
                        "size": 10,
                        "symbol": "circle-open",
                        "line": {"width": 2},
                    },
                    "hovertemplate": "%{text}<extra></extra>",
                    "showlegend": False,
                }
            )
            finals = [final for _, final in known]
            said.append(f"{isolated(agent)} from {told(min(finals))} to {told(max(finals))}")
        iqm = mapping(content.get("iqm"))
        value, low, high = (number(iqm.get(part)) for part in ("value", "low", "high"))
        lows.append(low)
        if value is not None:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [value],
                    "y": [label],
                    "error_x": {
                        "type": "data",
                        "symmetric": False,
                        "array": [0 if high is None else max(0.0, high - value)],
                        "arrayminus": [0 if low is None else max(0.0, value - low)],
                        "color": INK,
                        "thickness": 2,
                        "width": 8,
                    },
                    "marker": {"color": INK, "size": 14, "symbol": "line-ns-open"},
                    "hovertemplate": f"IQM {told(value)}<extra></extra>",
                    "showlegend": False,
                }
            )
    if not data:
        return None
    title = "Final return of each seed"
    layout: Json = {
        "xaxis": axis("final return"),
        "yaxis": axis(autorange="reversed", type="category"),
    }
    optimum = number(comparison.content.get("optimum"))
    if optimum is not None:
        rule = {"type": "line", "yref": "paper", "x0": optimum, "x1": optimum, "y0": 0, "y1": 1}
        layout["shapes"] = [{**rule, "line": {"color": MUTED, "width": 1.5, "dash": "dash"}}]
    says = (
        "A ring is the final policy of one seed, none left out and never the best seen on the way; "
        f"bars are the interquartile mean{_with_intervals(lows)}. {'; '.join(said)}."
    )
    if optimum is not None:
        says += f" The dashed line is the optimum, {told(optimum)}."
    table = Table(title, ("agent", "seed", "final return"), tuple(rows))
    agents = len(comparison.agents)
    return Figure(name, title, says, data, layout, table, height=120 + 52 * agents)


def _seed(value: Any) -> str:
    found = number(value)
    return "–" if found is None else str(int(found))
