"""Peak memory of one piece of work in a process of its own: `python peak.py capture|eager|plain|mask|batch TOKENS`.

`mask` and `batch` take 16 traces: the mask optimiser, scope answer, and one plain forward pass of the same batch.

Prints how many bytes the peak of resident memory rose above where it stood once the model was loaded and warm.
"""

import resource
import sys

import torch
from transformers import AutoModelForCausalLM

from faithlab.attention import capture
from faithlab.models import load_reasoner
from faithlab.saliency import optimise_mask
from faithlab.traces import Trace


def random_trace(vocabulary: int, tokens: int, seed: int = 0) -> Trace:
    ids = torch.randint(10, vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
    return Trace(ids, slice(0, tokens // 4), slice(tokens // 4, tokens - 8), slice(tokens - 8, tokens))


@torch.no_grad()
def main() -> None:
    what, tokens = sys.argv[1], int(sys.argv[2])
    model = load_reasoner("smollm2").model
    if what == "eager":
        model = AutoModelForCausalLM.from_config(model.config, attn_implementation="eager").eval()
    trace = random_trace(model.config.vocab_size, tokens)
    ids = trace.input_ids[None]
    model(input_ids=ids[:, :64], logits_to_keep=1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if what == "capture":
        capture(model, [trace], want=("profiles",))
    elif what == "mask":
        with torch.enable_grad():
            optimise_mask(model, [random_trace(model.config.vocab_size, tokens, s) for s in range(16)], steps=5)
    elif what == "batch":
        rows = [random_trace(model.config.vocab_size, tokens, s).input_ids for s in range(16)]
        model(input_ids=torch.stack(rows), use_cache=False)
    else:
        model(input_ids=ids, output_attentions=what == "eager", use_cache=False, logits_to_keep=1)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


if __name__ == "__main__":
    main()
