"""What torch's functions are called on a tape, and which of them are special."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch.overrides import resolve_name

COMPOSITES = frozenset(
    {
        F.multi_head_attention_forward,
        F.normalize,
        F.local_response_norm,
        F.gumbel_softmax,
        F.cosine_embedding_loss,
        F.gaussian_nll_loss,
        F.softmin,
    }
)
"""Functions written in Python out of others: they are entered, so that their parts are seen."""

_SPECIAL = {
    "__radd__": "add", "__rsub__": "rsub", "__rmul__": "mul", "__rtruediv__": "rdiv", "__rdiv__": "rdiv",
    "__truediv__": "div", "__floordiv__": "floor_divide", "__rfloordiv__": "rfloor_divide", "__rpow__": "rpow",
    "__matmul__": "matmul", "__rmatmul__": "rmatmul", "true_divide": "div", "divide": "div", "multiply": "mul",
    "subtract": "sub", "negative": "neg", "concat": "cat", "concatenate": "cat", "absolute": "abs",
    "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "special_erf": "erf",
    "special_expit": "sigmoid", "conj": "alias", "clip": "clamp", "log_sigmoid": "logsigmoid",
    "_threshold": "threshold",
}  # fmt: skip
IGNORED = frozenset(
    {"requires_grad", "register_hook", "retain_grad", "set", "_set_grad_enabled", "item", "grad", "data_ptr", "storage"}
)
"""Functions that say something about a tensor and compute nothing."""
RANDOM = frozenset(
    {"randn", "rand", "randn_like", "rand_like", "randint", "randint_like", "randperm", "normal", "bernoulli",
     "multinomial", "poisson", "exponential", "uniform", "log_normal", "cauchy", "geometric", "empty", "empty_like"}
)  # fmt: skip
"""Functions whose result is drawn or undefined, so that equal arguments do not fix it."""


def op_name(function: Callable[..., Any]) -> str:
    """One name for all spellings of an operation: `torch.add`, `Tensor.add_` and `+` are `add`."""
    name = getattr(function, "__name__", "") or ""
    if name == "__get__":
        return (resolve_name(function) or "").split(".")[-2]
    if name in _SPECIAL:
        return _SPECIAL[name]
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if name.startswith("i") and name[1:] in ("add", "sub", "mul", "truediv", "div", "pow", "matmul", "and", "or"):
            name = name[1:]
        name = {"truediv": "div"}.get(name, name)
    elif name.endswith("_") and not name.startswith("_"):
        name = name[:-1]
    return _SPECIAL.get(name, name)


def is_inplace(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call overwrites its first argument."""
    name = getattr(function, "__name__", "") or ""
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return True
    if name.startswith("__i") and name.endswith("__") and name not in ("__invert__", "__index__", "__int__"):
        return True
    return bool(kwargs.get("inplace", False))
