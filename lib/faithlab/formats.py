"""How a problem is put to a reasoner, and in which words it is to answer: prompt template, few-shot examples, marker.

Two formats cover every model: `PlainFormat` (abacus, and base models without a chat template) and `ChatFormat`
(instruction-tuned models, through the tokenizer's own chat template). In both, a completion reads
`<reasoning> newline Answer: <answer>`, so that one rule splits all of them (`faithlab.traces.split_text`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from faithlab.errors import FaithlabError, unknown

Example = tuple[str, str, str]  # question, reasoning, answer

EMBEDDED = ("abacus", "smollm2")  # reasoners that need no folder and no hub
ANSWER = "\nAnswer:"
INSTRUCTION = (
    "Solve the problem. First write your reasoning in short sentences. "
    "Then write a last line that starts with 'Answer:' and holds only the final answer."
)


def is_hub_id(name: str) -> bool:
    """Whether a name has the form of a hub id, owner/model, and not that of a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


def unknown_reasoner(name: str) -> FaithlabError:
    """The error for a name that no reasoner can have."""
    return unknown("reasoner", name, (*EMBEDDED, "a folder with a saved model", "a hub id such as owner/model"))


def question_text(problem: str | Mapping) -> str:
    """The question of a problem given as text or as a data row. Raises `FaithlabError` if there is none."""
    question = problem.get("question") if isinstance(problem, Mapping) else problem
    if isinstance(problem, Mapping) and isinstance(question, list):
        raise FaithlabError(
            "these are columns of several problems, as a slice of a data set gives them: take rows, as by "
            "tasks.load(..., n=3) or data.select(range(3))"
        )
    if not isinstance(question, str) or not question.strip():
        raise FaithlabError("the problem has no question: give a text, or a row with a non-empty 'question' field")
    return question


def adds_begin(tokenizer) -> bool:
    """Whether the tokenizer puts a token of its own before every text, as those of Llama and Gemma do."""
    return tokenizer.bos_token_id is not None and tokenizer.bos_token_id in tokenizer("").input_ids


def begun(tokenizer, ids: list[int]) -> list[int]:
    """A prompt's ids with the token that texts begin with, once, where the tokenizer adds one (`adds_begin`): a chat
    template may have written it already."""
    begin = tokenizer.bos_token_id
    return [begin, *ids] if adds_begin(tokenizer) and ids[:1] != [begin] else ids


@dataclass(frozen=True)
class PlainFormat:
    """`Question: … Reasoning: … Answer: …`, few-shot examples in the same form before it.

    `stop` are strings that end a generation: a base model would otherwise write the next question itself.
    """

    examples: tuple[Example, ...] = ()
    stop: tuple[str, ...] = ()
    space: str = " "  # between "Reasoning:" and the reasoning

    def prompt(self, problem: str | Mapping, tokenizer) -> str:
        """The examples, then the question, then the line `Reasoning:` to go on from; `tokenizer` is not used. Raises
        `FaithlabError` for a problem without a question."""
        shots = "".join(f"Question: {q}\nReasoning:{self.completion(r, a)}\n\n" for q, r, a in self.examples)
        return f"{shots}Question: {question_text(problem)}\nReasoning:"

    def completion(self, reasoning: str, answer: str) -> str:
        """The completion that states this reasoning and answer."""
        return f"{self.opening(reasoning)}{ANSWER} {answer}"

    def opening(self, reasoning: str) -> str:
        """The beginning of a completion that has written `reasoning` so far."""
        return self.space + reasoning if reasoning else ""


@dataclass(frozen=True)
class AbacusFormat(PlainFormat):
    """`PlainFormat` without examples; countdown problems are put in the one wording that abacus knows."""

    def prompt(self, problem: str | Mapping, tokenizer) -> str:
        """As `PlainFormat.prompt`, but a row with `numbers` and `target` is asked as abacus's countdown question.

        Raises:
            FaithlabError: countdown with another number of numbers than three, or a problem without a question.
        """
        if isinstance(problem, Mapping) and problem.get("numbers") and problem.get("target"):
            from faithlab.abacus.demonstrations import countdown_question

            if len(problem["numbers"]) != 3:
                raise FaithlabError("abacus knows countdown with three numbers only; load it with three")
            problem = countdown_question(list(problem["numbers"]), problem["target"])
        return super().prompt(problem, tokenizer)


@dataclass(frozen=True)
class ChatFormat:
    """The tokenizer's chat template: an instruction, the examples as earlier turns, the question as the last one."""

    examples: tuple[Example, ...] = ()
    instruction: str = INSTRUCTION
    stop: tuple[str, ...] = ()

    def prompt(self, problem: str | Mapping, tokenizer) -> str:
        """The chat's text: instruction, examples, question, and the beginning of the model's turn. Raises
        `FaithlabError` for a problem without a question."""
        messages = [{"role": "system", "content": self.instruction}]
        for question, reasoning, answer in self.examples:
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": self.completion(reasoning, answer)})
        messages.append({"role": "user", "content": question_text(problem)})
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def completion(self, reasoning: str, answer: str) -> str:
        """The completion that states this reasoning and answer."""
        return f"{reasoning}{ANSWER} {answer}"

    def opening(self, reasoning: str) -> str:
        """The beginning of a completion that has written `reasoning` so far."""
        return reasoning


Format = PlainFormat | ChatFormat
