"""Embeddings of added tokens in a small table of their own, so that two rows train instead of a whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

NAME = "new_tokens"  # attribute of the model that holds the small table; its parameters are in no state dict

_uncompiled: Any = torch.compiler.disable  # else torch.compile would recompile for each version of a tensor


class NewTokens(nn.Module):
    """Trained rows of the embedding table and, if the output head is not tied to it, of the head.

    The language model's own tables stay frozen and in place. Hooks add the difference between a trained row and the
    table's row to the table's output, so that only the rows' gradient is computed. `settle` synchronises rows and
    tables: state dicts hold the tables only, with the trained rows in them.

    Args:
        ids: ids of the added tokens.
        embedding: the input embeddings.
        head: the output embeddings; None if the language model has none.

    Source:
        The idea of a small separate table is Idefics' decoupled embedding (Laurencon et al. 2023).
    """

    ids: Tensor
    input: nn.Parameter
    output: nn.Parameter | None

    def __init__(self, ids: list[int], embedding: nn.Module, head: nn.Module | None) -> None:
        super().__init__()
        weight: Any = embedding.weight
        self.register_buffer("ids", torch.tensor(ids, device=weight.device), persistent=False)
        self._which = list(ids)  # known even if the buffer is a meta tensor
        tied = head is None or head.weight is weight
        self.input = nn.Parameter(weight.detach()[self.ids].clone())
        self.output = None if tied else nn.Parameter(head.weight.detach()[self.ids].clone())  # pyright: ignore[reportCallIssue, reportOptionalMemberAccess]
        self._tables = (embedding, head)  # in a tuple, so that they are not registered as submodules
        # Before all other hooks: FSDP's frees the gathered weights.
        self._handles = [embedding.register_forward_hook(self._embed, prepend=True)]
        if head is not None:
            self._handles.append(head.register_forward_hook(self._score, prepend=True))
        self._seen: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {}
        self._trained = (
            False  # gradients were computed since `settle`: fused optimisers change rows without a new version
        )
        self._note()

    def serves(self, ids: list[int], embedding: nn.Module, head: nn.Module | None) -> bool:
        """True if this is the table of these tokens and modules."""
        return self._which == ids and self._tables[0] is embedding and self._tables[1] is head

    def remove(self) -> None:
        """Write the rows back and remove all hooks from the language model."""
        self.settle()
        for handle in self._handles:
            handle.remove()

    def _pairs(self) -> list[tuple[str, nn.Parameter, nn.Parameter]]:
        """Name, trained rows and table of each pair."""
        pairs: list[Any] = [("input", self.input, self._tables[0].weight)]
        if self.output is not None and self._tables[1] is not None:
            pairs.append(("output", self.output, self._tables[1].weight))
        return pairs

    # ---- in a forward pass

    def _embed(self, embedding: Any, given: tuple[Any, ...], embedded: Tensor) -> Tensor | None:
        if not self._needed:
            return None
        if torch.is_grad_enabled() and self.input.requires_grad:
            self._trained = True
        where = (given[0][..., None] == self.ids).to(embedded.dtype)
        # Gemma 3 and BioGPT scale inside the module.
        change = self._change(self.input, embedding.weight) * getattr(embedding, "embed_scale", 1.0)
        return embedded + where @ change.to(embedded.dtype)

    def _score(self, head: Any, given: tuple[Any, ...], scores: Tensor) -> Tensor | None:
        if not self._needed:
            return None
        rows = self.input if self.output is None else self.output
        change = self._change(rows, head.weight).to(given[0].dtype)
        # In place, so that neither scores nor their gradient are copied for a few columns.
        return scores.index_add_(-1, self.ids, linear(given[0], change).to(scores.dtype))

    def _change(self, rows: Tensor, table: Tensor) -> Float[Tensor, "token width"]:
        """Difference between trained rows and table; zero right after `settle`, but with a gradient."""
        return rows.to(table.device) - table.detach()[self.ids]

    @property
    def _needed(self) -> bool:
        if self._trained or (torch.is_grad_enabled() and self.input.requires_grad):
            return True
        return any(self._state(*pair[1:]) != self._seen.get(pair[0]) for pair in self._pairs())

    # ---- between forward passes

    @_uncompiled
    @torch.no_grad()
    def settle(self, *, here_only: bool = False) -> None:
        """Synchronise rows and tables: write trained rows into the table, or reread rows from a changed table.

        Two things may have changed since the last call: the rows, by an optimiser's step, or the table, by code that
        loaded or set the embeddings. The identity and version of both tensors are compared with those noted last time.
        If only the table has changed, the table wins; otherwise the rows are written, also if they are a new tensor
        (moved, cast, sharded). Versions alone do not suffice: a fused optimiser changes the rows without a new version,
        so after a forward pass with gradients (`_trained`) the values are compared too.

        Args:
            here_only: leave parameters held by FSDP alone (during a forward pass they are placeholders).
        """
        for name, rows, table in self._pairs():
            state, seen = self._state(rows, table), self._seen.get(name)
            known = seen is not None and seen[0][0] == state[0][0]
            if rows.is_meta or table.is_meta or (here_only and not known):
                continue
            if state == seen and (not self._trained or torch.equal(whole(rows), rows_of(table, self.ids))):
                continue  # a needless write to the table would invalidate the backward pass of an earlier forward pass
            if known and seen is not None and seen[0] == state[0] and seen[1] != state[1]:  # only the table has changed
                put_rows(rows, None, rows_of(table, self.ids))
            else:
                put_rows(table, self.ids, whole(rows))
            self._seen[name] = self._state(rows, table)
        if not here_only:
            self._trained = self.input.grad is not None  # an optimiser's step is still to come

    @torch.no_grad()
    def read(self) -> None:
        """Read the rows from the tables after a state dict has been loaded."""
        for _, rows, table in self._pairs():
            if not (rows.is_meta or table.is_meta):
                put_rows(rows, None, rows_of(table, self.ids))
        self._note()

    def _note(self) -> None:
        self._seen = {name: self._state(rows, table) for name, rows, table in self._pairs()}

    @staticmethod
    def _state(rows: Tensor, table: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Identity and version of both tensors."""
        first, second = ((id(t), 0 if t.is_inference() else t._version) for t in (rows, table))
        return first, second


def whole(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def _shard(tensor: Any) -> tuple[Tensor, int, Any]:
    """This process's part of a tensor, its first row, and the process group that holds the rest (None: not sharded)."""
    if not hasattr(tensor, "to_local"):
        return tensor, 0, None
    mesh = tensor.device_mesh
    for axis, placement in enumerate(tensor.placements):
        if placement.is_shard(0):
            begin = mesh.get_local_rank(axis) * -(-len(tensor) // mesh.size(axis))
            return tensor.to_local(), min(begin, len(tensor)), mesh.get_group(axis)
    return tensor.to_local(), 0, None


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """Read some rows of a table, on every process."""
    mine, begin, group = _shard(table)
    if group is None:
        return mine[ids]
    here = (ids >= begin) & (ids < begin + len(mine))
    rows = mine.new_zeros(len(ids), mine.shape[1])
    rows[here] = mine[ids[here] - begin]
    torch.distributed.all_reduce(rows, group=group)
    return rows


def put_rows(table: Tensor, ids: Tensor | None, rows: Tensor) -> None:
    """Write rows (all of them if `ids` is None) into a table, on every process that holds one of them."""
    mine, begin, _ = _shard(table)
    ids = torch.arange(len(table), device=mine.device) if ids is None else ids.to(mine.device)
    here = (ids >= begin) & (ids < begin + len(mine))
    mine.index_copy_(0, ids[here] - begin, rows.to(mine)[here])


def register(model: nn.Module) -> None:
    """Keep the small table out of a model's state dicts, when saving and when loading."""
    model.register_state_dict_pre_hook(_before_saving)
    model.register_state_dict_post_hook(_after_saving)
    model.register_load_state_dict_pre_hook(_before_loading)
    model.register_load_state_dict_post_hook(_after_loading)


def _table(model: nn.Module) -> NewTokens | None:
    return getattr(model, NAME, None)


def _before_saving(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    table = _table(model)
    if table is not None:
        table.settle()


def _after_saving(model: nn.Module, state: dict[str, Any], prefix: str, metadata: dict[str, Any]) -> None:
    for name in ("input", "output"):
        state.pop(f"{prefix}{NAME}.{name}", None)


def _before_loading(model: nn.Module, *_: Any) -> None:
    table = _table(model)
    if table is not None:
        table.settle()


def _after_loading(model: nn.Module, found: Any) -> None:
    table = _table(model)
    if table is not None:
        found.missing_keys[:] = [key for key in found.missing_keys if f".{NAME}." not in f".{key}"]
        table.read()
