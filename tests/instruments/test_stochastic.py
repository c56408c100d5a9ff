"""Gradient estimators against closed forms and enumeration."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Beta,
    Categorical,
    Dirichlet,
    Distribution,
    Exponential,
    Gamma,
    Independent,
    LogNormal,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
    OneHotCategorical,
    OneHotCategoricalStraightThrough,
    Poisson,
    TransformedDistribution,
    Uniform,
)
from torch.distributions.transforms import AffineTransform, TanhTransform

import tightrope as tr
from tightrope.errors import InputError
from tightrope.instruments.stochastic.ways import WAYS

SCORE, MEAN, OPTIMAL = "score function", "score, mean baseline", "score, optimal baseline"


def gaussian(mu: float, sigma: float, k: float, **options: object) -> tr.stochastic.EstimatorComparison:
    loc = torch.tensor(mu, requires_grad=True)
    q = Normal(loc, torch.tensor(sigma))
    return tr.stochastic.compare_estimators(lambda z: (z - k) ** 2, q, **options)  # type: ignore[arg-type]


def closed_form(mu: float, sigma: float, k: float, baseline: float) -> float:
    """Variance of ((z - k)^2 - b) (z - mu) / sigma^2: moments of a normal variable up to the sixth."""
    v, d = sigma**2, (mu - k) ** 2
    return 15 * v + 12 * d + (d - baseline) ** 2 / v + 6 * (d - baseline) - 4 * d


@pytest.mark.parametrize(("setting", "score", "optimal", "path"), [
    ((1.0, 1.5, 3.0), 96.86, 45.50, 9.00), ((2.0, 0.1, 0.0), 1656.15, 32.06, 0.040),
])  # fmt: skip
def test_variances_of_the_gaussian_case(
    setting: tuple[float, float, float], score: float, optimal: float, path: float
) -> None:
    mu, sigma, k = setting
    found = gaussian(*setting, draws=100_000)
    d, v = (mu - k) ** 2, sigma**2
    assert closed_form(*setting, 0.0) == pytest.approx(score, abs=0.005)
    assert closed_form(*setting, d + 3 * v) == pytest.approx(optimal, abs=0.005)
    expected = {
        SCORE: score, MEAN: closed_form(*setting, d + v), OPTIMAL: optimal, "pathwise": path,
        "measure-valued": 4 * d * (4 / math.pi - 1),  # 4 d Var(r) / E(r)^2 of the common Rayleigh step r
    }  # fmt: skip
    for name, variance in expected.items():
        estimator = found[name]
        assert abs(float(estimator.variance["loc"]) - variance) < 2.5 * float(estimator.variance_error["loc"]), name
        assert abs(float(estimator.mean["loc"]) - 2 * (mu - k)) < 3 * float(estimator.error["loc"]), name
        assert not estimator.biased
        assert estimator.draws is not None
        assert estimator.draws.value == pytest.approx(variance / (0.01 * 4 * d), rel=0.1)
    assert found["straight-through"].reason and found["Gumbel-softmax"].reason


def test_intervals_of_the_variance_hold_the_truth() -> None:
    inside = 0
    for seed in range(24):
        trace = gaussian(1.0, 1.5, 3.0, draws=512, seed=seed)["pathwise"].trace
        assert trace is not None
        inside += trace.low < 9.0 < trace.high
    assert inside >= 20


def test_score_variance_grows_with_dimension_and_the_pathwise_one_does_not() -> None:
    """f = |z|^2 at unit means and variances: with y = z_i^2, E y = 2, Var y = 6, E x^2 y = 4, E x^2 y^2 = 34."""
    measured = []
    for d in (1, 10, 40):
        loc = torch.ones(d, requires_grad=True)
        q = Independent(Normal(loc, torch.ones(d)), 1)
        found = tr.stochastic.compare_estimators(lambda z: z.square().sum(), q, draws=10_000)
        exact = 34 + 2 * 4 * 2 * (d - 1) + 6 * (d - 1) + 4 * (d - 1) ** 2 - 4
        score = found[SCORE].variance["loc"]
        assert float(score.mean()) == pytest.approx(exact, rel=0.1)
        assert float(found["pathwise"].variance["loc"].mean()) == pytest.approx(4.0, rel=0.1)
        measured.append(exact)
    assert measured == [30, 552, 6972]


STATES = torch.tensor([0.3, -1.0, 2.0, 0.7])
DISCRETE = [
    (Bernoulli(logits=torch.tensor([0.3, -0.5, 1.0])), lambda z: (z - 0.45).square().sum() + z[0] * z[1] * z[2]),
    (Independent(Bernoulli(probs=torch.tensor([[0.3, 0.5], [0.2, 0.9]])), 2), lambda z: torch.linalg.det(z) + z.sum()),
    (OneHotCategorical(logits=torch.tensor([0.1, 0.0, -0.4, 1.0])), lambda z: (z @ STATES).exp()),
    (OneHotCategorical(probs=torch.tensor([[0.2, 0.8], [0.6, 0.4]])), lambda z: (z[0] * z[1]).sum() * 3 + z[0, 0]),
    (Categorical(logits=torch.tensor([[0.1, 0.0, -0.4], [1.0, 0.0, 0.0]])), lambda z: (z[0] + 2 * z[1]).float() ** 2),
]


def by_hand(q: Distribution, objective: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient in the arguments by a sum over all joint draws, with torch's own log_prob."""
    core = q.base_dist if isinstance(q, Independent) else q
    inner = getattr(core, "_categorical", core)
    name = "probs" if vars(inner)["_param"] is vars(inner).get("probs") else "logits"
    theta = getattr(core, name).detach().clone().requires_grad_()
    made = type(core)(**{name: theta})  # type: ignore[arg-type]
    values = [made.enumerate_support(expand=False).reshape(-1, *core.event_shape)]
    places = math.prod(core.batch_shape)
    total = torch.zeros(())
    for which in torch.cartesian_prod(*[torch.arange(len(values[0]))] * places).reshape(-1, places):
        z = values[0][which].reshape(*core.batch_shape, *core.event_shape)
        total = total + made.log_prob(z).sum().exp() * objective(z)
    return torch.autograd.grad(total, theta)[0]


@pytest.mark.parametrize(("q", "objective"), DISCRETE)
def test_discrete_gradients_against_enumeration(q: Distribution, objective: Callable[[Tensor], Tensor]) -> None:
    truth = by_hand(q, objective)
    found = tr.stochastic.compare_estimators(objective, q, draws=8192)
    assert found.reference == "exact"
    assert float(found.signal.value) == pytest.approx(float(truth.norm()), rel=1e-5)
    for estimator in found:
        if estimator.unbiased is False or not estimator.admitted:
            continue
        (mean,), (error,) = estimator.mean.values(), estimator.error.values()
        assert bool(((mean - truth).abs() <= 4 * error + 1e-5 * truth.abs().max()).all()), estimator.name
        assert not estimator.biased
    relaxed = found["Gumbel-softmax"]
    assert relaxed.admitted is not isinstance(q, Categorical)
    assert "OneHotCategorical" in relaxed.reason or relaxed.biased


CONTINUOUS = [
    Normal(torch.tensor(0.3), torch.tensor(0.7)), LogNormal(0.1, 0.3), Gamma(torch.tensor(3.0), torch.tensor(2.0)),
    Beta(2.0, 1.5), Exponential(1.5),
    TransformedDistribution(Normal(0.2, 0.5), [TanhTransform(), AffineTransform(1, 2)]),
]  # fmt: skip


@pytest.mark.parametrize("q", CONTINUOUS, ids=lambda q: type(q).__name__)
def test_score_and_pathwise_agree(q: Distribution) -> None:
    """Two ways of their own: through the draw and through the density."""
    found = tr.stochastic.compare_estimators(lambda z: z**2, q, draws=20_000)
    pathwise, score = found["pathwise"], found[OPTIMAL]
    for name in pathwise.mean:
        distance = abs(float(pathwise.mean[name] - score.mean[name]))
        assert distance < 4 * math.hypot(float(pathwise.error[name]), float(score.error[name])), name
    assert not pathwise.biased and not found["score function"].biased


def test_gamma_against_its_closed_form() -> None:
    found = tr.stochastic.compare_estimators(lambda z: z**2, Gamma(3.0, 2.0), draws=20_000)  # E z^2 = a (a + 1) / b^2
    for name in (SCORE, MEAN, OPTIMAL, "pathwise"):
        for key, truth in (("concentration", 7 / 4), ("rate", -3.0)):
            assert abs(float(found[name].mean[key]) - truth) < 4 * float(found[name].error[key]), name


def test_measure_valued_of_poisson_and_exponential() -> None:
    found = tr.stochastic.compare_estimators(lambda z: z**2, Poisson(3.0))["measure-valued"]
    assert abs(float(found.mean["rate"]) - 7.0) < 4 * float(found.error["rate"])
    found = tr.stochastic.compare_estimators(lambda z: z**2, Exponential(2.0), draws=8192)["measure-valued"]
    assert abs(float(found.mean["rate"]) + 0.5) < 4 * float(found.error["rate"])


def test_the_interval_of_the_bias_holds_it() -> None:
    """Straight-through of (z - k)^2 is off by (2 p - 1) in p; 27 weights behind three logits are off together."""
    inside = 0
    for seed in range(20):
        q = Bernoulli(probs=torch.tensor(0.7, requires_grad=True))
        found = tr.stochastic.compare_estimators(lambda z: (z - 0.3) ** 2, q, draws=512, seed=seed)["straight-through"]
        assert found.offset is not None and found.biased
        inside += found.offset.low <= abs(2 * 0.7 - 1) / 0.4 <= found.offset.high
    assert inside >= 17
    net = nn.Linear(8, 3)
    q = Independent(Bernoulli(logits=net(torch.ones(8))), 1)
    found = tr.stochastic.compare_estimators(lambda z: z.sum() ** 2, q, parameters=net, draws=1024)[SCORE]
    noise = sum(float(e.square().sum()) for e in found.bias_error.values()) ** 0.5
    length = sum(float((found.mean[n] - found.bias[n]).square().sum()) for n in found.mean) ** 0.5
    assert found.offset is not None and found.offset.high > 0.3 * noise / length


def test_a_jump_makes_the_pathwise_gradient_biased() -> None:
    loc = torch.tensor(0.2, requires_grad=True)
    found = tr.stochastic.compare_estimators(lambda z: (z > 0) * 3.0 + 0.5 * z, Normal(loc, torch.tensor(1.0)))
    truth = 0.5 + 3.0 * math.exp(-0.02) / math.sqrt(2 * math.pi)
    assert found["pathwise"].biased and found.best not in ("", "pathwise")
    assert float(found["pathwise"].mean["loc"]) == pytest.approx(0.5)
    assert abs(float(found[found.best].mean["loc"]) - truth) < 4 * float(found[found.best].error["loc"])
    assert found["pathwise"].draws is not None and math.isinf(found["pathwise"].draws.low)


def test_parameters_behind_a_net() -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    q = Normal(net(x), torch.full((4, 2), 0.5, dtype=torch.float64))
    found = tr.stochastic.compare_estimators(lambda z: z.square().sum(), q, parameters=net, draws=8192)
    truth = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    for name in (OPTIMAL, "pathwise", "measure-valued"):
        assert set(found[name].mean) == {"weight", "bias"}
        for got, error, true in zip(found[name].mean.values(), found[name].error.values(), truth, strict=True):
            assert got.shape == true.shape
            assert bool(((got - true).abs() < 4.5 * error).all()), name
    alone = tr.stochastic.compare_estimators(lambda z: z.square().sum(), q)
    assert alone.size == found.size == 8


@pytest.mark.parametrize(
    "q",
    [
        MixtureSameFamily(Categorical(logits=torch.zeros(3)), Normal(torch.arange(3.0), torch.ones(3))),
        MultivariateNormal(torch.zeros(2), torch.eye(2) + 0.3), Dirichlet(torch.ones(2)),
        OneHotCategoricalStraightThrough(logits=torch.zeros(3)), Uniform(0.0, 1.0),
    ],
    ids=lambda q: type(q).__name__,
)  # fmt: skip
def test_nothing_is_dropped_silently(q: Distribution) -> None:
    found = tr.stochastic.compare_estimators(lambda z: z.square().sum(), q, draws=256)
    assert [estimator.name for estimator in found] == [way.name for way in WAYS]
    assert all(estimator.reason for estimator in found if not estimator.admitted)
    assert all(estimator.name in str(found) for estimator in found)


def test_supports_that_move_do_not_admit_the_score() -> None:
    found = tr.stochastic.compare_estimators(lambda z: z**2, Uniform(0.0, 1.0))
    assert "support" in found[SCORE].reason
    pathwise = found["pathwise"]
    for name, truth in (("low", 1 / 3), ("high", 2 / 3)):  # of (a^2 + a b + b^2) / 3
        assert abs(float(pathwise.mean[name]) - truth) < 4 * float(pathwise.error[name])


def test_verdict_on_the_estimator_in_use() -> None:
    bad = gaussian(2.0, 0.1, 0.0, using=SCORE)
    assert bad.verdict == "high-variance-estimator" and "times the variance" in str(bad)
    assert gaussian(2.0, 0.1, 0.0, using="pathwise").verdict is None
    assert gaussian(2.0, 0.1, 0.0).verdict is None
    assert gaussian(1.0, 1.5, 3.0, using=OPTIMAL).verdict is None  # five times: not enough to be sure


def test_leaves_no_trace_and_repeats_itself() -> None:
    loc = torch.tensor(1.0, requires_grad=True)
    q = Normal(loc, torch.tensor(1.0))
    state = torch.get_rng_state()
    first, again = (tr.stochastic.compare_estimators(lambda z: z**2, q, draws=256) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and loc.grad is None
    assert first[SCORE].mean["loc"] == again[SCORE].mean["loc"]
    other = tr.stochastic.compare_estimators(lambda z: z**2, q, draws=256, seed=1)
    assert other[SCORE].mean["loc"] != first[SCORE].mean["loc"]


@pytest.mark.parametrize(("mu", "sigma"), [(0.7, 0.5), (0.0, 1.0)])
def test_an_evidence_bound_contains_its_parameters(mu: float, sigma: float) -> None:
    """The gradient of minus KL(q, N(0, 1)); at q = N(0, 1) all that is left of a draw is its score, of variance 1."""
    loc, log = torch.tensor(mu, requires_grad=True), torch.tensor(math.log(sigma), requires_grad=True)
    q, p = Normal(loc, log.exp()), Normal(0.0, 1.0)
    found = tr.stochastic.compare_estimators(lambda z: p.log_prob(z) - q.log_prob(z), q, draws=8192)
    truth = {"loc": -mu, "scale": 1 - sigma**2}
    for name in (SCORE, MEAN, OPTIMAL, "pathwise", "measure-valued"):
        for key, value in truth.items():
            assert abs(float(found[name].mean[key]) - value) < 4 * float(found[name].error[key]) + 1e-6, (name, key)
        if sigma == 1.0:
            assert float(found[name].variance["loc"]) == pytest.approx(1.0, rel=0.1)


def test_a_discrete_evidence_bound_against_enumeration() -> None:
    logits = torch.tensor([0.3, -0.8], requires_grad=True)
    q = Bernoulli(logits=logits)
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]])

    def bound(z: Tensor) -> Tensor:
        return z @ weights @ z - q.log_prob(z).sum()

    states = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    whole = torch.stack([q.log_prob(z).sum().exp() * bound(z) for z in states]).sum()
    truth = torch.autograd.grad(whole, logits)[0]
    found = tr.stochastic.compare_estimators(bound, q)
    assert found.reference == "exact" and found.signal.value == pytest.approx(float(truth.norm()), rel=1e-5)
    for name in (SCORE, OPTIMAL, "measure-valued"):
        assert bool(((found[name].mean["logits"] - truth).abs() < 4 * found[name].error["logits"]).all()), name


def test_objectives_that_vmap_cannot_run() -> None:
    def branching(z: Tensor) -> Tensor:
        return z if z.item() > 0 else 2 * z

    loc = torch.tensor(0.0, requires_grad=True)
    found = tr.stochastic.compare_estimators(branching, Normal(loc, torch.tensor(1.0)), draws=1024)
    assert abs(float(found["pathwise"].mean["loc"]) - 1.5) < 4 * float(found["pathwise"].error["loc"])


NORMAL = Normal(0.0, 1.0)
LOC = torch.tensor(0.0, requires_grad=True)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: tr.stochastic.compare_estimators(lambda z: z, NORMAL, draws=8), "draws is 8"),
        (lambda: tr.stochastic.compare_estimators(lambda z: z, NORMAL, using="magic"), "no estimator 'magic'"),
        (lambda: tr.stochastic.compare_estimators(lambda z: z, nn.Linear(1, 1)), "is a Linear"),  # type: ignore[arg-type]
        (lambda: tr.stochastic.compare_estimators(3, NORMAL), "objective is a int"),  # type: ignore[arg-type]
        (lambda: tr.stochastic.compare_estimators(lambda z: z, Normal(torch.zeros(2), 1.0)), "objective of a draw"),
        (lambda: tr.stochastic.compare_estimators(lambda z: z.log() * 0 / 0, NORMAL), "NaN or infinite"),
        (lambda: tr.stochastic.compare_estimators(lambda z: z, NORMAL, parameters=LOC), "has no part"),
        (lambda: tr.stochastic.compare_estimators(lambda z: z, Normal(math.nan, 1.0, validate_args=False)), "NaN"),
        (lambda: tr.stochastic.compare_estimators(lambda z: z, Normal(torch.zeros(0), 1.0)), "empty"),
    ],
)
def test_says_what_is_wrong(act: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        act()
