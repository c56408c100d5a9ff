"""Checks of the data over several batches: what they find, and programs on which they say nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tightrope.check import study
from tightrope.checks.registry import get
from tightrope.finding import Finding, Severity
from tightrope.run import rehearse

CHECKS = (
    "label-order", "correlated-batch", "shuffled-labels", "input-shift", "constant-feature", "non-finite-input",
)  # fmt: skip
HEALTHY: dict[str, Callable[[], None]] = {}


def healthy(train: Callable[[], None]) -> Callable[[], None]:
    HEALTHY[train.__name__] = train
    return train


def found(train: Callable[[], None], *names: str) -> list[Finding]:
    report = rehearse(train).report
    assert report is not None
    return [f for f in report.findings if f.check in (names or CHECKS)]


def fit(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], loss: Callable[..., Tensor]) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for x, y in batches:
        optimizer.zero_grad()
        loss(model(x), y).backward()
        optimizer.step()


def mlp(width: int, classes: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, classes))


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)


def drawn(x: Tensor, y: Tensor, n: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(steps):
        rows = torch.randint(0, len(x), (n,))
        yield x[rows], y[rows]


def in_order(x: Tensor, y: Tensor, n: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    for step in range(steps):
        start = step * n % (len(x) - n + 1)
        yield x[start : start + n], y[start : start + n]


# -- what is found -------------------------------------------------------------------------------


def test_labels_in_order() -> None:
    def train() -> None:
        x, y = digits()
        order = y.argsort()
        fit(mlp(64, 10), in_order(x[order], y[order], 32, 40), F.cross_entropy)

    (finding,) = found(train, "label-order")
    assert finding.severity in (Severity.WARNING, Severity.FAULT)
    assert finding.step == 10
    assert finding.remedy is not None


def test_numbers_in_order_with_a_loader() -> None:
    def train() -> None:
        x = torch.randn(600, 8)
        y = x.sum(1, keepdim=True) + 0.1 * torch.randn(600, 1)
        order = y.flatten().argsort()
        loader = DataLoader(TensorDataset(x[order], y[order]), batch_size=16)
        fit(mlp(8, 1), iter(loader), F.mse_loss)

    (finding,) = found(train, "label-order")
    assert finding.location.endswith(tuple("0123456789"))
    assert "test_batches.py" in finding.location
    assert finding.remedy is not None
    assert finding.remedy.edit is not None
    assert "shuffle=True" in finding.remedy.edit.after


def test_labels_that_were_divided_until_one_is_left() -> None:
    def train() -> None:
        x, y = digits()
        fit(mlp(64, 10), drawn(x, (y / 16).long(), 32, 20), F.cross_entropy)

    (finding,) = found(train, "label-order")
    assert finding.severity is Severity.FAULT and "every label of 10 batches is class 0, of 10" in finding.summary
    assert [remedy.name for remedy in finding.remedies] == ["look-at-labels"]


def test_copies_of_one_sample() -> None:
    """Labels are then ordered too, and only an echo."""

    def train() -> None:
        x, y = digits()

        def batches() -> Iterator[tuple[Tensor, Tensor]]:
            for _ in range(40):
                row = int(torch.randint(0, len(x), ()))
                yield x[row].repeat(32, 1) + 0.05 * torch.randn(32, 64), y[row].repeat(32)

        fit(mlp(64, 10), batches(), F.cross_entropy)

    findings = found(train)
    assert [(f.check, f.caused_by) for f in findings] == [
        ("correlated-batch", None),
        ("label-order", "correlated-batch"),
    ]


def test_inputs_that_differ_by_label_are_no_correlated_batch() -> None:
    """Sorted by label, with classes far apart: the labels explain the batches."""

    def train() -> None:
        y = torch.arange(640) // 64
        fit(mlp(8, 10), in_order(4 * torch.randn(10, 8)[y] + torch.randn(640, 8), y, 16, 40), F.cross_entropy)

    assert [f.check for f in found(train)] == ["label-order"]


def test_a_loader_is_looked_at_without_a_run_and_left_as_it_was() -> None:
    x, y = digits()
    order = y.argsort()
    generator = torch.Generator().manual_seed(3)
    data = TensorDataset(x[order], y[order])
    ordered, shuffled = DataLoader(data, 32), DataLoader(data, 32, shuffle=True, generator=generator)
    before, own = torch.get_rng_state(), generator.get_state()
    for loader, names in ((ordered, ["label-order"]), (shuffled, [])):
        seen = study(mlp(64, 10), loader, loss=F.cross_entropy)
        assert [f.check for f in get("label-order").judge(seen)] == names
    model = mlp(64, 10)
    torch.set_rng_state(before)
    generator.set_state(own)
    study(model, shuffled, loss=F.cross_entropy)
    assert torch.equal(before, torch.get_rng_state())


def test_an_iterator_is_not_used_up() -> None:
    x, y = digits()
    batches = drawn(x, y, 8, 3)
    assert study(mlp(64, 10), batches, loss=F.cross_entropy).batches is None
    assert len(list(batches)) == 2


def test_a_gap_between_recorded_steps_is_found_by_its_step() -> None:
    def train() -> None:
        x, y = torch.randn(64, 6), torch.arange(64) % 2
        x[40:48, 2] = torch.nan
        fit(mlp(6, 2), in_order(x, y, 8, 12), F.cross_entropy)

    findings = found(train, "non-finite-input", "non-finite")
    assert [(f.check, f.caused_by) for f in findings] == [
        ("non-finite-input", None),
        ("non-finite", "non-finite-input"),
    ]
    assert findings[0].step == 6 and findings[0].summary.startswith("the input: 8 of its 48 numbers are not finite")


@pytest.mark.parametrize("kind", ["classes", "numbers"])
def test_labels_of_other_samples(kind: str) -> None:
    def train() -> None:
        x, y = digits()
        y = y[torch.randperm(len(y))]
        if kind == "classes":
            fit(mlp(64, 10), drawn(x, y, 32, 110), F.cross_entropy)
        else:
            fit(mlp(64, 1), drawn(x, y[:, None] / 10, 32, 110), F.mse_loss)

    (finding,) = found(train)
    assert finding.check == "shuffled-labels"
    assert finding.evidence[0].measured < 2


def test_columns_that_never_vary() -> None:
    def train(still: int) -> None:
        x = torch.randn(400, 8)
        x[:, :still] = 3.0
        fit(mlp(8, 2), drawn(x, (x[:, 7] > 0).long(), 16, 12), F.cross_entropy)

    for still, severity in ((1, Severity.ADVICE), (6, Severity.WARNING)):
        (finding,) = found(partial(train, still), "constant-feature")
        assert finding.severity is severity
        assert f"{still} of 8 features" in finding.summary


def evaluated(train_x: Tensor, test_x: Tensor) -> list[Finding]:
    """What is said of a net that is evaluated on other inputs."""

    def train() -> None:
        model = mlp(train_x.shape[1], 2)
        fit(model, drawn(train_x, (train_x[:, 0] > 0).long(), 32, 12), F.cross_entropy)
        model.eval()
        with torch.no_grad():
            F.cross_entropy(model(test_x), torch.zeros(len(test_x), dtype=torch.long))

    return found(train, "input-shift")


def test_evaluation_inputs_of_another_scale_or_place() -> None:
    x, test = torch.randn(300, 6), torch.randn(100, 6)
    assert [f.severity for f in evaluated(x, 5 * test)] == [Severity.WARNING]
    assert [f.severity for f in evaluated(x, test + 20)] == [Severity.FAULT]
    assert [f.severity for f in evaluated(x / 255, test)] == [Severity.FAULT]


def test_evaluation_inputs_that_are_as_they_should_be() -> None:
    x, test = torch.randn(300, 6), torch.randn(100, 6)
    noisy, cut = x + torch.randn(300, 6), x * (torch.rand(300, 6) > 0.3)
    assert evaluated(noisy, test) == evaluated(cut, test) == evaluated(x, test + 0.5) == []
    assert evaluated(x, test[:1] + 20) == []  # one sample
    hot = F.one_hot(torch.arange(300) % 6).float()
    assert evaluated(hot, F.one_hot(torch.randint(0, 3, (100,)), 6).float()) == []


# -- what is fine --------------------------------------------------------------------------------


@healthy
def imbalanced_classes_in_small_batches() -> None:
    x = torch.randn(800, 8)
    y = (x[:, 0] > 1.645).long()
    fit(mlp(8, 2), drawn(x, y, 4, 60), F.cross_entropy)


@healthy
def noisy_regression() -> None:
    x = torch.randn(800, 8)
    fit(mlp(8, 1), drawn(x, 0.3 * x[:, :1] + torch.randn(800, 1), 16, 40), F.mse_loss)


@healthy
def sorted_but_complete() -> None:
    x, y = digits()
    order = y.argsort()
    fit(mlp(64, 10), in_order(x[order], y[order], len(x), 20), F.cross_entropy)


@healthy
def balanced_sampler() -> None:
    x, y = digits()
    sampler = WeightedRandomSampler([1.0] * len(y), 600)
    fit(mlp(64, 10), iter(DataLoader(TensorDataset(x, y), 20, sampler=sampler)), F.cross_entropy)


@healthy
def few_classes_in_each_batch() -> None:
    """Metric learning draws four classes, and some samples of each."""
    x, y = digits()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(40):
            rows = torch.cat([(y == c).nonzero().flatten()[torch.randperm(170)[:8]] for c in torch.randperm(10)[:4]])
            yield x[rows], y[rows]

    fit(mlp(64, 10), batches(), F.cross_entropy)


@healthy
def stored_at_random_and_not_shuffled() -> None:
    x, y = digits()
    order = torch.randperm(len(x))
    fit(mlp(64, 10), iter(DataLoader(TensorDataset(x[order], y[order]), 32)), F.cross_entropy)


@healthy
def three_batches_over_and_over() -> None:
    x, y = torch.randn(12, 6), torch.arange(12) % 2
    for _ in range(10):
        fit(mlp(6, 2), in_order(x, y[torch.randperm(12)], 4, 3), F.cross_entropy)


@healthy
def one_sample_a_batch() -> None:
    x, y = digits()
    order = y.argsort()
    fit(mlp(64, 10), in_order(x[order], y[order], 1, 40), F.cross_entropy)


@healthy
def the_positive_comes_first() -> None:
    x, _ = digits()
    encode = mlp(64, 16)
    optimizer = torch.optim.Adam(encode.parameters(), lr=1e-3)
    first = torch.zeros(32, dtype=torch.long)
    for _ in range(20):
        a, b = (encode(x[:32] + 0.1 * torch.randn(32, 64)) for _ in range(2))
        scores = torch.cat([(a * b).sum(1, keepdim=True), a @ b.roll(1, 0).T], 1)
        optimizer.zero_grad()
        F.cross_entropy(scores, first).backward()
        optimizer.step()


@healthy
def two_domains_in_turn() -> None:
    x, y = digits()
    body, label, domain = mlp(64, 16), nn.Linear(16, 10), nn.Linear(16, 2)
    optimizer = torch.optim.Adam([*body.parameters(), *label.parameters(), *domain.parameters()], lr=1e-3)
    zeros, ones = torch.zeros(32, dtype=torch.long), torch.ones(32, dtype=torch.long)
    for _ in range(20):
        rows, others = torch.randint(0, 900, (32,)), torch.randint(900, 1797, (32,))
        a, b = body(x[rows]), body(x[others])
        optimizer.zero_grad()
        loss = F.cross_entropy(label(a), y[rows]) + F.cross_entropy(domain(a), zeros)
        (loss + F.cross_entropy(domain(b), ones)).backward()
        optimizer.step()


@healthy
def real_and_fake() -> None:
    generator, critic = mlp(4, 2), mlp(2, 1)
    steps = [torch.optim.Adam(m.parameters(), lr=1e-3) for m in (critic, generator)]
    loss = nn.BCEWithLogitsLoss()
    for _ in range(20):
        fake = generator(torch.randn(16, 4))
        steps[0].zero_grad()
        for made, level in ((torch.randn(16, 2) + 2, 1.0), (fake.detach(), 0.0)):
            score = critic(made)
            loss(score, torch.full_like(score, level)).backward()
        steps[0].step()
        steps[1].zero_grad()
        loss(critic(fake), torch.ones(16, 1)).backward()
        steps[1].step()


@healthy
def text_with_time_first() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.cell, self.head = nn.Embedding(20, 16), nn.LSTM(16, 16), nn.Linear(16, 20)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.cell(self.table(ids))[0]).flatten(0, 1)

    text = (torch.randn(4000).cumsum(0) % 20).long().view(8, 500).T.contiguous()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 480, 12):
            yield text[start : start + 12], text[start + 1 : start + 13].flatten()

    fit(Model(), batches(), F.cross_entropy)


@healthy
def episodes_of_changing_length() -> None:
    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(40):
            state = torch.randn(1, 4) + 0.05 * torch.randn(int(torch.randint(10, 50, ())), 4).cumsum(0)
            yield state, state[:, :1].sin() + 0.1 * torch.randn(len(state), 1)

    fit(mlp(4, 1), batches(), F.mse_loss)


@healthy
def fakes_that_drift() -> None:
    generator, critic = mlp(4, 8), mlp(8, 1)
    steps = [torch.optim.SGD(m.parameters(), lr=0.5) for m in (critic, generator)]
    for n in range(40):
        fake = generator(0.1 * torch.randn(16, 4))
        if n % 2:
            with torch.no_grad():
                fake = generator(0.1 * torch.randn(16, 4))
        steps[0].zero_grad()
        (critic(fake.detach()).mean() - critic(torch.randn(16, 8) + 2).mean()).tanh().backward()
        steps[0].step()
        steps[1].zero_grad()
        (-critic(generator(torch.randn(16, 4))).mean()).tanh().backward()
        steps[1].step()


@healthy
def series_with_time_first() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.cell, self.head = nn.Linear(3, 8), nn.GRU(8, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(self.enter(x))[0])

    series = torch.randn(500, 6, 3).cumsum(0) / 20

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, 480, 12):
            yield series[start : start + 12], series[start + 1 : start + 13]

    fit(Model(), batches(), F.mse_loss)


@healthy
def groups_that_share_little() -> None:
    """Ten samples of one speaker in each batch."""

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(40):
            x = 0.5 * torch.randn(1, 20) + torch.randn(10, 20)
            yield x, (x[:, 0] > 0).long()

    fit(mlp(20, 2), batches(), F.cross_entropy)


@healthy
def several_labels() -> None:
    x = torch.randn(600, 8)
    fit(mlp(8, 5), drawn(x, (x[:, :5] > 1).float(), 16, 40), F.binary_cross_entropy_with_logits)


@healthy
def autoencoder() -> None:
    x, _ = digits()
    fit(mlp(64, 64), drawn(x, x, 32, 40), F.mse_loss)


@healthy
def accumulated_gradients() -> None:
    x, y = digits()
    model = mlp(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for n, (a, b) in enumerate(drawn(x, y, 8, 80)):
        F.cross_entropy(model(a), b).backward()
        if n % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


@healthy
def collocation_points() -> None:
    model = mlp(1, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(30):
        t = torch.rand(32, 1, requires_grad=True)
        u = torch.tanh(model(t))
        (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
        loss = F.mse_loss(slope, -u.detach()) + F.mse_loss(model(torch.zeros(1, 1)), torch.ones(1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy
def policy_with_a_critic() -> None:
    """Each batch is an episode; returns drift as the policy does."""
    actor, critic = mlp(4, 2), mlp(4, 1)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters()], lr=1e-3)
    for episode in range(40):
        length = 10 + int(torch.randint(0, 40, ()))
        state = torch.randn(1, 4) + 0.2 * torch.randn(length, 4).cumsum(0)
        action = torch.randint(0, 2, (length,))
        returns = torch.arange(length, 0, -1).float().unsqueeze(1) / 10 + 0.05 * episode
        advantage = (returns - critic(state)).detach().squeeze(1)
        loss = (F.cross_entropy(actor(state), action, reduction="none") * advantage).mean()
        loss = loss + F.mse_loss(critic(state), returns)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy
def pairs_and_segments() -> None:
    x, y = digits()
    encoder, head = mlp(64, 16), nn.Conv2d(1, 2, 3, padding=1)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=1e-3)
    for a, _ in drawn(x, y, 16, 20):
        views = [F.normalize(encoder(a + 0.05 * torch.randn_like(a)), dim=1) for _ in range(2)]
        loss = F.cross_entropy(views[0] @ views[1].T / 0.2, torch.arange(16))
        loss = loss + F.cross_entropy(head(a.view(-1, 1, 8, 8)), (a.view(-1, 8, 8) > 0.5).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy
def little_signal() -> None:
    """A fifth of a label's variance is all that the data tell."""
    x = torch.randn(2000, 10)
    fit(mlp(10, 1), drawn(x, 0.5 * x[:, :1] + torch.randn(2000, 1), 32, 110), F.mse_loss)


@healthy
def exclusive_or() -> None:
    """No feature alone tells the label."""
    x = torch.randn(1500, 4)
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
    fit(model, drawn(x, (x[:, 0] * x[:, 1] > 0).long(), 32, 110), F.cross_entropy)


@healthy
def rare_positives() -> None:
    x = torch.randn(1500, 8)
    fit(mlp(8, 1), drawn(x, (x[:, :1] > 1.645).float(), 32, 110), F.binary_cross_entropy_with_logits)


@healthy
def actions_and_what_they_brought() -> None:
    """Actions of a young policy depend on no state; the loss weighs them by what they brought."""
    policy = mlp(6, 3)
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    for _ in range(110):
        state = torch.randn(32, 6)
        action = torch.distributions.Categorical(logits=policy(state).detach()).sample()
        reward = (action == state[:, :3].argmax(1)).float() - 1 / 3
        loss = (F.cross_entropy(policy(state), action, reduction="none") * reward).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy
def values_of_a_target_network() -> None:
    net, frozen = mlp(4, 1), mlp(4, 1)
    frozen.load_state_dict(net.state_dict())
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(110):
        state, later = torch.randn(32, 4), torch.randn(32, 4)
        with torch.no_grad():
            value = torch.randn(32, 1) + 0.9 * frozen(later)
        loss = F.mse_loss(net(state), value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy
def pairs_of_views() -> None:
    x, _ = digits()
    encoder = mlp(64, 16)
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1e-3)
    for a, _ in drawn(x, x, 32, 110):
        left, right = (F.normalize(encoder(a + 0.05 * torch.randn_like(a)), dim=1) for _ in range(2))
        loss = F.cross_entropy(left @ right.T, torch.arange(32))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@healthy
def noise_to_be_told_from_the_picture() -> None:
    """The target is the noise that was mixed into the input."""
    x, _ = digits()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for a, _ in drawn(x, x, 32, 110):
            noise, time = torch.randn_like(a), torch.rand(len(a), 1)
            yield time.sqrt() * (2 * a - 1) + (1 - time).sqrt() * noise, noise

    fit(mlp(64, 64), batches(), F.mse_loss)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_programs_raise_no_alarm(name: str) -> None:
    assert [f"{f.check}: {f.summary}" for f in found(HEALTHY[name]) if f.severity is not Severity.ADVICE] == []
