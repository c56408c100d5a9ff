"""Products of the loss's Hessian, or of its Gauss-Newton part, with vectors: one forward pass for all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from tightrope.errors import InputError, RecordError, TightropeError
from tightrope.inputs import arguments
from tightrope.isolation import force_eager, preserved, undisturbed
from tightrope.subject import first_batch, split

Matrix = Literal["hessian", "gauss-newton"]
ASKED = "take the curvature"
RANDOM = (nn.modules.dropout._DropoutNd, nn.RReLU)
NORMS = (nn.modules.batchnorm._BatchNorm,)


class Operator:
    """A symmetric matrix over all trainable parameters, known by its products.

    The graph of the gradient is built once, and each product is one backward pass through it. Its masks and batch
    statistics are those of that one forward pass, so all products are of one and the same matrix.

    Attributes:
        size: number of parameters.
        dtype, device: of the vectors.
        loss: value of the loss.
        gradient: of the loss, as one vector.
        products: how many were made.

    References:
        Pearlmutter (1994), Fast exact multiplication by the Hessian, Neural Computation 6; Schraudolph (2002), Fast
        curvature matrix-vector products, Neural Computation 14, for the Gauss-Newton part.
    """

    def __init__(self, parameters: Sequence[Tensor], loss: Tensor, gradient: Tensor, way: Way) -> None:
        self.parameters, self.loss, self.gradient = list(parameters), float(loss.detach()), gradient
        self.size, self.dtype, self.device = gradient.numel(), gradient.dtype, gradient.device
        self.products = 0
        self._way = way

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a vector; shape (size,).

        Raises:
            InputError: the product is not finite.
        """
        self.products += 1
        made = flat(self._way(unflat(vector, self.parameters)), self.parameters)
        if not math.isfinite(float(made.sum())):  # one pass without a temporary
            found = "a product of the Hessian holds NaN or infinity"
            remedy = "Look for a root, a power or a norm at zero, whose second derivative is infinite"
            raise InputError(ASKED, found, remedy)
        return made


Way = Callable[[list[Tensor]], Sequence[Tensor | None]]
"""From one part of a vector for each parameter to one part of the product; None where it is zero."""


def flat(parts: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """One vector of a part for each parameter, in their common type."""
    dtype = common([p.dtype for p in parameters])
    device = parameters[0].device
    return torch.cat([
        torch.zeros(p.numel(), dtype=dtype, device=device) if part is None
        else part.detach().to(device, dtype).reshape(-1)
        for part, p in zip(parts, parameters, strict=True)
    ])  # fmt: skip


def unflat(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The part of a vector for each parameter."""
    parts = vector.split([p.numel() for p in parameters])
    return [part.view(p.shape).to(p.device, p.dtype) for part, p in zip(parts, parameters, strict=True)]


def common(dtypes: Sequence[torch.dtype]) -> torch.dtype:
    """The type that holds all of them, single precision at least."""
    found = torch.float32
    for dtype in dtypes:
        found = torch.promote_types(found, dtype)
    return found


@contextmanager
def hessian(
    model: nn.Module, batch: Any, loss: Callable[..., Tensor] | None, matrix: Matrix = "hessian"
) -> Iterator[Operator]:
    """The operator of a model's loss on a batch, as long as the context is open; nothing is changed.

    Raises:
        InputError: model, batch or loss is no such thing, or the loss, its gradient or a product is not finite.
        RecordError: the model raised, its loss has no gradient, or an operation has no second derivative.
    """
    inputs, of_output = split(first_batch(batch), loss)
    args, kwargs = arguments(model, inputs)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if parameters[0].is_meta:
        raise InputError(ASKED, "the parameters are on the meta device", "Pass a model that has its weights")
    with undisturbed(), preserved(model), torch.enable_grad(), force_eager(), twice_differentiable():
        try:
            output = model(*args, **kwargs)
            value = value_of(output, of_output)
            way, gradient = (
                second(value, parameters) if matrix == "hessian" else _outer(output, value, of_output, parameters)
            )
            yield Operator(parameters, value, gradient, way)
        except TightropeError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            message = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
            raise RecordError(ASKED, message, "See the exception above for the model's own traceback") from error


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Fused attention and cuDNN's recurrent layers have no second derivative; their plain forms do."""
    with sdpa_kernel([SDPBackend.MATH]), torch.backends.cudnn.flags(enabled=False):
        yield


def value_of(output: Any, of_output: Callable[[Any], Tensor] | None) -> Tensor:
    """The loss of an output, as a finite number that depends on a parameter."""
    if of_output is not None:
        value: Any = of_output(output)
    else:
        value = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{type(value).__name__}"
        what = f"the loss is {found}" if of_output is not None else f"without loss=, the output holds {found} for it"
        raise InputError(ASKED, what, "Pass a loss that returns one number, for example its mean")
    if not value.requires_grad:
        found = "the loss depends on no parameter that requires a gradient"
        raise RecordError(ASKED, found, "Check that the loss uses the model's output, and that nothing detaches it")
    if not bool(torch.isfinite(value)):
        raise InputError(ASKED, f"the loss is {float(value.detach())}", "Pass a batch and a model with a finite loss")
    return value.reshape(())


def second(value: Tensor, parameters: list[Tensor]) -> tuple[Way, Tensor]:
    """Products with the second derivative of a value, and its gradient as one vector."""
    first = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
    gradient = _finite(flat(first, parameters))
    bent = [i for i, part in enumerate(first) if part is not None and part.requires_grad]
    heads = [part for part in first if part is not None and part.requires_grad]

    def way(vector: list[Tensor]) -> Sequence[Tensor | None]:
        if not heads:  # the loss is linear in the parameters
            return [None] * len(parameters)
        along = [vector[i] for i in bent]
        return torch.autograd.grad(heads, parameters, along, retain_graph=True, allow_unused=True)

    return way, gradient


def _outer(
    output: Any, value: Tensor, of_output: Callable[[Any], Tensor] | None, parameters: list[Tensor]
) -> tuple[Way, Tensor]:
    """J' H_out J: the Hessian of the loss in the outputs, seen through the Jacobian of the outputs."""
    if of_output is None:
        remedy = 'Pass loss= as a function of the output, or matrix="hessian"'
        raise InputError("take the Gauss-Newton matrix", "the model computes its loss itself", remedy)
    leaves, tree = tree_flatten(output)
    places = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.is_floating_point() and x.requires_grad]
    outputs = [leaves[i] for i in places]
    cut = [x.detach().requires_grad_() for x in outputs]
    for i, x in zip(places, cut, strict=True):
        leaves[i] = x
    top = value_of(tree_unflatten(leaves, tree), of_output)
    slopes = torch.autograd.grad(top, cut, create_graph=True, materialize_grads=True)
    dual = [torch.zeros_like(x, requires_grad=True) for x in outputs]
    # J' w as a function of w: its derivative along w is J
    pulled = torch.autograd.grad(outputs, parameters, dual, create_graph=True, allow_unused=True)
    bent = [i for i, part in enumerate(pulled) if part is not None and part.requires_grad]
    heads = [part for part in pulled if part is not None and part.requires_grad]
    curved = [slope for slope in slopes if slope.requires_grad]

    def way(vector: list[Tensor]) -> Sequence[Tensor | None]:
        if not heads or not curved:
            return [None] * len(parameters)
        moved = torch.autograd.grad(heads, dual, [vector[i] for i in bent], retain_graph=True, materialize_grads=True)
        moved = tuple(m for m, slope in zip(moved, slopes, strict=True) if slope.requires_grad)
        bends = torch.autograd.grad(curved, cut, moved, retain_graph=True, materialize_grads=True)
        return torch.autograd.grad(outputs, parameters, bends, retain_graph=True, allow_unused=True)

    first = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return way, _finite(flat(first, parameters))


def _finite(gradient: Tensor) -> Tensor:
    if not bool(torch.isfinite(gradient).all()):
        raise InputError(ASKED, "the gradient holds NaN or infinity", "Find the cause with tightrope.check first")
    return gradient


def modes(model: nn.Module) -> tuple[str, ...]:
    """What in the model depends on its mode, and as what the Hessian took it."""
    found = list(model.modules())
    said = []
    if any(isinstance(m, NORMS) and (m.training or m.running_mean is None) for m in found):
        said.append("batch norm on this batch's statistics")
    if any(isinstance(m, NORMS) and not m.training and m.running_mean is not None for m in found):
        said.append("batch norm on running statistics")
    if any(isinstance(m, RANDOM) and m.training for m in found):
        said.append("dropout: one fixed mask")
    return tuple(said)


__all__ = [
    "ASKED",
    "RANDOM",
    "Matrix",
    "Operator",
    "Way",
    "flat",
    "hessian",
    "modes",
    "second",
    "twice_differentiable",
    "unflat",
    "value_of",
]
