"""Peak memory of one piece of work, measured in a process of its own, to lay beside `faithlab.footprints`.

    python -m faithlab.memory_peaks "mask, scope answer" 256 --traces 16 --reasoner smollm2

prints by how many bytes the peak of resident memory rose above where it stood once the model was loaded and warm. The
traces are random tokens: a quarter prompt, eight tokens of answer. It is the process's memory, with a MB or two of
noise and with what its allocator keeps of what was freed, which can be more than what is in use.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from faithlab.attention import capture
from faithlab.errors import FaithlabError, check_known, check_number
from faithlab.likelihood import with_and_without_reasoning
from faithlab.mask_network import MaskNetwork, predict_masks
from faithlab.models import Reasoner, load_reasoner
from faithlab.saliency import optimise_mask
from faithlab.token_scores import gradient_open
from faithlab.traces import Trace

STEPS = 2  # of a mask: later ones hold no more
ANSWER = 8  # tokens


def random_trace(vocabulary: int, tokens: int, seed: int = 0) -> Trace:
    """A trace of random tokens: a quarter prompt, eight tokens of answer, reasoning between."""
    ids = torch.randint(10, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    return Trace(ids, slice(0, tokens // 4), slice(tokens // 4, tokens - ANSWER), slice(tokens - ANSWER, tokens))


def _forward(r: Reasoner, traces: list[Trace], **options) -> None:
    with torch.no_grad():
        r.model(input_ids=torch.stack([t.input_ids for t in traces]), use_cache=False, **options)


def _gradient(r: Reasoner, traces: list[Trace]) -> None:
    """Of all weights, with TRL's own way of making logits."""
    from trl.trainer.utils import add_fused_lm_head  # late: it takes seconds

    add_fused_lm_head(r.model)
    ids = torch.stack([t.input_ids for t in traces])
    r.model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True).loss.backward()


def _network(r: Reasoner, traces: list[Trace]) -> None:
    predict_masks(MaskNetwork.for_model(r.model), r.model, traces)


WORK: dict[str, Callable[[Reasoner, list[Trace]], object]] = {
    "forward pass": _forward,
    "forward pass, logits of the last token": lambda r, traces: _forward(r, traces, logits_to_keep=1),
    "attention of all layers": lambda r, traces: _forward(r, traces, logits_to_keep=1, output_attentions=True),
    "GRPO's gradient": _gradient,
    "capture of attention": lambda r, traces: capture(r.model, traces, want=("profiles",)),
    "one-step gradient of the mask": gradient_open,
    "mask, scope answer": lambda r, traces: optimise_mask(r.model, traces, steps=STEPS),
    "mask, scope all": lambda r, traces: optimise_mask(r.model, traces, steps=STEPS, scope="all"),
    "mask network": _network,
    "drop or sufficiency": with_and_without_reasoning,
}


def peak(what: str, tokens: int, *, traces: int = 1, reasoner: str = "smollm2", keeping: bool = True) -> int:
    """Bytes by which a piece of work raises the peak of a fresh process: one of `WORK`, on `traces` of `tokens` each.
    Without `keeping` the allocator gives back at once whatever is freed (glibc's; of others nothing is known).

    Raises `FaithlabError` for work that is not known, traces without room for a reasoning, or a process that fails."""
    check_known("work", [what], WORK)
    check_number("tokens", tokens, 2 * ANSWER, whole=True)
    check_number("traces", traces, 1, whole=True)
    call = [sys.executable, "-m", "faithlab.memory_peaks", what, tokens, "--traces", traces, "--reasoner", reasoner]
    environment = dict(os.environ) if keeping else {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([*map(str, call)], capture_output=True, text=True, env=environment)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise FaithlabError(f"the process that measures {what!r} failed ({done.returncode}): {last}")
    return int(done.stdout.split()[-1])


def resident_peak() -> int:
    """Bytes. On Linux from the status file: `ru_maxrss` of a child begins at its parent's peak, which may be larger."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource  # here: Windows has none, and notebook 10 imports this module there too

    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else 1024 * highest


def main() -> None:
    """Measure here what `peak` asks for, and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WORK)
    parser.add_argument("tokens", type=int)
    parser.add_argument("--traces", type=int, default=1)
    parser.add_argument("--reasoner", default="smollm2")
    args = parser.parse_args()
    r = load_reasoner(args.reasoner)
    if args.what == "attention of all layers":
        r.model.set_attn_implementation("eager")
    traces = [random_trace(r.model.config.vocab_size, args.tokens, seed) for seed in range(args.traces)]
    with torch.no_grad():
        r.model(input_ids=traces[0].input_ids[None, :64], logits_to_keep=1)
    before = resident_peak()
    WORK[args.what](r, traces)
    print(resident_peak() - before)


if __name__ == "__main__":
    main()
