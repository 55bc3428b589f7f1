"""lm-eval itself on the same model, problems and examples, to compare answer by answer; needs the package lm-eval."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from faithlab.errors import FaithlabError, first_words
from faithlab.harness_conventions import LETTERS, SEED, Problem, by_subject, description, short_hash
from faithlab.models import Reasoner

# our measure -> the filter and the metric in which lm-eval reports it
MEASURES = {"strict": ("strict-match", "exact_match"), "flexible": ("flexible-extract", "exact_match"),
            "letter": ("none", "acc")}  # fmt: skip
# where lm-eval describes its tasks
GSM8K_FILES = ("gsm8k/gsm8k.yaml",)
MMLU_FILES = ("mmlu/default/_default_template_yaml", "mmlu/default/mmlu_{}.yaml")


def import_lm_eval() -> Any:
    """The package lm_eval. Raises `FaithlabError`, saying how to install it, where it cannot be imported."""
    try:
        import lm_eval.tasks.manager  # there from 0.4.12 on; what is older does not take tasks that are made here
    except ImportError as error:
        raise FaithlabError(f"--check needs lm-eval ({first_words(error)}): pip install 'faithlab[harness]'") from error
    return lm_eval


def by_lm_eval(
    reasoner: Reasoner, problems: Sequence[Problem], pool: Sequence[Problem] = (), *, shots: int = 5, seed: int = SEED
) -> pd.DataFrame:
    """What lm-eval itself finds for the same model, problems and examples: columns `prompt` (hash), `answer_M`,
    `right_M` as those of `measure`.

    Its own task files are used, with the data given here in the place of the hub's, so that prompts, drawing of
    examples, stop strings, filters and metrics are its own. One problem at a time, as it does by default. Raises
    `FaithlabError` where it is not installed.
    """
    lm_eval = import_lm_eval()
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    folder, groups, made = Path(lm_eval.__file__).parent / "tasks", by_subject(problems), []
    for subject, places in groups.items():
        config = dict(description=description(subject))  # a subject of one's own has no file
        for name in MMLU_FILES if subject else GSM8K_FILES:
            path = folder / name.format(subject)
            config |= yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        own = [row for row in pool if row.subject == subject] or problems[:1]  # shots=0 shows none, but wants a row
        parts = {config["test_split"]: [problems[i] for i in places], config["fewshot_split"]: own}
        data = {split: Dataset.from_list([row._asdict() for row in part]) for split, part in parts.items()}
        config |= dict(task=f"faithlab_{subject}", num_fewshot=shots, custom_dataset=lambda data=data, **_: data)
        left_out = ("include", "tag", "dataset_path", "dataset_name")
        made.append(ConfigurableTask(config={k: v for k, v in config.items() if k not in left_out}))
    # It may give the tokenizer a padding token: a copy leaves ours as it is.
    model = HFLM(pretrained=reasoner.model, tokenizer=copy.deepcopy(reasoner.tokenizer), batch_size=1)
    options = dict(task_manager=TaskManager(include_defaults=False), bootstrap_iters=0, fewshot_random_seed=seed)
    samples = lm_eval.simple_evaluate(model, tasks=made, **options)["samples"]
    rows: list[dict[str, Any]] = [{} for _ in problems]
    for subject, places in groups.items():
        for sample in samples[f"faithlab_{subject}"]:
            name = next(m for m, (kind, _) in MEASURES.items() if kind == sample["filter"])
            answer = sample["filtered_resps"][0]
            if name == "letter":
                logp = [float(value) for value, _ in sample["filtered_resps"]]
                answer = LETTERS[logp.index(max(logp))]
            found = {f"answer_{name}": answer, f"right_{name}": bool(sample[MEASURES[name][1]])}
            rows[places[sample["doc_id"]]] |= dict(prompt=short_hash(sample["arguments"][0][0]), **found)
    return pd.DataFrame(rows)
