"""Every way of drawing takes what notebooks give it: lists and columns of tables, one seed, nothing, any token."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from faithlab import attention_plots, comparison, held_out, plots
from faithlab.flow import trace_flow


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(figure):
    """Draw, as saving does: what is wrong with a text shows only then."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (figure.figure if hasattr(figure, "figure") else figure).canvas.draw()
    return figure


@pytest.mark.parametrize("kind", [list, tuple, np.array, pd.Series])
def test_an_order_may_be_any_sequence(kind):
    table = pd.DataFrame(dict(layer=["top", "all"], effect=[1.0, 2.0], low=[0.5, np.nan], high=[1.5, np.nan], n=[3, 3]))
    ax = drawn(plots.intervals(table, label="layer", order=kind(["all", "top"])))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["all", "top"]
    assert [t.get_text() for t in drawn(plots.intervals(table, label="layer")).get_yticklabels()] == ["top", "all"]
    ax = drawn(plots.levels(table.assign(value=table["effect"]), kind(["a", "b"]), kind(["red", "blue"]), start=1.0))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]


@pytest.mark.parametrize("seeds", [1, 3])
def test_learning_curves_of_few_seeds_and_of_an_arm_without_runs(seeds):
    log = pd.DataFrame([dict(arm="a", seed=s, step=t, reward=t / 9) for s in range(seeds) for t in range(9)])
    ax = drawn(plots.learning_curves(log, {"a": "one arm", "b": "none"}, "reward"))
    assert len(ax.lines) >= seeds + 1


@pytest.mark.parametrize("piece", ["$$", "$x$", "a$b", "\\frac", "^", "_", "%", "<b>", ""])
def test_a_token_is_drawn_as_it_stands(piece):
    maps = torch.rand(6, 6).tril()
    flow = trace_flow(maps / maps.sum(-1, keepdim=True), slice(0, 2), slice(5, 6))
    pieces = ["a", "b", piece, "d", "e", "f"]
    drawn(attention_plots.backbone(flow, pieces))
    fig = drawn(attention_plots.tracks({"WAAD": np.arange(6.0)}, pieces, marks={"WAAD": [2]}))
    assert fig.axes[-1].get_xticklabels()[2].get_text() == attention_plots.label(piece)


def test_the_area_under_a_curve_is_its_mean_over_steps():
    log = pd.DataFrame([dict(arm="a", seed=1, step=t, reward=float(t)) for t in range(1, 6)])
    assert comparison.area(log, "reward")["area"].tolist() == [3.0]


def test_held_out_problems_are_summarised_by_condition():
    table = pd.DataFrame(dict(condition=["no hint"] * 4, problem=range(4), right=[1.0, 0.0, 1.0, 1.0], nats=np.nan))
    found = held_out.summary(table).set_index("quantity")
    assert found.loc["right", "value"] == 0.75 and found.loc["right", "n"] == 4
    assert "nats" not in found.index or found.loc["nats", "n"] == 0
