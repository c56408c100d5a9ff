"""Groups of checks that show what other faults lead to: what `EXPLAINS` of a cause is made of.

The order of a step is the order of causes: data, then wiring, then initialisation, then signal and gradient, then the
update. A check may explain any symptom that comes after it in that order; of two that may explain each other, the one
that was seen first does.
"""

SIGNAL = ("exploding-signal", "vanishing-signal", "rank-collapse", "time-drift")
"""The scale of what runs forward."""
GRADIENT = (
    "exploding-gradient",
    "vanishing-gradient",
    "exploding-recurrence",
    "heavy-tailed-gradient",
    "clipping-always",
)
"""The scale of what runs backward."""
UNITS = ("saturated-units", "dead-units", "outside-sweet-spot")
"""What single units do with their input."""
ATTENTION = ("unscaled-attention", "attention-saturation", "attention-bandwidth")
"""What rows of attention weights look like."""
SCALE = (*SIGNAL, *GRADIENT, *UNITS, *ATTENTION, "loss-at-init", "half-precision-overflow")
"""All of the above, and what a wrong scale does at the end of the net."""
PROGRESS = ("learning-rate-too-high", "learning-rate-too-low", "moving-target", "shuffled-labels")
"""How training goes on."""
AFTERMATH = (*SCALE, "non-finite", *PROGRESS)
"""Whatever a fault in the data, the wiring or the start of a step may lead to."""
