"""What recording changes and what it costs: python benchmarks/recording.py

Four small scripts are trained for 20 steps, plain and with steps recorded; their losses, parameters and random state
are compared bit for bit. Then `check` of ResNet-18 is timed beside plain training steps, in turn.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from models import picture_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import tightrope as tr
from tightrope.measure import Meter
from tightrope.tape import Recorder

STEPS, RECORDED = 20, (1, 5, 20)
Step = Callable[[int], Tensor]
Script = Callable[[], tuple[Step, list[Tensor]]]


def classifier() -> tuple[Step, list[Tensor]]:
    """Adam, dropout, batch normalisation."""
    model = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 5))
    optimizer = torch.optim.Adam(model.parameters())

    def step(_: int) -> Tensor:
        loss = F.cross_entropy(model(torch.randn(32, 20)), torch.randint(5, (32,)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step, list(model.state_dict().values())


def accumulated() -> tuple[Step, list[Tensor]]:
    """A checkpointed transformer layer in bfloat16 autocast, gradients accumulated over two batches."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    head = nn.Linear(32, 3)
    parameters = [*layer.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters)

    def step(number: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = checkpoint(layer, torch.randn(4, 10, 32), use_reentrant=False)
            loss = F.cross_entropy(head(hidden).mean(1).float(), torch.randint(3, (4,))) / 2
        loss.backward()
        if number % 2 == 0:
            optimizer.step()
            optimizer.zero_grad()
        return loss

    return step, parameters


def adversarial() -> tuple[Step, list[Tensor]]:
    """Two models, two optimizers, two backward passes a step."""
    maker, critic = (
        nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2)),
        nn.Sequential(nn.Linear(2, 32), nn.ReLU()),
    )
    head = nn.Linear(32, 1)
    judges = [*critic.parameters(), *head.parameters()]
    first, second = torch.optim.Adam(judges), torch.optim.Adam(maker.parameters())

    def score(x: Tensor, target: float) -> Tensor:
        out = head(critic(x))
        return F.binary_cross_entropy_with_logits(out, torch.full_like(out, target))

    def step(_: int) -> Tensor:
        fake = maker(torch.randn(16, 8))
        loss = score(torch.randn(16, 2), 1.0) + score(fake.detach(), 0.0)
        first.zero_grad()
        loss.backward()
        first.step()
        second.zero_grad()
        fooled = score(fake, 1.0)
        fooled.backward()
        second.step()
        return loss + fooled

    return step, [*judges, *maker.parameters()]


def by_hand() -> tuple[Step, list[Tensor]]:
    """Bare tensors, updated without an optimizer."""
    weights = [(torch.randn(10, 10) / 3).requires_grad_() for _ in range(4)]

    def step(_: int) -> Tensor:
        x = torch.randn(16, 10)
        for weight in weights:
            x = torch.tanh(x @ weight)
        loss = x.square().mean()
        loss.backward()
        with torch.no_grad():
            for weight in weights:
                weight -= 0.1 * weight.grad
                weight.grad = None
        return loss

    return step, weights


SCRIPTS: dict[str, Script] = {
    "Adam, dropout, batch norm": classifier,
    "checkpoint, autocast, accumulation": accumulated,
    "GAN, two optimizers": adversarial,
    "bare tensors, no optimizer": by_hand,
}


@contextmanager
def watched(on: bool) -> Iterator[None]:
    if not on:
        yield
        return
    with Recorder(Meter()):
        yield


def train(script: Script, recorded: tuple[int, ...]) -> list[Tensor]:
    """Losses, parameters and the random state after all steps."""
    torch.manual_seed(0)
    step, state = script()
    losses = []
    for number in range(1, STEPS + 1):
        with watched(number in recorded):
            losses.append(step(number).detach())
    return [*losses, *(tensor.detach() for tensor in state), torch.get_rng_state()]


def identical(script: Script) -> bool:
    plain, seen = train(script, ()), train(script, RECORDED)
    return all(torch.equal(a, b) for a, b in zip(plain, seen, strict=True))


def cost(rounds: int = 7) -> tuple[float, float]:
    """Median seconds of a plain training step and of `check`, run in turn."""
    model, x = picture_model("resnet18", 64, batch=32)
    y = torch.randint(10, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def plain() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    def check() -> None:
        tr.check(model, (x, y), loss=F.cross_entropy, optimizer=optimizer)

    seconds: list[list[float]] = [[], []]
    for action in (plain, check):
        action()
    for _ in range(rounds):
        for taken, action in zip(seconds, (plain, check), strict=True):
            begin = time.perf_counter()
            action()
            taken.append(time.perf_counter() - begin)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def main() -> None:
    torch.set_num_threads(1)
    console = Console(width=100)
    table = Table("script", "20 steps with steps 1, 5, 20 recorded", title="Losses, parameters, random state")
    for name, script in SCRIPTS.items():
        table.add_row(name, "bit-identical" if identical(script) else "[red]different")
    console.print(table)
    step, check = cost()
    table = Table("ResNet-18, batch of 32, 64x64", "seconds", title="Cost, medians of runs in turn")
    table.add_row("one plain training step", f"{step:.3f}")
    table.add_row("check: predict, measure, diagnose", f"{check:.3f}")
    table.add_row("ratio", f"{check / step:.1f}")
    console.print(table)


if __name__ == "__main__":
    main()
