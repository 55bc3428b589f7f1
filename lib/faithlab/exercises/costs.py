"""Exercises of notebook 10: what is kept of a long trace, what a row costs, and a comparison that a budget carries."""

from __future__ import annotations

import math
from types import SimpleNamespace

from faithlab import costs
from faithlab.costs import SHAPES, Lengths, Shape
from faithlab.exercises import compare, exercise, expect

GB = 2**30
TOKENS, READ = 8192, 5  # of the long trace, and layers that are read
LENGTHS = Lengths(200, 800, 10)
ROOM, BUDGET, RATE, BANDWIDTH = 80, 24, 2e14, 3e12  # GB a GPU, GPU-hours, FLOP and bytes a second
SPREAD, REACH, ALIKE, SKILL = 0.05, 0.1, 1 / 8, 0.75
PAID = ("one-step gradient of the mask", "mask, scope answer", "mask, scope all", "mask as published", "mask network",
        "drop or sufficiency")  # fmt: skip


@exercise
def kept_of_a_trace(answer: dict) -> str:
    """GB of a cache, of all attention maps, and of the queries and keys that streaming capture records."""
    s = SHAPES["llama-3.1-8b"]
    cache = s.cache_bytes(TOKENS) / GB
    maps = s.layers * s.heads * costs.MAP * TOKENS**2 / GB
    of_a_head = TOKENS * s.head_dim * 2 / GB  # in bfloat16
    recorded = READ * (s.heads + s.key_heads) * of_a_head
    slips = [
        (cache / 2, "cache: keys are kept and values too; yours is one of the two"),
        (cache * 4, "cache: 32 query heads share 8 key heads, and only keys and values are kept"),
        (cache * 2, "cache: a number in bfloat16 takes two bytes, not four"),
        (cache / s.layers, "cache: that is one layer's; there are 32"),
    ]
    compare(
        _decimal(answer["cache"], cache), cache, slips, "cache: 2 x layers x key heads x 128 x tokens x 2 bytes", 0.01
    )
    slips = [
        (maps / 4, "maps: every query head has a map of its own, though four of them share their keys"),
        (maps / 2, "maps: kept as float32, four bytes a probability, and with the masked half, as a square array"),
        (maps / s.layers, "maps: that is one layer's 32 heads; there are 32 layers"),
        (maps / s.layers / s.heads, "maps: that is a single map; there is one for every layer and every query head"),
    ]
    compare(_decimal(answer["maps"], maps), maps, slips, "maps: layers x query heads x tokens squared x 4 bytes", 0.6)
    slips = [
        (READ * s.heads * of_a_head, "recorded: those are the queries; the keys have to be kept too"),
        (READ * s.key_heads * of_a_head, "recorded: those are the keys; the queries have to be kept too"),
        (READ * 2 * s.heads * of_a_head, "recorded: there are only 8 key heads, beside 32 query heads"),
        (READ * 2 * s.key_heads * of_a_head, "recorded: there are 32 query heads, beside 8 key heads"),
        (s.layers * (s.heads + s.key_heads) * of_a_head, "recorded: only five layers are read, not all 32"),
    ]
    otherwise = "recorded: 5 layers x (32 query heads + 8 key heads) x 128 x tokens x 2 bytes"
    compare(_decimal(answer["recorded"], recorded), recorded, slips, otherwise, 0.002)
    return f"{maps / recorded:.0f} times less than all maps, and enough to make any row of the five layers again"


def _decimal(given, right: float) -> float:
    """The number, unless it is the right one in GB of 10^9 bytes."""
    thousand = abs(float(given) / (right * GB / 1e9) - 1) < 2e-3
    expect(not thousand, "that is in units of 10^9 bytes; here, as in the notebook, a GB is 2^30 bytes")
    return given


@exercise
def flops_of_rows(function) -> str:
    """FLOPs of running some positions that look at some columns, against the library's on shapes small and large."""
    odd = Shape(3, 40, 5, 1, 16, 72, 301, False)
    for shape in (*SHAPES.values(), odd):
        bare = SimpleNamespace(**vars(shape))  # numbers only: nothing that is counted already
        for rows, columns in ((1000, 1000), (1, 1000), (10, 8000), (1, 1), (0, 50)):
            right = shape.rows(rows, columns)
            slips = [(wrong / max(right, 1), why) for wrong, why in _miscounted(shape, rows, columns)]
            otherwise = f"{shape}: {rows} rows that look at {columns} cost {right:.4g} FLOP, and yours is not that"
            got = function(bare, rows, columns)
            expect(got is not None, "your function returns nothing: end it with `return` and the number of FLOPs")
            compare(float(got) / max(right, 1), right / max(right, 1), slips, otherwise, atol=1e-6)
    eight = SHAPES["llama-3.1-8b"]
    share = eight.rows(10, 8000) / eight.rows(8000, 8000)
    return f"equal to Shape.rows; ten rows behind 7,990 that are kept cost {100 * share:.2f} % of a pass over all"


def _miscounted(s: Shape, rows: int, columns: int) -> list[tuple[float, str]]:
    """What typical mistakes give, and what to say of each."""
    right = s.rows(rows, columns)
    matrices, logits = 2 * rows * s.layers * s.layer, 2 * rows * s.hidden * s.vocabulary
    attention = right - matrices - logits
    wide = 4 * s.layers * rows * s.hidden * s.head_dim * (s.heads - s.key_heads)
    return [
        (right / 2, "half of it: a weight is multiplied and then added, which are two operations"),
        (right - logits, "the logits are missing: every row is multiplied by hidden x vocabulary at the end"),
        (matrices + s.layers * logits + attention, "logits are made once at the end, not in every layer"),
        (right - attention / 2, "attention has two products: query with key, and probability with value"),
        (right - attention, "attention is missing: each row meets every column in every head"),
        (right - attention + attention / s.layers, "attention happens in every layer: multiply it by their number"),
        (right - attention + attention / s.heads, "attention happens in every head: multiply it by their number"),
        (right + wide, "keys and values have key_heads heads only, so their matrices are smaller"),
        (right - 2 * rows * s.layers * s.hidden * s.inner, "the feed-forward part is gated: three matrices, not two"),
        (
            right - attention + 4 * s.layers * rows * columns * s.hidden,
            "attention is as wide as heads x head_dim, which need not be the hidden size",
        ),
        (
            right + 2 * (s.layers * s.hidden * (s.hidden - s.heads * s.head_dim) * 2) * rows,
            "the matrices of queries and output are hidden x (heads x head_dim), not hidden x hidden",
        ),
        (2 * rows * s.parameters + attention, "an untied embedding is looked up, not multiplied: leave it out of 2 P"),
        (
            matrices + logits + (attention * rows / columns if columns else 0),
            "a row looks at all columns, also those computed before: rows x columns, not rows x rows",
        ),
    ]


@exercise
def affordable_comparison(plan: dict) -> str:
    """A plan of the learner's: arms, seeds, batch and GPUs of a comparison that fits a memory and GPU-hours."""
    from scipy.stats import t

    arms = list(plan["arms"])
    for arm in arms:
        expect(arm == "outcome" or arm in PAID, f"{arm!r} is no arm; use 'outcome' and of {PAID}")
    expect("outcome" in arms, "no arm is paid for the outcome alone, so a change may come from any further training")
    expect(len(arms) > 1 and len({*arms}) == len(arms), "compare: 'outcome' and at least one other reward, each once")
    names = ("seeds", "steps", "prompts", "rollouts", "gpus", "lora", "at_once")
    seeds, steps, prompts, rollouts, gpus, lora, at_once = (int(plan[name]) for name in names)
    expect(min(seeds, steps, prompts, rollouts, gpus, at_once) >= 1 and lora >= 0, "all are counts: 1 and more, lora 0")
    expect(seeds > 1, "one seed tells nothing about others: the interval has no end")
    reach = float(t.ppf(0.975, seeds - 1)) * SPREAD / math.sqrt(seeds)
    expect(reach <= REACH, f"with {seeds} seeds the interval reaches {reach:.3f} to either side; {REACH} is allowed")
    alike = SKILL**rollouts + (1 - SKILL) ** rollouts
    expect(
        alike <= ALIKE,
        f"of groups of {rollouts} rollouts {alike:.0%} are all right or all wrong, and teach nothing about the outcome",
    )
    enough = steps >= 200 and prompts >= 8
    expect(enough, f"{steps} steps of {prompts} problems; 200 of 8 are the least that is to be compared")
    batch = prompts * rollouts
    expect(
        batch % (gpus * at_once) == 0,
        f"{batch} rollouts a step are no whole number of passes of {at_once} on each of {gpus} GPUs; change one",
    )
    s = SHAPES["llama-3.1-8b"]
    step = costs.grpo_step(s, LENGTHS, batch, at_once=at_once, rate=RATE, lora=lora)
    weights, passes = step.weights / gpus / GB, step.activations / GB
    expect(
        weights + passes <= ROOM,
        f"each GPU holds {weights:.1f} GB of weights, gradients and optimiser and {passes:.1f} GB of activations, more "
        f"than {ROOM}: share out the first, train less of it, or take fewer rollouts at once",
    )
    writing = costs.writing_seconds(s, LENGTHS, batch // gpus, bandwidth=BANDWIDTH) * gpus
    work = costs.flops(s, LENGTHS)
    seconds = {a: step.learning + writing + (a in PAID) * batch * work.get(a, 0) / RATE for a in arms}
    hours = {a: seeds * steps * v / 3600 for a, v in seconds.items()}
    total, dearest = sum(hours.values()), max(hours, key=hours.get)
    expect(
        total <= BUDGET,
        f"{total:.0f} GPU-hours are more than {BUDGET}; {dearest!r} takes {hours[dearest]:.0f} of them, and a step of "
        f"it {seconds[dearest]:.0f} GPU-seconds, {writing:.0f} for writing",
    )
    return (
        f"{weights + passes:.0f} GB a GPU, {total:.1f} GPU-hours; seeds blur a difference by {reach:.2f} to either side"
    )
