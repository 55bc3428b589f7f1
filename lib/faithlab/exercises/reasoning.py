"""Exercises of notebook 01: what the reasoning is worth to the answer, and what hiding it does and does not show."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch

from faithlab.biases import cut_bias
from faithlab.exercises import compare, exercise, expect, tensor_of


@exercise
def worth_by_hand(answer: dict) -> str:
    """Nats that an answer of two tokens loses without its reasoning, and the area over an early-answering curve."""
    full, hidden, shown = (0.9, 0.8), (0.3, 0.1), ["12", "57", "42", "42", "42", "42"]
    nats = math.log(math.prod(full)) - math.log(math.prod(hidden))
    slips = [
        (-nats, "log p with the reasoning less log p without it: what the answer loses is positive here"),
        (math.exp(nats), "that is how many times less likely the answer became; nats are its natural logarithm"),
        (nats / 2, "that is the mean of the two tokens, but log p of an answer is the sum over its tokens"),
        (nats / math.log(2), "those are bits: take the natural logarithm to get nats"),
        (nats / math.log(10), "that is the logarithm to base 10, where nats are the natural logarithm"),
        (math.prod(full) - math.prod(hidden), "a difference of probabilities has no nats: subtract log probabilities"),
        (math.log(sum(full) / sum(hidden)), "probabilities of successive tokens are multiplied: their logarithms add"),
        *((math.log(a / b), f"token {i} alone loses that; add up what both tokens lose")
          for i, (a, b) in enumerate(zip(full, hidden, strict=True), 1)),
        *((math.log(math.prod(p)), "that is log p in one of the two cases; the loss is the difference of the two")
          for p in (full, hidden)),
    ]  # fmt: skip
    more = "add up the log probabilities of both tokens, with the reasoning and without it, and subtract"
    compare(answer["nats"], nats, slips, more, atol=0.01)
    changed = [a != shown[-1] for a in shown]
    area = sum(changed) / len(changed)
    slips = [
        (1 - area, "that is the area under the curve; count the answers that differ, not those that agree"),
        (
            sum(a != "57" for a in shown) / 6,
            "you compared with the right answer; the model's own answer is what counts",
        ),
        (sum(a == "57" for a in shown) / 6, "that is how often the answer was right, which the area does not ask"),
        (sum(changed) / 5, "the whole reasoning is one of the six points, though it can never differ from itself"),
        (1.5 * 0.2, "that is the trapezoid rule; the area is defined as the mean over the six points"),
        (2.0, "that is how many answers differ; the area is their share of the six points"),
    ]
    more = "the area is the share of the six answers that differ from the last one"
    compare(answer["area"], area, slips, more, atol=5e-3)
    return "nats add up over the answer's tokens; the area asks about the model's own answer, right or wrong"


@exercise
def hide_reasoning(function) -> str:
    """The attention map with the reasoning cut off from the rows behind it, against the library's bias."""
    generator = torch.Generator().manual_seed(0)
    for n, start, stop in ((7, 2, 5), (9, 3, 7), (12, 4, 9), (5, 1, 5), (6, 2, 2)):
        ahead = torch.ones(n, n).triu(1).bool()
        scores = (2 * torch.randn(n, n, generator=generator)).masked_fill(ahead, -torch.inf)
        at = torch.arange(n)
        inside, behind = (at >= start) & (at < stop), at >= stop
        where = f"n={n}, reasoning {start} to {stop - 1}: " if stop > start else f"n={n}, without any reasoning: "

        def attention(rows, columns, scores=scores):
            return (scores + cut_bias(rows[None], columns[None], scores.dtype)[0]).softmax(-1).double()

        want, plain = attention(behind, inside), scores.softmax(-1).double()
        got = tensor_of(function(scores.clone(), start, stop))
        expect(got.shape == (n, n), f"{where}a map has {n} rows and {n} columns, not shape {tuple(got.shape)}")
        expect(got.isfinite().all(), f"{where}the map has values that are not finite: has the softmax been taken?")
        block, without_last = behind[:, None] & inside, inside & (at < stop - 1)
        relayed = scores.masked_fill(inside & ahead.T, -torch.inf).softmax(-1).double()
        slips = [
            (plain, "nothing is hidden. Rows look and columns are looked at: cut scores[rows behind it, reasoning]"),
            (plain.masked_fill(block, 0), "what a row gave to the reasoning is missing: hide it before the softmax"),
            (relayed, "the reasoning is hidden from itself, too. Only the rows from `stop` on lose sight of it"),
            (attention(at > stop, inside), "row `stop` still sees it, but row t predicts token t + 1, so it must not"),
            (attention(at >= stop - 1, inside), "the last reasoning token is cut off as well; begin at row `stop`"),
            (attention(behind, without_last), "the last reasoning token can still be seen; it is number `stop - 1`"),
        ]
        row = int((got - want).abs().amax(1).argmax())
        told = f"row {row} is not right: it stands before row `stop`, and stays as it was without any cut"
        if row >= stop:
            told = f"row {row} gives {got[row, inside].sum():.2f} to the reasoning and {got[row].sum():.2f} in all; "
            told += "it should give 0 to the reasoning, and to the others what the softmax of their own scores gives"
        compare(got, want, [(wrong, where + why) for wrong, why in slips], where + told, atol=1e-5)
    return (
        "the rows from the marker on share out anew what they gave to the reasoning; the reasoning keeps its own rows"
    )


@exercise
def hidden_redundancy(function) -> str:
    """A reasoner of the learner's design: single effects are 0 on the tokens that together carry the answer."""
    n, worth, blank = 6, 3 - 1e-6, 0.1 + 1e-6  # nats
    p = {seen: float(function(list(seen))) for seen in itertools.product((False, True), repeat=n)}
    sound = all(0 < v <= 1 for v in p.values())
    ends = f"{min(p.values()):g} to {max(p.values()):g}"
    expect(sound, f"p(answer) must lie above 0, for its logarithm is taken, and at most at 1; yours goes from {ends}")

    def effect(hidden: Sequence[int]) -> float:
        return math.log(p[(True,) * n] / p[tuple(i not in hidden for i in range(n))])

    whole, single = effect(range(n)), [effect([i]) for i in range(n)]
    decoration = [i for i in range(n) if all(abs(p[s] - p[(*s[:i], not s[i], *s[i + 1 :])]) < 1e-9 for s in p)]
    expect(whole >= worth, f"hiding all six costs {whole:.1f} nats: that reasoning is decoration. At least 3 are asked")
    most = max(range(n), key=lambda i: abs(single[i]))
    expect(
        abs(single[most]) <= blank,
        f"hiding token {most} alone already changes log p by {abs(single[most]):.1f} nats, so the map finds it. "
        "Give the answer a second way to the same number",
    )
    expect(
        decoration,
        "every token counts in some company. Let the answer read only some of the six, so that the rest is decoration "
        "which a single effect of 0 cannot tell from them",
    )
    sets = (s for size in range(2, n + 1) for s in itertools.combinations(range(n), size) if effect(s) >= worth)
    return (
        f"a single effect of 0 says replaceable, not unused: hiding tokens {next(sets)} together costs 3 nats or more"
    )
