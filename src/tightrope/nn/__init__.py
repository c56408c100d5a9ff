"""Layers that cure what the checks find."""

from tightrope.nn.blended_norm import BlendedNorm
from tightrope.nn.gaussian_linear import GaussianLinear
from tightrope.nn.kernel_attention import KernelAttention, kernel_attention
from tightrope.nn.standardize import Standardize
from tightrope.nn.stochastic_depth import StochasticDepth
from tightrope.nn.time_step_batch_norm import TimeStepBatchNorm

__all__ = [
    "BlendedNorm",
    "GaussianLinear",
    "KernelAttention",
    "Standardize",
    "StochasticDepth",
    "TimeStepBatchNorm",
    "kernel_attention",
]
