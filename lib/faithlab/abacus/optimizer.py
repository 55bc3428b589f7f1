"""Muon for the hidden matrices, AdamW for everything else.

Muon orthogonalises the momentum of a weight matrix before the step (Jordan et al. 2024, "Muon: an optimizer for hidden
layers in neural networks"). It is meant for matrices inside the network only, so embeddings and norms stay with AdamW.
"""

from __future__ import annotations

import torch
from torch import nn


class MuonAdamW(torch.optim.Optimizer):
    """The two optimisers as one, for trainers that know one: shared parameter groups, joint state."""

    def __init__(self, model: nn.Module, *, muon_rate: float, adamw_rate: float, weight_decay: float = 0.01):
        hidden, others = [], []
        for name, parameter in model.named_parameters():
            (hidden if parameter.ndim == 2 and "embed" not in name and "head" not in name else others).append(parameter)
        self.parts = (
            # match_rms_adamw scales the orthogonal step to the size of AdamW's, so that one order of rates suits both
            torch.optim.Muon(hidden, lr=muon_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=adamw_rate, betas=(0.9, 0.98), weight_decay=weight_decay),
        )
        super().__init__([*hidden, *others], {})
        # The very dictionaries of the parts: a scheduler that sets a rate here sets it there.
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None):
        """One step of both. Raises NotImplementedError for a closure, since both would evaluate it."""
        if closure is not None:
            raise NotImplementedError("MuonAdamW takes no closure")
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        """The states of the parts, `{"parts": [Muon's, AdamW's]}`."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        """Load what `state_dict` gave. The parts then make new parameter groups, which become the groups of both."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
