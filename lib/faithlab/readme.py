"""The README's table of results, written from the committed results so that the two cannot disagree.

python -m faithlab.readme          (part of `make notebooks`)
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from faithlab.errors import FaithlabError
from faithlab.results import write_atomically

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"<!-- results -->.*?(?=\n## )", re.DOTALL)

# (notebook, quantity as in the results; {} stands for anything but a difference)
SHOWN = [
    ("01_reasoning_traces", "nats lost without reasoning, {}"),
    ("01_reasoning_traces", "early answering, area over the curve, {}"),
    ("02_attention_heads", "overlap lower behind high FAI"),
    ("03_attention_flow", "answer changed, {} by flow hidden"),
    ("04_saliency_masks", "decisive, average precision, {}"),
    ("08_faithful_training", "right, no hint, hints right in 100 %, {}"),
    ("08_faithful_training", "follows the wrong hint, hints right in 100 %, {}"),
    ("08_faithful_training", "follows the wrong hint, untrained"),
]


def results_table(csv: Path) -> str:
    """Markdown table of the results named in `SHOWN`, in that order, with intervals and n.

    Raises `FaithlabError` if the committed results hold none of a row's kind.
    """
    table = pd.read_csv(csv)
    lines = ["| what | reasoner | value | 95 % interval | n | notebook |", "|---|---|---|---|---|---|"]
    for notebook, quantity in SHOWN:
        pattern = re.escape(quantity).replace(r"\{\}", r"((?:(?! minus ).)+)")
        found = [row for _, row in table.iterrows() if re.fullmatch(pattern, row["quantity"])]
        found = [row for row in found if row["notebook"] == notebook]
        if not found:
            raise FaithlabError(f"{csv} holds no {quantity!r} of {notebook}: run `make notebooks`")
        for row in found:
            unit = f" {row['unit']}" if row["unit"] == "nats" else ""
            interval = f"{row['low']:z.2f} to {row['high']:z.2f}" if pd.notna(row["low"]) else ""
            cells = [
                row["quantity"],
                row["reasoner"],
                f"{row['value']:z.2f}{unit}",
                interval,
                str(int(row["n"])),
            ]
            lines.append("| " + " | ".join([*cells, notebook[:2]]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Command line: write the table into README.md."""
    readme = ROOT / "README.md"
    table = results_table(ROOT / "data" / "results" / "notebooks.csv")
    write_atomically(readme, BLOCK.sub(lambda _: f"<!-- results -->\n{table}\n", readme.read_text()))
    print("README.md: table of results written")


if __name__ == "__main__":
    main()
