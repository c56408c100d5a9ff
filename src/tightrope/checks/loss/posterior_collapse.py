"""`posterior-collapse`: at the end of the run no latent variable carries anything of the sample that it was drawn for.

Law       z = mean(x) + std(x) eps tells of x at most 1/2 sum ln(1 + Var_x(mean) / E std^2) nats, and costs its
          divergence from the prior, KL = 1/2 (mean^2 + std^2 - 1 - ln std^2) a dimension. Where the cost of a latent
          outweighs what it saves in the reconstruction, mean(x) goes to the prior's and stays: the decoder sees
          noise, unlearns to read it, and nothing calls the encoder back. Then KL is 0 in every dimension.
Evidence  the calls of the last recorded step made again with the weights that the run ended with: KL of a sample,
          summed over its dimensions, and what the latents can tell; both at the recorded step, from its measured
          laws.
Verdict   `warning` where both are below 0.01 nats at the recorded step and at the end, at least 200 steps into the
          run and at least twice as late, and KL did not rise between the two.
Remedy    weigh the divergence from 0 upward, and sum the reconstruction over what a sample consists of, as the
          divergence is summed over dimensions (`weigh-divergence`).
Limits    a reparameterised normal draw whose KL from a standard normal prior is written out, or by
          torch.distributions. One dimension in use is enough to be silent: a model may rightly switch dimensions off.
          A latent that is collapsed early may come back, so that shorter runs are not judged. Whether the data have
          anything to tell is not asked.
References  Bowman et al. (2016), Generating sentences from a continuous space, CoNLL; Lucas et al. (2019), Don't
          blame the ELBO! A linear VAE perspective on posterior collapse, NeurIPS; Dai, Wang, Wipf (2020), The usual
          suspects? Reassessing blame for VAE posterior collapse, ICML.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.checks.trace import VIEWS, learned, origin, reads
from tightrope.errors import RecordError
from tightrope.finding import Evidence, Finding, Severity
from tightrope.law import Law
from tightrope.study import History, Study
from tightrope.subject import Program
from tightrope.tape.rerun import values
from tightrope.tape.tape import Entry, Tape

STAGE = "run"
EXPLAINS = ()
REMEDIES = ("weigh-divergence",)

NATS = 0.01
"""Of a whole sample: a hundredth of a nat tells two equally likely samples apart with a chance of 57 %."""
STEPS = 200
"""Of the run; healthy nets on small pictures were above five times `NATS` in every one of their first 200 steps."""
LATER = 2.0
"""Times the recorded step at which the end is looked at."""
SAMPLES = 16
"""Of the batch: fewer do not show what differs between samples."""
LEAST = 32
"""Numbers that show whether they are standard normal."""
DRAWN = frozenset(("randn", "randn_like", "normal"))
SCALING = frozenset(("mul", "div"))


@dataclass(frozen=True)
class Latent:
    """One reparameterised draw: `entry` adds the value `mean` and the noise times the value `std`."""

    entry: Entry
    mean: int
    std: int


def judge(study: Study, history: History) -> Iterator[Finding]:
    """One finding where all latents of the last recorded pass are at their prior when the run ends."""
    if not history.ended or history.steps < max(STEPS, LATER * study.step) or (study.tape.samples or 0) < SAMPLES:
        return
    found = list(latents(study.tape))
    laws = study.measurement.laws
    before = [_at_step(laws.get(latent.mean), laws.get(latent.std), study.tape, latent) for latent in found]
    if not found or any(nats is None or nats >= NATS for nats in before):
        return
    try:
        drawn = values(study.tape, {n for latent in found for n in (latent.mean, latent.std)})
        after = [_at_end(drawn[latent.mean], drawn[latent.std]) for latent in found]
    except (KeyError, RecordError):
        return
    for early, (divergence, told) in zip(before, after, strict=True):
        assert early is not None
        if not (divergence < NATS and told < NATS and divergence <= early):
            return
    yield _finding(study, found[0], [nats for nats in before if nats is not None], after)


def latents(tape: Tape) -> Iterator[Latent]:
    """Draws mean + std eps of the batch whose divergence from a standard normal stands in the loss."""
    depends = learned(tape)
    for entry in tape.entries:
        if entry.op != "add" or len(entry.inputs) != 2:
            continue
        for mean, noise in (entry.inputs, entry.inputs[::-1]):
            std = _scale(tape, noise)
            if std is None or not {mean, std} <= depends & tape.of_batch:
                continue
            if tape.values[mean].shape == tape.values[entry.outputs[0]].shape and _penalised(tape, depends, mean, std):
                yield Latent(entry, mean, std)


def _scale(tape: Tape, noise: int) -> int | None:
    """What multiplies a standard normal draw; None where there is none."""
    maker = tape.makers.get(noise)
    if maker is None or maker.op != "mul" or len(maker.inputs) != 2:
        return None
    for eps, std in (maker.inputs, maker.inputs[::-1]):
        if _is_noise(tape, origin(tape.makers, eps)):
            return std
    return None


def _is_noise(tape: Tape, number: int) -> bool:
    """Whether a value is a draw, or comes from outside the calls and looks like one of standard normal numbers."""
    maker, content = tape.makers.get(number), tape.values[number].content
    if maker is not None or content is None:
        return maker is not None and maker.op in DRAWN
    if not tape.values[number].is_float or content.is_meta or content.numel() < LEAST:
        return False
    numbers = content.detach().double()
    error = 4 / math.sqrt(numbers.numel())  # of the mean; that of the variance is sqrt(2) times it
    return abs(float(numbers.mean())) < error and abs(float(numbers.var()) - 1) < 1.5 * error


def _penalised(tape: Tape, depends: frozenset[int], mean: int, std: int) -> bool:
    """Whether the mean and the deviation are squared on their own, as in the divergence from a fixed normal.

    A density of the draw has them too, beside the difference of draw and mean: a policy's entropy is no divergence.
    """
    density = any(
        entry.op in ("sub", "rsub") and len(depends.intersection(entry.inputs)) > 1 for entry in reads(tape, mean)
    )
    return not density and _squared(tape, depends, mean) and (_squared(tape, depends, std) or _variance(tape, std))


def _squared(tape: Tape, depends: frozenset[int], number: int) -> bool:
    """Whether a value, past views and fixed shifts and scales, is squared."""
    waiting, seen = [number], set[int]()
    while waiting:
        value = waiting.pop()
        for entry in reads(tape, value):
            if entry.index in seen:
                continue
            seen.add(entry.index)
            if entry.op == "square" or (entry.op == "pow" and entry.argument(1, "exponent") == 2):
                return True
            if entry.op == "mul" and len(entry.args) == 2 and entry.args[0] == entry.args[1]:
                return True
            if entry.op in ("sub", "div") and len(depends.intersection(entry.inputs)) == 1:
                waiting.extend(entry.outputs)
    return False


def _variance(tape: Tape, std: int) -> bool:
    """Whether the deviation is exp(a log-variance) whose exponential is taken a second time."""
    maker = tape.makers.get(origin(tape.makers, std))
    if maker is None or maker.op != "exp":
        return False
    log = origin(tape.makers, maker.inputs[0], VIEWS | SCALING)
    return any(e.op == "exp" and e.index != maker.index for e in reads(tape, log, VIEWS | SCALING))


def _at_step(mean: Law | None, std: Law | None, tape: Tape, latent: Latent) -> float | None:
    """KL of a sample from the measured laws, to second order about the prior; None where they are not known."""
    if mean is None or std is None or not (mean.finite and std.finite):
        return None
    count = math.prod(tape.values[latent.mean].shape)
    return count / (tape.samples or 1) * (mean.second_moment / 2 + std.variance + (std.mean - 1) ** 2)


def _at_end(mean: Tensor, std: Tensor) -> tuple[float, float]:
    """KL of a sample, and what the latents can tell of it, in nats."""
    mean, std = mean.double().flatten(1), std.double().expand(mean.shape).flatten(1)
    divergence = (mean.square() + std.square() - 1 - 2 * std.log()).sum(1).mean() / 2
    told = (1 + mean.var(0) / std.square().mean(0)).log().sum() / 2
    return float(divergence), float(told)


def _finding(study: Study, latent: Latent, before: list[float], after: list[tuple[float, float]]) -> Finding:
    history = study.history
    end = history.steps if history is not None else study.step
    divergence, told = (sum(x) for x in zip(*after, strict=True))
    evidence = (
        Evidence("KL of a sample at the end", divergence, NATS, None, "nats"),
        Evidence(f"KL of a sample at step {study.step}", sum(before), NATS, None, "nats"),
        Evidence("what the latents can tell of a sample", told, NATS, None, "nats"),
    )
    return Finding(
        "posterior-collapse", Severity.WARNING, latent.entry.module, str(study.tape.location(latent.entry)),
        f"after {end} steps all latents are drawn from their prior: KL {divergence:.2g} nats a sample, "
        f"{sum(before):.2g} at step {study.step}; they can tell {told:.2g} nats of a sample: the decoder does without",
        evidence, latent.entry.index, modules=(latent.entry.module,),
    )  # fmt: skip


def sick() -> Program:
    """A reconstruction averaged over the pixels beside a divergence summed over the dimensions."""
    return Program(lambda: _train("mean"))


def healthy() -> Program:
    """The same autoencoder with the reconstruction summed over a sample's pixels, in units of their noise."""
    return Program(lambda: _train("sum"))


class _Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
        self.decode = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, logvar = self.encode(x).chunk(2, -1)
        z = mean + (logvar / 2).exp() * torch.randn_like(mean)
        return self.decode(z), mean, logvar


def _train(reduction: str) -> None:
    """Three hundred steps on sixteen numbers that two factors make."""
    torch.manual_seed(0)
    model, mixture = _Autoencoder(), torch.randn(2, 16) / 2
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(300):
        x = torch.randn(64, 2) @ mixture + 0.1 * torch.randn(64, 16)
        y, mean, logvar = model(x)
        error = F.mse_loss(y, x) if reduction == "mean" else (y - x).square().sum(1).mean() / (2 * 0.1**2)
        divergence = -0.5 * (1 + logvar - mean.pow(2) - logvar.exp()).sum(1).mean()
        loss = error + divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
