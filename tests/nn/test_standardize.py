from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

import tightrope.nn.standardize
from tightrope.errors import InputError
from tightrope.nn import Standardize


def table(n: int = 200) -> Tensor:
    return torch.randn(n, 5) * torch.tensor([1e-3, 1.0, 30.0, 1e3, 1e6]) + torch.tensor([0.0, 5.0, -9.0, 1e4, 3e6])


def test_equals_scikit_learn() -> None:
    x = table()
    mine = Standardize().fit(x.split(32))(x)
    theirs = StandardScaler().fit(x.double().numpy()).transform(x.double().numpy())
    assert torch.allclose(mine.double(), torch.tensor(theirs), atol=1e-5)


def test_the_example_in_the_docstring() -> None:
    assert doctest.testmod(tightrope.nn.standardize).failed == 0


def test_batches_of_every_kind() -> None:
    x, y = table(), torch.zeros(200, dtype=torch.long)
    whole = Standardize().fit(x).state_dict()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=7)
    for data in (loader, [{"x": x, "y": y}], [x[:1], x[1:]], {"x": x}):
        made = Standardize().fit(data).state_dict()
        assert all(torch.allclose(made[name], whole[name]) for name in whole)


@pytest.mark.parametrize("cut", [1, 50, 199])
def test_merging_equals_one_pass(cut: int) -> None:
    x = table()
    whole = Standardize().fit(x)
    merged = Standardize().fit(x[:cut]).merge(Standardize().fit(x[cut:]))
    for name, value in whole.state_dict().items():
        assert torch.allclose(merged.state_dict()[name], value, rtol=1e-10), name


def test_merging_into_an_empty_one() -> None:
    x = table()
    assert torch.equal(Standardize().merge(Standardize().fit(x))(x), Standardize().fit(x)(x))


def test_a_feature_that_hardly_moves_is_not_blown_up() -> None:
    """One grey pixel in 1797 digits: plain standardising would put it 42 deviations out."""
    x = torch.zeros(1797, 2)
    x[:, 1].normal_()
    x[100, 0] = 16.0
    z = Standardize().fit(x)(x)
    assert float(z[:, 0].max()) == pytest.approx(8.0, rel=0.01)
    assert float(z[:, 1].std()) == pytest.approx(1.0, rel=0.01)


def test_a_constant_feature_is_centred() -> None:
    x = torch.stack([torch.full((50,), 7.0), 4.0 * torch.randn(50)], 1)
    layer = Standardize().fit(x)
    assert torch.all(layer(x)[:, 0] == 0)
    assert float(layer(torch.tensor([[8.0, 0.0]]))[0, 0]) == pytest.approx(
        1 / float(x[:, 1].std(correction=0)), rel=1e-5
    )


def test_images_are_standardised_by_channel() -> None:
    x = torch.rand(16, 3, 8, 8) * torch.tensor([1.0, 255.0, 10.0]).view(3, 1, 1)
    z = Standardize(dim=1).fit(x)(x)
    assert z.shape == x.shape
    assert torch.allclose(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(z.std((0, 2, 3)), torch.ones(3), atol=1e-3)


def test_bytes_become_floats() -> None:
    x = torch.randint(0, 256, (64, 3), dtype=torch.uint8)
    z = Standardize().fit(x)(x)
    assert z.dtype == torch.float32
    assert float(z.mean()) == pytest.approx(0, abs=1e-5)


def test_travels_with_the_model(tmp_path: Path) -> None:
    x = table()
    model = nn.Sequential(Standardize().fit(x), nn.Linear(5, 2))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    fresh = nn.Sequential(Standardize(), nn.Linear(5, 2))
    fresh.load_state_dict(torch.load(tmp_path / "model.pt"))
    assert torch.equal(fresh(x), model(x))
    assert list(model.parameters()) != [] and not any("0." in name for name, _ in model.named_parameters())


def test_training_and_evaluation_agree() -> None:
    x = table()
    layer = Standardize().fit(x)
    before = layer(x[:3])
    layer(1e3 * x)
    assert torch.equal(layer.train()(x[:3]), before)
    assert torch.equal(layer.eval()(x[:3]), before)


def test_learns_until_it_has_seen_enough() -> None:
    x = table(300)
    layer = Standardize(5, learn=150)
    for part in x.split(100):
        layer(part)
    assert torch.equal(layer(x), Standardize().fit(x[:200])(x))
    layer.eval()(x)
    assert layer.count.max() == 200


def test_missing_numbers() -> None:
    x = table()
    holes = x.clone()
    holes[::3, 1] = torch.nan
    layer = Standardize(impute=True).fit(holes)
    kept = torch.arange(200) % 3 != 0
    assert float(layer.mean[1]) == pytest.approx(float(x[kept, 1].mean()), rel=1e-5)
    z = layer(holes)
    assert torch.isfinite(z).all()
    assert torch.allclose(z[::3, 1], torch.zeros(67), atol=1e-6)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: Standardize()(table()), "nothing was fitted"),
        (lambda: Standardize().fit([]), "empty"),
        (lambda: Standardize().fit(torch.tensor([[1.0, torch.nan]])), "NaN or infinity"),
        (lambda: Standardize().fit([torch.zeros(4, dtype=torch.long)]), "no floating-point tensor"),
        (lambda: Standardize().fit([torch.randn(4, 2), torch.randn(4, 3)]), "3 features after 2"),
        (lambda: Standardize().fit(table()).merge(Standardize().fit(torch.randn(9, 2))), "2 features with 5"),
    ],
)
def test_says_what_is_wrong(act: object, words: str) -> None:
    assert callable(act)
    with pytest.raises(InputError, match=words):
        act()


def test_gradients_pass() -> None:
    x = table().requires_grad_()
    layer = Standardize().fit(x)
    layer(x).sum().backward()
    assert x.grad is not None
    assert torch.allclose(x.grad[0].double(), 1 / layer.scale, rtol=1e-5)


def test_merging_many_parts_in_any_order_equals_one_pass() -> None:
    x = table()
    whole = Standardize().fit(x).state_dict()
    parts = [Standardize().fit(part) for part in x.split(29)]
    for order in (parts, parts[::-1]):
        merged = Standardize()
        for part in order:
            merged.merge(part)
        assert all(torch.allclose(merged.state_dict()[name], value, rtol=1e-10) for name, value in whole.items())


RANK = """
import sys
import torch
from torch import distributed
from tightrope.nn import Standardize

rank, store, out = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(101, 3) * torch.tensor([1.0, 50.0, 1e4]) + 7
layer = Standardize().fit(x[:30] if rank == 0 else x[30:]).merge_ranks()
torch.save((layer.state_dict(), Standardize().fit(x).state_dict()), f"{out}.{rank}")
distributed.destroy_process_group()
"""


def test_ranks_merge_to_the_statistics_of_all_data(tmp_path: Path) -> None:
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path / "store"), str(tmp_path / "out")]) for r in range(2)]
    assert [rank.wait(timeout=60) for rank in ranks] == [0, 0]
    (first, whole), (second, _) = (torch.load(tmp_path / f"out.{r}") for r in range(2))
    for name, value in whole.items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], value, rtol=1e-12), name


def test_merging_ranks_needs_a_process_group() -> None:
    with pytest.raises(InputError, match="no process group"):
        Standardize().fit(table()).merge_ranks()
