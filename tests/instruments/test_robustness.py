"""Jacobian norms against whole Jacobians, Lipschitz bounds against patterns and searches, attacks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.errors import InputError
from tightrope.instruments.robustness.jacobian import quantile
from tightrope.instruments.robustness.lipsdp import lipsdp
from tightrope.instruments.robustness.operators import conv_norm
from tightrope.instruments.robustness.slopes import FIXED, slopes_on

ACTIVATIONS = (nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Hardswish)


class Block(nn.Module):
    """x + F(x)."""

    def __init__(self, width: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(width, width), act(), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.act(self.first(x)))


def random_net(seed: int) -> tuple[nn.Module, Tensor]:
    """Plain, residual, normalised or convolutional; not all at their usual scale."""
    torch.manual_seed(seed)
    g = np.random.default_rng(seed)
    act = ACTIVATIONS[int(g.integers(len(ACTIVATIONS)))]
    if g.random() < 0.25:
        c, s = int(g.integers(1, 4)), int(g.integers(5, 9))
        pool = [nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.Identity()][int(g.integers(3))]
        net = nn.Sequential(
            nn.Conv2d(c, 4, 3, stride=int(g.integers(1, 3)), padding=1), nn.BatchNorm2d(4), act(), pool,
            nn.Conv2d(4, 4, 3, padding=1, groups=2), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )  # fmt: skip
        x = torch.randn(6, c, s, s)
    else:
        widths = [int(w) for w in g.integers(2, 12, size=int(g.integers(1, 5)))]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise([5, *widths]):
            layers += [nn.Linear(a, b), act()]
            layers += [Block(b, act)] if g.random() < 0.3 else []
            layers += [nn.LayerNorm(b)] if b > 2 and g.random() < 0.1 else []
        net, x = nn.Sequential(*layers, nn.Linear(widths[-1], int(g.integers(1, 5)))), torch.randn(6, 5)
    with torch.no_grad():
        scale = float(g.uniform(0.3, 3))
        for p in net.parameters():
            p.mul_(scale)
    dtype = (torch.float32, torch.float64)[seed % 2]
    return net.to(dtype), x.to(dtype)


@pytest.mark.parametrize("part", range(4))
def test_lower_is_never_above_upper(part: int) -> None:
    for seed in range(25 * part, 25 * (part + 1)):
        model, x = random_net(seed)
        found = tr.robustness.lipschitz_bound(model, x, eps=0.1, sdp=seed % 3 == 0, rounds=2, seed=seed)
        assert found.upper is not None, found.missing
        assert found.lower <= found.upper * (1 + 1e-12), seed
        slopes = tr.robustness.jacobian_norms(model, x)
        assert found.local is not None
        assert bool((slopes.values <= found.local * (1 + 1e-5)).all()), seed
        off = torch.randn_like(x)
        off = 0.1 * off / off.flatten(1).norm(dim=1).view(-1, *[1] * (x.dim() - 1))
        model.eval()
        moved = (model(x + off) - model(x - off)).detach().double().norm(dim=1) / 0.2
        assert bool((moved <= found.local * (1 + 1e-4) + 1e-5).all()), seed


def exact(model: nn.Module, x: Tensor) -> Tensor:
    model.eval()
    jacobian = torch.func.vmap(torch.func.jacrev(model))(x).detach().double().reshape(len(x), -1, x[0].numel())
    return torch.linalg.svdvals(jacobian)[:, 0]


@pytest.mark.parametrize(("inputs", "outputs"), [(20, 5), (100, 150), (30, 200), (200, 70)])
def test_norms_are_those_of_the_whole_jacobian(inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(inputs, 80), nn.Tanh(), nn.Linear(80, outputs))
    x = torch.randn(17, inputs)
    found, truth = tr.robustness.jacobian_norms(model, x), exact(model, x)
    assert found.converged
    assert bool((found.values <= truth * (1 + 1e-5)).all())
    assert bool((found.values + found.errors >= truth * (1 - 1e-5)).all())
    assert torch.allclose(found.values, truth, rtol=1e-4)
    assert found.mean.value == pytest.approx(float(truth.mean()), rel=1e-4)
    assert found.largest == pytest.approx(float(truth.max()), rel=1e-4)


def test_a_search_that_ends_early_says_so() -> None:
    torch.manual_seed(0)
    values = torch.linspace(0.9, 1.0, 900) ** 0.5
    model = nn.Linear(900, 900, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.qr(torch.randn(900, 900)).Q * values)
    found = tr.robustness.jacobian_norms(model, torch.randn(3, 900), tolerance=1e-6)
    assert not found.converged
    assert float((found.values + found.errors).min()) >= 1.0 - 1e-5
    assert "not converged" in str(found)


def test_quantiles_cover_at_their_level() -> None:
    torch.manual_seed(0)
    for level, truth in ((0.05, math.log(1 / 0.95)), (0.5, math.log(2)), (0.95, math.log(20))):
        drawn = torch.distributions.Exponential(1.0).sample((1000, 80))
        ends = [quantile(row, level) for row in drawn]
        covered = sum(e.low <= truth <= e.high for e in ends) / 1000
        assert 0.945 <= covered <= 1.0


def test_mean_covers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
    truth = float(exact(model, torch.randn(20000, 3)).mean())
    found = [tr.robustness.jacobian_norms(model, torch.randn(40, 3)).mean for _ in range(100)]
    assert sum(f.low <= truth <= f.high for f in found) >= 88


def test_a_linear_net_has_its_norm_in_every_bound() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)).double()
    truth = float(torch.linalg.matrix_norm(model[1].weight.detach() @ model[0].weight.detach(), 2))
    found = tr.robustness.lipschitz_bound(model, torch.randn(3, 6).double(), eps=1.0, sdp=True)
    for value in (found.upper, found.product, found.sdp, found.lower, float(found.local.max())):
        assert value == pytest.approx(truth, rel=1e-7)


def test_one_hidden_layer_against_all_patterns() -> None:
    """The constant of a one-hidden-layer ReLU net with biases free to reach all patterns of independent rows."""
    torch.manual_seed(0)
    for _ in range(5):
        first, second = torch.randn(6, 6).double(), torch.randn(3, 6).double()
        patterns = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64)
        truth = float(torch.linalg.matrix_norm((second * patterns[:, None]) @ first, 2).max())
        bound = lipsdp([first, second], [(0.0, 1.0)])
        product = float(torch.linalg.matrix_norm(first, 2) * torch.linalg.matrix_norm(second, 2))
        assert bound is not None
        assert truth <= bound <= product
        model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
        with torch.no_grad():
            model[0].weight.copy_(first)
            model[2].weight.copy_(second)
        found = tr.robustness.lipschitz_bound(model, torch.randn(256, 6).double(), sdp=True, rounds=4)
        assert found.lower == pytest.approx(truth, rel=1e-6)  # rows are independent: every pattern is some input's
        assert found.sdp == pytest.approx(bound, rel=1e-6)


def test_lipsdp_is_tight_for_weights_of_one_sign() -> None:
    """With positive weights the steepest pattern is the one with all units on: the norm of the product."""
    g = np.random.default_rng(0)
    widths = (2, 10, 30, 20, 2)
    weights = [g.random((b, a)) / 2 for a, b in itertools.pairwise(widths)]
    truth = float(np.linalg.norm(np.linalg.multi_dot(weights[::-1]), 2))
    bound = lipsdp([torch.tensor(w) for w in weights], [(0.0, 1.0)] * 3)
    assert bound is not None
    assert truth <= bound <= truth * (1 + 1e-6)


def test_lipsdp_agrees_with_a_cone_solver() -> None:
    clarabel = pytest.importorskip("clarabel")
    from scipy import sparse

    g = np.random.default_rng(1)
    w = [g.normal(size=(5, 3)), g.normal(size=(4, 5)), g.normal(size=(2, 4))]
    low, high, size = -0.129, 1.129, 12
    parts = []
    for k, start in ((0, 3), (1, 8)):
        for i, row in enumerate(w[k]):
            b, e = np.zeros(size), np.zeros(size)
            b[start - w[k].shape[1] : start], e[start + i] = row, 1
            cross = np.outer(b, e)
            parts.append(-2 * low * high * np.outer(b, b) - 2 * np.outer(e, e) + (low + high) * (cross + cross.T))
    constant, top = np.zeros((size, size)), np.zeros((size, size))
    constant[8:, 8:], top[:3, :3] = w[2].T @ w[2], -np.eye(3)
    rows, columns = np.tril_indices(size)[::-1]
    factor = np.where(rows == columns, 1, math.sqrt(2))
    packed = [(m[rows, columns] * factor)[:, None] for m in (top, *parts)]
    signs = np.hstack([np.zeros((9, 1)), -np.eye(9)])
    matrix = sparse.csc_matrix(np.vstack([np.hstack(packed), signs]))
    right = np.concatenate([-constant[rows, columns] * factor, np.zeros(9)])
    settings = clarabel.DefaultSettings()
    settings.verbose = False
    cones = [clarabel.PSDTriangleConeT(size), clarabel.NonnegativeConeT(9)]
    cost = np.eye(10)[0]
    solved = clarabel.DefaultSolver(sparse.csc_matrix((10, 10)), cost, matrix, right, cones, settings).solve()
    bound = lipsdp([torch.tensor(m) for m in w], [(low, high)] * 2)
    assert bound == pytest.approx(math.sqrt(solved.x[0]), rel=1e-5)


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(("padding", "dilation", "groups"), [(0, 1, 1), (1, 1, 2), (2, 2, 1), (1, 1, 4)])
def test_a_convolutions_norm_bounds_its_matrix(stride: int, padding: int, dilation: int, groups: int) -> None:
    torch.manual_seed(stride)
    layer = nn.Conv2d(4, 8, 3, stride, padding, dilation, groups, bias=False).double()
    x = torch.zeros(1, 4, 9, 8).double()
    matrix = torch.func.jacrev(layer)(x).reshape(-1, x.numel())
    truth = float(torch.linalg.matrix_norm(matrix.detach(), 2))
    sizes = [9 + 2 * padding, 8 + 2 * padding]
    bound = conv_norm(layer.weight.detach(), sizes, [stride] * 2, [dilation] * 2, groups)
    assert truth <= bound <= 1.35 * truth


def test_a_reshaped_kernel_is_no_bound() -> None:
    """The kernel's own matrix has a smaller norm than the convolution that it makes."""
    layer = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    found = tr.robustness.lipschitz_bound(layer, torch.randn(2, 1, 40, 40), rounds=0)
    assert float(torch.linalg.matrix_norm(layer.weight.detach().reshape(1, 9), 2)) < found.lower <= found.upper < 9.001


@pytest.mark.parametrize("name", sorted(FIXED))
def test_slopes_of_activations_stay_in_their_bounds(name: str) -> None:
    function = getattr(F, name, None) or getattr(torch, name)
    shape = FIXED[name]
    grid = torch.linspace(-60, 60, 120001, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(function(grid).sum(), grid)
    assert float(slope.min()) >= shape.low and float(slope.max()) <= shape.high
    assert float(slope.max()) >= shape.high - 1e-3 and float(slope.min()) <= shape.low + 2e-3
    middle, radius = torch.linspace(-6, 6, 60).double(), 2 * torch.rand(60).double()
    low, high = slopes_on(function, shape, middle, radius)
    inside = (grid[None] - middle[:, None]).abs() <= radius[:, None]
    wide = slope[None].expand(60, -1)
    assert bool((torch.where(inside, wide, math.inf).amin(1) >= low - 1e-9).all())
    assert bool((torch.where(inside, wide, -math.inf).amax(1) <= high + 1e-9).all())


def test_a_small_ball_has_the_jacobians_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 30), nn.ReLU(), Block(30, nn.Tanh), nn.Linear(30, 3)).double()
    x = torch.randn(70, 8).double()
    found = tr.robustness.lipschitz_bound(model, x, eps=1e-7, rounds=0)
    assert torch.allclose(found.local, exact(model, x), rtol=1e-4)


class Gated(nn.Module):
    """x * sigmoid(W x): no Lipschitz constant over all inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


def test_what_has_no_bound_is_named_with_its_place() -> None:
    found = tr.robustness.lipschitz_bound(Gated(), torch.randn(5, 4))
    assert found.upper is None and found.product is None and found.local is None
    assert found.missing is not None and "mul" in found.missing and Path(__file__).name in found.missing
    assert "unknown" in str(found) and found.lower > 0


@pytest.mark.parametrize("twice", [lambda x: x + x, lambda x: torch.cat([x, x], 1), lambda x: x * x])
def test_an_operand_that_appears_twice_is_never_counted_once(twice: object) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return twice(x)  # type: ignore[operator]

    found = tr.robustness.lipschitz_bound(nn.Sequential(nn.Linear(3, 3), Twice()), torch.randn(5, 3))
    assert found.upper is None or found.lower <= found.upper


class Through(nn.Module):
    """A function between two linear layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(6, 6), function, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


BOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda x: x.softmax(1),
    "log softmax": lambda x: F.log_softmax(x, 1),
    "maximum": lambda x: torch.maximum(x, -x),
    "centred": lambda x: x - x.mean(1, keepdim=True),
    "cat": lambda x: torch.cat([x.relu()[:, :3], x.tanh()[:, 3:]], 1),
    "in place": lambda x: F.relu(x, inplace=True),
    "cat of a copy": lambda x: torch.cat([x, x, 0.01 * x], 1)[:, 1:13:2],
    "stack": lambda x: torch.stack([x, x.sin()], 1).sum(1),
    "einsum": lambda x: torch.einsum("bi,ij->bj", x, torch.ones(6, 6)),
    "alpha": lambda x: torch.add(x.relu(), x, alpha=-3),
    "chunk, repeat": lambda x: x.chunk(2, 1)[0].relu().repeat(1, 2),
    "pool": lambda x: F.avg_pool1d(x[:, None], 3, 1, 1)[:, 0],
    "interpolate": lambda x: F.interpolate(x[:, None], size=6, mode="linear")[:, 0],
    "circular": lambda x: F.pad(x[:, None], (2, 2), mode="circular")[:, 0, 1:7],
}
UNBOUNDED: dict[str, Callable[[Tensor], Tensor]] = {
    "mask": lambda x: (x > 0).float(),
    "whole numbers": lambda x: x.to(torch.int64).to(x.dtype),
    "where": lambda x: torch.where(x > 0, x, 2 * x),
    "half": lambda x: x.half().float(),
    "reciprocal": lambda x: 1 / (x.abs() + 1),
    "square": lambda x: x**2,
    "time first": lambda x: x.t().relu().t(),
}


@pytest.mark.parametrize("name", sorted(BOUNDED))
def test_bounds_through_an_operation_hold(name: str) -> None:
    torch.manual_seed(0)
    model, x = Through(BOUNDED[name]), torch.randn(8, 6)
    found = tr.robustness.lipschitz_bound(model, x, eps=0.1, rounds=3)
    assert found.upper is not None and found.local is not None
    assert found.lower <= found.upper
    assert bool((tr.robustness.jacobian_norms(model, x).values <= found.local * (1 + 1e-5)).all())


@pytest.mark.parametrize("name", sorted(UNBOUNDED))
def test_an_operation_without_a_bound_is_never_guessed(name: str) -> None:
    found = tr.robustness.lipschitz_bound(Through(UNBOUNDED[name]), torch.randn(8, 6), rounds=1)
    assert found.upper is None and found.missing is not None and Path(__file__).name in found.missing


def test_pgd_finds_the_boundary_of_a_linear_classifier() -> None:
    """The L2 distance to a hyperplane is |w.x + b| / ||w||, the L-inf one has the 1-norm below it."""
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = torch.randn(60, 5).double()
    y = model(x).argmax(1)
    w, b = model.weight[1] - model.weight[0], model.bias[1] - model.bias[0]
    for norm, length in (("2", w.norm()), ("inf", w.abs().sum())):
        truth = ((x @ w + b).abs() / length).detach()
        found = tr.robustness.attack(model, (x, y), eps=1.0, norm=norm)
        assert bool((torch.isfinite(found.distances) == (truth < 1.0)).all())
        reached = truth < 1.0
        assert bool((found.distances[reached] >= truth[reached] * (1 - 1e-9)).all())
        assert torch.allclose(found.distances[reached], truth[reached], rtol=2e-3, atol=1e-3)
        assert found.robust.value == pytest.approx(float((~reached).double().mean()))


def test_certified_and_attacked_shares_enclose_the_truth() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 2).double()
    x = torch.randn(200, 5).double()
    y = model(x).argmax(1)
    found = tr.robustness(model, (x, y), eps=0.3)
    w, b = model.weight[1] - model.weight[0], model.bias[1] - model.bias[0]
    truth = ((x @ w + b).abs() / w.norm()).detach()
    assert bool((found.radius <= truth * (1 + 1e-9)).all())
    assert found.certified.value <= float((truth > 0.3).double().mean()) <= found.robust_share
    assert bool((found.radius <= found.attack.distances).all())


def test_a_model_in_training_mode_is_attacked_as_it_is_evaluated() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, 3))
    x, y = torch.randn(30, 6), torch.randint(3, (30,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    found = tr.robustness(model, (x, y))
    assert any("training mode" in mode for mode in found.attack.modes) and "training mode" in str(found)
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    again = tr.robustness(model.eval(), (x, y))
    assert not again.attack.modes and torch.equal(again.attack.distances, found.attack.distances)


def test_a_gradient_that_is_masked_is_said() -> None:
    class Rounded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.round())

    found = tr.robustness.attack(Rounded(), (torch.randn(20, 4), torch.randint(2, (20,))), eps=0.1)
    assert found.masked == 1.0 and "no gradient" in str(found)


def trained(noise: float, steps: int = 400) -> tuple[nn.Module, Tensor, Tensor]:
    """Two classes apart in one direction, and as many others in which the labels were learnt by heart or not at all."""
    torch.manual_seed(0)
    y = torch.arange(80) % 2
    x = 0.01 * torch.randn(80, 20)
    x[:, 0] += (2 * y - 1) * noise
    x[:, 1:] += torch.randn(80, 19)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


def test_verdicts_speak_where_they_are_sure_and_are_silent_on_a_healthy_net() -> None:
    model, x, y = trained(3.0)
    healthy = tr.robustness(model, (x, y))
    assert healthy.verdicts == ()
    steep, x, y = trained(0.02, 0)
    with torch.no_grad():  # the class is read from a direction in which the data hardly differ
        first, last = steep[0], steep[2]
        for p in steep.parameters():
            p.zero_()
        first.weight[0, 0], first.weight[1, 0] = 1e3, -1e3
        last.weight[1, 0], last.weight[0, 1] = 1.0, 1.0
    x[:, 0] = 0.02 * (2 * y - 1)
    sick = tr.robustness(steep, (x, y))
    assert sick.verdicts == ("fragile", "unstable-jacobian")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m: tr.robustness.attack(m, torch.randn(3, 4)), "inputs, labels"),
        (lambda m: tr.robustness.attack(m, (torch.randn(3, 4), torch.tensor([0, 1, 9]))), "no classes"),
        (lambda m: tr.robustness.attack(m, (torch.randn(3, 4), torch.zeros(3).long())), "Pass eps="),
        (lambda m: tr.robustness.attack(m, (torch.randn(3, 4), torch.arange(3) % 2), norm="1"), "norm"),
        (lambda m: tr.robustness.jacobian_norms(m, torch.arange(4)), "floating-point"),
        (lambda m: tr.robustness.jacobian_norms(m, torch.full((3, 4), math.nan)), "NaN"),
        (lambda m: tr.robustness.jacobian_norms(m, torch.randn(3, 4), tolerance=0), "tolerance"),
        (lambda m: tr.robustness.lipschitz_bound(m, torch.randn(3, 4), eps=-1), "eps"),
        (
            lambda m: tr.robustness.jacobian_norms(nn.BatchNorm1d(4, track_running_stats=False), torch.randn(3, 4)),
            "other samples",
        ),
    ],
)  # fmt: skip
def test_bad_input_is_refused_in_words(call: object, says: str) -> None:
    with pytest.raises(InputError, match=says):
        call(nn.Linear(4, 2))  # type: ignore[operator]


def test_the_attack_climbs_the_loss_that_is_given() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(32, 8)
    y = model(x).argmax(1)
    seen: list[int] = []

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        seen.append(len(scores))
        return F.cross_entropy(scores, labels)

    given = tr.robustness(model, (x, y), loss=loss, eps=0.5, steps=10, seed=1)
    plain = tr.robustness(model, (x, y), eps=0.5, steps=10, seed=1)
    assert seen == [32] * 10 and torch.equal(given.attack.distances.isinf(), plain.attack.distances.isinf())
