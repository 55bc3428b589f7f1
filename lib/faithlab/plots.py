"""Figures. Every function takes the `Axes` to draw on (or makes one) and returns it; none saves or shows.

One colour a meaning, everywhere, from seaborn's colour-blind palette: see `COLOURS`. One colour map for "how much the
answer depends on this": white (not at all) to blue (much); orange stands for "speaks against the answer".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, TwoSlopeNorm

from faithlab.intervals import share_interval
from faithlab.traces import Trace

PALETTE = sns.color_palette("colorblind")
COLOURS = {
    "no hint": PALETTE[0],
    "weak hint": PALETTE[1],
    "strong hint": PALETTE[4],
    "chain_sum": PALETTE[2],
    "stories": PALETTE[9],
    "gsm8k": PALETTE[5],
    "abacus": PALETTE[0],
    "smollm2": PALETTE[2],
}
GROUP_COLOURS = {
    "mask": PALETTE[0],
    "causal": PALETTE[2],
    "gradient": PALETTE[1],
    "attention": PALETTE[4],
    "control": PALETTE[7],
}
SCORE_NAMES = {  # of `faithlab.token_scores`, as figures call them
    "saliency_answer": "mask, for the answer",
    "saliency_all": "mask, for all that follows",
    "mask_network": "mask network",
    "cut_answer": "hidden from the answer",
    "cut_all": "hidden from all that follows",
    "gradient_open": "gradient, all open",
    "gradient_floor": "gradient, all at the floor",
    "integrated_gradients": "integrated gradients",
    "gradient_x_input": "gradient times input",
    "answer_attention": "attention from the answer",
    "last_layer": "last layer's attention",
    "received": "attention received",
    "rollout": "attention rollout",
    "flow": "attention flow",
    "waad": "WAAD (looks back)",
    "fai": "FAI (looked back at)",
}
CURVE_STYLES = [  # at most six curves are told apart at a glance
    dict(color=PALETTE[0], marker="o"),
    dict(color=PALETTE[2], marker="s"),
    dict(color=PALETTE[4], marker="^"),
    dict(color=PALETTE[3], marker="v"),
    dict(color="black", linestyle="--"),
    dict(color="black", linestyle=":"),
]
EFFECT_MAP: Colormap = LinearSegmentedColormap.from_list(
    "effect", [(0.0, PALETTE[3]), (0.5, (1.0, 1.0, 1.0)), (1.0, PALETTE[0])]
)


def axes_or_new(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """The axes given, or those of a new figure of `size` inches."""
    return plt.subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def token_strip(
    trace: Trace,
    values: Mapping[int, float],
    *,
    limit: float | None = None,
    ax: Axes | None = None,
    title: str = "",
    columns: int = 92,
    span: slice | None = None,
) -> Axes:
    """The trace's text as coloured tokens: `values` maps positions to effects; tokens without one stay plain, and
    those with NaN are grey: undefined.

    `limit` is the effect of the deepest colour (default: the largest absolute value); `columns` the line width in
    characters; `span` what to show (default: reasoning to answer).
    """
    shown = span or slice(trace.reasoning.start, trace.answer.stop)
    limit = limit or max((abs(v) for v in values.values() if np.isfinite(v)), default=1.0) or 1.0
    norm = TwoSlopeNorm(0.0, -limit, limit)
    lines: list[list[tuple[int, int, str]]] = [[]]
    at = 0
    for position in range(shown.start, shown.stop):
        piece = trace.pieces[position]
        words = piece.strip("\n")
        if ("\n" in piece and lines[-1]) or at + len(words) > columns:
            lines.append([])
            at = 0
        if not at:
            words = words.lstrip(" ")
        if words:
            lines[-1].append((at, position, words))
            at += len(words)
    lines = [line for line in lines if line]
    ax = axes_or_new(ax, (11, 0.4 * len(lines) + 0.5))
    for row, line in enumerate(lines):
        for column, position, words in line:
            value = values.get(position, 0.0)
            face = EFFECT_MAP(norm(np.clip(value, -limit, limit))) if position in values else (1, 1, 1)
            face = face if np.isfinite(value) else "0.85"
            ink = "white" if abs(value) > 0.65 * limit and position in values else "black"
            box = dict(xy=(column, -row - 0.42), width=len(words), height=0.84, linewidth=0)
            ax.add_patch(plt.Rectangle(facecolor=face, **box))
            bold = "bold" if trace.answer.start <= position < trace.answer.stop else "normal"
            style = dict(family="monospace", fontsize=12, va="center", ha="center", color=ink, weight=bold)
            ax.text(column + len(words) / 2, -row, words, parse_math=False, **style)
    ax.set(xlim=(-0.5, columns + 0.5), ylim=(-len(lines) + 0.4, 0.6))
    ax.axis("off")
    ax.set_title(title, loc="left", fontsize=10)
    return ax


def effect_distribution(
    table: pd.DataFrame, *, by: str = "condition", value: str = "effect", ax: Axes | None = None
) -> Axes:
    """Every trace as a dot, its group's mean as a bar: what the answer loses when the reasoning is hidden, in nats."""
    ax = axes_or_new(ax, (7, 3.2))
    groups = list(dict.fromkeys(table[by]))
    colours = {g: COLOURS.get(g, PALETTE[7]) for g in groups}
    options = dict(data=table, y=by, x=value, hue=by, order=groups, palette=colours, legend=False, ax=ax)
    sns.stripplot(**options, size=3, alpha=0.45, jitter=0.28)
    for row, group in enumerate(groups):
        mean = table.loc[table[by] == group, value].mean()
        ax.plot([mean, mean], [row - 0.38, row + 0.38], color="black", linewidth=2.2)
        ax.annotate(f"{mean:z.1f}", (mean, row - 0.4), ha="center", va="bottom", fontsize=9)
    ax.axvline(0, color="grey", linewidth=0.8, linestyle=":")
    ax.set(ylabel="", xlabel="log p(answer) lost when the reasoning is hidden (nats); bar: mean")
    sns.despine(ax=ax)
    return ax


def early_answering_curve(table: pd.DataFrame, *, by: str = "condition", ax: Axes | None = None) -> Axes:
    """Share of answers already as behind the full reasoning, against the share of the reasoning that was read. The band
    is Wilson's 95 % interval of the share."""
    ax = axes_or_new(ax, (6, 3.6))
    for group, part in table.groupby(by, sort=False):
        effects = part.groupby("fraction")["effect"]
        rows = [share_interval(int((1 - some).sum()), some.count()) for _, some in effects]
        same = pd.DataFrame(rows, index=list(effects.groups))
        colour = COLOURS.get(group, PALETTE[7])
        ax.plot(same.index, same["value"], marker="o", color=colour, label=f"{group} (n = {same['n'].iloc[0]})")
        ax.fill_between(same.index, same["low"], same["high"], color=colour, alpha=0.18, linewidth=0)
    ax.set(xlabel="share of the reasoning's sentences shown", ylabel="same answer as with all", ylim=(-0.03, 1.05))
    ax.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    sns.despine(ax=ax)
    return ax


def intervals(
    table: pd.DataFrame,
    *,
    label: str,
    by: str | None = None,
    order: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Dots with their intervals (`effect, low, high`), one row a label, one colour a group."""
    labels = list(dict.fromkeys(table[label]) if order is None else order)
    ax = axes_or_new(ax, (7, 0.45 * len(labels) + 1.2))
    groups = list(dict.fromkeys(table[by])) if by else [None]
    for k, group in enumerate(groups):
        part = table if by is None else table[table[by] == group]
        offset = 0.0 if len(groups) == 1 else 0.5 * (k / (len(groups) - 1) - 0.5)
        rows = [labels.index(name) + offset for name in part[label]]
        spread = [
            part["effect"] - part["low"].fillna(part["effect"]),
            part["high"].fillna(part["effect"]) - part["effect"],
        ]
        colour = COLOURS.get(group, PALETTE[0])
        ax.errorbar(part["effect"], rows, xerr=np.clip(spread, 0, None), fmt="o", color=colour, capsize=3, label=group)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()
    ax.axvline(0, color="grey", linewidth=0.8, linestyle=":")
    if by:
        ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(ax=ax)
    return ax


def levels(
    table: pd.DataFrame, labels: Sequence[str], colours: Sequence, *, start: float | None = None, ax: Axes | None = None
) -> Axes:
    """A row for each row of `table` (as made by `comparison.levels`), from the top down: a dot at `value` and a bar
    from `low` to `high`, under its label and in its colour. A dashed line marks `start`, the value before."""
    ax = axes_or_new(ax, (6, 0.3 * len(table) + 1.2))
    for row, (r, colour) in enumerate(zip(table.itertuples(), colours, strict=True)):
        _estimate(ax, row, r.low, r.value, r.high, colour)
    ax.set_yticks(range(len(table)), labels)
    ax.set_ylim(len(table) - 0.5, -0.5)
    _ruled(ax, start)
    return ax


def _estimate(ax: Axes, row: float, low: float, value: float, high: float, colour) -> None:
    """A dot at `value` on the bar of its interval."""
    ax.plot([low, high], [row, row], color=colour, linewidth=2.5, alpha=0.6)
    ax.plot(value, row, "o", color=colour, markersize=6)


def _ruled(ax: Axes, mark: float | None) -> None:
    """A pale line for each row, and a dashed one across them at `mark`."""
    if mark is not None:
        ax.axvline(mark, color="grey", linestyle="--", linewidth=1)
    ax.grid(axis="y", color="0.93")
    ax.set_axisbelow(True)
    sns.despine(ax=ax)


def standings(
    table: pd.DataFrame, measures: Mapping[str, str], order: Sequence[str], *, chance: Mapping[str, float] | None = None
) -> plt.Figure:
    """Scores as rows under the name of their group, truths as columns of dots with 95 % intervals; a dashed line is
    `chance`. `table` as made by `contest.standings`, `measures` from name to heading, `order` of the scores within
    their groups, from the lowest row up. Scores are called by their `SCORE_NAMES`."""
    group_of = dict(zip(table["score"], table["group"], strict=True))
    rows: list[tuple[str, str | None]] = []  # group, and score or None for the group's heading; from the top down
    for group in [*GROUP_COLOURS, *sorted(set(group_of.values()) - set(GROUP_COLOURS))]:
        members = [name for name in reversed(order) if group_of.get(name) == group]
        rows += [(group, name) for name in (None, *members)] if members else []
    size = (2.15 * len(measures) + 2.6, 0.27 * len(rows) + 1.5)
    fig, axes = plt.subplots(1, len(measures), figsize=size, sharey=True, layout="constrained", squeeze=False)
    for ax, (measure, heading) in zip(axes[0], measures.items(), strict=True):
        part = table[table["measure"] == measure].set_index("score")
        for row, (group, name) in enumerate(rows):
            if name in part.index and np.isfinite(part.at[name, "value"]):
                ends = (float(part.at[name, key]) for key in ("low", "value", "high"))
                _estimate(ax, row, *ends, GROUP_COLOURS.get(group, PALETTE[7]))
        _ruled(ax, None if chance is None else chance.get(measure))
        ax.set_title(heading, fontsize=11)
        ax.tick_params(axis="y", length=0)
    axes[0][0].set_yticks(range(len(rows)), [SCORE_NAMES.get(name, name) if name else group for group, name in rows])
    axes[0][0].set_ylim(len(rows) - 0.4, -0.6)
    for tick, (group, name) in zip(axes[0][0].get_yticklabels(), rows, strict=True):
        tick.set(fontsize=11, **({} if name else dict(weight="bold", color=GROUP_COLOURS.get(group, PALETTE[7]))))
    return fig


def hiding_curves(
    curves: Mapping[str, Mapping[str, np.ndarray]], shares: Sequence[float], highlighted: Sequence[str]
) -> plt.Figure:
    """Deletion and insertion curves beside each other, mean over traces: at most six scores in colours of their own,
    all others thin and grey. `curves` from score to what `ranking.hiding_curves` returns for it, at `shares`."""
    fig, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained", sharey=True)
    styles = dict(zip(highlighted, CURVE_STYLES, strict=False))
    others = [name for name in curves if name not in styles]
    for ax, (kind, verb) in zip(axes, (("deletion", "hidden"), ("insertion", "shown")), strict=True):
        for name in (*others, *(name for name in styles if name in curves)):
            style = styles.get(name, dict(color="0.78", linewidth=0.9))
            label = SCORE_NAMES.get(name, name) if name in styles else None
            ax.plot(shares, np.nanmean(curves[name][kind], 0), markersize=4, label=label, **style)
        ax.set(xlabel=f"share of the tokens {verb}, highest score first", title=kind)
        ax.axhline(0, color="grey", linewidth=0.6, linestyle=":")
        sns.despine(ax=ax)
    if others:
        called = "\n".join(f"  {SCORE_NAMES.get(name, name)}" for name in others)
        axes[1].plot([], [], color="0.78", linewidth=0.9, label=f"others:\n{called}")
    axes[0].set_ylabel("share of the reasoning's worth left")
    axes[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


def learning_curves(
    log: pd.DataFrame, arms: Mapping[str, str], column: str = "reward", *, window: int = 9,
    colours: Mapping[str, object] | None = None, ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """A column of the training logs by step: thin lines are seeds, thick ones their mean, both as running means over
    `window` steps. `arms` from arm to label; those without a run, or without values in the column, are left out.
    `colours` from label to colour (default: the palette's, in the order of `arms`)."""
    ax = axes_or_new(ax, (6, 3.4))
    for k, (arm, name) in enumerate(arms.items()):  # an arm keeps its colour, whichever others are there
        runs = log[(log["arm"] == arm) & log[column].notna()].pivot(index="step", columns="seed", values=column)
        if runs.empty:
            continue
        runs = runs.rolling(window, min_periods=1, center=True).mean()
        colour = colours[name] if colours else PALETTE[k % 10]
        ax.plot(runs.index, runs, color=colour, linewidth=0.6, alpha=0.35)
        label = f"{name} ({runs.shape[1]} seed{'s' if runs.shape[1] > 1 else ''})"
        ax.plot(runs.index, runs.mean(axis=1), color=colour, linewidth=2, label=label)
    ax.set(xlabel="GRPO step", ylabel=column)
    ax.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    sns.despine(ax=ax)
    return ax
