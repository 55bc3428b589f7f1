"""What happens to the rest of a reasoning when one token is forced to be another: the anchors' perturbation test.

At a position the written token is replaced by another one of the model's own top k, and the model writes on greedily.
The more of the continuation's content changes, the more that token steered it. Source: preplan and anchor (arXiv
2510.13554), table 1, where continuations behind high-FAI tokens overlap less than behind low-FAI tokens.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from faithlab.biases import evaluating
from faithlab.errors import FaithlabError
from faithlab.tasks.scoring import gold_of, same_answer
from faithlab.traces import Trace
from faithlab.words import content_words

COLUMNS = ["trace", "position", "text", "forced", "jaccard", "answer", "before", "changed"]


def jaccard(one: Iterable, other: Iterable) -> float:
    """Size of the intersection over size of the union; in [0, 1], 1 for two empty sets."""
    one, other = set(one), set(other)
    return len(one & other) / len(one | other) if one | other else 1.0


@torch.no_grad()
def alternatives(reasoner, trace: Trace, positions: Sequence[int], k: int) -> list[list[int]]:
    """For each position the model's `k` likeliest tokens there, likeliest first, without the written one and without
    special tokens, behind which nothing sensible follows."""
    special = set(reasoner.tokenizer.all_special_ids)
    rows = torch.tensor([p - 1 for p in positions], device=reasoner.device)
    ids = trace.input_ids[None].to(reasoner.device)
    with evaluating(reasoner.model):
        logits = reasoner.model(input_ids=ids, logits_to_keep=rows).logits[0].float()
    out = []
    for row, p in zip(logits, positions, strict=True):
        ranked = row.topk(min(k + 1 + len(special), len(row))).indices.tolist()
        out.append([i for i in ranked if i != int(trace.input_ids[p]) and i not in special][:k])
    return out


def perturb(
    reasoner,
    traces: Sequence[Trace],
    places: Sequence[tuple[int, int]],
    *,
    k: int = 5,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Force another of the top-`k` tokens at each place, a pair (trace number, reasoning position), and write on.

    The original continuation is the greedy one behind the written token, so that sampling plays no part. Returns one
    row a place: `trace, position, text, forced` (the two tokens), `jaccard` (overlap of the content words of the two
    continuations, in [0, 1]), `answer, before` and `changed` (1 where the answer is another).

    Raises `FaithlabError` for a place outside a reasoning, or k < 1.
    """
    if k < 1:
        raise FaithlabError(f"k={k} alternatives are none; use k >= 1")
    rng = random.Random(f"perturb-{seed}")
    for i, p in places:
        if not 0 <= i < len(traces) or not traces[i].reasoning.start <= p < traces[i].reasoning.stop:
            raise FaithlabError(f"place ({i}, {p}) is not in the reasoning of a trace")
    options = {}
    for i in dict.fromkeys(i for i, _ in places):
        own = [p for j, p in places if j == i]
        options |= {(i, p): some for p, some in zip(own, alternatives(reasoner, traces[i], own, k), strict=True)}
    forced = [(*place, rng.choice(options[place])) for place in places]
    beginnings = []
    for i, p, token in forced:
        kept = traces[i].input_ids[: p + 1].tolist()
        beginnings += [(traces[i], [*kept[:-1], token]), (traces[i], kept)]
    label = "perturbing" if progress else None
    written = reasoner.continued(beginnings, [0] * len(beginnings), temperature=0, progress=label)
    rows = []
    for number, (i, p, token) in enumerate(forced):
        t, pair = traces[i], written[2 * number : 2 * number + 2]
        said = [new.answer_text for new in pair]
        overlap = jaccard(*(content_words("".join(new.pieces[p + 1 :])) for new in pair))
        row = dict(trace=i, position=p, text=t.pieces[p], forced=reasoner.tokenizer.decode([token]))
        row |= dict(jaccard=overlap, answer=said[0], before=said[1])
        rows.append(row | dict(changed=float(not same_answer(*said, gold_of(t.problem)))))
    return pd.DataFrame(rows, columns=COLUMNS)
