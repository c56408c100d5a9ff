"""Training loops, sick and healthy, as the checks on optimizers see them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.check import check
from tightrope.checks.registry import all_checks
from tightrope.finding import Finding, Severity
from tightrope.run import rehearse

Loop = Callable[[], None]
OPTIM = {name for name, found in all_checks().items() if found.module.__name__.startswith("tightrope.checks.optim")}
HEALTHY: dict[str, Loop] = {}
STEPS = 24


def healthy(loop: Loop) -> Loop:
    HEALTHY[loop.__name__] = loop
    return loop


def net(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch(n: int = 64) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, 16)
    return x, x[:, :4].argmax(1)


def findings(loop: Loop, *, fix: bool = False) -> list[Finding]:
    """What the checks on optimizers say of a loop."""
    run = rehearse(loop, record=(1, 10), fix=fix)
    report = run.after if fix else run.report
    assert report is not None
    assert not any("Observation stopped" in note for note in report.notes)
    return [f for f in report.findings if f.check in OPTIM]


def names(loop: Loop) -> list[str]:
    return sorted(f.check for f in findings(loop))


# -- healthy loops -------------------------------------------------------------------------------


@healthy
def accumulation() -> None:
    model = net(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(4 * STEPS):
        x, y = batch(16)
        (F.cross_entropy(model(x), y) / 4).backward()
        if step % 4 == 3:
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 8 == 3)


@healthy
def gan() -> None:
    generator, critic = net(4, 32, 2), net(2, 32, 1)
    first = torch.optim.Adam(generator.parameters(), lr=1e-3)
    second = torch.optim.Adam(critic.parameters(), lr=1e-3)
    loss = F.binary_cross_entropy_with_logits
    for _ in range(STEPS):
        fake = generator(torch.randn(64, 4))
        second.zero_grad()
        (
            loss(critic(torch.randn(64, 2) + 2), torch.ones(64, 1)) + loss(critic(fake.detach()), torch.zeros(64, 1))
        ).backward()
        second.step()
        first.zero_grad()
        loss(critic(fake), torch.ones(64, 1)).backward()
        first.step()


@healthy
def critic_five_times_and_generator_accumulating() -> None:
    generator, critic = net(4, 32, 2), net(2, 32, 1)
    first = torch.optim.Adam(generator.parameters(), lr=1e-3)
    second = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for step in range(2 * STEPS):
        fake = generator(torch.randn(64, 4))
        (-critic(fake).mean()).backward()
        critic.zero_grad()
        (critic(fake.detach()).mean() - critic(torch.randn(64, 2) + 2).mean()).backward()
        second.step()
        second.zero_grad()
        if step % 5 == 4:
            first.step()
            first.zero_grad()


@healthy
def alternating_optimizers_share_a_loss() -> None:
    model = nn.Sequential(net(16, 32), nn.ReLU(), net(32, 4))
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model[0], model[2])]  # type: ignore[arg-type]
    for step in range(2 * STEPS):
        optimizer = optimizers[step % 2]
        x, y = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@healthy
def lbfgs() -> None:
    model = net(16, 8, 4)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    x, y = batch()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(12):
        optimizer.step(closure)


@healthy
def two_passes_a_step() -> None:
    """Sharpness-aware: a step up, a second gradient there, a step from the old place."""
    model = net(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        x, y = batch()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            ups = [0.05 * p.grad / (p.grad.norm() + 1e-12) for p in model.parameters() if p.grad is not None]
            for p, up in zip(model.parameters(), ups, strict=True):
                p.add_(up)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p, up in zip(model.parameters(), ups, strict=True):
                p.sub_(up)
        optimizer.step()
        optimizer.zero_grad()


@healthy
def gradients_written_by_hand() -> None:
    model = net(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        x, y = batch()
        found = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        for p, g in zip(model.parameters(), found, strict=True):
            if p.grad is None:
                p.grad = g
            else:
                p.grad.copy_(g)
        optimizer.step()


@healthy
def updated_by_hand() -> None:
    model = net(16, 32, 4)
    for _ in range(STEPS):
        x, y = batch()
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p -= 0.1 * p.grad


@healthy
def master_copies() -> None:
    """The optimizer holds copies, whose numbers are written back."""
    model = net(16, 32, 4)
    masters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    optimizer = torch.optim.SGD(masters, lr=0.1)
    for _ in range(STEPS):
        x, y = batch()
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for master, p in zip(masters, model.parameters(), strict=True):
            master.grad = p.grad
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, model.parameters(), strict=True):
                p.copy_(master)


@healthy
def mean_teacher() -> None:
    student = net(16, 32, 4)
    teacher = copy.deepcopy(student)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(STEPS):
        x, y = batch()
        with torch.no_grad():
            wanted = teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
        out = student(x)
        optimizer.zero_grad()
        (F.cross_entropy(out, y) + F.mse_loss(out.softmax(1), wanted)).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(teacher.parameters(), student.parameters(), strict=True):
                slow.lerp_(fast, 0.05)


@healthy
def target_network() -> None:
    online = net(4, 32, 2)
    target = copy.deepcopy(online)
    optimizer = torch.optim.RMSprop(online.parameters(), lr=1e-3)
    for step in range(STEPS):
        s, a, r, after = torch.randn(32, 4), torch.randint(0, 2, (32, 1)), torch.randn(32), torch.randn(32, 4)
        wanted = r + 0.9 * target(after).max(1).values.detach()
        optimizer.zero_grad()
        F.smooth_l1_loss(online(s).gather(1, a).squeeze(1), wanted).backward()
        optimizer.step()
        if step % 10 == 0:
            target.load_state_dict(online.state_dict())


@healthy
def actor_and_critic_with_their_own_optimizers() -> None:
    actor, critic = net(4, 32, 2), net(6, 32, 1)
    first = torch.optim.Adam(actor.parameters(), lr=1e-3)
    second = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(STEPS):
        s, a, r = torch.randn(32, 4), torch.randn(32, 2), torch.randn(32, 1)
        second.zero_grad()
        F.mse_loss(critic(torch.cat([s, a], 1)), r).backward()
        second.step()
        first.zero_grad()
        (-critic(torch.cat([s, actor(s).tanh()], 1)).mean()).backward()
        first.step()


@healthy
def image_optimised_through_a_net() -> None:
    """Features of a fixed net whose parameters ask for gradients that nobody uses."""
    features = net(16, 32, 4)
    image = torch.randn(8, 16, requires_grad=True)
    optimizer = torch.optim.Adam([image], lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        features(image).square().mean().backward()
        optimizer.step()


@healthy
def frozen_backbone() -> None:
    model = nn.Sequential(net(16, 32), nn.ReLU(), nn.Linear(32, 4))
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-3)
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


@healthy
def tied_weights() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
    head.weight = table.weight
    model = nn.Sequential(table, head)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        x = torch.randint(0, 20, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x + 1) % 20).backward()
        optimizer.step()


@healthy
def sparse_embedding() -> None:
    torch.manual_seed(0)
    table, head = nn.Embedding(1000, 16, sparse=True), nn.Linear(16, 4)
    optimizers = [torch.optim.SparseAdam(list(table.parameters()), lr=1e-3), torch.optim.Adam(head.parameters(), 1e-3)]
    for _ in range(STEPS):
        x = torch.randint(0, 1000, (64,))
        for optimizer in optimizers:
            optimizer.zero_grad()
        F.cross_entropy(head(table(x)), x % 4).backward()
        for optimizer in optimizers:
            optimizer.step()


def classify(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS, schedule: object = None) -> None:
    for _ in range(steps):
        x, y = batch()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()  # type: ignore[attr-defined]


@healthy
def fine_tuning_at_a_tiny_rate() -> None:
    """Weights that are trained already, small ones at 2e-5 and a head at 1e-3."""
    model = net(16, 64, 4)
    classify(model, torch.optim.Adam(model.parameters(), lr=1e-2), 60)
    groups = [{"params": model[0].parameters(), "lr": 2e-5}, {"params": model[2].parameters(), "lr": 1e-4}]
    classify(model, torch.optim.AdamW(groups), 110)


@healthy
def warm_up_from_zero() -> None:
    model = net(16, 64, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 10_000, 1.0))
    classify(model, optimizer, 40, schedule)


@healthy
def cosine_to_zero() -> None:
    model = net(16, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    classify(model, optimizer, 60, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60))


@healthy
def zero_init_head_and_tiny_gains() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.branch, self.head = nn.Linear(16, 32), net(32, 64, 32), nn.Linear(32, 4)
            self.gain = nn.Parameter(torch.full((32,), 1e-5))
            self.rezero = nn.Parameter(torch.zeros(1))
            nn.init.zeros_(self.head.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            x = x + self.gain * self.branch(x)
            x = x + self.rezero * self.branch(x)
            scores: Tensor = self.head(x)
            return scores

    model = Scaled()
    classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), 40)


@healthy
def regression_at_its_noise_floor() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(130):
        x = torch.randn(64, 3)
        optimizer.zero_grad()
        F.mse_loss(model(x), x.sum(1, keepdim=True) * 0.1 + torch.randn(64, 1)).backward()
        optimizer.step()


@healthy
def a_steep_line() -> None:
    """One weight that has a long way to go: large updates, each of which helps."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        x = torch.randn(64, 1)
        optimizer.zero_grad()
        F.mse_loss(model(x), 3 * x).backward()
        optimizer.step()


@healthy
def a_spike_at_the_start() -> None:
    """A first step of Adam that is too long, and training that comes back from it at once."""
    model = net(16, 128, 4)
    classify(model, torch.optim.Adam(model.parameters(), lr=0.03), 60)


@healthy
def stop_gradient_with_another_way() -> None:
    """Two views, each of which predicts the other's detached projection."""
    trunk, predictor = net(16, 32, 8), net(8, 16, 8)
    optimizer = torch.optim.SGD([*trunk.parameters(), *predictor.parameters()], lr=0.05)
    for _ in range(STEPS):
        x = torch.randn(64, 16)
        a, b = trunk(x + 0.1 * torch.randn_like(x)), trunk(x + 0.1 * torch.randn_like(x))
        optimizer.zero_grad()
        (
            -F.cosine_similarity(predictor(a), b.detach()).mean() - F.cosine_similarity(predictor(b), a.detach()).mean()
        ).backward()
        optimizer.step()


@healthy
def discriminator_frozen_in_the_other_pass() -> None:
    generator, critic = net(4, 32, 2), net(2, 32, 1)
    first = torch.optim.Adam(generator.parameters(), lr=1e-3)
    second = torch.optim.Adam(critic.parameters(), lr=1e-3)
    for _ in range(STEPS):
        fake = generator(torch.randn(64, 4))
        critic.requires_grad_(True)
        second.zero_grad()
        (critic(fake.detach()) - critic(torch.randn(64, 2) + 2)).mean().tanh().backward()
        second.step()
        critic.requires_grad_(False)
        first.zero_grad()
        (-critic(fake).mean()).backward()
        first.step()


@healthy
def wide_random_features() -> None:
    model = nn.Sequential(net(16, 128).requires_grad_(False), nn.ReLU(), nn.Linear(128, 4))
    classify(model, torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3))


@healthy
def experts_by_turns() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts, self.head = nn.ModuleList(net(16, 8) for _ in range(4)), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.experts[0](x))
            return scores

    model = Experts()
    classify(model, torch.optim.Adam(model.parameters(), lr=3e-3))


@healthy
def mixed_precision_clipped_after_unscaling() -> None:
    model = net(16, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(STEPS):
        x, y = batch()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()


@healthy
def recurrent_net_clipped_in_every_step() -> None:
    torch.manual_seed(0)
    body, head = nn.LSTM(4, 32, batch_first=True), nn.Linear(32, 2)
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=3e-3)
    for _ in range(30):
        x = torch.randn(32, 8, 4)
        optimizer.zero_grad()
        F.cross_entropy(head(body(x)[0][:, -1]), (x.sum((1, 2)) > 0).long()).backward()
        nn.utils.clip_grad_norm_(parameters, 0.05)
        optimizer.step()


@healthy
def usual_decay_on_all_parameters() -> None:
    model = nn.Sequential(nn.Linear(16, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 4))
    classify(model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), 40)
    model = net(16, 64, 4)
    classify(model, torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=5e-4), 40)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_loops_raise_no_alarm(name: str) -> None:
    found = [f for f in findings(HEALTHY[name]) if f.severity is not Severity.ADVICE]
    assert [f"{f.check}: {f.summary}" for f in found] == []


# -- gradients that are not cleared --------------------------------------------------------------


def never_cleared(*, cleared: int = 0) -> None:
    model = net(16, 32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(STEPS):
        x, y = batch()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if cleared and step % cleared == cleared - 1:
            optimizer.zero_grad()


def test_the_share_of_what_was_left_is_its_norm() -> None:
    """Two equal gradients: the old one is half of what the optimizer reads."""

    def train() -> None:
        weight = nn.Linear(3, 1, bias=False)
        optimizer = torch.optim.SGD(weight.parameters(), lr=0.0)
        for _ in range(2):
            weight(torch.ones(2, 3)).sum().backward()
            optimizer.step()

    (found,) = (f for f in findings(train) if f.check == "missing-zero-grad")
    assert found.severity is Severity.FAULT
    assert found.evidence[0].measured == pytest.approx(0.5)
    assert found.location.endswith(f"test_optim.py:{train.__code__.co_firstlineno + 5}")


def test_gradients_that_are_cleared_now_and_then_are_stale_in_between() -> None:
    assert "missing-zero-grad" in names(lambda: never_cleared(cleared=3))
    assert "missing-zero-grad" not in names(lambda: never_cleared(cleared=1))


def test_clearing_in_memory_trains_as_clearing_in_the_source_does() -> None:
    assert "missing-zero-grad" not in [f.check for f in findings(never_cleared, fix=True)]


# -- parameters that nobody updates --------------------------------------------------------------


def test_a_head_that_was_replaced_is_named_with_the_optimizer_s_line() -> None:
    def train() -> None:
        model = net(16, 32, 7)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model[2] = nn.Linear(32, 4)
        for _ in range(3):
            x, y = batch()
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    (found,) = (f for f in findings(train) if f.check == "parameter-not-optimised")
    assert "2 parameters of no model" in found.summary
    assert found.location.endswith(f"test_optim.py:{train.__code__.co_firstlineno + 2}")
    assert "parameter-not-optimised" not in [f.check for f in findings(train, fix=True)]


def test_a_trained_backbone_outside_the_optimizer_is_no_fault() -> None:
    def train() -> None:
        model = net(16, 32, 4)
        with torch.no_grad():
            model[0].weight[:, :4] *= 6
        optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
        for _ in range(12):
            x, y = batch()
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    assert [f.severity for f in findings(train) if f.check == "parameter-not-optimised"] == [Severity.ADVICE]


def test_an_optimizer_that_never_steps_is_named_at_the_end() -> None:
    def train() -> None:
        first, second = net(4, 32, 2), net(2, 32, 1)
        stepping = torch.optim.SGD(second.parameters(), lr=0.1)
        resting = torch.optim.SGD(first.parameters(), lr=0.1)
        for _ in range(12):
            stepping.zero_grad()
            resting.zero_grad()
            second(first(torch.randn(8, 4))).square().mean().backward()
            stepping.step()

    (found,) = (f for f in findings(train) if f.check == "parameter-not-optimised")
    assert "has not stepped" in found.summary
    assert found.location.endswith(f"test_optim.py:{train.__code__.co_firstlineno + 3}")


# -- gradients that do not arrive ----------------------------------------------------------------


def rebuilt(x: Tensor) -> Tensor:
    return torch.tensor(x.tolist())


@pytest.mark.parametrize(
    ("cut", "op"),
    [
        (Tensor.detach, "detach"), (lambda x: x.data, "data"), (rebuilt, "tensor"), (lambda x: x.argmax(1), "argmax"),
        (lambda x: (x > 0).float(), "gt"),
    ],
)  # fmt: skip
def test_the_call_that_ends_the_gradient_is_named(cut: Callable[[Tensor], Tensor], op: str) -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.table, self.head = net(16, 8), nn.Embedding(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = cut(self.body(x))
            scores: Tensor = self.head(x if x.is_floating_point() else self.table(x))
            return scores

    def train() -> None:
        model = Cut()
        classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), 3)

    found = [f for f in findings(train) if f.check == "detached-branch"]
    assert [f.severity for f in found] == [Severity.FAULT]
    assert found[0].modules == ("body.0",)
    assert f"through {op}," in found[0].summary


def test_an_idle_part_weighs_what_it_is_and_whose_it_is() -> None:
    class Net(nn.Module):
        def __init__(self, idle: nn.Module) -> None:
            super().__init__()
            self.idle, self.head = idle, nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(x)
            return scores

    def severity(idle: nn.Module) -> list[Severity]:
        def train() -> None:
            model = Net(idle)
            classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), 3)

        return [f.severity for f in findings(train) if f.check == "unused-parameter"]

    assert severity(net(16, 16)) == [Severity.WARNING]
    assert severity(nn.Linear(2, 2)) == [Severity.ADVICE]
    assert severity(nn.ModuleList([net(16, 16)])) == [Severity.WARNING]  # all of the list lies idle


def test_a_fresh_head_that_is_frozen_in_its_optimizer() -> None:
    def train() -> None:
        model = net(16, 32, 4)
        model[2].requires_grad_(False)
        classify(model, torch.optim.Adam(model.parameters(), lr=3e-3), 12)

    (found,) = (f for f in findings(train) if f.check == "frozen-by-accident")
    assert found.severity is Severity.FAULT
    assert found.modules == ("2",)
    assert "frozen-by-accident" not in [f.check for f in findings(train, fix=True)]


# -- learning rates ------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [10.0, 100.0])
def test_descent_that_diverges(rate: float) -> None:
    def train() -> None:
        model = net(16, 32, 32, 4)
        classify(model, torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9), 40)

    found = [f for f in findings(train) if f.caused_by is None]
    assert [(f.check, f.severity) for f in found] == [("learning-rate-too-high", Severity.FAULT)]


def test_the_rate_is_scaled_to_a_usual_update_and_its_schedule_with_it() -> None:
    seen: list[float] = []

    def train() -> None:
        model = net(16, 32, 32, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.5)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 if step >= 20 else 1.0)
        classify(model, optimizer, 40, schedule)
        seen.append(optimizer.param_groups[0]["lr"])

    assert [f.check for f in findings(train, fix=True)] == []
    weights = 1 / (3 * 32) ** 0.5  # rms of the layer with the largest ratio
    half = 0.5 * 0.02 * weights  # Adam moves each weight by the rate; the schedule halves it
    assert seen[0] == pytest.approx(half, rel=0.25)


def test_a_schedule_that_is_stepped_too_often() -> None:
    def train() -> None:
        model = net(16, 32, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        classify(model, optimizer, 60, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))

    (found,) = findings(train)
    assert found.check == "learning-rate-too-low"
    assert found.evidence[0].measured == pytest.approx(2.0, rel=1e-3)  # the geometric series


def test_a_rate_is_judged_on_one_batch_and_nothing_is_changed() -> None:
    model = net(16, 32, 4)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), lr=1.0)
    report = check(model, batch(), loss=F.cross_entropy, optimizer=optimizer)
    assert "learning-rate-too-high" in [f.check for f in report.findings]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not optimizer.state
    healthy = check(model, batch(), loss=F.cross_entropy, optimizer=torch.optim.Adam(model.parameters(), lr=1e-3))
    assert [f.check for f in healthy.findings if f.check in OPTIM] == []


# -- clipping, scales, decay ----------------------------------------------------------------------


@pytest.mark.parametrize(("divisor", "scaled", "faults"), [(1e5, False, 1), (1e5, True, 0), (1.0, False, 0)])
def test_gradients_that_float16_has_no_numbers_for(divisor: float, scaled: bool, faults: int) -> None:
    def train() -> None:
        model = net(16, 64, 64, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-12)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        for _ in range(12):
            x, y = batch()
            with torch.autocast("cpu", torch.float16):
                scores = model(x)
            loss = F.cross_entropy(scores.float(), y) / divisor
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    found = [f for f in findings(train) if f.check == "loss-scale"]
    assert [f.severity for f in found] == [Severity.FAULT] * faults
    assert all("scaler.scale(loss)" in f.remedies[0].patch for f in found)


def test_a_scale_that_never_fits() -> None:
    def train() -> None:
        model = net(16, 32, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=0.999)
        for _ in range(25):
            x, y = batch()
            optimizer.zero_grad()
            scaler.scale(100 * F.cross_entropy(model(x), y)).backward()
            scaler.step(optimizer)
            scaler.update()

    (found,) = (f for f in findings(train) if f.check == "loss-scale")
    assert found.evidence[0].measured == 1.0


def test_decay_in_adam_is_decoupled_in_memory() -> None:
    seen: list[bool] = []

    def train() -> None:
        model = net(16, 32, 4)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, weight_decay=0.3)
        classify(model, optimizer, 12)
        seen.append(optimizer.param_groups[0]["decoupled_weight_decay"])

    assert "l2-in-adam" in names(train)
    assert "l2-in-adam" not in [f.check for f in findings(train, fix=True)]
    assert seen == [False, True]


# -- what is seen --------------------------------------------------------------------------------


def test_watching_changes_no_number() -> None:
    def train(out: list[float]) -> None:
        model = net(16, 32, 4)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        for _ in range(14):
            x, y = batch()
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            out.append(loss.item())

    plain: list[float] = []
    watched: list[float] = []
    train(plain)
    rehearse(lambda: train(watched))
    assert watched == plain
