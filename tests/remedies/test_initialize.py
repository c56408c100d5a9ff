"""Weights that `initialize` solved, run through torch itself."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr
from tightrope.check import study
from tightrope.errors import InputError
from tightrope.initialize import solve
from tightrope.tape.initialisers import remember

ACTIVATIONS = [nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Sigmoid, nn.SELU, nn.SiLU, nn.Softplus]


def plain(activation: type[nn.Module], depth: int = 12, width: int = 128) -> nn.Sequential:
    stack: list[nn.Module] = []
    for _ in range(depth):
        stack += [nn.Linear(width, width), activation()]
    return nn.Sequential(*stack, nn.Linear(width, 10))


def outputs(model: nn.Module, kind: Any, x: Tensor) -> list[Tensor]:
    """Results of all modules of a type, with their gradients kept."""
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, y: Tensor) -> None:
        y.retain_grad()
        found.append(y)

    hooks = [m.register_forward_hook(keep) for m in model.modules() if isinstance(m, kind)]
    y = model(x)
    (y * torch.randn_like(y)).sum().backward()
    for hook in hooks:
        hook.remove()
    return found


def gain(weight: Tensor) -> float:
    return float(weight.detach().square().mean()) * weight[0].numel()


# -- signal and gradient keep their size ---------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: a.__name__)
def test_twelve_layers_pass_signal_and_gradient(activation: type[nn.Module]) -> None:
    x = torch.randn(256, 128)
    model = plain(activation)
    before = outputs(model, nn.Linear, x)
    tr.initialize(model, x)
    after = outputs(model, nn.Linear, torch.randn(256, 128))

    def decay(found: list[Tensor]) -> float:
        hidden = found[:-1]
        assert hidden[0].grad is not None
        assert hidden[-1].grad is not None
        return abs(math.log(float(hidden[0].grad.norm() / hidden[-1].grad.norm())))

    assert decay(after) < math.log(4)
    assert decay(after) < max(decay(before), 0.3)
    spreads = [float((y - y.mean(0)).detach().square().mean().sqrt()) for y in after[:-1]]
    assert max(spreads) < 1.3 * min(spreads)  # samples differ as much in the last layer as in the first
    assert 0.2 < spreads[0] < 2


def test_rectifiers_get_the_law_of_he() -> None:
    model = plain(nn.ReLU, 4, 256)
    tr.initialize(model, torch.randn(64, 256), criterion="backward")
    assert [gain(model[i].weight) for i in (2, 4, 6)] == pytest.approx([2, 2, 2], rel=0.15)
    assert all(not bool(model[i].bias.any()) for i in (0, 2, 4, 6))


def test_linear_stacks_get_unit_gain() -> None:
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(5)])
    tr.initialize(model, torch.randn(64, 64))
    assert [gain(layer.weight) for layer in list(model)[1:-1]] == pytest.approx([1, 1, 1], rel=0.05)


def test_data_of_any_scale_leave_the_first_layer_at_unit_scale() -> None:
    for scale in (1e-3, 1.0, 1e3):
        x = torch.randn(512, 32) * scale
        model = plain(nn.ReLU, 2, 32)
        tr.initialize(model, x)
        rms = float(model[0](x).detach().square().mean().sqrt())
        assert 0.5 < rms < 2


def test_convolutions_keep_the_signal_up_and_down() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(64, 64, 3, groups=8), nn.ReLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1),
    )  # fmt: skip
    x = torch.randn(8, 3, 24, 24)
    tr.initialize(model, x)
    found = outputs(model, (nn.Conv2d, nn.ConvTranspose2d), x)
    assert all(0.4 < float(y.detach().square().mean().sqrt()) < 2.5 for y in found[:-1])


class Residual(nn.Module):
    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def test_branches_share_what_they_add() -> None:
    """Thirty branches without a normaliser together at most double the signal's variance and a bit."""
    model = Residual(30)
    x = torch.randn(128, 64)
    tr.initialize(model, x)
    y = x
    for block in model.blocks:
        y = y + block(y)
    assert 0.8 < float(y.detach().square().mean()) < 4


def test_the_loss_starts_near_that_of_no_knowledge() -> None:
    model = plain(nn.GELU, 6)
    x = torch.randn(256, 128)
    tr.initialize(model, x)
    loss = F.cross_entropy(model(x), torch.randint(0, 10, (256,)))
    assert float(loss.detach()) == pytest.approx(math.log(10), abs=0.4)


# -- what stays as it is -------------------------------------------------------------------------


def test_only_the_law_of_the_data_counts() -> None:
    x = torch.randn(64, 128)
    one, other = plain(nn.Tanh, 3), plain(nn.Tanh, 3)
    tr.initialize(one, x)
    tr.initialize(other, x.flip(0))
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_global_random_state_is_untouched_and_seeds_differ() -> None:
    x = torch.randn(32, 128)
    one, other = plain(nn.ReLU, 2), plain(nn.ReLU, 2)
    state = torch.get_rng_state()
    tr.initialize(one, x, seed=1)
    tr.initialize(other, x, seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one[0].weight, other[0].weight)


def test_frozen_weights_stay() -> None:
    model = plain(nn.ReLU, 3)
    model[2].requires_grad_(False)
    kept = model[2].weight.clone()
    made = tr.initialize(model, torch.randn(32, 128))
    assert torch.equal(model[2].weight, kept)
    assert "2.weight" in made.untouched
    assert {change.name for change in made.changes} == {f"{i}.{p}" for i in (0, 4, 6) for p in ("weight", "bias")}


def test_a_module_used_twice_is_drawn_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(64, 64), nn.Linear(64, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.inner(torch.tanh(self.inner(x))))

    made = tr.initialize(Twice(), torch.randn(32, 64))
    assert [change.name for change in made.changes].count("inner.weight") == 1


def test_changes_tell_what_was_and_what_is() -> None:
    model = plain(nn.ReLU, 2)
    before = float(model[0].weight.detach().square().mean().sqrt())
    made = tr.initialize(model, torch.randn(32, 128))
    (change,) = [change for change in made.changes if change.name == "0.weight"]
    assert change.before == pytest.approx(before)
    assert change.after == pytest.approx(float(model[0].weight.detach().square().mean().sqrt()))


def test_embeddings_and_normalisers_stay() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.norm, self.head = nn.Embedding(50, 32), nn.LayerNorm(32), nn.Linear(32, 50)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(ids)))

    model = Tokens()
    tr.initialize(model, torch.randint(0, 50, (4, 8)))
    logits = model(torch.randint(0, 50, (4, 8)))
    assert bool(torch.isfinite(logits).all())
    assert bool((model.norm.weight == 1).all())


# -- as a remedy, and bad input ------------------------------------------------------------------


def test_the_remedy_repairs_a_deep_net_in_place() -> None:
    model = plain(nn.Sigmoid, 12)
    x, y = torch.randn(64, 128), torch.arange(64) % 10
    report = tr.check(model, (x, y), loss=F.cross_entropy)
    remedy = report.findings[0].remedy
    assert remedy is not None
    assert remedy.name == "initialize"
    weight = model[0].weight
    remedy.apply()
    assert model[0].weight is weight
    assert tr.check(model, (x, y), loss=F.cross_entropy).findings == ()


def test_a_solved_net_learns_where_the_default_does_not() -> None:
    x = torch.randn(256, 64)
    y = (x[:, 0] > 0).long()

    def learn(model: nn.Module) -> float:
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        for _ in range(25):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        return float(loss.detach())

    default, solved = plain(nn.ReLU, 20, 64), plain(nn.ReLU, 20, 64)
    tr.initialize(solved, x)
    assert learn(solved) < 0.5 * learn(default)


def test_criteria_differ_in_what_they_keep() -> None:
    x = torch.randn(64, 128)
    forward, backward = plain(nn.Sigmoid, 4), plain(nn.Sigmoid, 4)
    tr.initialize(forward, x, criterion="forward")
    tr.initialize(backward, x, criterion="backward")
    rms = [float(y.detach().square().mean().sqrt()) for y in outputs(forward, nn.Linear, x)[:-1]]
    assert rms == pytest.approx([1.0] * 4, rel=0.35)
    assert gain(backward[2].weight) > 16  # the sigmoid's slope is at most a quarter


def test_an_unknown_criterion_is_refused() -> None:
    with pytest.raises(InputError, match="criterion"):
        tr.initialize(plain(nn.ReLU, 1), torch.randn(4, 128), criterion="sideways")


# -- a few more kinds of net ---------------------------------------------------------------------


def spread(y: Tensor) -> float:
    """Standard deviation over samples."""
    return float((y - y.mean(0)).detach().square().mean().sqrt())


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.GELU, nn.Sigmoid], ids=lambda a: a.__name__)
def test_fifty_layers_keep_scale_gradient_and_angles(activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 64)
    model = plain(activation, 50, 64)
    model[0] = nn.Linear(64, 64)
    tr.initialize(model, x)
    found = outputs(model, nn.Linear, x)
    assert 0.7 < spread(found[49]) / spread(found[0]) < 1.4
    assert found[0].grad is not None
    assert found[49].grad is not None
    assert 0.4 < float(found[0].grad.norm() / found[49].grad.norm()) < 2.5
    first, last = (torch.corrcoef((y - y.mean(0)).detach()) for y in (found[0], found[49]))
    off = ~torch.eye(128, dtype=torch.bool)
    assert float(last[off].std()) < 1.5 * float(first[off].std())  # no two samples were drawn together


def test_padding_adds_no_pattern_of_its_own() -> None:
    """Zero padding cuts off a part of the mean that weights read; weights blind to it do not see that."""
    torch.manual_seed(0)
    stack: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
    for _ in range(11):
        stack += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*stack, nn.Flatten(), nn.Linear(16 * 64, 10))
    x = torch.randn(64, 3, 8, 8)
    tr.initialize(model, x)
    last = outputs(model, nn.Conv2d, x)[-1].detach()
    pattern = last.mean(0) - last.mean((0, 2, 3))[:, None, None]
    assert float(pattern.square().mean().sqrt()) < 0.4 * spread(last)


def test_the_stream_that_branches_leave_is_no_branch() -> None:
    """The stem's output has unit scale, and fifty branches multiply its second moment by no more than e and a bit."""
    torch.manual_seed(0)
    stem, model = nn.Linear(64, 64), Residual(50)
    whole = nn.Sequential(stem, model)
    x = torch.randn(128, 64)
    tr.initialize(whole, x)
    y = begin = stem(x)
    for block in model.blocks:
        y = y + block(y)
    assert spread(begin) == pytest.approx(1, rel=0.2)
    assert 1.0 < spread(y) / spread(begin) < 2.0


class Late(nn.Module):
    """x + f(W x): the activation stands between a branch's last weight and the sum."""

    def __init__(self, depth: int, width: int = 64) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + F.gelu(layer(x))
        return x


def test_branches_that_end_in_an_activation_share_too() -> None:
    x = torch.randn(128, 64)
    model = Late(60)
    before = model(x)
    tr.initialize(model, x)
    after = model(x)
    assert spread(before) > 30
    assert 0.8 < spread(after) < 3


# -- the meta device -----------------------------------------------------------------------------


def test_on_meta_the_laws_are_set_and_applied_to_a_twin() -> None:
    with remember(), torch.device("meta"):
        model = plain(nn.ReLU, 8, 128)
    x = torch.randn(64, 128)
    made = tr.initialize(model, x)
    assert all(p.is_meta for p in model.parameters())
    laws = [change for change in made.changes if change.name.endswith("weight")]
    assert [c.std**2 * 128 for c in laws[1:-1]] == pytest.approx([2] * 7, rel=0.1)
    found = tr.predict(model, x)
    rows = [found.laws[e.outputs[0]].second_moment for e in found.tape.entries if e.op == "linear"]
    assert rows[:-1] == pytest.approx([1] * 8, rel=0.2)
    twin = plain(nn.ReLU, 8, 128)
    made.apply(twin)
    assert gain(twin[4].weight) == pytest.approx(2, rel=0.1)
    energy = float(outputs(twin, nn.Linear, x)[-2].detach().square().mean())
    assert energy == pytest.approx(1, rel=0.5)
    with pytest.raises(InputError, match="meta"):
        made.apply(model)


# -- what has a purpose stays --------------------------------------------------------------------


def test_a_dry_run_tells_and_changes_nothing() -> None:
    model = plain(nn.SiLU, 3)
    kept = [p.detach().clone() for p in model.parameters()]
    told = tr.initialize(model, torch.randn(32, 128), dry=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, model.parameters(), strict=True))
    assert tr.initialize(model, torch.randn(32, 128)).changes != ()
    assert "2.weight" in str(told)
    assert "->" in str(told)


def test_shared_tables_padding_rows_recurrent_biases_and_zero_branches_stay() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(20, 32, padding_idx=0)
            self.lstm, self.last = nn.LSTM(32, 32, batch_first=True), nn.Linear(32, 32)
            self.head = nn.Linear(32, 20, bias=False)
            self.head.weight = self.embed.weight
            nn.init.zeros_(self.last.weight)
            with torch.no_grad():
                self.lstm.bias_ih_l0[32:64] = 1.0

        def forward(self, ids: Tensor) -> Tensor:
            x, _ = self.lstm(self.embed(ids))
            return self.head(x + self.last(x))

    model = Mixed()
    table = model.embed.weight.detach().clone()
    made = tr.initialize(model, torch.randint(0, 20, (4, 8)))
    assert torch.equal(model.embed.weight, table)
    assert bool((model.lstm.bias_ih_l0[32:64] == 1).all())
    assert not bool(model.last.weight.any())
    assert dict(made.reasons)["last.weight"] == "its branch begins at zero"
    assert "embedding" in dict(made.reasons)["embed.weight"]


def test_the_recorded_step_is_what_is_solved() -> None:
    """The remedy acts on the tape: a layer that the step did not call stays."""
    model = plain(nn.ReLU, 16)
    model.spare = nn.Linear(3, 3)  # type: ignore[assignment]
    kept = model.spare.weight.clone()
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)  # type: ignore[method-assign]
    made = study(model, (torch.randn(64, 128), torch.arange(64) % 10), loss=F.cross_entropy)
    solve(made.tape)
    assert torch.equal(model.spare.weight, kept)
