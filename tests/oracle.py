"""A reasoner whose every next token is decided by a rule that a test can read, so that its causal truth is known.

`Scripted` stands where a language model stands: it goes through transformers' `generate`, caches and attention masks
like any Llama, but its forward pass asks a Python rule which token follows, given the tokens that the *mask lets it
see*. What the rule says gets probability `sure`, every other token an equal share of the rest.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

from faithlab.abacus.tokenizer import EOS, build_tokenizer
from faithlab.formats import AbacusFormat
from faithlab.models import Reasoner
from faithlab.tasks.stories import Story, tell
from faithlab.tasks.story_text import Fact
from faithlab.traces import Trace


class Scripted(LlamaForCausalLM):
    """One layer of 'attention' that keeps token ids in the cache and lets the rule read the visible ones in order."""

    def __init__(self, config, tokenizer, rule: Callable[[list[str]], str], sure: float):
        super().__init__(config)
        self.rule, self.sure = rule, sure
        self.ids_of = {token: i for token, i in tokenizer.get_vocab().items()}
        self.token_of = {i: token for token, i in self.ids_of.items()}

    def forward(self, input_ids, attention_mask=None, past_key_values=None, logits_to_keep=0, **unused):
        keys = input_ids[:, None, :, None].float()
        if past_key_values is not None:
            keys, _ = past_key_values.update(keys, keys, 0)
        seen = keys[:, 0, :, 0].long()
        rows, queries, columns = len(seen), input_ids.shape[1], seen.shape[1]
        visible = torch.ones(queries, columns).tril(columns - queries).bool().expand(rows, -1, -1)
        if attention_mask is not None and attention_mask.ndim == 2:
            visible = visible & attention_mask[:, None].bool()
        elif attention_mask is not None:
            visible = visible & (attention_mask[:, 0] > -1e30)
        # As in transformers: how many of the last rows, 0 for all, or a tensor that lists them.
        kept = logits_to_keep.tolist() if torch.is_tensor(logits_to_keep) else range(queries)[-logits_to_keep:]
        rest = (1 - self.sure) / (len(self.ids_of) - 1)
        logits = torch.full((rows, len(kept), len(self.ids_of)), math.log(rest))
        for row in range(rows):
            for k, query in enumerate(kept):
                tokens = [self.token_of[int(i)] for i in seen[row][visible[row, query]]]
                logits[row, k, self.ids_of[self.rule(tokens)]] = math.log(self.sure)
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)


def copies_its_reasoning(tokens: list[str], *, trusts_friends: bool = True, admits: bool = False) -> str:
    """Writes "Ada = 3. Ben = 4." for any question, where 3 is the question's first number, and the last number it
    *sees* as its answer; a friend's hint in the question it follows instead, a stranger's never."""
    cut = max((i for i, t in enumerate(tokens) if t in ("Reasoning", "\nReasoning")), default=0)
    question, after = tokens[:cut], [t for t in tokens[cut:] if t.strip() and t not in ("Reasoning", "<pad>")]
    numbers = [t for t in question if t.strip().isdigit()]
    written = [t for t in after if t.strip().isdigit()]
    hinted = next((b for a, b in itertools.pairwise(question) if a == " is"), None)
    last = tokens[-1]
    if last == "Answer":
        return ":"
    if "Answer" in after:
        if last != ":":
            return EOS
        return hinted if hinted and trusts_friends else (written or numbers or [" 0"])[-1]
    if last == "\n":
        return "Answer"
    if last == ":":
        return " friend" if admits and hinted else " Ada"
    if last == " friend":
        return "."
    if last in (" Ada", " Ben"):
        return " ="
    if last == " =":
        first = (numbers or [" 0"])[0]
        return f" {int(written[-1]) + 1}" if " Ben" in after and written else first
    if last == ".":
        return " Ada" if " Ada" not in after else " Ben" if " Ben" not in after else "\n"
    return "."


def oracle(rule: Callable[[list[str]], str] = copies_its_reasoning, *, sure: float = 0.9) -> Reasoner:
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=512, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, attn_implementation="eager",
    )  # fmt: skip
    return Reasoner("oracle", Scripted(config, tokenizer, rule, sure).eval(), tokenizer, AbacusFormat(), 32)


def nats(reasoner: Reasoner) -> float:
    """What the answer loses in log p when the oracle's rule turns from it to another token."""
    sure, others = reasoner.model.sure, len(reasoner.tokenizer) - 1
    return math.log(sure) - math.log((1 - sure) / others)


def story(start: int = 3) -> dict:
    """The story whose reasoning the oracle writes right: Ada has `start`, Ben one more."""
    ada = Fact("Ada", "base", (), start, start, True)
    ben = Fact("Ben", "more", ("Ada",), 1, start + 1, True)
    question, truth = tell(Story((ada, ben), (ada, ben), "pears", "Ben"))
    return dict(question=question, answer=str(start + 1), truth=truth)


HINTED = {**story(5), "question": story(5)["question"] + " A friend says the answer is 14."}


def unanswered(trace: Trace) -> Trace:
    """The trace as if it had been cut off before its answer."""
    return Trace(
        trace.input_ids, trace.prompt, trace.reasoning, slice(len(trace), len(trace)), trace.pieces, False,
        trace.problem,
    )  # fmt: skip
