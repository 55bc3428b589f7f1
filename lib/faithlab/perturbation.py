"""What happens to the rest of a reasoning when one token is forced to be another: the anchors' perturbation test.

At a position the written token is replaced by another one of the model's own top k, and the model writes on greedily.
The more of the continuation's content changes, the more that token steered it. Source: preplan and anchor (arXiv
2510.13554), table 1, where continuations behind high-FAI tokens overlap less than behind low-FAI tokens.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Sequence

import pandas as pd
import torch

from faithlab.errors import FaithlabError
from faithlab.generation import generate_ids
from faithlab.tasks.scoring import gold_of, same_answer
from faithlab.traces import Trace

# Words that carry grammar rather than content. Numbers and names are content.
_GRAMMAR = """
    a an the this that these those it its he him his she her they them their we us our you your i me my who which what
    and or but so if then than as of to in on at by for with from into about after before is are was were be been am do
    does did has have had can could will would shall should may might must not no there here let also just now
"""
FUNCTION_WORDS = frozenset(_GRAMMAR.split())
COLUMNS = ["trace", "position", "text", "forced", "jaccard", "answer", "before", "changed"]


def content_words(text: str) -> set[str]:
    """The distinct content words and numbers of a text, in lower case."""
    return {w for w in re.findall(r"[^\W_]+", text.casefold()) if w not in FUNCTION_WORDS}


def jaccard(one: Iterable, other: Iterable) -> float:
    """Size of the intersection over size of the union; in [0, 1], 1 for two empty sets."""
    one, other = set(one), set(other)
    return len(one & other) / len(one | other) if one | other else 1.0


@torch.no_grad()
def alternatives(reasoner, trace: Trace, positions: Sequence[int], k: int) -> list[list[int]]:
    """For each position the model's `k` likeliest tokens there, without the written one, likeliest first."""
    logits = reasoner.model(input_ids=trace.input_ids[None].to(reasoner.device)).logits[0].float()
    out = []
    for p in positions:
        ranked = logits[p - 1].topk(min(k + 1, logits.shape[-1])).indices.tolist()
        out.append([i for i in ranked if i != int(trace.input_ids[p])][:k])
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

    Raises `FaithlabError` for a place outside a reasoning.
    """
    rng = random.Random(f"perturb-{seed}")
    for i, p in places:
        if not 0 <= i < len(traces) or not traces[i].reasoning.start <= p < traces[i].reasoning.stop:
            raise FaithlabError(f"place ({i}, {p}) is not in the reasoning of a trace")
    prompts, forced = [], []
    for i in dict.fromkeys(i for i, _ in places):
        own = [p for j, p in places if j == i]
        for p, options in zip(own, alternatives(reasoner, traces[i], own, k), strict=True):
            forced.append((i, p, rng.choice(options)))
    for i, p, token in forced:
        kept = traces[i].input_ids[: p + 1].tolist()
        prompts += [[*kept[:-1], token], kept]
    longest = max((len(traces[i]) - traces[i].prompt.stop for i, _ in places), default=1)
    rollouts = generate_ids(
        reasoner.model,
        reasoner.tokenizer,
        prompts,
        [0] * len(prompts),
        temperature=0,
        max_new_tokens=min(reasoner.max_new_tokens, 2 * longest + 16),
        stop=reasoner.format.stop,
        progress="perturbing" if progress else None,
    )
    rows = []
    for number, (i, p, token) in enumerate(forced):
        t, said, written = traces[i], [], []
        for prompt, rollout in zip(prompts[2 * number :][:2], rollouts[2 * number :][:2], strict=True):
            whole = dataclasses.replace(rollout, ids=[*prompt, *rollout.ids][t.prompt.stop :])
            trace = reasoner.read(prompt[: t.prompt.stop], whole, t.problem or "")
            said.append(trace.answer_text)
            written.append(content_words("".join(trace.pieces[p + 1 :])))
        row = dict(trace=i, position=p, text=t.pieces[p], forced=reasoner.tokenizer.decode([token]))
        row |= dict(jaccard=jaccard(*written), answer=said[0], before=said[1])
        rows.append(row | dict(changed=float(not same_answer(*said, gold_of(t.problem)))))
    return pd.DataFrame(rows, columns=COLUMNS)
