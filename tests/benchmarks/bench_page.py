"""The page of `faithlab explain` with a reasoning of 2,000 tokens: how long a change of colours takes in a browser."""

import statistics

import browser
import harness
from test_explain import long

from faithlab import tasks
from faithlab.explanation import explain
from faithlab.models import load_reasoner
from faithlab.page import page

SCRIPT = """
const times = [];
for (let k = 0; k < 15; k++) {
  const start = performance.now();
  document.querySelector(`input[value=${k % 2 ? "flow" : "effect"}]`).click();
  document.body.getBoundingClientRect();  // lays the page out anew
  times.push(performance.now() - start);
}
return times.slice(3);
"""
LIMIT = 100.0  # ms: what people take for at once


@browser.needs_browser
def test_switching_on_two_thousand_tokens(bench_row, tmp_path):
    reasoner = load_reasoner("abacus")
    trace = reasoner.generate(tasks.load("stories", split="test", n=1, seed=2), temperature=0)[0]
    text = page([long(explain(reasoner, trace, samples=0))])
    taken = statistics.median(browser.run(text, SCRIPT, tmp_path, "#backbone=1"))
    name = "page: another score on 2,000 tokens, against 100 ms"
    bench_row(harness.single(name, "ms", taken, LIMIT, LIMIT / taken, 1.0))
