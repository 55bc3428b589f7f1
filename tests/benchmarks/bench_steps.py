"""Which part of a GRPO step goes into credit or the saliency reward: the first steps of the shipped arms, as they are
now. Logs of long runs cannot say it, for they were made over weeks by code that grew faster meanwhile.

A row's ratio r is a whole step over that part of it: a share of 1/r. The steps themselves are kept in
`data/results/step_shares.csv`, which notebooks 07 and 08 read.
"""

import dataclasses
import os
import statistics

import harness
import pandas as pd
import pytest
import torch

from faithlab.arms import read_arm
from faithlab.credit import STRATEGIES
from faithlab.results import write_atomically
from faithlab.training import make_trainer

pytestmark = [pytest.mark.timeout(1800), pytest.mark.filterwarnings("ignore")]
SHARES = harness.RESULTS.with_name("step_shares.csv")
STEPS, FIRST = 12, 2  # the first steps of a process are slower, and left out
AIMS = dict(credit=0.03, network=0.05)  # of a step on a GPU, where generation dominates; on a CPU there is none
ARMS = {f"credit_{name}": "credit" for name in STRATEGIES if name != "uniform"}
ARMS |= {f"shortcut_100_{name}": "saliency" for name in ("mask", "network", "drop", "sufficiency")}


@pytest.mark.parametrize("name", ARMS)
def test_share_of_a_step(bench_row, name, tmp_path):
    what = ARMS[name]
    trainer = make_trainer(dataclasses.replace(read_arm(name), steps=STEPS), 0, tmp_path, quiet=True, save=False)
    trainer.train()
    seen = pd.DataFrame([row for row in trainer.state.log_history if "step_time" in row]).iloc[FIRST:]
    part, step = seen[f"{what}/seconds"], seen["step_time"]
    table = pd.DataFrame(dict(arm=name, what=what, step=seen["step"], seconds=part, step_seconds=step))
    if not os.environ.get("BENCH_DRY"):
        kept = pd.read_csv(SHARES).query("arm != @name") if SHARES.is_file() else None
        table = pd.concat([kept, table]).sort_values(["what", "arm", "step"])
        write_atomically(SHARES, table.to_csv(index=False, float_format="%.4g"))
    each = (step / part).tolist()
    aim = AIMS.get("network" if name.endswith("network") else what) if torch.cuda.is_available() else None
    bench_row(
        harness.Row(f"a step of {name} / its part for {what}", "1/s", 1 / statistics.median(part),
                    1 / statistics.median(step), statistics.median(each), min(each), max(each), len(each),
                    aim and 1 / aim)
    )  # fmt: skip
