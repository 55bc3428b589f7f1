"""What `faithlab explain` writes of its explanations: the page, the numbers as JSON, and a picture of each."""

from __future__ import annotations

import json
import math
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faithlab.errors import FaithlabError
from faithlab.explanation import Explanation, beyond
from faithlab.page import page
from faithlab.results import write_atomically
from faithlab.shown_scores import KINDS
from faithlab.traces import Trace

MOST_INCHES = 200  # of the picture's height; the renderer's limit is 2^16 pixels


def figure(explanation: Explanation, kinds: Sequence[str] = ("effect", "saliency", "flow", "fai")) -> Any:
    """A matplotlib figure: question and reasoning as coloured text, one strip a score, and log p(answer) as a curve."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    from faithlab.plots import PALETTE, token_strip

    e, shown = explanation, [k for k in kinds if k in explanation.scores] or list(explanation.scores)
    pieces = [piece for piece, _ in e.tokens]
    start, stop = e.first, e.first + len(e.scores[shown[0]])
    answer = next(i for i, (_, part) in enumerate(e.tokens) if part == "answer")
    ids = torch.zeros(len(pieces), dtype=torch.long)  # the strip reads texts and places only
    trace = Trace(ids, slice(0, start), slice(start, stop), slice(answer, len(pieces)), tuple(pieces))
    asked = e.in_question
    span = slice(start if asked.first is None else asked.first, len(pieces))
    lines = 1 + len("".join(pieces[span])) // 80
    heights = [0.4 * lines + 0.5] * len(shown) + [2.4]
    most = MOST_INCHES - heights[-1]
    if sum(heights[:-1]) > most:  # beyond that no picture can be drawn: fewer strips, then none
        shown = shown[: int(most / heights[0])]
        heights = [*heights[: len(shown)], heights[-1]]
    fig, axes = plt.subplots(
        len(heights), 1, figsize=(11, sum(heights) + 0.6), height_ratios=heights, layout="constrained"
    )
    axes = np.atleast_1d(axes)
    for ax, kind in zip(axes, shown, strict=False):
        values = {start + i: v for i, v in enumerate(e.scores[kind]) if v is not None}
        title = f"{KINDS[kind].label}: {KINDS[kind].meaning}"
        if not values:  # causal effects are left out where they would take long, and a note says so
            title += f" ({'not computed' if kind == 'effect' else 'undefined'} for every token of the reasoning)"
        elif asked.first is not None and kind not in asked.scores:
            title += " (reasoning only)"
        if any(v is None for v in e.scores[kind]) and any(v is not None for v in e.scores[kind]):
            title += "; grey: undefined"
            values |= {start + i: math.nan for i, v in enumerate(e.scores[kind]) if v is None}
        values |= {span.start + i: v for i, v in enumerate(asked.scores.get(kind, ())) if v is not None}
        if values:
            # As on the page, an effect below a nat does not look large.
            sizes = [abs(v) for v in values.values() if not math.isnan(v)]
            limit = max(1.0, *sizes) if KINDS[kind].unit == "nats" else None
            darkest = limit or max(sizes)
            title += f"; darkest: {darkest:.2g} {KINDS[kind].unit}".rstrip()
            token_strip(trace, values, ax=ax, title=title, limit=limit, span=span)
        else:
            ax.set_title(title, loc="left", fontsize=10)
            ax.axis("off")
    axes[-1].plot(range(len(e.curve)), e.curve, marker="o", color=PALETTE[0], clip_on=False)
    axes[-1].set(xlabel="first sentences of the reasoning that the answer may see", ylabel="log p(answer), nats")
    axes[-1].set_ylim(min(-1.0, *e.curve) * 1.05, 0.05)
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].spines[["top", "right"]].set_visible(False)
    said = f"{e.says} {beyond(e)}" if e.rollouts["n"] else e.says
    fig.suptitle(textwrap.fill(f"Answer {e.judged}. {said}", 110), x=0.01, ha="left", fontsize=11, weight="bold")
    return fig


def save(explanations: Sequence[Explanation], folder: Path, command: str = "") -> list[Path]:
    """Write page, JSON and a figure for each explanation into an existing folder; returns the files.

    Raises `FaithlabError` where the folder cannot be written to.
    """
    import matplotlib.pyplot as plt

    written = [folder / "explanation.html", folder / "explanation.json"]
    write_atomically(written[0], page(explanations, command=command))
    content = dict(command=command, explanations=[e.to_json() for e in explanations])
    write_atomically(written[1], json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    for number, e in enumerate(explanations, start=1):
        path = folder / ("explanation.png" if len(explanations) == 1 else f"explanation-{number}.png")
        fig = figure(e)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Glyph .* missing")  # it is drawn as a box, and stands on the page
                fig.savefig(path, dpi=120)
        except OSError as error:
            raise FaithlabError(
                f"cannot write {path}: {error.strerror}; free space or choose another folder"
            ) from error
        finally:
            plt.close(fig)
        written.append(path)
    return written
