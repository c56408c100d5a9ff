"""The spread of samples' amplitudes: a batch is a mixture of loud and quiet samples.

Given its amplitude, a sample's channels are Gaussian; over the batch they are not, and the difference grows with
depth wherever the map q -> E[f(sqrt(q) xi)^2] is not proportional to q. The logarithm of the amplitude is carried at
the nodes of a standard normal variable, so that its law may become as skewed as the layers make it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_X, _W = np.polynomial.hermite_e.hermegauss(7)
ETA = torch.as_tensor(_X, dtype=torch.float64)
"""Nodes of the standard normal variable that orders samples by amplitude."""
OMEGA = torch.as_tensor(_W / _W.sum(), dtype=torch.float64)
"""Weights of the nodes."""
CROWD = 32
"""Fewest channels of which a weighted sum is Gaussian once its sample's amplitude is known."""


def of_rows(rows: Tensor) -> Tensor | None:
    """ln(amplitude) at the nodes for real samples; None when they are too few or all alike.

    Args:
        rows: (sample, channel).
    """
    energy = rows.square().mean(1)
    if rows.shape[0] < 3 or rows.shape[1] < CROWD or not bool((energy > 0).all()):
        return None
    spread = float(energy.log().std()) / 2
    return ETA * spread if spread > 0 else None


def moved(energy: Tensor, fresh: float) -> tuple[Tensor | None, float]:
    """ln(amplitude) behind an operation, and its correlation with the amplitude before.

    Args:
        energy: mean square over channels at each node.
        fresh: variance of ln(amplitude) that joins because a sample has finitely many channels.
    """
    if not bool((energy > 0).all()):
        return None, 0.0
    level = energy.log() / 2
    level = level - (OMEGA * level).sum()
    carried = float((OMEGA * level.square()).sum())
    total = carried + fresh
    if total <= 0:
        return None, 0.0
    if carried < 1e-12:
        return ETA * math.sqrt(total), 0.0
    return level * math.sqrt(total / carried), math.sqrt(carried / total)


def recalled(gain: Tensor, correlation: float) -> Tensor:
    """A gradient's gain at the nodes of the layer above, seen from the nodes of the layer below."""
    softened = gain.clamp(min=1e-300) ** correlation
    return softened / (OMEGA * softened).sum()
