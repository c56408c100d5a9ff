"""Products in Einstein's notation, and batched products with something added: folded into matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tightrope.roles import Axes, Role
from tightrope.rules.linear import mapped, outer
from tightrope.rules.matmul import product_over
from tightrope.rules.registry import Call, Gradients, rule
from tightrope.rules.state import State, state_shape
from tightrope.tape.tape import Ref


@dataclass(frozen=True)
class Product:
    """Two operands and a result by the letters of their dimensions, grouped as a batched matrix product.

    Attributes:
        left, right, out: letters of each tensor.
        batch, rows, columns, inner: letters of all three; of the left and the result; of the right and the result;
            of both operands alone.
    """

    left: str
    right: str
    out: str

    @property
    def batch(self) -> str:
        return "".join(c for c in self.out if c in self.left and c in self.right)

    @property
    def rows(self) -> str:
        return "".join(c for c in self.out if c not in self.right)

    @property
    def columns(self) -> str:
        return "".join(c for c in self.out if c not in self.left)

    @property
    def inner(self) -> str:
        return "".join(c for c in self.left if c in self.right and c not in self.out)

    def carried(self, left: State, right: State, axes: Axes) -> State:
        """The law of the product: through weights where an operand is one, else of two random tensors."""
        if not self.batch and _weights(right):
            weight = folded(right, self.right, (self.columns, self.inner))
            x = folded(left, self.left, (self.rows, self.inner))
            made = mapped(x, weight, folded_axes(axes, self.out, (self.rows, self.columns)))
            return unfolded(made, axes, self.out, (self.rows, self.columns))
        if not self.batch and _weights(left):
            return Product(self.right, self.left, self.out).carried(right, left, axes)
        a = folded(left, self.left, (self.batch, self.rows, self.inner))
        b = folded(right, self.right, (self.batch, self.inner, self.columns))
        groups = (self.batch, self.rows, self.columns)
        return unfolded(product_over(a, b, folded_axes(axes, self.out, groups)), axes, self.out, groups)

    def weight_gradient(self, upstream: State, x: State, weight: State, axes: Axes) -> State:
        """The gradient of the right operand where it is a weight."""
        w = folded(weight, self.right, (self.columns, self.inner))
        g = folded(upstream, self.out, (self.rows, self.columns))
        a = folded(x, self.left, (self.rows, self.inner))
        made = outer(a, g, folded_axes(axes, self.out, (self.rows, self.columns)), w)
        return unfolded(made, weight.axes, self.right, (self.columns, self.inner))

    def gradients(self, left: State, right: State, upstream: State, axes: Axes) -> tuple[State, State]:
        """Gradients of both operands."""
        to_left = Product(self.out, self.right, self.left)
        to_right = Product(self.out, self.left, self.right)
        plain = replace(upstream, axes=axes, latent=None, nodes=None)
        if not self.batch and _weights(right):
            return to_left.carried(plain, right, left.axes), self.weight_gradient(plain, left, right, axes)
        if not self.batch and _weights(left):
            turned = Product(self.right, self.left, self.out)
            return turned.weight_gradient(plain, right, left, axes), to_right.carried(plain, left, right.axes)
        return to_left.carried(plain, right, left.axes), to_right.carried(plain, left, right.axes)


def _weights(state: State) -> bool:
    return state.exact and all(axis.role is not Role.SAMPLE for dim in state.axes.dims for axis in dim)


# -- folding -------------------------------------------------------------------------------------


def folded(state: State, letters: str, groups: Sequence[str]) -> State:
    """A state with its dimensions brought into groups, each merged into one."""
    order = [letters.index(c) for group in groups for c in group]
    shape = state.shape

    def move(field: Tensor) -> Tensor:
        sizes, wide = [], list(field.shape)
        for group in groups:
            dims = [letters.index(c) for c in group]
            if any(field.shape[d] > 1 for d in dims):
                for d in dims:
                    wide[d] = shape[d]
            sizes.append(math.prod(wide[d] for d in dims))
        return field.expand(wide).permute(order).reshape(sizes)

    return replace(state, latent=None, nodes=None).map(move, folded_axes(state.axes, letters, groups))


def folded_axes(axes: Axes, letters: str, groups: Sequence[str]) -> Axes:
    """Axes of a tensor whose dimensions are merged in groups."""
    return Axes(tuple(tuple(a for c in group for a in axes.dims[letters.index(c)]) for group in groups))


def unfolded(state: State, axes: Axes, letters: str, groups: Sequence[str]) -> State:
    """The inverse of `folded`."""
    shape = state_shape(axes)
    flat = "".join(groups)
    order = [flat.index(c) for c in letters]

    def move(field: Tensor) -> Tensor:
        sizes = [shape[letters.index(c)] if held > 1 else 1
                 for group, held in zip(groups, field.shape, strict=True) for c in group]  # fmt: skip
        return field.reshape(sizes).permute(order)

    return state.map(move, axes)


# -- the rules -----------------------------------------------------------------------------------


@rule("einsum")
def einsum(call: Call) -> State:
    """A sum over products of two operands.

    Raises:
        NotImplementedError: other than two operands, a diagonal, or an index that one operand alone is summed over.
    """
    product, left, right = _parsed(call)
    return product.carried(left, right, call.axes[0])


@einsum.gradient
def _(call: Call, upstream: State) -> Gradients:
    product, left, right = _parsed(call)
    first, second = _operands(call)
    a, b = product.gradients(left, right, upstream, call.axes[0])
    return {first: a, second: b}


def _operands(call: Call) -> list[int]:
    given: list[Any] = list(call.entry.args[1:])
    if len(given) == 1 and isinstance(given[0], (list, tuple)):
        given = list(given[0])
    return [x.id for x in given if isinstance(x, Ref)]


def _parsed(call: Call) -> tuple[Product, State, State]:
    equation, ids = call.entry.args[0], _operands(call)
    if not isinstance(equation, str) or len(ids) != 2 or any(n not in call.states for n in ids):
        raise NotImplementedError("einsum of other than two tensors")
    if ids[0] == ids[1]:
        raise NotImplementedError("einsum of a tensor with itself")
    states = [call.states[n] for n in ids]
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    letters = inputs.split(",")
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    missing = [len(s.axes.dims) - len(part.replace("...", "")) for s, part in zip(states, letters, strict=True)]
    rest = "".join(spare[: max(missing)]) if "..." in inputs else ""
    if any("..." in part and len(rest) != n for part, n in zip(letters, missing, strict=True)):
        raise NotImplementedError("einsum that broadcasts")
    letters = [part.replace("...", rest) for part in letters]
    if not arrow:
        out = rest + "".join(sorted(c for c in set("".join(letters)) - set(rest) if "".join(letters).count(c) == 1))
    product = Product(letters[0], letters[1], out.replace("...", rest))
    whole = set(product.batch + product.rows + product.columns + product.inner)
    for part in (*letters, product.out):
        if len(set(part)) != len(part) or not set(part) <= whole:
            raise NotImplementedError("einsum with a diagonal or a sum over one operand alone")
    sizes: dict[str, int] = {}
    for part, state in zip(letters, states, strict=True):
        for c, n in zip(part, state.axes.shape, strict=True):
            if sizes.setdefault(c, n) != n:
                raise NotImplementedError("einsum that broadcasts")
    return product, states[0], states[1]


_BATCHED = Product("bij", "bjk", "bik")


@rule("baddbmm")
def baddbmm(call: Call) -> State:
    """beta input + alpha (left right)."""
    added, left, right, beta, alpha = _terms(call)
    made = _BATCHED.carried(left, right, call.axes[0]).scaled(alpha)
    return made if beta == 0 else replace(made.plus(replace(added.scaled(beta), axes=made.axes)), axes=call.axes[0])


@baddbmm.gradient
def _(call: Call, upstream: State) -> Gradients:
    from tightrope.rules.broadcast import reduced

    added, left, right, beta, alpha = _terms(call)
    number, first, second = call.id(0, "input"), call.id(1, "batch1"), call.id(2, "batch2")
    assert number is not None and first is not None and second is not None
    a, b = _BATCHED.gradients(left, right, upstream.scaled(alpha), call.axes[0])
    plain = replace(upstream, axes=call.axes[0], latent=None, nodes=None)
    found = {first: a, second: b}
    return found if beta == 0 or added.exact else found | {number: reduced(plain.scaled(beta), added, call.axes[0])}


def _terms(call: Call) -> tuple[State, State, State, float, float]:
    added, left, right = call.state(0, "input"), call.state(1, "batch1"), call.state(2, "batch2")
    if added is None or left is None or right is None:
        raise NotImplementedError("baddbmm of tensors without a law")
    content, dims = call.content(0, "input"), call.axes[0].dims
    if content is not None and not content.is_meta and content.ndim == len(dims):  # as the result's axes say
        axes = Axes(tuple(dim if n > 1 else () for dim, n in zip(dims, content.shape, strict=True)))
        added = State.of_content(axes, content)
    return added, left, right, float(call.entry.kwargs.get("beta", 1.0)), float(call.entry.kwargs.get("alpha", 1.0))


__all__ = ["Product", "baddbmm", "einsum"]
