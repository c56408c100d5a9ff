"""What a compass reads: derivatives in the hyperparameters with their errors, the side of the curve, the next value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """The derivative of the validation loss in one hyperparameter, and what may be off in it.

    Attributes:
        name, value: of the hyperparameter.
        derivative: dE_val/dvalue as the weights follow the minimum of the training objective.
        second: the second derivative.
        error: half width of the 95 % interval, of all that follows.
        numerical: the part of it that concerns this validation set, not the sampling of it.
        sampling: standard error that comes of the finite validation set; NaN where its samples cannot be told apart.
        draws: standard error over masks and augmentations.
        solver: what the residuals of the linear systems and rounding allow.
        stationarity: by how much a Newton step to the minimum would change the derivative.
        damping: by how much twice the damping changes it.
        difference: bias of the difference quotient for dropout and augmentation.
        newton: where a Newton step leads, at most a factor of ten away (in the odds, for a rate).
    """

    name: str
    value: float
    derivative: float
    second: float
    error: float
    numerical: float
    sampling: float
    draws: float
    solver: float
    stationarity: float
    damping: float
    difference: float
    newton: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.derivative - self.error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.derivative + self.error

    @property
    def side(self) -> str:
        """Where this value stands.

        "overfitting": more of it lowers the validation loss; "underfitting": less of it does; "best": neither, as
        far as a validation set of this size can tell; "unknown": the numerical error alone hides the sign.
        """
        if self.derivative < -self.error:
            return "overfitting"
        if self.derivative > self.error:
            return "underfitting"
        return "best" if self.numerical <= max(abs(self.derivative), self.error / 2) else "unknown"

    @property
    def proposal(self) -> float:
        """The next value to try: the present one where no side is certain."""
        return self.newton if self.side in ("overfitting", "underfitting") else self.value


@dataclass(frozen=True, eq=False)
class Compass:
    """What `compass` found at one setting of the hyperparameters.

    Attributes:
        headings: by name.
        validation: E_val.
        gradient: norm of the training objective's gradient at these weights.
        distance: length of the Newton step to its minimum over the norm of the weights.
        residual: largest relative residual of the linear systems.
        converged: whether all residuals are within the tolerance.
        lowest: smallest curvature of the training objective that was met.
        damping: what was added to the diagonal of its Hessian.
        parameters, products: how many there are, and how many products with the Hessian were made.
        repeats: draws of masks and augmentations.
        modes: what depends on the model's mode, and as what it was taken.
    """

    headings: dict[str, Heading]
    validation: float
    gradient: float
    distance: float
    residual: float
    converged: bool
    lowest: float
    damping: float
    parameters: int
    products: int
    repeats: int
    modes: tuple[str, ...] = ()

    @property
    def derivatives(self) -> dict[str, float]:
        """dE_val/dvalue by name."""
        return {name: h.derivative for name, h in self.headings.items()}

    @property
    def errors(self) -> dict[str, float]:
        """Half widths of the 95 % intervals by name."""
        return {name: h.error for name, h in self.headings.items()}

    @property
    def proposal(self) -> dict[str, float]:
        """The next values to try."""
        return {name: h.proposal for name, h in self.headings.items()}

    @property
    def side(self) -> str:
        """The side that all hyperparameters with a certain one agree on; "mixed" where they do not."""
        told = {h.side for h in self.headings.values()} - {"best"}
        certain = told - {"unknown"}
        if len(certain) == 1:
            return certain.pop()
        return "mixed" if certain else "unknown" if told else "best"

    @property
    def overfitting(self) -> bool:
        """Whether more regularisation would lower the validation loss."""
        return self.side == "overfitting"

    @property
    def underfitting(self) -> bool:
        """Whether less regularisation would lower the validation loss."""
        return self.side == "underfitting"

    @property
    def verdict(self) -> str | None:
        """What to do, in a sentence; None where nothing is certain."""
        told = []
        for name, h in self.headings.items():
            if h.side == "overfitting":
                told.append(f"The model overfits: raise {name} to {h.proposal:.3g}.")
            elif h.side == "underfitting":
                told.append(f"The model underfits: lower {name} to {h.proposal:.3g}.")
            elif h.side == "best":
                told.append(f"{name} is at its best as far as the validation set can tell.")
        return " ".join(told) or None

    def __str__(self) -> str:
        lines = [f"validation loss {self.validation:.5g}, {self.parameters} parameters, {self.products} products"]
        lines.append(f"  {'':<16} {'value':>9}  {'dE/dvalue':>10}   {'95 %':<9} {'side':<12} proposal")
        for name, h in self.headings.items():
            row = f"  {name:<16} {h.value:>9.4g}  {h.derivative:>10.4g} ± {h.error:<9.2g} {h.side:<12} {h.proposal:.4g}"
            lines.append(row)
        for name, h in self.headings.items():
            parts = {
                "sampling": h.sampling, "draws": h.draws, "solver": h.solver, "stationarity": h.stationarity,
                "damping": h.damping, "difference": h.difference,
            }  # fmt: skip
            shown = ", ".join(f"{part} {error:.1g}" for part, error in parts.items() if error != 0)
            lines.append(f"  error of {name}: {shown or 'none'}")
        lines.append(f"  at a distance of {self.distance:.2g} from the minimum, relative to the weights")
        said = "" if self.converged else ": not converged, the errors hold it"
        lines.append(f"  residual {self.residual:.1g}{said}")
        if self.damping > 0:
            met = f", since curvature {self.lowest:.2g} was met" if self.lowest < 0 else ""
            lines.append(f"  damping {self.damping:.2g}{met}")
        return "\n".join([*lines, *(f"  {mode}" for mode in self.modes), f"  {self.verdict or 'Nothing is certain.'}"])


__all__ = ["Compass", "Heading"]
