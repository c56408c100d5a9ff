"""The law of a tensor: its mean and its variance, split by what the variance comes from.

An element of an activation is x[n, s, k]: sample n of the batch, site s (pixel, token, time step),
channel k. A random-effects analysis of variance writes it as

    x[n, s, k] = mean + A[k] + B[n, k] + C[s, k] + D[n, s, k]

with independent, centred terms; their variances are the four components of a `Law`. Predicted and
measured laws have this one type, so comparing them is subtraction.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

COMPONENTS = ("constant", "sample", "site", "residual")


@dataclass(frozen=True)
class Law:
    """Mean and variance components of one tensor, or of the gradient that reaches it.

    Attributes:
        mean: the mean over all elements, in the tensor's own unit.
        constant: Var(A), what differs between channels but not between samples or sites.
        sample: Var(B), what differs between samples and is shared by a sample's sites.
        site: Var(C), what differs between sites and is shared by all samples.
        residual: Var(D), the rest.
        error: standard deviation of ln(std). For a measured law it is the sampling error over samples;
            for a predicted one the half-width of its band, the spread that finite width allows.

    References:
        Searle, Casella, McCulloch, Variance Components (1992), for the decomposition.
    """

    mean: float
    constant: float = 0.0
    sample: float = 0.0
    site: float = 0.0
    residual: float = 0.0
    error: float = 0.0

    @property
    def variance(self) -> float:
        """Variance over all elements, the sum of the components."""
        return self.constant + self.sample + self.site + self.residual

    @property
    def std(self) -> float:
        """Standard deviation over all elements."""
        return math.sqrt(max(self.variance, 0.0))

    @property
    def second_moment(self) -> float:
        """E[x^2] over all elements."""
        return self.mean * self.mean + self.variance  # a product overflows to infinity, a power raises

    @property
    def rms(self) -> float:
        """Root mean square over all elements."""
        return math.sqrt(max(self.second_moment, 0.0))

    @property
    def signal(self) -> float:
        """Standard deviation of what differs between samples: the part that carries the data."""
        return math.sqrt(max(self.sample + self.residual, 0.0))

    @property
    def finite(self) -> bool:
        """Whether every moment is a finite number."""
        return math.isfinite(self.second_moment)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Law:
        """Rebuild a law from `to_dict`'s plain data."""
        return cls(**{key: float(value) for key, value in data.items()})
