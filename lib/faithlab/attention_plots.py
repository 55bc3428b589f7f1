"""Figures of attention: maps, profiles under the token text, and the flow's backbone over the sentence.

As in `faithlab.plots` every function takes the `Axes` to draw on (or makes one) and returns it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.patches import Arc

from faithlab.flow import Flow
from faithlab.plots import PALETTE, axes_or_new

# One meaning, one colour, in every figure about attention.
TRACK_COLOURS = {"WAAD": PALETTE[0], "FAI": PALETTE[1], "entropy": PALETTE[7], "throughput": PALETTE[2]}
TRACK_UNITS = {"WAAD": "tokens", "FAI": "mean attention", "entropy": "nats"}
FROM_BEFORE = (0.72, 0.72, 0.72)  # arcs of a backbone that start in front of the text shown
MAP_COLOURS = LinearSegmentedColormap.from_list("attention", [(1, 1, 1), PALETTE[0], (0.0, 0.1, 0.25)])


def label(piece: str) -> str:
    """A token's text as an axis label: what cannot be seen is made visible."""
    return piece.replace("\n", "⏎").strip(" ") or "␣"


def attention_map(
    probs, *, title: str = "", limit: float | None = None, bar: bool = True, ax: Axes | None = None
) -> Axes:
    """A map [query, key] as an image: darker is more attention (square-root scale, so that weak stripes show). With
    fewer queries than keys the queries are the last positions.

    `limit` is the attention of the darkest colour (default: the largest of the map); `bar` draws the colour scale.
    """
    ax = axes_or_new(ax, (4.5, 4.2))
    values = np.asarray(probs, dtype=float)
    first = values.shape[1] - values.shape[0]
    shown = np.where(np.tri(*values.shape, k=first, dtype=bool), values, np.nan)
    norm = PowerNorm(0.5, 0, limit or np.nanmax(shown))
    image = ax.imshow(shown, cmap=MAP_COLOURS, norm=norm, interpolation="nearest",
                      extent=(-0.5, values.shape[1] - 0.5, values.shape[1] - 0.5, first - 0.5))  # fmt: skip
    if bar:
        ax.figure.colorbar(image, ax=ax, label="attention (square-root scale)", shrink=0.8)
    ax.set(xlabel="looked at (key position)", ylabel="looking (query position)")
    ax.set_title(title, loc="left", fontsize=10)
    sns.despine(ax=ax)
    return ax


def tracks(
    profiles: Mapping[str, Sequence[float]], pieces: Sequence[str], *, marks: Mapping[str, Sequence[int]] | None = None
) -> plt.Figure:
    """Profiles over the same tokens, one above the other, each with its unit, and the text underneath; `marks` are
    peaks to point out."""
    count = len(pieces)
    fig, axes = plt.subplots(
        len(profiles), 1, figsize=(max(7, 0.19 * count + 1.2), 1.25 * len(profiles) + 1.1), sharex=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for ax, (name, values) in zip(axes[:, 0], profiles.items(), strict=True):
        colour = TRACK_COLOURS.get(name, PALETTE[4])
        ax.fill_between(range(count), np.nan_to_num(values), step="mid", color=colour, alpha=0.35, linewidth=0)
        ax.step(range(count), values, where="mid", color=colour, linewidth=1.2)
        peaks = list((marks or {}).get(name, []))
        ax.plot(peaks, [values[p] for p in peaks], "v", color="black", markersize=5)
        unit = TRACK_UNITS.get(name)
        ax.set_ylabel(f"{name}\n({unit})" if unit else name, rotation=0, ha="right", va="center")
        ax.set_xlim(-0.6, count - 0.4)
        ax.set_ylim(0, None)
        ax.tick_params(labelsize=8)
        sns.despine(ax=ax)
    axes[-1, 0].set_xticks(range(count), [label(p) for p in pieces], rotation=90, fontsize=9, family="monospace")
    for tick in axes[-1, 0].get_xticklabels():
        tick.set_parse_math(False)  # a token may hold a dollar sign
    axes[-1, 0].set_xlabel("tokens, in order" + ("; triangles: peaks" if marks else ""))
    return fig


def backbone(
    flow: Flow,
    pieces: Sequence[str],
    *,
    k: int = 25,
    hubs: Sequence[int] = (),
    span: slice | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The strongest edges of a flow as arcs over the text; wider is more. Grey: prompt, bold: answer, boxed: hubs.

    Grey arcs start in front of `span`, as in a prompt that is not shown: all are drawn from one place at the left edge,
    those to the same token as one arc, whose flow is their sum.
    """
    shown = span or slice(0, len(flow))
    count = shown.stop - shown.start
    ax = axes_or_new(ax, (max(8, 0.19 * count + 0.9), 3.8))
    edges = flow.backbone(k)
    edges = edges[(edges["target"] >= shown.start) & (edges["target"] < shown.stop)]
    before = shown.start - 3  # where the arcs from text that is not shown begin
    edges = edges.assign(source=edges["source"].where(edges["source"] >= shown.start, before))
    edges = edges.groupby(["source", "target"], as_index=False)["flow"].sum()
    most = edges["flow"].max() if len(edges) else 1.0
    widest = max((edges["target"] - edges["source"]).max() if len(edges) else 1, 1)
    for e in edges.itertuples():
        width = e.target - e.source
        centre = (e.source + e.target) / 2 - shown.start
        colour = TRACK_COLOURS["throughput"] if e.source >= shown.start else FROM_BEFORE
        ax.add_patch(
            Arc((centre, 0), width, 2 * _height(width), theta1=0, theta2=180, color=colour,
                linewidth=_thickness(e.flow, most), alpha=0.75)
        )  # fmt: skip
    style = dict(rotation=90, ha="center", va="top", family="monospace", fontsize=9, parse_math=False)
    for i in range(shown.start, shown.stop):
        look = dict(color="grey" if flow.prompt[i] else "black", weight="bold" if flow.answer[i] else "normal")
        if i in hubs:
            look["bbox"] = dict(boxstyle="round,pad=0.15", facecolor="white", edgecolor=TRACK_COLOURS["throughput"])
        ax.text(i - shown.start, -0.6, label(pieces[i]), **style, **look)
    cut = bool((edges["source"] == before).any())
    if cut:
        ax.text(before - shown.start, -0.6, "before…", **style, color="grey")
    high = _height(widest)
    ax.set(xlim=(-4, count), ylim=(-0.5 * high, 1.35 * high))  # above the arcs is room for the legend
    ax.axis("off")
    _explain_arcs(ax, most, cut, bool(len(hubs)))
    return ax


def _height(width: float) -> float:
    """Of an arc: long arcs are flatter, so that short ones can be seen beside them."""
    return max(width, 1) ** 0.75


def _thickness(flow: float, most: float) -> float:
    """Of an arc's line, in points."""
    return 0.5 + 4 * flow / most


def _explain_arcs(ax: Axes, most: float, cut: bool, hubs: bool) -> None:
    """The legend of a backbone: what colour, width and box mean."""
    green = TRACK_COLOURS["throughput"]
    lines = {"from a token shown": (green, 2)} | ({"from the text before, summed": (FROM_BEFORE, 2)} if cut else {})
    for flow, of in ((most / 8, ""), (most, " of the one unit")):
        lines[f"carries {flow:.2g}{of}"] = ("black", _thickness(flow, most))
    handles = [plt.Line2D([], [], color=colour, linewidth=width) for colour, width in lines.values()]
    if hubs:
        handles.append(plt.Rectangle((0, 0), 1, 1, facecolor="white", edgecolor=green))
    names = [*lines, "hub"]
    ax.legend(handles, names[: len(handles)], loc="upper left", ncols=len(handles), frameon=False, fontsize=9)
