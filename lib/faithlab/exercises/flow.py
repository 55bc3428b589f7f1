"""Exercises of notebook 03: flow that is bound for the answer, and what a ranking by flow has to be compared with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from faithlab.exercises import compare, exercise, expect, tensor_of
from faithlab.flow import trace_flow, trace_flows


def walked(steps: Tensor, start: Tensor) -> Tensor:
    """Inflow of a walk with the step weights `steps[source, target]`, of which `start` begins at each token."""
    return torch.linalg.solve(torch.eye(len(steps), dtype=steps.dtype) - steps.T, start)


def shares(steps: Tensor) -> Tensor:
    """Rows scaled to sum to 1, where there is anything in them."""
    total = steps.sum(1, keepdim=True)
    return torch.where(total > 0, steps / total, 0.0)


@exercise
def flow_by_hand(answer: dict) -> str:
    """Reachability, inflow, throughput and delivery on five tokens, one of the question's out of reach."""
    weights = torch.zeros(5, 5, dtype=torch.float64)  # [query, key]
    weights[2, 0], weights[3, 0], weights[4, 2], weights[4, 3] = 0.8, 0.2, 0.1, 0.9
    flow = trace_flow(weights, slice(0, 2), slice(4, 5))
    h, f, graph = flow.reachability, flow.inflow, flow.weights
    slips = [
        (float(graph[0].sum()), "you added up the weights that leave token 0; each counts times the h of its target"),
        (float((graph[0] * h).max()), "that is the better of the two ways alone; h is the sum over all of them"),
        (float(h[2:4].sum()), "that is h of the two thoughts; each counts times the weight with which it sees token 0"),
    ]
    more = "reachability of token 0: the sum over 0→2 and 0→3 of the weight times the h of the token it leads to"
    compare(answer["reachability"], h[0], slips, more, atol=5e-3)
    alone = walked(shares(graph), flow.prompt.double() / 2)
    bound = "those steps follow the weights alone; a walk that is bound to arrive weighs each by h[k] / h[i]"
    undivided = "W'[0, k] is divided by h[0], so that the steps from token 0 sum to 1"
    slips = [(alone, bound), (2 * alone, bound), (h[0] * f, undivided), (2 * h[0] * f, undivided)]
    slips += [(2 * f, "half of the unit starts at token 1, and is lost, not spread anew")]
    more = "inflow of token k: what starts at token 0, times W[0, k] h[k] / h[0]"
    compare(tensor_of(answer["inflow"]), f[2:4], [(wrong[2:4], why) for wrong, why in slips], more, atol=5e-3)
    slips = [
        (f[3], "that is the inflow; throughput counts what comes in and what goes out again"),
        (f[3] * 1.9, "what goes out takes the conditioned step, which is 1 here, and not the weight 0.9"),
    ]
    more = "throughput of token 3: its inflow, and as much again that leaves for the answer"
    compare(answer["throughput"], flow.throughput[3], slips, more, atol=5e-3)
    slips = [(1.0, "no way leads from token 1 to the answer, so what starts there cannot be delivered")]
    more = "delivered is the inflow of the answer: what comes from tokens 2 and 3"
    compare(answer["delivered"], flow.delivered, slips, more, atol=5e-3)
    return "token 2 looks at the question four times as hard, yet token 3, which the answer sees, carries more"


@exercise
def answer_bound_flow(function) -> str:
    """Inflow of every token, from its definition, against the library's on random maps."""
    generator = torch.Generator().manual_seed(0)
    cases = [(2, [0], [1], 0.0), (7, [0, 1, 2], [6], 0.0), (8, [0, 1], [5, 7], 0.0), (9, [0, 1, 2], [7, 8], 0.6)]
    for n, prompt, answer, blank in [*cases, (6, [0, 1], [5], 1.0)]:
        weights = torch.rand(n, n, generator=generator).tril()
        weights = weights / weights.sum(1, keepdim=True)
        away = torch.rand(n, n, generator=generator) < blank
        if blank:
            away[:, 1] = True  # nobody looks at a token of the question
        weights = weights.masked_fill(away, 0)
        [flow] = trace_flows(weights[None], [torch.tensor(prompt)], [torch.tensor(answer)])
        want = flow.inflow
        got = tensor_of(function(weights.clone(), list(prompt), list(answer)))
        where = f"{n} tokens, question {prompt}, answer {answer}: "
        expect(got.shape == (n,), f"{where}one value a token, not shape {tuple(got.shape)}")
        expect(
            got.isfinite().all(),
            f"{where}a value is not finite. Where h is 0 no way leads to the answer: the inflow is 0 there, too",
        )
        h, begin = flow.reachability, flow.prompt.double() / len(prompt)
        able = flow.prompt & (h > 0)
        onward = flow.conditioned() + weights.double().tril(-1).T * flow.answer[:, None] * h  # h is 1 on the answer
        still = "nothing flows. The map's rows look: the edge from i to k stands at weights[k, i]"
        bound = "the steps follow the weights alone, where each counts W[i, k] h[k] / h[i]"
        spread = "what cannot be delivered was spread over the rest of the question; it is lost"
        tau = "that is throughput, in and out; inflow counts what comes in"
        slips = [
            (0 * want, still),
            (begin, still),
            (walked(shares(flow.weights), begin), bound),
            (walked(flow.weights, begin), bound),
            (want + begin * (h == 0), "what starts where no way leads to the answer is lost: f is 0 there"),
            (len(prompt) * want, "a whole unit starts at every token of the question; together they get one"),
            (len(prompt) / max(1, able.sum()) * want, spread),
            (flow.throughput, tau),
            (2 * want, tau),
            (walked(onward, begin * able), "an answer token passes flow on to a later one; answer tokens absorb it"),
        ]
        k = next((k for k in range(n) if abs(got[k] - want[k]) > 1e-4), 0)
        more = f"f[{k}] is {want[k]:.3f}, yours {got[k]:.3f}. Find h from the end first, then f from the front"
        compare(got, want, [(wrong, where + why) for wrong, why in slips], where + more)
    return "equal to the library's inflow on five maps, whatever cannot reach the answer included"


@exercise
def position_matched_control(function) -> str:
    """Controls of the learner's design for the tokens of most flow, in a world of position and in a world of flow."""
    rng = np.random.default_rng(0)
    changed: dict[str, list[tuple[float, float]]] = {"top": [], "control": []}
    for trace in range(150):
        n = int(rng.integers(30, 91)) if trace else 5
        place, own = np.arange(n) / (n - 1), rng.normal(size=n)
        scores, count = 1.5 * place + own, round(0.2 * n)
        top = sorted(np.argsort(scores)[-count:].tolist())
        control = [int(i) for i in function(list(top), scores.copy(), np.random.default_rng(trace))]
        expect(
            len(control) == count,
            f"{len(control)} tokens against the {count} of the top: hiding more of them changes more answers by itself",
        )
        sound = len(set(control)) == count and all(0 <= i < n for i in control)
        expect(
            sound, f"a control names {count} different tokens out of 0 to {n - 1}; one of yours was {sorted(control)}"
        )
        both = sorted(set(top) & set(control))
        expect(not both, f"tokens {both} are in the top and in its control, which makes the two alike by themselves")
        if trace:
            harm = [12 / count * w for w in (0.15 * place**3, 0.1 * own.clip(0))]  # of hiding a token, in each world
            for name, hidden in (("top", top), ("control", control)):
                changed[name].append(tuple(float(1 - np.exp(-w[hidden].sum())) for w in harm))
    (place_top, flow_top), (place_control, flow_control) = (np.mean(v, axis=0) for v in changed.values())
    expect(
        flow_top - flow_control >= 0.4,
        f"where flow counts, the top changes {flow_top:.2f} of the answers and your control {flow_control:.2f}: it "
        "carries much flow itself, so you would miss a real effect. Choose it by something other than rank",
    )
    gap = place_top - place_control
    told = f"where position alone counts, the top changes {place_top:.2f} of the answers and your control "
    expect(
        gap <= 0.05,
        f"{told}{place_control:.2f}: you would credit flow with what position does. Your control stands too early",
    )
    expect(
        gap >= -0.05,
        f"{told}{place_control:.2f}: it stands too late, so that a real effect of flow would be missed",
    )
    return (
        f"top against control: {place_top:.2f} and {place_control:.2f} where position counts, "
        f"{flow_top:.2f} and {flow_control:.2f} where flow does; now a difference says something about flow"
    )
