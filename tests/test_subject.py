"""What a factory or a call hands over: batches, loaders, targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import tightrope as tr
from tightrope.subject import first_batch, split


def test_a_batch_is_taken_as_it_is() -> None:
    x = torch.randn(4, 2)
    assert first_batch(x) is x
    for batch in ((x, x), [x, x], {"x": x}):
        assert first_batch(batch) is batch


def test_a_loader_gives_its_first_batch() -> None:
    x, y = torch.randn(6, 2), torch.arange(6)
    batch = first_batch(DataLoader(TensorDataset(x, y), batch_size=4))
    assert torch.equal(batch[0], x[:4])
    assert torch.equal(batch[1], y[:4])


def test_a_dataclass_is_no_loader() -> None:
    @dataclass
    class Batch:
        x: Tensor

    batch = Batch(torch.randn(2, 2))
    assert first_batch(batch) is batch


def test_a_pair_is_split_when_there_is_a_loss() -> None:
    x, y = torch.randn(4, 3), torch.randint(3, (4,))
    inputs, loss = split((x, y), F.cross_entropy)
    assert inputs is x
    assert loss is not None
    assert torch.equal(loss(x), F.cross_entropy(x, y))


def test_without_a_loss_a_pair_is_two_inputs() -> None:
    pair = (torch.randn(4, 3), torch.randn(4, 3))
    assert split(pair, None) == (pair, None)


def test_a_loss_of_the_output_alone_gets_the_inputs_whole() -> None:
    x = torch.randn(4, 3)
    inputs, loss = split(x, torch.mean)
    assert inputs is x
    assert loss is torch.mean


def test_check_takes_a_loader_and_a_loss() -> None:
    loader = DataLoader(TensorDataset(torch.randn(32, 4), torch.randint(3, (32,))), batch_size=16)
    report = tr.check(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), loader, loss=F.cross_entropy)
    assert report.laws[-1].op == "cross_entropy"
    assert report.laws[0].shape == (16, 8)
