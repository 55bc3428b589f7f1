"""Generation and interventions, batched as the library does them, against a plain loop that takes one at a time."""

import functools

import pytest
import torch

from faithlab import tasks
from faithlab.abacus.build import new_model
from faithlab.abacus.tokenizer import build_tokenizer
from faithlab.attention import lowest
from faithlab.faithfulness import token_effects
from faithlab.formats import AbacusFormat
from faithlab.models import Reasoner, load_reasoner
from faithlab.paths import data_folder

AIM = 10
pytestmark = pytest.mark.timeout(1800)


@functools.cache
def reasoner(name: str) -> Reasoner:
    if name == "abacus" and not (data_folder() / "abacus" / "config.json").is_file():
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        return Reasoner("abacus, untrained", new_model(tokenizer).eval(), tokenizer, AbacusFormat(), max_new_tokens=96)
    return load_reasoner(name)


def rows(n: int, hops=(1, 3)):
    return list(tasks.load("stories", split="test", n=n, seed=0, hops=hops, distractors=(0, 1)))


def written_one_by_one(r: Reasoner, problems, max_new_tokens: int) -> int:
    """The loop that everyone writes first: sample from transformers' `generate`, one prompt at a time, and decode."""
    tokens = 0
    for problem in problems:
        ids = torch.tensor([r.prompt_ids(problem)])
        out = r.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=max_new_tokens,
            pad_token_id=r.pad_id,
        )
        r.tokenizer.decode(out[0])
        tokens += out.shape[1] - ids.shape[1]
    return tokens


@pytest.mark.parametrize(
    ("name", "n", "alone", "new", "aim"), [("abacus", 256, 12, 256, AIM), ("smollm2", 16, 2, 32, None)]
)
def test_generation(bench, name, n, alone, new, aim):
    r = reasoner(name)
    new = min(new, r.max_new_tokens)
    problems = rows(n)

    def ours():
        return sum(len(t) - t.prompt.stop for t in r.generate(problems, max_new_tokens=new))

    def plain():
        return written_one_by_one(r, problems[:: n // alone], new)

    # lengths are sampled, so rates vary more than elsewhere
    bench(f"generation, {r.name}, {n} rollouts", ours, plain, unit="tokens/s", aim=aim, rounds=7)


@torch.no_grad()
def effects_one_by_one(r: Reasoner, traces, scope: str, every: int = 1) -> list[float]:
    """One full forward pass with a hand-made mask for each `every`th token, and one without: no batch, no cache."""
    out = []
    for t in traces:
        ids, n = t.input_ids[None], len(t)
        rows, answer = torch.arange(t.answer.start - 1, t.answer.stop - 1), t.input_ids[t.answer]
        causal = torch.full((n, n), lowest(r.model.dtype)).triu(1)

        def logp(mask, ids=ids, rows=rows, answer=answer):
            return r.model(input_ids=ids, attention_mask=mask[None, None]).logits[0].log_softmax(-1)[rows, answer].sum()

        full = logp(causal)
        for position in range(t.reasoning.start, t.reasoning.stop, every):
            mask = causal.clone()
            mask[t.reasoning.stop if scope == "answer" else position + 1 :, position] = lowest(r.model.dtype)
            out.append(float(full - logp(mask)))
    return out


@pytest.mark.parametrize("scope", ["answer", "all"])
@pytest.mark.parametrize(
    ("name", "n", "alone", "every", "hops", "aim"),
    [("abacus", 96, 4, 1, (1, 3), AIM), ("smollm2", 2, 1, 8, (1, 1), None)],
)
def test_interventions(bench, name, n, alone, every, hops, aim, scope):
    r = reasoner(name)
    traces = [r.trace(row, row["reasoning"], row["response"]) for row in rows(n, hops)]
    subset = traces[:: n // alone]

    # The two sides must do the same work, or their ratio says nothing. (This is not timed.)
    expected = effects_one_by_one(r, subset[:1], scope, every)
    assert token_effects(r, subset[:1], scope=scope)["effect"].tolist()[::every] == pytest.approx(expected, abs=5e-3)

    def ours():
        return len(token_effects(r, traces, scope=scope))

    def plain():
        return len(effects_one_by_one(r, subset, scope, every))

    bench(f"cutting a token, {r.name}, scope {scope}", ours, plain, unit="interventions/s", aim=aim)
