"""Exercises of notebook 02: how far heads look back, and which tokens are looked back at."""

from __future__ import annotations

import torch

from faithlab import heads
from faithlab.exercises import Wrong, exercise, expect


@exercise
def waad_by_hand(answer: dict) -> str:
    """WAAD of three rows of a map, and the backward distance of its head."""
    rows = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0.5, 0, 0.5, 0], [0.5, 0, 0.25, 0.25]])
    right = heads.waad(rows, slice(1, 4), window=2).tolist()
    given = [float(v) for v in answer["waad"]]
    expect(len(given) == 3, f"one value for each of tokens 1, 2 and 3; you gave {len(given)}")
    uncapped = heads.waad(rows, slice(1, 4), window=10).tolist()
    expect(given != uncapped, "nearly: that is without the window. A distance of 3 counts as W = 2")
    for t, (mine, theirs) in enumerate(zip(given, right, strict=True), start=1):
        expect(abs(mine - theirs) < 1e-6, f"token {t}: sum over its row of probability times min(t - s, 2)")
    distance = float(answer["distance"])
    expect(
        abs(distance - sum(right) / 3) > 1e-3,
        "the head's backward distance has no window: use t - s itself, not min(t - s, 2)",
    )
    mean = "the backward distance is the mean over the three rows of sum_s P[t, s] (t - s), to three digits at least"
    expect(abs(distance - sum(uncapped) / 3) < 1e-3, mean)
    return "the window caps single distances; the backward distance of a head has none"


@exercise
def future_attention(function) -> str:
    """FAI from its definition, against the library's on random maps."""
    torch.manual_seed(0)
    for n, lo, hi in ((6, 1, None), (9, 2, 4), (7, 3, 5)):
        probs = torch.rand(n, n).tril()
        probs = probs / probs.sum(-1, keepdim=True)
        got = torch.as_tensor(function(probs, lo, hi), dtype=torch.float32)
        expect(got.shape == (n,), f"one value a token: {n} of them, not {tuple(got.shape)}")
        want = heads.fai(probs, slice(0, n), lo, hi)
        blank = torch.isnan(want)
        for s in blank.nonzero().flatten().tolist():
            why = f"token {s} has no token {lo} or more behind it: its FAI is nan, for nobody looks, not {got[s]:.2f}"
            expect(torch.isnan(got[s]), why)
        summed = torch.tensor([probs[s + lo : None if hi is None else s + hi + 1, s].sum() for s in range(n)])
        wrong = (got - want)[~blank].abs() > 1e-5
        expect(
            not (wrong.any() and torch.allclose(got[~blank], summed[~blank], atol=1e-5)),
            "a sum, where FAI is a mean: early tokens have more rows behind them and would always win",
        )
        if wrong.any():
            s = int((~blank).nonzero().flatten()[wrong][0])
            last = "the end" if hi is None else f"s + {hi}, itself included"
            where = f"n={n}: FAI[{s}] is {want[s]:.3f}, yours {got[s]:.3f}. The rows t run from s + {lo} to {last};"
            raise Wrong(f"{where} the attention that t gives to s is P[t, s], a column of the map")
    return "equal to heads.fai on three random maps, nan included"


@exercise
def anchor_without_reach(function) -> str:
    """A map of the learner's design: the token with the most FAI is not the one with the most received attention."""
    probs = torch.as_tensor(function(), dtype=torch.float32)
    expect(probs.ndim == 2 and probs.shape[0] == probs.shape[1], "a map is square: [query, key]")
    n = len(probs)
    expect(6 <= n <= 40, f"use 6 to 40 tokens; yours has {n}")
    sums = torch.allclose(probs.sum(-1), torch.ones(n), atol=1e-4)
    expect(sums and (probs >= 0).all(), "every row of a map holds shares that sum to 1")
    expect(
        torch.equal(probs, probs.tril()), "a token cannot look ahead: nothing above the diagonal (P[t, s] = 0, s > t)"
    )
    received = torch.stack([probs[s + 1 :, s].sum() for s in range(n)])
    fai = heads.fai(probs, slice(0, n), 3, None)
    most, anchor = int(received.argmax()), int(torch.nan_to_num(fai, nan=-1).argmax())
    expect(
        most != anchor,
        f"token {most} has both the most received attention and the highest FAI (lo = 3). Let one token be looked at "
        "by its next two neighbours only, and another from far away",
    )
    return f"token {most} receives most, from near; token {anchor} is what later tokens come back to"
