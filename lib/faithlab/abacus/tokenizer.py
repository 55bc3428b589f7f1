"""abacus's tokenizer: one token a word, number (0 to 99) or sign, with or without the space before it.

A token's text is what it stands for in the text, leading space included, so that joining token texts gives the text
back exactly. A number of three digits or more is spelled digit by digit.
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from faithlab.tasks.story_text import vocabulary

EOS, PAD, UNKNOWN = "<end>", "<pad>", "<unknown>"

# A word, a number or a sign, each with the space before it if there is one; then single white-space characters.
PIECES = r" ?[A-Za-z]+| ?(?<!\d)[1-9]?\d(?!\d)| ?\d| ?[^\sA-Za-z\d]|\s"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as transformers' normal fast tokenizer, left-padded for generation."""
    pieces = [PAD, EOS, UNKNOWN, "\n", " "]
    pieces += [form for word in vocabulary() for form in (word, " " + word)]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNKNOWN,
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
