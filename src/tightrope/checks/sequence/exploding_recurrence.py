"""`exploding-recurrence`: the gradient through time grows with every step that it goes back.

Law       a recurrence passes its gradient back by J_t = D_t W at each step, D_t the slopes of its activation; over T
          steps the norm goes as the product of T such matrices, about (E[f'^2] n Var(w))^(T/2). Above 1 it grows by
          that factor a step: the first steps of a sequence drown the last, and no learning rate suits both.
Evidence  rms of the gradient at each step: of the loss with respect to the states of a loop of cells; for a recurrent
          layer of torch, of a random direction in its last output with respect to its inputs, on a few of the
          sequences run once more. Growth a step, and the spectral radius of the recurrent weights.
Verdict   `fault` when the first step's gradient is 1000 times the last one's and more than 32 times that of the middle,
          so that the growth is of the recurrence and no mere sum over the steps that have a target.
Remedy    recurrent weights that are orthogonal, of spectral radius 1 (`orthogonal-recurrence`); bound the step
          (`clip-gradient`).
Limits    a gradient that fades on its way back is usual (LSTM and GRU at their default initialisation forget within a
          few steps) and no fault. A sequence that is cut by `detach` is followed to the cut.
References  Pascanu, Mikolov, Bengio (2013), On the difficulty of training recurrent neural networks, ICML; Le, Jaitly,
          Hinton (2015), A simple way to initialize recurrent networks of rectified linear units.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tightrope.checks.echoes import PROGRESS, SCALE
from tightrope.checks.sequence.chain import SHORTEST, Recurrence, recurrences
from tightrope.finding import Evidence, Finding, Severity
from tightrope.study import Study
from tightrope.subject import Subject

STAGE = "batch"
EXPLAINS = ("init-too-large", "non-finite", *(name for name in SCALE if name != "exploding-recurrence"), *PROGRESS)
REMEDIES = ("orthogonal-recurrence", "clip-gradient")

RATIO = 1e3  # first step over last; trials: healthy recurrences 0.1 and less, sick ones 6e7 and more


def judge(study: Study) -> Iterator[Finding]:
    """One finding for each recurrence whose gradient grows."""
    for found in recurrences(study):
        grown = growth(found.gradient)
        if grown is not None and grown > RATIO:
            yield _finding(study, found, grown)


def growth(gradient: tuple[float, ...]) -> float | None:
    """The first step's gradient over the last one's; 1 where the early half does not grow as a product would.

    A sum over the targets of T steps grows at most as T, which its early half shares with the late one only
    if T is large; a product grows by the same factor in both halves.
    """
    if len(gradient) < SHORTEST or gradient[-1] == 0 or math.isnan(gradient[-1]):
        return None
    first, middle, last = gradient[0], gradient[len(gradient) // 2], gradient[-1]
    if not math.isfinite(first):
        return math.inf if math.isfinite(last) else None
    early = first / middle if middle > 0 else math.inf
    return first / last if early > math.sqrt(RATIO) else 1.0


def radius(weight: Tensor) -> float | None:
    """Largest spectral radius of the square blocks of a recurrent weight; None where it is not at hand."""
    if weight.is_meta or not bool(torch.isfinite(weight).all()):
        return None
    blocks = weight.detach().double().cpu().split(weight.shape[1])
    return max(float(torch.linalg.eigvals(block).abs().max()) for block in blocks)


def _finding(study: Study, found: Recurrence, grown: float) -> Finding:
    tape, steps = study.tape, len(found.gradient)
    each = grown ** (1 / (steps - 1))
    evidence = [
        Evidence("gradient, first step / last", grown, 1.0),
        Evidence("growth of the gradient a step", each, 1.0),
    ]
    contents = [tape.values[n].content for n in found.weights]
    radii = [r for r in (radius(w) for w in contents if w is not None) if r is not None]
    if radii:
        evidence.append(Evidence("spectral radius of the recurrent weights", max(radii), 1.0))
    evidence.append(Evidence("rms of the state, last step / first", found.state[-1] / (found.state[0] or math.nan)))
    times = f" (spectral radius {max(radii):.3g})" if radii else ""
    return Finding(
        "exploding-recurrence", Severity.FAULT, found.entry.module, str(tape.location(found.entry)),
        f"the gradient grows × {grown:.3g} over {steps} time steps on the way back, × {each:.3g} a step{times}; "
        f"level: below × {RATIO:g}",
        tuple(evidence), found.entry.index, modules=(found.entry.module,),
    )  # fmt: skip


class Last(nn.Module):
    """A plain recurrent layer and a head on its last state."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.body, self.head = nn.RNN(4, 48, batch_first=True), nn.Linear(48, 2)
        nn.init.normal_(self.body.get_parameter("weight_hh_l0"), std=scale / 48**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, 2) of sequences (N, T, 4)."""
        scores: Tensor = self.head(self.body(x)[0][:, -1])
        return scores


def sick() -> Subject:
    """Recurrent weights of spectral radius 4 over 40 steps."""
    return _net(4.0)


def healthy() -> Subject:
    """The same layer with a spectral radius of 1."""
    return _net(1.0)


def _net(scale: float) -> Subject:
    torch.manual_seed(0)
    return Subject(Last(scale), (torch.randn(16, 40, 4), torch.arange(16) % 2), nn.functional.cross_entropy)
