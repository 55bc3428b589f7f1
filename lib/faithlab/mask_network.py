"""A small network that predicts the mask in one pass, instead of finding it by descent (AtManRL's mask network).

It reads the policy's own hidden states: those of the reasoning tokens, and those of the row that will write the
answer's first token. For each reasoning token j and each of a few "heads" it compares the two, as attention would, and
turns the comparisons and the token's own state into how far the token is opened:

    u[j] = sigmoid( MLP([ q_h . k_h[j] for every head h,  V x[j] ]) ),        m[j] = c (1 - u[j])

Training minimises the very objective of `faithlab.saliency`, so no teacher is needed; with `teacher` the distance to
given masks is minimised instead. The policy's weights get no gradient. The network goes on training beside a policy
that changes (`MaskTrainer.step`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faithlab import processes
from faithlab.batches import collate
from faithlab.biases import frozen
from faithlab.errors import FaithlabError, NotFinite
from faithlab.likelihood import Scope, until_answer
from faithlab.masked_answer import MaskedAnswer
from faithlab.recorder import hidden_states
from faithlab.results import write_atomically
from faithlab.saliency import FLOOR, SPARSITY, Saliency, batches_of, undefined
from faithlab.traces import Trace


@dataclass(frozen=True)
class MaskNetworkConfig:
    """Sizes of a mask network. `hidden_size` is the policy's; `layers` are the hidden states it reads (0:
    embeddings)."""

    hidden_size: int
    layers: tuple[int, ...]
    heads: int = 8
    head_dim: int = 32
    width: int = 64
    floor: float = FLOOR


class MaskNetwork(nn.Module):
    """See the module's head. Starts half open: every u is 0.5."""

    def __init__(self, config: MaskNetworkConfig):
        super().__init__()
        self.config = config
        size = config.hidden_size * len(config.layers)
        self.norm = nn.LayerNorm(size)
        self.query = nn.Linear(size, config.heads * config.head_dim)
        self.key = nn.Linear(size, config.heads * config.head_dim)
        self.value = nn.Linear(size, config.width)
        self.out = nn.Sequential(
            nn.Linear(config.heads + config.width, config.width), nn.GELU(), nn.Linear(config.width, 1)
        )
        nn.init.zeros_(self.out[-1].weight)
        nn.init.zeros_(self.out[-1].bias)

    def forward(
        self, tokens: Float[Tensor, "trace token size"], reader: Float[Tensor, "trace size"]
    ) -> Float[Tensor, "trace token"]:
        """How far each token is opened, in (0, 1)."""
        heads, dim = self.config.heads, self.config.head_dim
        tokens, reader = self.norm(tokens), self.norm(reader)
        keys = self.key(tokens).unflatten(-1, (heads, dim))
        queries = self.query(reader).unflatten(-1, (heads, dim))
        compared = (keys * queries[:, None]).sum(-1) / dim**0.5
        return torch.sigmoid(self.out(torch.cat([compared, self.value(tokens)], -1))[..., 0])

    @classmethod
    def for_model(cls, model, **options) -> MaskNetwork:
        """A network for a policy: reads the embeddings and the states half the way up, unless told otherwise.

        The layers above need not run then. On abacus reading the last layer's states too adds less than 0.01 to
        the AUROC of the decisive token, and takes twice as long."""
        config = model.config.get_text_config()
        options.setdefault("layers", (0, max(1, config.num_hidden_layers // 2)))
        return cls(MaskNetworkConfig(config.hidden_size, **options)).to(model.device)

    def save(self, folder: str | Path) -> None:
        """Write `mask_network.safetensors` and `mask_network.json` into `folder`, which is made.

        Raises `FaithlabError` if it cannot be written.
        """
        folder = Path(folder)
        _write_tensors(self.state_dict(), folder / "mask_network.safetensors")
        write_atomically(folder / "mask_network.json", json.dumps(asdict(self.config), indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path, device=None) -> MaskNetwork:
        """Read a network back. Raises `FaithlabError` for a folder without one, or with a half-written one."""
        folder = Path(folder)
        try:
            fields = json.loads((folder / "mask_network.json").read_text(encoding="utf-8"))
            network = cls(MaskNetworkConfig(**{**fields, "layers": tuple(fields["layers"])}))
            network.load_state_dict(load_file(folder / "mask_network.safetensors"))
        except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
            raise FaithlabError(f"no readable mask network in {folder} ({error}); train it again") from error
        return network.to(device)


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write beside and rename, so that a killed run leaves no half file under the name."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        temporary.replace(path)
    except OSError as error:
        raise FaithlabError(f"cannot write {path.parent}: {error.strerror}; free space or choose another") from error


@torch.no_grad()
def read_states(
    model, traces: Sequence[Trace], layers: Sequence[int], pad_id: int = 0
) -> tuple[Float[Tensor, "trace token size"], Float[Tensor, "trace size"], Bool[Tensor, "trace token"]]:
    """Hidden states of the reasoning tokens (padded on the right), of the row that writes the answer's first token, and
    which tokens are real. One forward pass, up to the last layer that is read."""
    cropped = [until_answer(t) for t in traces]
    batch = collate(cropped, pad_id=pad_id, device=model.device)
    kept = torch.cat(hidden_states(model, batch, layers), -1).float()
    longest = max(t.reasoning.stop - t.reasoning.start for t in traces)
    tokens = kept.new_zeros(len(traces), longest, kept.shape[-1])
    valid = torch.zeros(len(traces), longest, dtype=torch.bool, device=kept.device)
    readers = []
    for row, (t, start) in enumerate(zip(traces, batch.starts.tolist(), strict=True)):
        length = t.reasoning.stop - t.reasoning.start
        tokens[row, :length] = kept[row, start + t.reasoning.start : start + t.reasoning.stop]
        valid[row, :length] = True
        readers.append(kept[row, start + t.answer.start - 1])
    return tokens, torch.stack(readers), valid


class States:
    """`read_states` of batches of traces, `room` bytes of which are kept for a second reader of the same batch: a
    reward lets the network learn from the very states that it then predicts from. Valid while the policy is as it was.
    """

    def __init__(self, model, layers: Sequence[int], pad_id: int = 0, room: int = 0):
        self.model, self.layers, self.pad_id, self.room = model, layers, pad_id, room
        self.kept: dict[tuple[int, ...], tuple] = {}

    def of(self, traces: Sequence[Trace]) -> tuple[Tensor, Tensor, Tensor]:
        """What `read_states` returns for these traces."""
        key = tuple(map(id, traces))
        if key in self.kept:
            return self.kept[key][1]
        found = read_states(self.model, traces, self.layers, self.pad_id)
        size = sum(part.nbytes for part in found)
        if size <= self.room:
            self.room -= size
            self.kept[key] = (tuple(traces), found)  # with the traces, so that no other can get their ids
        return found


class MaskTrainer:
    """Trains a mask network on a policy's traces, a batch at a time."""

    def __init__(
        self,
        network: MaskNetwork,
        *,
        scope: Scope = "answer",
        sparsity: float = SPARSITY,
        rate: float = 1e-3,
        pad_id: int = 0,
    ):
        self.network, self.scope, self.sparsity, self.pad_id = network, scope, sparsity, pad_id
        self.shared = False  # whether all processes have been given one network
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=rate)

    def step(
        self, model, traces: Sequence[Trace], teacher: Saliency | None = None, states: States | None = None
    ) -> dict[str, float]:
        """One update on these traces (those that have an answer and a reasoning). Returns `loss`, `logp` (mean, under
        the mask), `opened` (mean u), or {} if no trace can be used. Processes that train together share gradients, so
        that all of them have the same network. `states` keeps what is read of the policy, for `predict_masks`.

        Raises `FaithlabError` for a teacher whose masks have heads, and for a loss that is not finite."""
        if teacher is not None and any(m.ndim > 1 for m in teacher.mask):
            raise FaithlabError("the network predicts a value a token; take a teacher with granularity='token'")
        usable = [i for i, t in enumerate(traces) if t.answered and t.reasoning.stop > t.reasoning.start]
        if not self.shared:
            processes.average(p.data for p in self.network.parameters())
            self.shared = True
        if not usable and processes.count() == 1:
            return {}
        states = states or States(model, self.network.config.layers, self.pad_id)
        self.optimiser.zero_grad()
        found: dict[str, float] = dict.fromkeys(("loss", "logp", "opened"), 0.0)
        for part in batches_of([traces[i] for i in usable]):  # as many at a time as memory holds; one update from all
            batch = [usable[i] for i in part]
            masks = None if teacher is None else [1 - teacher.mask[i] / teacher.floor for i in batch]
            with torch.enable_grad(), frozen(model):
                terms = self._terms(model, [traces[i] for i in batch], masks, states)
                (terms["loss"].sum() / len(usable)).backward()
            for name, values in terms.items():
                found[name] += float(values.detach().sum()) / len(usable)
        self._update()
        return found if usable else {}

    def _terms(
        self, model, batch: list[Trace], masks: Sequence[Tensor] | None, states: States
    ) -> dict[str, Float[Tensor, " trace"]]:
        """`loss`, `logp` and `opened` of each trace; with `masks` the loss is the distance to them, a mean over
        tokens."""
        tokens, reader, valid = states.of(batch)
        u = self.network(tokens, reader)
        opened = (u * valid).sum(1) / valid.sum(1)
        if masks is None:
            logp = MaskedAnswer(model, batch, self.scope, self.pad_id).logp(self.network.config.floor * (1 - u))
            return dict(loss=self.sparsity * opened - logp, logp=logp, opened=opened)
        target = torch.zeros_like(u)
        for row, mask in enumerate(masks):
            target[row, valid[row]] = mask.to(u).clamp(0, 1)
        loss = nn.functional.binary_cross_entropy(u, target, reduction="none")
        return dict(loss=(loss * valid).sum(1) / valid.sum(1), logp=torch.full_like(opened, torch.nan), opened=opened)

    def save(self, folder: str | Path) -> None:
        """Write the optimiser's state beside the network's (`MaskNetwork.save`). Raises `FaithlabError` if it cannot be
        written."""
        state = self.optimiser.state_dict()["state"]
        tensors = {f"{i}.{name}": torch.as_tensor(v).cpu() for i, part in state.items() for name, v in part.items()}
        _write_tensors(tensors, Path(folder) / "mask_optimiser.safetensors")

    def load(self, folder: str | Path) -> None:
        """Take up what `save` wrote. Raises `FaithlabError` for a folder without it."""
        try:
            tensors = load_file(Path(folder) / "mask_optimiser.safetensors")
        except (OSError, SafetensorError) as error:
            raise FaithlabError(f"no readable mask optimiser in {folder} ({error}); train it again") from error
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, name = key.split(".", 1)
            state.setdefault(int(number), {})[name] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": state})

    def _update(self) -> None:
        """A step down the gradients, meaned over processes; one without traces of its own has none, and adds 0."""
        for p in self.network.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        processes.average(p.grad for p in self.network.parameters())
        if not all(torch.isfinite(p.grad).all() for p in self.network.parameters()):  # alike in all processes
            raise NotFinite("the mask network's loss is not finite: lower its rate, or check the policy for NaN")
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()


@torch.no_grad()
def predict_masks(
    network: MaskNetwork, model, traces: Sequence[Trace], *, pad_id: int = 0, states: States | None = None
) -> list[Tensor]:
    """Saliency u of each reasoning token, on the CPU, one tensor a trace; NaN for traces without an answer. `states`
    are those that `MaskTrainer.step` has read already, if any."""
    states = states or States(model, network.config.layers, pad_id)
    out = [undefined(t) for t in traces]
    for batch in batches_of(traces):
        tokens, reader, valid = states.of([traces[i] for i in batch])
        u = network(tokens, reader)
        for row, i in enumerate(batch):
            out[i] = u[row, valid[row]].cpu()
    return out
