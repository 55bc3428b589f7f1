"""The contest: scores that know and scores that do not, judged by truths that are known."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from oracle import oracle, story
from tiny import tiny_reasoner

from faithlab import contest, plots, tasks, token_scores
from faithlab.errors import FaithlabError
from faithlab.faithfulness import token_effects
from faithlab.planted import planted


@pytest.fixture(scope="module")
def planted_traces():
    reasoner = tiny_reasoner()
    written = tasks.load("stories", split="validation", n=20, seed=2, hops=(2, 4))
    traces = [reasoner.trace(row, row["reasoning"], row["response"]) for row in written]
    return [t for t in traces if planted(t).known]


def test_a_score_that_knows_the_truth_wins_and_its_opposite_loses(planted_traces):
    truth = [planted(t) for t in planted_traces]
    scores = {"cut_answer": [p.decisive.float() for p in truth], "flow": [-p.path.float() for p in truth],
              "position": [torch.zeros(len(p.path)) for p in truth]}  # fmt: skip
    judged = contest.judge(scores, planted_traces)
    table = contest.standings(judged).set_index(["score", "measure"])["value"]
    assert table["cut_answer", "decisive, top 1"] == 1 and table["cut_answer", "decisive, average precision"] == 1
    assert table["flow", "path, AUROC"] == 0 and table["position", "path, AUROC"] == 0.5
    assert table["position", "decisive, top 1"] < 0.2
    assert set(judged["trace"]) == set(range(len(planted_traces)))


def test_relayed_numbers_are_judged_without_the_decisive_one(planted_traces):
    truth = [planted(t) for t in planted_traces]
    both = [bool((p.path & ~p.decisive).any()) and bool((p.number & ~p.path).any()) for p in truth]
    assert 3 < sum(both) < len(both)
    scores = {"cut_answer": [p.decisive.float() for p in truth], "flow": [p.path.float() for p in truth],
              "waad": [(p.path & ~p.decisive).float() - p.decisive.float() for p in truth]}  # fmt: skip
    table = contest.standings(contest.judge(scores, planted_traces)).set_index(["score", "measure"])
    found = table.xs("relayed among numbers, AUROC", level="measure")
    assert (found["n"] == sum(both)).all()  # the others hold needed numbers only, or idle ones only
    assert found["value"].to_dict() == {"cut_answer": 0.5, "flow": 1, "waad": 1}


def test_effects_are_met_by_token_and_by_sentence():
    reasoner = oracle()
    traces = reasoner.generate([story(s) for s in (3, 9)], temperature=0)
    by_token = token_effects(reasoner, traces)
    exact = [torch.tensor(part["effect"].to_numpy()) for _, part in by_token.groupby("trace")]
    sentences = pd.DataFrame(
        [dict(trace=i, start=a, stop=b, effect=e) for i, t in enumerate(traces)
         for a, b, e in ((t.reasoning.start, t.reasoning.start + 1, 0.0),
                         (t.reasoning.start + 1, t.reasoning.stop - 2, 0.5),
                         (t.reasoning.stop - 2, t.reasoning.stop, 1.0))]
    )  # fmt: skip
    scores = {"cut_answer": exact, "position": [torch.arange(len(e)).float() for e in exact]}
    judged = contest.judge(scores, traces, effects={"hidden": by_token, "sentences": sentences})
    table = contest.standings(judged).set_index(["score", "measure"])["value"]
    assert table["cut_answer", "Spearman, hidden"] == pytest.approx(1)
    assert table["position", "Spearman, sentences"] == pytest.approx(1)
    assert abs(table["position", "Spearman, hidden"]) < 0.9


def test_costs_are_told_beside_a_plain_pass():
    reasoner = tiny_reasoner()
    written = tasks.load("stories", split="validation", n=3, seed=2)
    traces = [reasoner.trace(row, row["reasoning"], row["response"]) for row in written]
    scores, costs = contest.run_scores(reasoner, traces, ["position", "cut_all"])
    assert list(scores) == ["position", "cut_all"] and costs["score"].tolist() == ["position", "cut_all"]
    slow, quick = costs.set_index("score")["forward_equivalents"][["cut_all", "position"]]
    assert slow > quick > 0
    every, _ = contest.run_scores(reasoner, traces, steps=2)
    assert "mask_network" not in every and len(every) > 12


def test_telling_faithful_from_decorative():
    high, low = [torch.tensor([0.0, 5.0])] * 3, [torch.tensor([0.0, 1.0]), torch.tensor([torch.nan, 2.0])]
    assert contest.tells_apart(high, low).value == contest.tells_apart(high, low, "mean").value == 1
    assert contest.tells_apart(low, high).value == 0 and contest.tells_apart(high, high, "mean").value == 0.5
    mixed = [torch.tensor([v]) for v in (1.0, 2.0, 4.0, 6.0)]
    found = contest.tells_apart(mixed, [s - 0.5 for s in mixed], draws=200)
    assert found.low < found.value < found.high and found.n == 8
    assert math.isnan(contest.tells_apart(high, [torch.tensor([torch.nan])], draws=10).value)
    with pytest.raises(FaithlabError, match="did you mean 'largest'"):
        contest.tells_apart(high, low, "larges")


def test_the_figure_has_a_row_a_score_in_its_group_and_a_column_a_truth(planted_traces):
    truth = [planted(t) for t in planted_traces]
    right, wrong = ([sign * p.decisive.float() for p in truth] for sign in (1, -1))
    judged = contest.judge({"position": wrong, "cut_answer": right, "cut_all": wrong}, planted_traces)
    order = ["cut_all", "position", "cut_answer"]  # from the lowest up; groups stay together all the same
    table, shown = contest.standings(judged), {"path, AUROC": "path", "decisive, top 1": "top"}
    chance = pd.Series({"path, AUROC": 0.5})  # as notebook 05 gives it: a column of a table
    fig = plots.standings(table, shown, order, chance=chance)
    dashed = [[line.get_xdata()[0] for line in a.lines if line.get_linestyle() == "--"] for a in fig.axes]
    assert dashed == [[0.5], []]
    assert [a.get_title() for a in fig.axes] == ["path", "top"]
    rows = ["causal", "hidden from the answer", "hidden from all that follows", "control", "position"]
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == rows
    dots = [line.get_xydata()[0].tolist() for line in fig.axes[1].lines if line.get_marker() == "o"]
    assert dots == [[1, 1], [0, 2], [0, 4]], "each score's value in the row of its name"


def test_every_score_has_a_name_in_words():
    plain = {"entropy", "position", "random"}  # words already
    assert set(plots.SCORE_NAMES) == set(token_scores.names()) - plain
    assert len(set(plots.SCORE_NAMES.values())) == len(plots.SCORE_NAMES)


def test_hiding_curves_have_six_colours_at_most_and_grey_for_the_others():
    names = token_scores.names()[:9]
    shares = (0.0, 0.5, 1.0)
    curves = {n: {kind: np.full((2, 3), k) for kind in ("deletion", "insertion")} for k, n in enumerate(names)}
    fig = plots.hiding_curves(curves, shares, names[:8])
    for ax in fig.axes:
        drawn = [line for line in ax.lines if len(line.get_xdata()) == len(shares)]
        assert sorted(line.get_ydata()[0] for line in drawn) == list(range(9))
        bright = [line for line in drawn if line.get_color() != "0.78"]
        looks = {(str(line.get_color()), line.get_linestyle(), line.get_marker()) for line in bright}
        assert sorted(line.get_ydata()[0] for line in bright) == list(range(6)) and len(looks) == 6
    legend = [text.get_text() for text in fig.axes[1].get_legend().get_texts()]
    assert legend[0] == plots.SCORE_NAMES[names[0]] and len(legend) == 7
    assert all(plots.SCORE_NAMES[name] in legend[-1] for name in names[6:])


def test_the_early_answering_curve_s_band_has_a_width_where_all_agree():
    table = pd.DataFrame(dict(condition="no hint", fraction=[0.0, 1.0] * 10, effect=[1.0, 0.0] * 10))
    ax = plots.early_answering_curve(table)
    heights = ax.collections[0].get_paths()[0].vertices
    at = {x: sorted(set(heights[heights[:, 0] == x, 1].round(6))) for x in (0.0, 1.0)}
    wilson = 0.277532  # of 0 of 10, by hand: z^2 / (n + z^2)
    assert at == {0.0: pytest.approx([0, wilson], abs=1e-5), 1.0: pytest.approx([1 - wilson, 1], abs=1e-5)}
    assert ax.lines[0].get_ydata().tolist() == [0, 1] and ax.get_legend_handles_labels()[1] == ["no hint (n = 10)"]
