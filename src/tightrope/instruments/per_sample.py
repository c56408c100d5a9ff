"""Squared norms of the gradients of single samples, by the cheapest way that proves right on two samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from tightrope.errors import InputError, RecordError
from tightrope.inputs import bind
from tightrope.instruments.ghost import Coupled, Ghost, Still, Unsupported
from tightrope.instruments.ghost_rules import RULES
from tightrope.step import scalar
from tightrope.subject import split

ASKED = "measure the noise of a batch"
EXACT = {torch.float64: 1e-7, torch.float32: 2e-3}
"""Relative difference of gradients that is rounding; other types: that of bfloat16."""
COARSE = 0.1
CHUNK = 1 << 26
"""Numbers of per-sample gradients that are held at once where they are made."""

Loss = Callable[..., Tensor]


def count(batch: Any) -> int:
    """Number of samples: length of the first tensor."""
    for leaf in tree_flatten(batch)[0]:
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return len(leaf)
    raise InputError(ASKED, "the batch holds no tensor with samples", "Pass a batch, or a loader of batches")


def cut(batch: Any, start: int, stop: int) -> Any:
    """The samples from `start` to `stop`: every tensor whose first dimension is the samples is cut."""
    n = count(batch)
    return tree_map(lambda x: x[start:stop] if _holds(x, n) else x, batch)


def _holds(x: Any, n: int) -> bool:
    return isinstance(x, Tensor) and x.dim() > 0 and len(x) == n


@dataclass(frozen=True, eq=False)
class PerSample:
    """How the gradients of single samples are had from one model and loss.

    Attributes:
        method: "ghost" (norms alone), "vmap" or "loop" (gradients are made, together or one after the other), "batch"
            (samples have none of their own).
        reduction: whether the loss is the "mean" or the "sum" over samples.
        reason: why it is not "ghost"; "" where it is.
        discrepancy: largest relative difference of a squared norm from that of a sample that passes the model alone,
            and of the gradient of two samples from that of each; None where randomness forbids to compare.
    """

    model: nn.Module = field(repr=False)
    loss: Loss | None = field(repr=False)
    method: str
    reduction: str = "mean"
    reason: str = ""
    discrepancy: float | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def __call__(self, batch: Any) -> tuple[Tensor | None, Tensor]:
        """Squared norms of the samples' gradients, shape (samples,), and the mean gradient, flat.

        The norms are None where `method` is "batch".
        """
        n = count(batch)
        if self.method == "batch":
            return None, gradient(self.model, batch, self.loss)
        if self.method == "ghost":
            squared, mean = ghost(self.model, batch, self.loss)
            return (squared * n * n, mean) if self.reduction == "mean" else (squared, mean / n)
        return (vmapped if self.method == "vmap" else looped)(self.model, batch, self.loss)


def value(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    """The loss of a batch.

    Raises:
        InputError: it is no number.
        RecordError: it has no gradient.
    """
    inputs, of_output = split(batch, loss)
    args, kwargs = bind(model, inputs)
    found = scalar(model(*args, **kwargs), of_output)
    if not isinstance(found, Tensor) or found.numel() != 1:
        what = f"a tensor of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError("take the loss", f"loss returned {what}", "Return one number, for example its mean")
    return found.sum()


def gradient(model: nn.Module, batch: Any, loss: Loss | None) -> Tensor:
    """Gradient of the loss of a batch, flat."""
    return _differentiate(model, value(model, batch, loss))


def _differentiate(model: nn.Module, found: Tensor) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not found.requires_grad:
        raise RecordError(
            "take the gradient of the loss", "it depends on no parameter that requires one",
            "Unfreeze a parameter (requires_grad_()), or check that the loss uses the model's output",
        )  # fmt: skip
    made = torch.autograd.grad(found, parameters, allow_unused=True)
    dense = (g.to_dense() if g is not None and g.is_sparse else g for g in made)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, dense)])


def ghost(model: nn.Module, batch: Any, loss: Loss | None, *, still: bool = False) -> tuple[Tensor, Tensor]:
    """Squared norms of the samples' contributions to the loss's gradient, and that gradient."""
    mode = Ghost((p for p in model.parameters() if p.requires_grad), count(batch), RULES, still=still)
    with mode:
        found = value(model, batch, loss)
    made = _differentiate(model, found)
    return mode.finish(), made


def looped(model: nn.Module, batch: Any, loss: Loss | None) -> tuple[Tensor, Tensor]:
    """Squared norms and mean of the gradients of samples that pass the model one after the other."""
    squared, total = [], None
    n = count(batch)
    for i in range(n):
        one = gradient(model, cut(batch, i, i + 1), loss)
        squared.append(torch.linalg.vector_norm(one).double().square())
        total = one if total is None else total + one
    assert total is not None
    return torch.stack(squared), total / n


def vmapped(model: nn.Module, batch: Any, loss: Loss | None) -> tuple[Tensor, Tensor]:
    """The same with the samples side by side: `torch.func.vmap` over `torch.func.grad`."""
    n = count(batch)
    leaves, spec = tree_flatten(batch)
    over = [i for i, leaf in enumerate(leaves) if _holds(leaf, n)]
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    rest = {k: v.detach() for k, v in (*model.named_parameters(), *model.named_buffers()) if k not in trained}
    wrapped = _Valued(model, loss)

    def single(parameters: dict[str, Tensor], *parts: Tensor) -> Tensor:
        own = list(leaves)
        for i, part in zip(over, parts):
            own[i] = part.unsqueeze(0)
        state = {f"model.{name}": t for name, t in {**parameters, **rest}.items()}
        return torch.func.functional_call(wrapped, state, (tree_unflatten(own, spec),))  # type: ignore[no-any-return]

    each = torch.func.vmap(
        torch.func.grad(single), in_dims=(None, *(0 for _ in over)), randomness="different"
    )  # fmt: skip
    step = max(CHUNK // max(sum(p.numel() for p in trained.values()), 1), 1)
    squared, total = [], None
    for i in range(0, n, step):
        made = each(trained, *(leaves[j][i : i + step] for j in over))
        flat = torch.cat([g.flatten(1) for g in made.values()], 1)
        squared.append(torch.linalg.vector_norm(flat, dim=1).double().square())
        total = flat.sum(0) if total is None else total + flat.sum(0)
    assert total is not None
    return torch.cat(squared), total / n


class _Valued(nn.Module):
    """Batch to loss, as a module, for `functional_call`."""

    def __init__(self, model: nn.Module, loss: Loss | None) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> Tensor:
        return value(self.model, batch, self.loss)


def find(model: nn.Module, batch: Any, loss: Loss | None) -> PerSample:
    """The cheapest way that gives, on the first two samples of a batch, what each gives alone.

    Dropout rests for the comparison. A loss that is neither mean nor sum of those of its samples (batch statistics,
    contrastive losses, means over a number of tokens that differs) has no gradient of a sample: "batch".
    """
    if count(batch) < 2:
        return PerSample(model, loss, "batch", reason="a batch holds one sample")
    pair = cut(batch, 0, 2)
    with Still():
        together = gradient(model, pair, loss)  # what is wrong with model or loss is raised here
        again = gradient(model, pair, loss)
    try:
        ghost(model, pair, loss, still=True)
    except Coupled as error:
        return PerSample(model, loss, "batch", reason=str(error))
    except Exception:  # the reason is asked for below
        pass
    if not torch.allclose(together, again, rtol=_tolerance(again), atol=0.0):
        return _random(model, pair, loss)
    try:
        with Still():
            ones = [gradient(model, cut(pair, i, i + 1), loss) for i in (0, 1)]
    except Exception as error:
        return PerSample(model, loss, "batch", reason=f"a sample cannot pass alone ({_words(error)})")
    reduction, off = _reduction(together, *ones)
    if reduction is None:
        why = f"the loss of two samples is neither mean nor sum of theirs (gradients differ by {off:.2g})"
        return PerSample(model, loss, "batch", reason=why, discrepancy=off)
    true = torch.stack([torch.linalg.vector_norm(one).double().square() for one in ones])
    return _cheapest(model, pair, loss, reduction, true, off)


def _tolerance(x: Tensor) -> float:
    return EXACT.get(x.dtype, COARSE)


def _reduction(together: Tensor, one: Tensor, two: Tensor) -> tuple[str | None, float]:
    """Whether a gradient of two samples is mean or sum of theirs, and by how much it is off, relative to them."""
    scale = max(float(one.norm()), float(two.norm()))
    offs = {
        name: float((together - (one + two) / parts).norm()) / scale if scale > 0 else float(together.norm())
        for name, parts in (("mean", 2), ("sum", 1))
    }
    name = min(offs, key=lambda key: offs[key])
    return (name if offs[name] <= _tolerance(one) else None), offs[name]


def _cheapest(model: nn.Module, pair: Any, loss: Loss | None, reduction: str, true: Tensor, off: float) -> PerSample:
    """The first of ghost norms, vmap and loop whose squared norms are the true ones."""
    why = []
    scale = max(float(true.max()), torch.finfo(torch.float64).tiny)
    for method in ("ghost", "vmap"):
        found = PerSample(model, loss, method, reduction)
        try:
            if method == "ghost":
                squared = ghost(model, pair, loss, still=True)[0] * (4 if reduction == "mean" else 1)
            else:
                with Still():
                    squared = found(pair)[0]  # type: ignore[assignment]
        except Exception as error:
            why.append(f"{method}: {_words(error)}")
            continue
        worst = float((squared - true).abs().max()) / scale
        if worst <= 2 * _tolerance(next(model.parameters())):
            return PerSample(model, loss, method, reduction, "; ".join(why), max(worst, off))
        why.append(f"{method}: samples are not told apart by the first dimension")
    return PerSample(model, loss, "loop", reduction, "; ".join(why), off)


def _random(model: nn.Module, pair: Any, loss: Loss | None) -> PerSample:
    """A model that draws random numbers other than dropout's: nothing can be compared, so samples pass alone."""
    why = "the model draws random numbers, so that ghost norms cannot be compared"
    for method, run in (("vmap", vmapped), ("loop", looped)):
        try:
            run(model, pair, loss)
        except Exception as error:
            why += f"; {method}: {_words(error)}"
            continue
        return PerSample(model, loss, method, "mean", why)
    return PerSample(model, loss, "batch", reason=why)


def _words(error: Exception) -> str:
    text = str(error).strip().splitlines()
    first = text[0].rstrip(".")[:120] if text else ""
    return first if isinstance(error, Unsupported) else f"{type(error).__name__}: {first}"


__all__ = ["PerSample", "count", "cut", "find", "gradient"]
