"""Marking by buttons, in a notebook: one button a token, pressed for "the answer depends on this".

    from faithlab.annotator import Annotator
    Annotator(traces, "runs/marks.jsonl", annotator="ada").show()

"Save and next" keeps a reasoning's marks, also none at all; "skip" leaves it open. Marking goes on where it was
stopped. Several people may share a file, also at the same time: each sees only marks of their own. Without ipywidgets,
or away from a notebook, use the sheet of `faithlab.marks`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from faithlab.errors import FaithlabError
from faithlab.marks import Marked, load_marks, save_marks
from faithlab.paths import make_folder
from faithlab.traces import Trace


class Annotator:
    """The buttons and the file behind them. `box` is the widget; `marked` what has been saved so far.

    Raises `FaithlabError` without ipywidgets, without a trace that can be marked, or for a file that holds no marks.
    """

    def __init__(self, traces: Sequence[Trace], path: str | Path, *, annotator: str = "anonymous"):
        try:
            import ipywidgets
        except ImportError as error:
            raise FaithlabError(
                "the buttons need ipywidgets (pip install ipywidgets); without it, use faithlab.marks.write_sheet"
            ) from error
        self.traces = [t for t in traces if t.explained]
        if not self.traces:
            raise FaithlabError("none of these traces has a reasoning and an answer, so there is nothing to mark")
        self.path, self.annotator, self.widgets = Path(path), annotator, ipywidgets
        self.marked: dict[tuple[str, str, str], Marked] = {}
        self._read()
        done = [i for i, t in enumerate(self.traces) if self._key(t) in self.marked]
        self.at = min(set(range(len(self.traces))) - set(done), default=0)
        self.tokens: list[Any] = []
        self.box = ipywidgets.VBox()
        self._fill()

    def _read(self) -> None:
        """Take up what the file holds."""
        if self.path.exists():
            self.marked |= {(m.annotator, m.question, m.reasoning): m for m in load_marks(self.path)}

    def _key(self, trace: Trace) -> tuple[str, str, str]:
        return self.annotator, trace.question, trace.reasoning_text

    def _fill(self) -> None:
        """Buttons of the reasoning that is shown now."""
        w, trace = self.widgets, self.traces[self.at]
        known = self.marked.get(self._key(trace))
        marked = known.tokens(trace).tolist() if known else [False] * (trace.reasoning.stop - trace.reasoning.start)
        fit = dict(width="auto", min_width="1.6em", margin="1px")
        self.tokens = [
            w.ToggleButton(value=bool(on), description=piece.strip() or "·", layout=w.Layout(**fit))
            for piece, on in zip(trace.pieces[trace.reasoning], marked, strict=True)
        ]
        names = ("back", "skip", "save and next")
        self.back, self.skip, self.next = (w.Button(description=text) for text in names)
        self.back.on_click(lambda _: self.go(-1))
        self.skip.on_click(lambda _: self.go(1))
        self.next.on_click(lambda _: self.save() and self.go(1))
        mine = sum(m.annotator == self.annotator for m in self.marked.values())
        count = f"{self.at + 1} of {len(self.traces)}; {mine} of yours saved in {self.path}"
        asked = f"answer: {trace.answer_text}. Which of these does it depend on?"
        text = [w.HTML(html.escape(line)) for line in (trace.question, asked)]  # a label would typeset $ as maths
        row = w.HBox(self.tokens, layout=w.Layout(flex_flow="row wrap"))
        self.box.children = [*text, row, w.HBox([self.back, self.skip, self.next, w.HTML(html.escape(count))])]

    def save(self) -> Marked:
        """Keep what is pressed now; neighbouring tokens make one mark."""
        trace = self.traces[self.at]
        reasoning = trace.reasoning_text
        raw = trace.text_of("reasoning")
        here = -(len(raw) - len(raw.lstrip()))
        marks: list[list[int]] = []
        joined = False
        for button, piece in zip(self.tokens, trace.pieces[trace.reasoning], strict=True):
            start, end = here + len(piece) - len(piece.lstrip()), min(here + len(piece), len(reasoning))
            here += len(piece)
            if button.value and start < end:
                if joined:
                    marks[-1][1] = end
                else:
                    marks.append([max(0, start), end])
            joined = button.value and start < end
        found = Marked(trace.question, reasoning, trace.answer_text, tuple((a, b) for a, b in marks), self.annotator)
        make_folder(self.path.parent)
        with FileLock(f"{self.path}.lock"):  # others may have saved since the file was read
            self._read()
            self.marked[self._key(trace)] = found
            save_marks(self.marked.values(), self.path)
        return found

    def go(self, step: int) -> None:
        """Show the reasoning `step` further; what was not saved is left."""
        self.at = (self.at + step) % len(self.traces)
        self._fill()

    def show(self) -> Any:
        """The widget, for the last line of a cell."""
        return self.box
