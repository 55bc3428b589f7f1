"""Kept measurements: read where they are of these traces, measured where they are not."""

import dataclasses

import pandas as pd
import pytest
from tiny import tiny_reasoner, tiny_traces

from faithlab import kept
from faithlab.kept import kept_or_measured, trace_digest


@pytest.fixture
def traces():
    return tiny_traces(tiny_reasoner())


def test_a_digest_changes_with_tokens_spans_order_and_settings(traces):
    known = trace_digest(traces)
    assert known == trace_digest(list(traces)) and len(known) == 10
    t = traces[0]
    ids = t.input_ids.clone()
    ids[-1] += 1
    others = [
        traces[:-1], traces[::-1], [dataclasses.replace(t, input_ids=ids), *traces[1:]],
        [dataclasses.replace(t, reasoning=slice(t.reasoning.start, t.reasoning.stop - 1)), *traces[1:]],
    ]  # fmt: skip
    assert len({known, trace_digest(traces, dict(steps=3)), *map(trace_digest, others)}) == 6


def test_it_is_measured_once_and_then_read(traces, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kept, "data_folder", lambda: tmp_path / "data")
    (tmp_path / "data" / "results").mkdir(parents=True)
    calls = []

    def measure():
        calls.append(1)
        return pd.DataFrame(dict(trace=[0, 1], text=["NA", "a, b"], value=[1 / 3, float("nan")]))

    def ask(**options):
        return kept_or_measured("x", traces, measure, output_dir=tmp_path / "run", **options)

    first = ask()
    assert "to keep it: copy x." in capsys.readouterr().out and len(calls) == 1
    (file,) = (tmp_path / "run").glob("x.*.csv")
    file.rename(tmp_path / "data" / "results" / file.name)
    pd.testing.assert_frame_equal(first, ask())
    assert len(calls) == 1 and first["text"].tolist() == ["NA", "a, b"] and pd.isna(first["value"][1])
    ask(settings=dict(n=8))
    ask(again=True)
    kept_or_measured("x", traces[:2], measure, output_dir=tmp_path / "run")
    assert len(calls) == 4, "other settings, other traces, or asked for"
