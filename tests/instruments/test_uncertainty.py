"""The law of total variance over ensembles and masks, against closed forms and Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

import tightrope as tr
from tightrope.errors import InputError


def normals(members: int, samples: int) -> Tensor:
    """Means of members, drawn from N(3, 4)."""
    return 3 + 2 * torch.randn(members, samples, dtype=torch.float64)


def test_total_is_the_sum_and_the_mixture_has_the_variance_of_its_draws() -> None:
    torch.manual_seed(0)
    mean, variance = torch.randn(7, 5, 2), torch.rand(7, 5, 2)
    found = tr.decompose([(m, v) for m, v in zip(mean, variance)], head="variance")
    assert found.total is not None and found.aleatoric is not None and found.predictive_variance is not None
    assert torch.allclose(found.total.value, found.aleatoric.value + found.epistemic.value)
    assert torch.allclose(found.epistemic.value, mean.double().var(0))
    which = torch.randint(7, (200_000,))
    drawn = (mean[which] + variance[which].sqrt() * torch.randn(200_000, 5, 2)).double()
    error = 4 * drawn.var(0) * math.sqrt(3 / 200_000)  # kurtosis of a mixture of few normals is below 4
    assert bool(((drawn.var(0) - found.predictive_variance).abs() < error).all())


def test_log_variance_variance_pairs_and_halves_are_the_same() -> None:
    torch.manual_seed(0)
    mean, variance = torch.randn(3, 4, 2), torch.rand(3, 4, 2) + 0.1
    ways = [
        tr.decompose([(m, v) for m, v in zip(mean, variance)], head="variance"),
        tr.decompose([{"mean": m, "log_variance": v.log()} for m, v in zip(mean, variance)], head="log-variance"),
        tr.decompose(torch.cat([mean, variance.log()], -1), head="log-variance"),
        tr.decompose([Normal(m, v.sqrt()) for m, v in zip(mean, variance)], head="distribution"),
    ]
    for found in ways:
        assert found.total is not None and ways[0].total is not None
        assert torch.allclose(found.total.value, ways[0].total.value, rtol=1e-5)


def test_float32_means_of_a_thousand_keep_their_spread() -> None:
    """E[m^2] - E[m]^2 in float32 is noise here, and its root is often NaN."""
    torch.manual_seed(0)
    means = (1000 + 0.01 * torch.randn(5, 2000)).float()
    naive = (means.square().mean(0) - means.mean(0).square()).sqrt()
    assert float(naive.isnan().float().mean()) > 0.2
    found = tr.decompose(means, head="mean").epistemic
    assert bool(found.value.isfinite().all()) and bool((found.value > 0).all())
    assert torch.allclose(found.value, means.double().var(0), rtol=1e-12)


@pytest.mark.parametrize("members", [5, 64])
def test_errors_cover_the_population(members: int) -> None:
    torch.manual_seed(0)
    found = tr.decompose(normals(members, 4000), head="mean").epistemic
    assert found.average == pytest.approx(4.0, abs=4 * 4 * math.sqrt(2 / (members - 1) / 4000))
    low, high = found.interval
    inside = ((low < 4) & (high > 4)).double().mean()
    assert 0.85 < float(inside) < 0.99
    assert found.average_error > 0


def test_members_that_are_shared_leave_an_error_in_the_average() -> None:
    """All samples see the same deviation of a member: no number of samples averages that out."""
    torch.manual_seed(0)
    off, averages, errors = torch.randn(300, 32, 1, dtype=torch.float64), [], []
    for one in off:
        found = tr.decompose(one.expand(32, 50), head="mean").epistemic
        averages.append(found.average)
        errors.append(found.average_error)
    spread = torch.tensor(averages).std()
    assert float(torch.tensor(errors).mean()) == pytest.approx(float(spread), rel=0.2)


def test_entropy_is_exact_for_known_laws() -> None:
    p = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]], dtype=torch.float64)
    entropy = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    found = tr.decompose(p, head="probabilities")
    assert found.entropy is not None and found.aleatoric is not None and found.predictive_entropy is not None
    assert float(found.predictive_entropy) == pytest.approx(math.log(2), rel=1e-12)
    assert float(found.entropy.aleatoric.value) == pytest.approx(entropy, rel=1e-12)
    assert float(found.entropy.total.value) == pytest.approx(math.log(2), rel=1e-12)  # no entropy exceeds it
    assert float(found.aleatoric.value) == pytest.approx(2 * 0.09, rel=1e-12)
    assert float(found.epistemic.value) == pytest.approx(2 * 2 * 0.16, rel=1e-12)


def test_mutual_information_has_no_bias_of_few_members() -> None:
    """Dirichlet members: expected entropy and entropy of the mean are known digammas."""
    torch.manual_seed(0)
    alpha = torch.tensor([2.0, 3.0, 5.0], dtype=torch.float64)
    share = alpha / alpha.sum()
    expected = float((share * (torch.digamma(alpha.sum() + 1) - torch.digamma(alpha + 1))).sum())
    information = float(torch.special.entr(share).sum()) - expected
    p = torch.distributions.Dirichlet(alpha).sample((8, 5000))
    found = tr.decompose(p, head="probabilities")
    assert found.entropy is not None and found.predictive_entropy is not None
    assert found.entropy.aleatoric.average == pytest.approx(expected, rel=0.01)
    assert found.entropy.epistemic.average == pytest.approx(information, rel=0.02)
    plain = float(found.predictive_entropy.mean()) - found.entropy.aleatoric.average
    assert plain < 0.9 * information  # what 8 members show without the jackknife
    assert torch.allclose(found.entropy.total.value, found.entropy.aleatoric.value + found.entropy.epistemic.value)


def test_entropy_is_safe_for_sharp_and_for_nearly_equal_members() -> None:
    sharp = tr.decompose(torch.tensor([[[1e4, 0.0, -1e4]], [[0.0, 1e4, -math.inf]]]), head="logits")
    assert sharp.entropy is not None and float(sharp.entropy.total.value) == pytest.approx(math.log(3))
    near = torch.zeros(4, 1, 3, dtype=torch.float64)
    near[:, 0, 0] = torch.tensor([-1.5, -0.5, 0.5, 1.5]) * 1e-9
    found = tr.decompose(near, head="logits").entropy
    assert found is not None
    # to second order the information is sum Var p / 2 p, here Var z times p (1 - p) / 2
    assert float(found.epistemic.value) == pytest.approx(float(near[:, 0, 0].var()) / 9, rel=1e-3)


def test_classification_variance_is_that_of_drawn_labels() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(6, 3, 4)
    found = tr.decompose(logits, head="logits")
    assert found.predictive_variance is not None
    which = torch.randint(6, (100_000,))
    labels = torch.distributions.Categorical(logits=logits[which].double()).sample()
    drawn = F.one_hot(labels, 4).double().var(0).sum(-1)
    assert torch.allclose(drawn, found.predictive_variance, atol=0.01)
    assert torch.allclose(found.mean.sum(-1), torch.ones(3).double())
    same = tr.decompose([Categorical(logits=z) for z in logits], head="distribution")
    assert torch.allclose(same.epistemic.value, found.epistemic.value)


def test_one_member_has_no_epistemic_part_and_says_so() -> None:
    found = tr.uncertainty(nn.Linear(4, 3), torch.randn(5, 4), head="logits")
    assert found.members == 1 and bool((found.epistemic.value == 0).all())
    assert found.entropy is not None and bool((found.entropy.epistemic.value == 0).all())
    assert bool(found.epistemic.error.isinf().all())
    assert found.verdict is not None and "nothing is known" in str(found)


def test_masks_against_all_masks() -> None:
    """Dropout of six inputs of a linear map: the variance over masks is w^2 x^2 p / (1 - p)."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Dropout(0.25), nn.Linear(6, 1)), torch.randn(4, 6)
    exact = (model[1].weight.square() * x.square()).sum(1) * 0.25 / 0.75
    found = tr.uncertainty(model, x, head="mean", draws=1000, noise=0.5)
    assert found.total is not None
    assert bool(((found.epistemic.value[:, 0] - exact).abs() < 4 * found.epistemic.error[:, 0]).all())
    assert torch.allclose(found.total.value, found.epistemic.value + 0.5)
    assert torch.allclose(found.mean, model.eval()(x).double(), atol=0.2)


class Net(nn.Module):
    """Functional dropout, batch normalisation with foreign statistics, and a training-mode output of its own."""

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p, self.enter, self.norm = p, nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.middle, self.head = Middle(p), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(torch.relu(self.norm(self.enter(x)))))


class Middle(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


def test_normalisers_stay_in_evaluation_mode_and_nothing_is_changed() -> None:
    torch.manual_seed(0)
    model = Net()
    model.norm.running_mean += 5.0
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x = torch.randn(8, 6)
    random, modes = torch.get_rng_state(), [m.training for m in model.modules()]
    found = tr.uncertainty(model, x, head="logits", draws=300)
    assert "middle" in found.source and found.members == 300
    assert torch.equal(torch.get_rng_state(), random) and modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    exact = []
    with torch.no_grad():
        h = torch.relu(model.norm.eval()(model.enter(x)))
        for _ in range(3000):
            exact.append(model.head(F.dropout(h, 0.3)).softmax(-1))
    assert torch.allclose(found.mean, torch.stack(exact).mean(0).double(), atol=0.03)
    again = tr.uncertainty(model.train(), x, head="logits", draws=300)
    assert torch.equal(again.mean, found.mean)


@pytest.mark.parametrize("inside", ["attention", "feedforward"])
def test_transformer_layers_do_not_skip_their_dropout(inside: str) -> None:
    """Torch's fused layer, which evaluation mode takes without gradients, has no dropout."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    if inside == "attention":
        layer.self_attn.dropout = 0.4
    else:
        layer.dropout.p = 0.4
    found = tr.uncertainty(nn.TransformerEncoder(layer, 2), torch.randn(3, 5, 8), head="mean", draws=8)
    assert found.members == 8 and bool((found.epistemic.value > 0).all())
    assert torch.backends.mha.get_fastpath_enabled()


class Always(nn.Linear):
    """Noise in every mode."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5))


def test_what_is_random_and_what_is_not() -> None:
    x = torch.randn(3, 6)
    assert tr.uncertainty(Always(6, 2), x, head="mean", draws=16).members == 16
    assert tr.uncertainty(Net(0.0), x, head="mean").members == 1
    recurrent = nn.LSTM(6, 4, num_layers=2, dropout=0.5, batch_first=True)
    assert float(tr.uncertainty(recurrent, torch.randn(3, 5, 6), head="mean", draws=8).epistemic.value.max()) > 0


def test_an_ensemble_is_taken_without_masks() -> None:
    models = nn.ModuleList(nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5)) for _ in range(4))
    x = torch.randn(3, 6)
    found = tr.uncertainty(models, x, head="logits")
    made = torch.stack([model.eval()(x).softmax(-1) for model in models]).double()
    assert torch.allclose(found.mean, made.mean(0)) and found.source == "ensemble of 4 models"
    assert torch.allclose(found.epistemic.value, made.var(0).sum(-1))
    assert found.verdict is None
    twins = tr.uncertainty([models[0]] * 3, x, head="logits")
    assert twins.identical and twins.verdict is not None and "agree in every bit" in twins.verdict
    assert bool((twins.epistemic.value == 0).all())


def test_two_members_know_little_of_their_spread() -> None:
    found = tr.decompose(torch.tensor([[1.0], [3.0]]), head="mean").epistemic
    assert float(found.value) == 2.0 and float(found.error) == pytest.approx(2 * math.sqrt(2))


def test_says_what_it_found() -> None:
    torch.manual_seed(0)
    text = str(tr.decompose(torch.randn(5, 7, 3), head="logits"))
    assert text.splitlines()[0] == "Uncertainty of 7 predictions, 5 members, average"
    assert "aleatoric" in text and "entropy, nats" in text and "±" in text
    assert "says nothing of the noise" in str(tr.decompose(torch.randn(5, 7), head="mean"))


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: tr.decompose([], head="mean"), "no output"),
        (lambda: tr.uncertainty([], torch.zeros(1, 1), head="mean"), "no model"),
        (lambda: tr.uncertainty([torch.zeros(2)], torch.zeros(1, 1), head="mean"), "no torch.nn.Module"),
        (lambda: tr.uncertainty(nn.Linear(1, 1), torch.zeros(1, 1), head="mean", draws=0), "draws is 0"),
        (lambda: tr.decompose(torch.zeros(2, 3), head="class"), "head is 'class'"),  # type: ignore[arg-type]
        (lambda: tr.decompose(torch.zeros(2, 3, 1), head="logits"), "have shape"),
        (lambda: tr.decompose(torch.full((2, 3, 2), math.nan), head="logits"), "NaN"),
        (lambda: tr.decompose(torch.full((2, 3, 2), math.nan), head="mean"), "NaN"),
        (lambda: tr.decompose(torch.randn(2, 3, 2), head="probabilities"), "no probabilities"),
        (lambda: tr.decompose(-torch.ones(2, 3, 2), head="variance"), "6 of 6 variances are negative"),
        (lambda: tr.decompose([torch.zeros(2), torch.zeros(3)], head="mean"), "shapes"),
        (lambda: tr.decompose(torch.zeros(2, 3, 3), head="variance"), "output is Tensor"),
        (lambda: tr.decompose(torch.zeros(2, 3, 3), head="distribution"), "returns Tensor"),
        (lambda: tr.decompose(torch.zeros(2, 3, 3), head="logits", noise=1.0), "noise is given"),
        (lambda: tr.decompose(["a"], head="mean"), "returns str"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()


def test_all_masks_of_a_rectifier() -> None:
    """Mean over the 2^6 masks, none left out."""
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Dropout(0.4), nn.Linear(6, 3), nn.ReLU()).double(), torch.randn(2, 6).double()
    mean, square = torch.zeros(2, 3).double(), torch.zeros(2, 3).double()
    with torch.no_grad():
        for mask in product((0.0, 1.0), repeat=6):
            kept = torch.tensor(mask).double()
            weight = 0.6 ** float(kept.sum()) * 0.4 ** (6 - float(kept.sum()))
            made = model[1:](x * kept / 0.6)
            mean, square = mean + weight * made, square + weight * made.square()
    found = tr.uncertainty(model, x, head="mean", draws=1500)
    assert bool(((found.mean - mean).abs() <= 4 * found.mean_error).all())
    assert bool(((found.epistemic.value - (square - mean.square())).abs() <= 5 * found.epistemic.error).all())
