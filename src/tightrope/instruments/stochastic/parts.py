"""A distribution taken apart: the tensors that it is made of, and how to make it again of others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MixtureSameFamily, TransformedDistribution
from torch.distributions.transforms import Transform

from tightrope.errors import InputError

ASKED = "compare gradient estimators"
ALTERNATIVES = (("logits", "probs"), ("scale_tril", "covariance_matrix", "precision_matrix"))
"""Arguments of which a distribution is given one."""


@dataclass(frozen=True)
class Parts:
    """What a distribution is made of.

    Attributes:
        names, tensors: its arguments, as far as they are continuous.
        build: the distribution of the same kind with other tensors, which may have more dimensions in front.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    build: Callable[[Sequence[Tensor]], Distribution]


def parts(found: Distribution) -> Parts:
    """The continuous arguments of a distribution; those of its base, mixture and components where it has them.

    Raises:
        InputError: it cannot be made again from its arguments.
    """
    if isinstance(found, Independent):
        inner, events = parts(found.base_dist), found.reinterpreted_batch_ndims
        return Parts(inner.names, inner.tensors, lambda ts: Independent(inner.build(ts), events, validate_args=False))
    if isinstance(found, MixtureSameFamily):
        return _mixture(found)
    if type(found) is TransformedDistribution:
        return _transformed(found)
    return _plain(found)


def _mixture(found: MixtureSameFamily) -> Parts:
    first, second = parts(found.mixture_distribution), parts(found.component_distribution)
    count = len(first.names)
    names = tuple(f"mixture.{n}" for n in first.names) + tuple(f"component.{n}" for n in second.names)

    def build(ts: Sequence[Tensor]) -> Distribution:
        mixture, component = first.build(ts[:count]), second.build(ts[count:])
        return MixtureSameFamily(mixture, component, validate_args=False)  # type: ignore[arg-type]

    return Parts(names, (*first.tensors, *second.tensors), build)


def _transformed(found: TransformedDistribution) -> Parts:
    inner, transforms = parts(found.base_dist), found.transforms
    if any(t.requires_grad for transform in transforms for t in _tensors(transform)):
        what = "a transform of the distribution has parameters of its own"
        raise InputError(ASKED, what, "Move them into the base distribution or into the objective")
    return Parts(
        inner.names, inner.tensors, lambda ts: TransformedDistribution(inner.build(ts), transforms, validate_args=False)
    )


def _tensors(transform: Transform) -> Iterable[Tensor]:
    for held in vars(transform).values():
        if isinstance(held, Tensor):
            yield held
        elif isinstance(held, (Transform, nn.Module)):
            yield from held.parameters() if isinstance(held, nn.Module) else _tensors(held)
        elif isinstance(held, (list, tuple)):
            yield from (t for part in held if isinstance(part, Transform) for t in _tensors(part))


def _plain(found: Distribution) -> Parts:
    kind = type(found)
    names = [n for n in inspect.signature(kind.__init__).parameters if n not in ("self", "validate_args")]
    try:
        for group in ALTERNATIVES:
            among = [name for name in group if name in names]
            if len(among) > 1:
                names = [name for name in names if name not in among or name == _given(found, among)]
        held = {name: getattr(found, name) for name in names}
    except AttributeError as error:
        raise _strange(found) from error
    limits = found.arg_constraints
    moving = [
        name for name, value in held.items()
        if isinstance(value, Tensor) and value.is_floating_point() and name in limits and not limits[name].is_discrete
    ]  # fmt: skip
    fixed = {name: value for name, value in held.items() if name not in moving}

    def build(ts: Sequence[Tensor]) -> Distribution:
        made: dict[str, Any] = {**fixed, **dict(zip(moving, ts, strict=True)), "validate_args": False}
        return kind(**made)

    if not moving:
        raise _strange(found)
    return Parts(tuple(moving), tuple(held[name] for name in moving), build)


def _given(found: Distribution, among: Sequence[str]) -> str:
    """Which of several arguments that say the same it was made with; any that it holds will do."""
    core = getattr(found, "_categorical", getattr(found, "base_dist", found))
    core = getattr(core, "_categorical", core)
    held = vars(core)
    param = held.get("_param")
    return next((n for n in among if held.get(n) is not None and held[n] is param), "") or next(
        (name for name in among if name in held), among[0]
    )


def _strange(found: Distribution) -> InputError:
    what = f"{type(found).__name__} cannot be made again from its arguments"
    return InputError(ASKED, what, "Build it of distributions of torch.distributions")


def checked(found: Distribution) -> Parts:
    """The parts, after a draw has the same density under the distribution made again."""
    if not isinstance(found, Distribution):
        raise InputError(ASKED, f"the distribution is a {type(found).__name__}", "Pass one of torch.distributions")
    made = parts(found)
    try:
        again = made.build([t.detach() for t in made.tensors])
        same = again.batch_shape == found.batch_shape and again.event_shape == found.event_shape
        if same:
            with torch.no_grad():
                z = again.sample()
                same = torch.allclose(again.log_prob(z), found.log_prob(z), rtol=1e-3, atol=1e-4, equal_nan=True)
    except NotImplementedError:  # without a density; its score function is not admitted
        return made
    except (TypeError, ValueError, RuntimeError) as error:
        raise _strange(found) from error
    if not same:
        raise _strange(found)
    if any(not bool(torch.isfinite(t).all()) for t in made.tensors):
        raise InputError(ASKED, "a parameter is NaN or infinite", "Pass finite parameters")
    return made


def leaves(made: Parts, given: Any) -> dict[str, Tensor]:
    """The parameters that the arguments are computed from, by name; empty where nothing requires a gradient.

    Args:
        made: the parts.
        given: what the user named: a tensor, several, a mapping, a module, or None for all.
    """
    reached = {name: _behind(tensor) for name, tensor in zip(made.names, made.tensors, strict=True)}
    everything = {id(leaf): leaf for found in reached.values() for leaf in found}
    if given is not None:
        named = _named(given)
        lost = next((name for name, leaf in named.items() if id(leaf) not in everything), None)
        if lost is not None or not named:
            what = f"{lost} has no part in the distribution" if named else "parameters is empty"
            raise InputError(ASKED, what, "Pass parameters with a gradient that the distribution is made of")
        return named
    names: dict[int, str] = {}
    for name, found in reached.items():
        if len(found) == 1:
            names.setdefault(id(found[0]), name)
    return {names.get(key, f"theta[{i}]"): leaf for i, (key, leaf) in enumerate(everything.items())}


def _named(given: Any) -> dict[str, Tensor]:
    if isinstance(given, nn.Module):
        return {name: p for name, p in given.named_parameters() if p.requires_grad}
    if isinstance(given, Mapping):
        return dict(given)
    several = [given] if isinstance(given, Tensor) else list(given)
    return {f"theta[{i}]": leaf for i, leaf in enumerate(several)}


def _behind(tensor: Tensor) -> list[Tensor]:
    """The leaves of a tensor's graph."""
    if not tensor.requires_grad:
        return []
    if tensor.grad_fn is None:
        return [tensor]
    found: list[Tensor] = []
    stack, seen = [tensor.grad_fn], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, Tensor):
            found.append(leaf)
        stack += [after for after, _ in node.next_functions if after is not None]
    return found


__all__ = ["ASKED", "Parts", "checked", "leaves", "parts"]
