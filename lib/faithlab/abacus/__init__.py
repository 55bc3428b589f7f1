"""The embedded reasoner's making: its tokenizer, its demonstrations, its training, its measurement and its pilot.

Nothing here is needed to use abacus (`faithlab.models.load_reasoner("abacus")` reads the checkpoint in `data/abacus`);
all of it is needed to make it again: `make data`.
"""
