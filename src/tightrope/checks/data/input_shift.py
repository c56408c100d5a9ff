"""`input-shift`: evaluation inputs that follow another law than the training inputs.

Law       a model is fitted to the law of its training inputs. The same features after another transformation (pixels
          not divided by 255, a table standardised by other numbers, or not at all) lie where it was never trained: a
          linear unit's input moves by sum_k w_k (mu'_k - mu_k), and what is measured there says nothing of the model.
          The transformation belongs to the model: (x - mu) / sigma with mu and sigma of the training data alone.
Evidence  mean and standard deviation of every feature that the first weight reads, in the training step and in an
          evaluation pass of the script: the shift of the mean in training standard deviations with its z over the
          samples of both, and the ratio of the standard deviations.
Verdict   `warning` where at least half of the features are shifted by 3 standard deviations or more, or scaled by a
          factor of 3, beyond chance for as many features (z above 4 for the shift); `fault` at 10.
Remedy    send both through one transformation, fitted on the training data (`share-transform`).
Limits    augmentation, dropout of inputs, other resolutions and crops change scales by less than 3. Evaluations of
          fewer than 8 samples, passes whose output meets no labels (a generator that is sampled), features that are
          constant in one of both, and token inputs are not judged.
References  LeCun, Bottou, Orr, Mueller (1998), Efficient BackProp, section 4.3; Quinonero-Candela, Sugiyama,
          Schwaighofer, Lawrence (2009), Dataset shift in machine learning, MIT Press.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from tightrope.checks.data.unscaled_input import readings
from tightrope.evaluation import Evaluation
from tightrope.finding import Evidence, Finding, Severity
from tightrope.measure.probes import Features
from tightrope.study import Study
from tightrope.subject import Program

STAGE = "run"
EXPLAINS = ("train-eval-mismatch", "overfitting", "overconfident")
REMEDIES = ("share-transform",)

WARNING, FAULT = 3.0, 10.0  # of a normal law 0.3 % lies beyond 3; augmentation stays within a factor of 2
CHANCE = 4.0  # z of a feature; half of many features beyond it are none of chance
SAMPLES = 8  # fewer give a standard deviation to no better than a quarter


def judge(study: Study, evaluation: Evaluation) -> Iterator[Finding]:
    """A finding for the first input whose features moved between training and evaluation."""
    samples = [study.tape.samples or 0, evaluation.tape.samples or 0]
    if min(samples) < SAMPLES or evaluation.labels is None:
        return
    seen = replace(study, tape=evaluation.tape, measurement=evaluation.measurement)
    read = {(e.module, e.op): evaluation.measurement.features[n] for e, n in readings(seen)}
    for entry, number in readings(study):
        trained, tested = study.measurement.features[number], read.get((entry.module, entry.op))
        if tested is None or len(tested.mean) != len(trained.mean):
            continue
        moved = _moved(trained, tested, samples)
        if moved is None:
            continue
        shift, factor, z = moved
        size = max(shift if z > CHANCE else 0.0, factor)
        if size >= WARNING:
            what = f"their means lie {shift:.3g} standard deviations off" if shift >= factor else "their scale is "
            what += f"{factor:.3g} times another" if shift < factor else ""
            yield Finding(
                "input-shift", Severity.FAULT if size >= FAULT else Severity.WARNING, entry.module,
                str(evaluation.location),
                f"evaluation inputs are not as the training inputs: {what} (median of {len(trained.mean)} features)",
                (
                    Evidence("shift of the mean in training standard deviations, median", shift, 0.0),
                    Evidence("ratio of standard deviations, the larger over the smaller, median", factor, 1.0),
                    Evidence("z of the shift, median", z, 0.0),
                ), modules=(entry.module,),
            )  # fmt: skip
            return


def _moved(trained: Features, tested: Features, samples: list[int]) -> tuple[float, float, float] | None:
    """Medians over features of the shift, of the ratio of standard deviations and of the shift's z."""
    level = 1e-6 * (trained.mean.square() + trained.std.square()).sqrt()
    both = (trained.std > level) & (tested.std > level)
    if not bool(both.any()):
        return None
    old, new = trained.std[both].double(), tested.std[both].double()
    off = (tested.mean - trained.mean)[both].double().abs()
    z = off / (old.square() / samples[0] + new.square() / samples[1]).sqrt()
    ratio = (new / old).log().abs()
    shift, factor, chance = (float(torch.quantile(x, 0.5)) for x in (off / old, ratio, z))
    return shift, math.exp(factor), chance


def sick() -> Program:
    """Training data divided by 255, test data as they come."""
    return _program(1.0)


def healthy() -> Program:
    """Both divided by 255."""
    return _program(255.0)


def _program(divisor: float) -> Program:
    def train() -> None:
        torch.manual_seed(0)
        x = torch.rand(512, 16) * 255
        y = (x[:, 0] > 128).long()
        model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for rows in torch.arange(384).split(32):
            loss = nn.functional.cross_entropy(model(x[rows] / 255), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            _accuracy(model(x[384:] / divisor), y[384:])

    return Program(train)


def _accuracy(scores: Tensor, label: Tensor) -> float:
    return float((scores.argmax(1) == label).float().mean())
