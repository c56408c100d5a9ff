from __future__ import annotations

import pytest
import torch
from torch import nn

import tightrope as tr
from tightrope.instruments.norms import shares

NAMES = ("sample", "channel", "site")
CASES = {
    "batch": (nn.BatchNorm1d(16), {"sample", "site"}, {"mean", "channel"}),
    "instance": (nn.InstanceNorm1d(16), {"site"}, {"mean", "sample", "channel", "sample·channel"}),
    "group-one": (nn.GroupNorm(1, 16), {"channel", "site"}, {"mean", "sample"}),
    "group": (nn.GroupNorm(4, 16), {"channel", "site"}, {"mean", "sample", "group", "sample·group"}),
}


def tensor(n: int = 32) -> torch.Tensor:
    """All effects of sample, channel and site, of known size."""
    a, b, c = torch.randn(n, 1, 1), torch.randn(1, 16, 1), torch.randn(1, 1, 20)
    return 1 + a + 2 * b + c + torch.randn(n, 16, 1) + 0.5 * torch.randn(n, 1, 20) + torch.randn(n, 16, 20)


def test_shares_are_the_analysis_of_variance() -> None:
    """Against the effects written out as tensors."""
    x = tensor().double()
    mean = x.mean()
    a, b = x.mean((1, 2), keepdim=True) - mean, x.mean((0, 2), keepdim=True) - mean
    ab = x.mean(2, keepdim=True) - mean - a - b
    found = shares(x, NAMES)
    total = float(x.square().mean())
    for name, effect in (("mean", mean), ("sample", a), ("channel", b), ("sample·channel", ab)):
        assert found[name] == pytest.approx(float(effect.square().mean()) / total, rel=1e-9)
    assert sum(found.values()) == pytest.approx(1.0, abs=1e-9)
    assert len(found) == 8


def test_shares_of_a_tensor_of_zeros_and_of_one_axis() -> None:
    assert set(shares(torch.zeros(3, 4), ("sample", "channel")).values()) == {0.0}
    assert shares(torch.tensor([[1.0], [3.0]]), ("sample", "channel")) == pytest.approx({"mean": 0.8, "sample": 0.2})


@pytest.mark.parametrize("name", CASES)
def test_what_is_deleted(name: str) -> None:
    layer, over, deletes = CASES[name]
    (found,) = tr.explain_norm(nn.Sequential(layer, nn.Conv1d(16, 2, 1)), tensor())
    assert set(found.over) == over and set(found.deletes) == deletes
    for effect, share in found.after.items():
        if effect in deletes:
            assert share == pytest.approx(0.0, abs=1e-9) and found.error[effect] == 0.0
            assert found.expected[effect] == 0.0
    assert found.deleted == pytest.approx(sum(found.before[effect] for effect in deletes))
    assert found.deleted > 0.1
    assert sum(found.after.values()) == pytest.approx(1.0, abs=1e-9)


def test_layer_norm_of_tokens() -> None:
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4))
    (found,) = tr.explain_norm(model, tensor().transpose(1, 2) + torch.randn(32, 20, 1))
    assert set(found.deletes) == {"mean", "sample", "site", "sample·site"}


def test_what_deletes_nothing() -> None:
    model = nn.Sequential(nn.RMSNorm(20), nn.BatchNorm1d(16).eval(), nn.Conv1d(16, 2, 1))
    rms, batch = tr.explain_norm(model, tensor())
    assert rms.deletes == batch.deletes == () and batch.over == ()
    assert batch.expected == batch.before and batch.after == pytest.approx(batch.before, abs=1e-4)


@pytest.mark.parametrize("name", ["batch", "group-one"])
def test_the_law_where_pools_are_alike(name: str) -> None:
    """Fresh samples: what is left keeps its proportions, within the error over samples."""
    x = 3 + 0.5 * torch.randn(64, 1, 1) + 0.5 * torch.randn(1, 16, 1) + torch.randn(64, 16, 20)
    (found,) = tr.explain_norm(nn.Sequential(CASES[name][0], nn.Conv1d(16, 2, 1)), x)
    for effect, share in found.after.items():
        assert share == pytest.approx(found.expected[effect], abs=4 * found.error[effect] + 0.01), effect
    assert found.deleted > 0.8


def test_theory_stands_beside_the_measurement() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.GroupNorm(4, 16), nn.Conv2d(16, 4, 3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = tr.explain_norm(model, torch.randn(16, 3, 12, 12))
    assert [layer.op for layer in found] == ["batch_norm", "group_norm"] and len(found) == 2
    for layer in found:
        assert layer.predicted is not None and layer.measured is not None
        assert layer.predicted.std == pytest.approx(layer.measured.std, rel=0.05)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_says_what_it_found() -> None:
    text = str(tr.explain_norm(nn.Sequential(nn.BatchNorm1d(16), nn.Conv1d(16, 2, 1)), tensor()))
    assert text.startswith("batch_norm 0  averages over sample and site; deletes")
    assert "deleted" in text.splitlines()[2] and "test_norms.py:" in text
    assert str(tr.explain_norm(nn.Linear(3, 2), torch.randn(4, 3))) == "no normaliser"
