from __future__ import annotations

import torch
from torch.utils.data import DataLoader, TensorDataset

from tightrope.loader import survey


def test_a_loaders_own_random_state_is_left_as_found() -> None:
    own = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(torch.randn(64, 4)), 8, shuffle=True, generator=own)
    state, common = own.get_state(), torch.get_rng_state()
    assert survey(loader) is not None
    assert torch.equal(own.get_state(), state)
    assert torch.equal(torch.get_rng_state(), common)


def test_an_iterator_is_not_used_up() -> None:
    batches = iter([torch.randn(8, 4)] * 4)
    assert survey(batches) is None
    assert len(list(batches)) == 4
