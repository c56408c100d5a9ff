"""Linear regions against closed forms, arrangements of lines, and dense grids."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.errors import InputError, RecordError

SQUARE = torch.tensor([[-3.0, -3.0], [3.0, -3.0], [-3.0, 3.0]])
LINE = torch.tensor([[-9.0, -6.0], [9.0, 7.5]])


class Tent(nn.Module):
    """The tent map, composed with itself: 2^depth pieces on [0, 1] with two units a layer."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.depth, self.scale = depth, nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.depth):
            x = 2 * F.relu(x) - 4 * (x - 0.5).relu()
        return self.scale * x


def deep(act: type[nn.Module] = nn.ReLU, layers: int = 3, width: int = 12) -> nn.Sequential:
    torch.manual_seed(0)
    parts = [m for i in range(layers) for m in (nn.Linear(width if i else 2, width), act())]
    return nn.Sequential(*parts, nn.Linear(width, 2))


@pytest.mark.parametrize("depth", [1, 6, 10])
def test_a_composed_tent_has_two_to_the_depth_pieces(depth: int) -> None:
    found = tr.expressivity(Tent(depth), torch.tensor([[0.0], [1.0]]))
    assert found.regions == found.pieces == 2**depth and found.complete
    assert found.breaks == pytest.approx([k / 2**depth for k in range(1, 2**depth)], abs=1e-12)
    assert found.slopes is not None
    assert torch.equal(found.slopes[:, 0].abs(), torch.full((2**depth,), 2.0**depth, dtype=torch.float64))


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.Hardtanh, nn.ReLU6])
def test_a_line_against_a_dense_grid(act: type[nn.Module]) -> None:
    model = deep(act)
    found = tr.expressivity(model, LINE)
    assert found.complete and found.covered == pytest.approx(1.0, abs=1e-9)
    model = model.double()
    t = torch.linspace(0, 1, 100_001, dtype=torch.float64)[:, None]
    with torch.no_grad():
        values = model(LINE[0] + t * (LINE[1].double() - LINE[0].double()))
    bends = (values[2:] - 2 * values[1:-1] + values[:-2]).norm(dim=1) > 1e-11 * values.abs().max()
    starts = int((bends[1:] & ~bends[:-1]).sum()) + int(bends[0])  # a kink bends one or two neighbouring triples
    assert abs(starts - (found.regions - 1)) <= 1 + found.regions // 20


def test_a_plane_of_one_layer_is_an_arrangement_of_lines() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 14), nn.ReLU(), nn.Linear(14, 1))
    wide = 1e4 * (SQUARE - SQUARE.mean(0))  # holds every crossing
    found = tr.expressivity(model, wide)
    assert found.regions == 1 + 14 + 14 * 13 // 2 == found.bound
    assert found.covered == pytest.approx(1.0, abs=1e-6)


def test_a_plane_of_a_deep_net_against_a_grid() -> None:
    model = deep(width=8)
    found = tr.expressivity(model, SQUARE)
    assert found.complete and found.pieces is None and found.covered == pytest.approx(1.0, abs=1e-9)
    assert sum(1 for _ in found.polygons) == found.regions
    s = torch.rand(200_000, 2)
    x = SQUARE[0] + s[:, :1] * (SQUARE[1] - SQUARE[0]) + s[:, 1:] * (SQUARE[2] - SQUARE[0])
    patterns = []
    with torch.no_grad():
        for layer in model:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                patterns.append(x > 0)
    seen = len(torch.unique(torch.cat(patterns, 1), dim=0))
    assert seen <= found.regions <= seen + found.regions // 10 + 3  # the smallest regions hold no sample


def test_units_without_effect_make_regions_and_no_pieces() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.copy_(torch.tensor([-0.3, -0.6]))
        model[2].weight.copy_(torch.tensor([[1.0, 0.0]]))
    found = tr.expressivity(model, torch.tensor([[0.0], [1.0]]))
    assert (found.regions, found.pieces) == (3, 2) and found.breaks == pytest.approx([0.3, 0.6], abs=1e-7)


def test_what_is_not_piecewise_linear_is_said() -> None:
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    found = tr.expressivity(model, LINE)
    assert not found.complete and found.bend > 1e-4 and "not complete" in str(found)


def test_nothing_is_changed_and_refusals() -> None:
    model = deep()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    tr.expressivity(model, LINE)
    assert model.training and all(
        v.dtype == torch.float32 and torch.equal(v, state[k]) for k, v in model.state_dict().items()
    )
    with pytest.raises(InputError, match="more than 5"):
        tr.expressivity(model, LINE, limit=5)
    with pytest.raises(InputError, match="two ends"):
        tr.expressivity(model, torch.zeros(4, 2))
    with pytest.raises(InputError, match="kink"):
        tr.expressivity(nn.Linear(2, 2), LINE)
    with pytest.raises(RecordError):
        tr.expressivity(model, torch.zeros(2, 5))
