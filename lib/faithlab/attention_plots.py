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
MAP_COLOURS = LinearSegmentedColormap.from_list("attention", [(1, 1, 1), PALETTE[0], (0.0, 0.1, 0.25)])


def label(piece: str) -> str:
    """A token's text as an axis label: what cannot be seen is made visible."""
    return piece.replace("\n", "⏎").strip(" ") or "␣"


def attention_map(probs, *, title: str = "", ax: Axes | None = None) -> Axes:
    """A map [query, key] as an image: darker is more attention (square-root scale, so that weak stripes show)."""
    ax = axes_or_new(ax, (4.5, 4.2))
    values = np.asarray(probs, dtype=float)
    shown = np.where(np.tri(*values.shape, dtype=bool), values, np.nan)
    ax.imshow(shown, cmap=MAP_COLOURS, norm=PowerNorm(0.5, 0, np.nanmax(shown)), interpolation="nearest")
    ax.set(xlabel="looked at (key position)", ylabel="looking (query position)")
    ax.set_title(title, loc="left", fontsize=10)
    sns.despine(ax=ax)
    return ax


def tracks(
    profiles: Mapping[str, Sequence[float]], pieces: Sequence[str], *, marks: Mapping[str, Sequence[int]] | None = None
) -> plt.Figure:
    """Profiles over the same tokens, one above the other, with the text underneath; `marks` are peaks to point out."""
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
        ax.set_ylabel(name, rotation=0, ha="right", va="center")
        ax.set_xlim(-0.6, count - 0.4)
        ax.set_ylim(0, None)
        ax.tick_params(labelsize=8)
        sns.despine(ax=ax)
    axes[-1, 0].set_xticks(range(count), [label(p) for p in pieces], rotation=90, fontsize=9, family="monospace")
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

    Grey arcs that come in over the left edge start in front of `span`, as in a prompt that is not shown.
    """
    shown = span or slice(0, len(flow))
    count = shown.stop - shown.start
    ax = axes_or_new(ax, (max(8, 0.19 * count + 0.6), 3.4))
    edges = flow.backbone(k)
    most = edges["flow"].max() if len(edges) else 1.0
    edges = edges[(edges["target"] >= shown.start) & (edges["target"] < shown.stop)]
    for e in edges.itertuples():
        width = e.target - e.source
        centre = (e.source + e.target) / 2 - shown.start
        colour = TRACK_COLOURS["throughput"] if e.source >= shown.start else "lightgrey"
        ax.add_patch(
            Arc((centre, 0), width, width ** 0.75 * 2, theta1=0, theta2=180, color=colour,
                linewidth=0.5 + 4 * e.flow / most, alpha=0.75)
        )  # fmt: skip
    for i in range(shown.start, shown.stop):
        style = dict(rotation=90, ha="center", va="top", family="monospace", fontsize=9)
        style |= dict(color="grey" if flow.prompt[i] else "black", weight="bold" if flow.answer[i] else "normal")
        if i in hubs:
            style["bbox"] = dict(boxstyle="round,pad=0.15", facecolor="white", edgecolor=TRACK_COLOURS["throughput"])
        ax.text(i - shown.start, -0.6, label(pieces[i]), **style)
    inside = edges[edges["source"] >= shown.start]
    high = max((inside["target"] - inside["source"]).max() ** 0.75 if len(inside) else 1.0, 1.0)
    ax.set(xlim=(-1, count), ylim=(-0.5 * high, high * 1.05))
    ax.axis("off")
    return ax
