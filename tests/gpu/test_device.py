"""The same step on a CUDA device: the same laws, and nothing of the training changed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tightrope as tr
from tightrope.measure import Meter
from tightrope.tape import Recorder

pytestmark = pytest.mark.gpu


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4))


def test_laws_agree_with_the_cpus() -> None:
    x = torch.randn(16, 3, 8, 8)
    here, there = model(), model().cuda()
    for verb in (tr.predict, tr.measure):
        a, b = verb(here, x), verb(there, x.cuda())
        for number, law in a.laws.items():
            assert b.laws[number].std == pytest.approx(law.std, rel=1e-2, abs=1e-6)


def test_check_runs_and_reports() -> None:
    data = (torch.randn(16, 3, 8, 8).cuda(), torch.randint(4, (16,)).cuda())
    report = tr.check(model().cuda(), data, loss=F.cross_entropy)
    assert report.laws
    assert not [row for row in report.laws if row.measured is None]


def test_losses_are_bit_identical_with_dropout() -> None:
    def train(recorded: bool) -> list[torch.Tensor]:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 4)).cuda()
        optimizer = torch.optim.Adam(net.parameters())
        losses = []
        for _ in range(5):
            x, y = torch.randn(32, 16, device="cuda"), torch.randint(4, (32,), device="cuda")
            optimizer.zero_grad()
            if recorded:
                with Recorder(Meter()):
                    loss = F.cross_entropy(net(x), y)
                    loss.backward()
            else:
                loss = F.cross_entropy(net(x), y)
                loss.backward()
            optimizer.step()
            losses.append(loss.detach().cpu())
        return losses

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_mixed_precision_is_measured() -> None:
    net, scaler = model().cuda(), torch.amp.GradScaler("cuda")
    meter = Meter()
    found = []
    with Recorder(meter, on_backward=lambda tape: found.append(meter.measurement(tape))):
        with torch.autocast("cuda", torch.float16):
            loss = F.cross_entropy(net(torch.randn(16, 3, 8, 8, device="cuda")), torch.randint(4, (16,), device="cuda"))
        scaler.scale(loss).backward()
    assert found[0].gradients


def test_compass_margin_and_regions_agree_with_the_cpus() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(60, 300, dtype=torch.float64), torch.randint(2, (60,))
    net = nn.Linear(300, 2).double()
    asked = {"loss": F.cross_entropy, "hyperparameters": {"weight_decay": 0.1}}
    here = tr.compass(net, train=(x, y), val=(x, y), **asked)
    margin = tr.margin(net, (x, y))
    there = tr.compass(net.cuda(), train=(x.cuda(), y.cuda()), val=(x.cuda(), y.cuda()), **asked)
    assert there.derivatives["weight_decay"] == pytest.approx(here.derivatives["weight_decay"], rel=1e-8)
    assert tr.margin(net, (x.cuda(), y.cuda())).angle == pytest.approx(margin.angle, rel=1e-6)
    relu = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    corners = torch.tensor([[-3.0, -3.0], [3.0, -3.0], [-3.0, 3.0]])
    assert tr.expressivity(relu, corners).regions == tr.expressivity(relu.cuda(), corners.cuda()).regions
