"""The tracer runs a step on shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

import tightrope as tr
from tightrope.step import record
from tightrope.tape import Kind, Recorder, Tape
from tightrope.tape.tracer import Tracer


class Decoder(nn.Module):
    """Positions, a causal mask, an in-place addition and control flow on the ids' shape."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(11, 8), nn.Embedding(16, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11)
        self.register_buffer("mask", torch.ones(16, 16).tril())

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        if n > 16:
            raise ValueError("too long")
        x = self.tokens(ids) + self.places(torch.arange(n, device=ids.device))
        h = self.norm(x)
        scores = (h @ h.transpose(-1, -2) / 8**0.5).masked_fill(self.mask[:n, :n] == 0, float("-inf"))
        y = F.softmax(scores, dim=-1) @ h
        y += x
        return self.head(y)


class Touched(TorchDispatchMode):
    """Counts operations that compute on real floating-point numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.real: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        flat = tree_flatten((args, kwargs or {}))[0]
        if any(isinstance(t, Tensor) and not t.is_meta and t.is_floating_point() and t.numel() > 512 for t in flat):
            self.real.append(str(func))
        return func(*args, **(kwargs or {}))


def trace(model: nn.Module, *inputs: Tensor, loss: Any = None) -> Tape:
    tapes: list[Tape] = []
    record(model, inputs, {}, loss, Tracer(roots={"": model}, on_backward=tapes.append))
    return tapes[-1]


def test_it_sees_what_the_recorder_sees() -> None:
    model, ids = Decoder(), torch.randint(11, (3, 6))
    tapes: list[Tape] = []
    record(model, (ids,), {}, None, Recorder(roots={"": model}, on_backward=tapes.append))
    traced = trace(model, ids)

    def lines(tape: Tape) -> list[tuple[str, str, list[tuple[int, ...]]]]:
        return [(e.op, e.module, [tape.values[o].shape for o in e.outputs]) for e in tape.entries]

    assert lines(traced) == lines(tapes[0])


def test_nothing_large_and_real_is_computed_with() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x = torch.randn(32, 64, device="meta")
    with Touched() as touched:
        trace(model, x)
    allowed = ("detach", "_to_copy", "empty", "clone", "copy_")
    assert not [name for name in touched.real if not any(a in name for a in allowed)]


def test_meta_models_need_no_memory() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(100_000, 100_000), nn.ReLU(), nn.Linear(100_000, 10))
    tape = trace(model, torch.randn(2, 100_000, device="meta"))
    assert [e.op for e in tape.entries] == ["linear", "relu", "linear", "mul", "sum"]
    assert all(v.content is None or v.content.is_meta for v in tape.value_of(Kind.PARAMETER))


def test_masks_and_positions_keep_their_content() -> None:
    tape = trace(Decoder(), torch.randint(11, (3, 6)))
    arange = next(e for e in tape.entries if e.op == "embedding" and e.module == "places")
    positions = tape.values[arange.inputs[0]]
    assert positions.content is not None
    assert positions.content.tolist() == list(range(6))
    mask = next(e for e in tape.entries if e.op == "masked_fill")
    content = tape.values[mask.inputs[1]].content
    assert content is not None
    assert torch.equal(content, torch.ones(6, 6).tril() == 0)


def test_control_flow_on_token_ids_works() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.short, self.long = nn.Embedding(9, 4), nn.Linear(4, 1), nn.Linear(4, 1)

        def forward(self, ids: Tensor) -> Tensor:
            lengths = (ids != 0).sum(1)
            layer = self.long if int(lengths.max()) > 2 else self.short
            return layer(self.table(ids))

    model = Branching()
    modules = [{e.module for e in trace(model, ids).entries} for ids in (torch.eye(4).long(), torch.ones(4, 4).long())]
    assert "short" in modules[0]
    assert "long" in modules[1]


def test_known_tensors_stay_known_after_they_met_a_weight() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(9, 4)

        def forward(self, ids: Tensor) -> Tensor:
            places = torch.arange(ids.shape[1])
            x = self.table(ids) + self.table(places)
            return x if bool((places.diff() == 1).all()) else -x

    assert [e.op for e in trace(Twice(), torch.ones(2, 5).long()).entries if e.op == "neg"] == []


def test_a_real_tensor_that_a_weight_is_written_into_is_real_no_more() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out = torch.zeros(8, 2, 4)
            out[:, 0] = self.layer(x)
            out[:, 1] = self.layer(x) * 2
            return out * 3

    model, x = Writing(), torch.randn(8, 4)
    tape = trace(model, x)
    assert [e.op for e in tape.entries][-4:] == ["setitem", "mul", "mul", "sum"]
    assert tape.values[tape.entries[-3].inputs[0]].kind is Kind.RESULT


def test_control_flow_on_an_activation_says_why_it_cannot_be_predicted() -> None:
    class Peeking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return y if y.sum() > 0 else -y

    with pytest.raises(tr.TightropeError, match="meta"):
        tr.predict(Peeking(), torch.randn(2, 4))


def test_nothing_of_the_model_changes() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 2))
    model[3].weight.grad = torch.ones(2, 6)
    before = {k: (v.clone(), v.data_ptr(), v._version) for k, v in model.state_dict(keep_vars=True).items()}
    rng = torch.get_rng_state()
    tr.predict(model, torch.randn(8, 4, generator=torch.Generator().manual_seed(1)))
    for name, value in model.state_dict(keep_vars=True).items():
        numbers, pointer, version = before[name]
        assert torch.equal(value, numbers), name
        assert value.data_ptr() == pointer, name
        assert value._version == version or not isinstance(value, nn.Parameter), name
    assert torch.equal(model[3].weight.grad, torch.ones(2, 6))
    assert model[0].weight.grad is None
    assert model.training
    assert torch.equal(rng, torch.get_rng_state())
