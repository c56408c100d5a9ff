"""Modules are named by their path, also when wrapped, nested, renamed or built late."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from tightrope.tape import Recorder
from tightrope.tape.modules import ModuleStack, built, remember_construction, unwrap


def test_wrappers_are_taken_off() -> None:
    model = nn.Linear(2, 2)
    assert unwrap(torch.compile(model)) is model
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(model) is model


def test_a_users_own_attribute_called_module_is_no_wrapper() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    holder = Holder()
    assert unwrap(holder) is holder
    assert ModuleStack({"": holder}).parameters[id(holder.module.weight)] == "module.weight"


def test_roots_have_their_names_as_prefix() -> None:
    critic = nn.Sequential(nn.Linear(2, 2))
    stack = ModuleStack({"critic": critic})
    assert stack.paths[critic[0]] == "critic.0"
    assert stack.parameters[id(critic[0].bias)] == "critic.0.bias"


def test_a_module_attached_after_the_start_is_named_below_its_caller() -> None:
    class Late(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.Linear(2, 2)(x)

    model = nn.Sequential(Late())
    with Recorder(roots={"": model}) as recorder:
        model(torch.randn(3, 2))
    assert recorder.tape.entries[-1].module == "0.Linear"


def test_an_exception_in_a_module_closes_it() -> None:
    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError

    model, after = nn.Sequential(Fails()), nn.Linear(2, 2)
    with Recorder(roots={"model": model, "after": after}) as recorder:
        try:
            model(torch.randn(3, 2))
        except ValueError:
            after(torch.randn(3, 2))
    assert [e.module for e in recorder.tape.entries] == ["after"]


def test_where_modules_were_built_is_remembered_while_watched() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 2))  # the line

    first = build.__code__.co_firstlineno
    init = nn.Module.__init__
    with remember_construction():
        model = build()
    later = build()
    where = built(model[0])
    assert where is not None
    assert (Path(where.file), where.line) == (Path(__file__), first + 1)
    assert built(later) is None
    assert nn.Module.__init__ is init


def test_a_users_own_class_is_located_where_it_is_called() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)

    def build() -> Block:
        return Block()

    with remember_construction():
        block = build()
    outer, inner = built(block), built(block.inner)
    assert outer is not None
    assert inner is not None
    assert outer.function == "build"
    assert inner.function == "__init__"
