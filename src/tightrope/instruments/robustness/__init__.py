"""How a model's output answers to small changes of its input: Jacobian norms, Lipschitz bounds, attacks."""

from tightrope.instruments.robustness.attack import Attack, attack
from tightrope.instruments.robustness.jacobian import JacobianNorms, jacobian_norms
from tightrope.instruments.robustness.lipschitz import Lipschitz, lipschitz_bound
from tightrope.instruments.robustness.summary import Robustness, robustness

__all__ = [
    "Attack",
    "JacobianNorms",
    "Lipschitz",
    "Robustness",
    "attack",
    "jacobian_norms",
    "lipschitz_bound",
    "robustness",
]
