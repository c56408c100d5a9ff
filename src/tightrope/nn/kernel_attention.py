"""Attention as Nadaraya-Watson regression: any kernel, with torch's attention as the exponential one."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightrope.errors import InputError
from tightrope.nn.kernels import KERNELS, natural_bandwidth, weights


def kernel_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, kernel: str = "exponential", bandwidth: Tensor | float | None = None,
) -> Tensor:  # fmt: skip
    """The Nadaraya-Watson estimate at each query: the average of the values, weighted by a kernel of query and key.

    With u = |q - k| / h the kernels are `exponential` exp(q.k / h^2), `gaussian` exp(-u^2 / 2), `cauchy` 1 / (1 + u^2),
    and, for u < 1 alone, `epanechnikov` 1 - u^2, `biweight` (1 - u^2)^2 and `triweight` (1 - u^2)^3. The exponential
    kernel with its natural bandwidth h = d^(1/4) is `torch.nn.functional.scaled_dot_product_attention`; the Gaussian
    kernel is that with each key's logit lowered by |k|^2 / (2 h^2). A query with no key, behind a mask or beyond a
    compact kernel's reach, gets zeros.

    Args:
        query: (..., L, d).
        key: (..., S, d).
        value: (..., S, e).
        attn_mask: broadcast against (..., L, S); boolean, True where a key takes part, or a float that is added to the
            kernel's logarithm.
        dropout_p: probability with which a weight is dropped; the rest is divided by 1 - dropout_p.
        is_causal: whether query i sees keys up to i alone.
        kernel: see above.
        bandwidth: h, a number or a tensor that broadcasts against (..., L, S); None for d^(1/4), and 2 sqrt(d) for
            kernels of compact support.

    Returns:
        (..., L, e).

    Raises:
        InputError: there is no such kernel, or both a mask and `is_causal` were given.

    References:
        Nadaraya (1964), On estimating regression; Watson (1964), Smooth regression analysis; Tsai et al. (2019),
        Transformer dissection: a unified understanding of transformer's attention via the lens of kernel, EMNLP;
        Vaswani et al. (2017), Attention is all you need.
    """
    _check(kernel)
    if is_causal:
        if attn_mask is not None:
            raise InputError("attend", "both attn_mask and is_causal", "Put the causal mask into attn_mask")
        attn_mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    h = natural_bandwidth(kernel, query.shape[-1]) if bandwidth is None else bandwidth
    found = weights(query, key, kernel, h, attn_mask)
    return torch.matmul(F.dropout(found, dropout_p) if dropout_p > 0 else found, value)


class KernelAttention(nn.Module):
    """Multi-head attention with a kernel of one's choice and, where asked for, a learnt bandwidth for each head.

    Parameters, arguments and results are those of `torch.nn.MultiheadAttention`, and so is what the exponential kernel
    computes. Without a learnt bandwidth the two have the same `state_dict`.

    Args:
        embed_dim: width of the model.
        num_heads: number of heads, a divisor of the width; each has d = embed_dim / num_heads.
        kernel: "exponential", "gaussian", "cauchy", "epanechnikov", "biweight" or "triweight"; see
            `kernel_attention`.
        bandwidth: h in the unit of queries and keys; None for d^(1/4), and 2 sqrt(d) for kernels of compact support.
        learn_bandwidth: whether each head learns its own, from there on.
        dropout: probability with which a weight is dropped in training.
        bias: whether the projections have biases.
        batch_first: whether inputs are (N, L, E) or (L, N, E).

    Shape:
        query (N, L, E), key and value (N, S, E), or without N; output of the query's shape, weights (N, L, S).

    Raises:
        InputError: the heads do not divide the width, or there is no such kernel.

    References:
        As for `kernel_attention`.
    """

    in_proj_bias: Tensor | None
    log_bandwidth: Tensor | None

    def __init__(
        self, embed_dim: int, num_heads: int, *, kernel: str = "exponential", bandwidth: float | None = None,
        learn_bandwidth: bool = False, dropout: float = 0.0, bias: bool = True, batch_first: bool = True,
        device: torch.device | str | None = None, dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        _check(kernel)
        if embed_dim % num_heads:
            found = f"{num_heads} heads do not divide a width of {embed_dim}"
            raise InputError("make KernelAttention", found, "Pass a divisor of the width")
        where: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed_dim, self.num_heads, self.head_dim = embed_dim, num_heads, embed_dim // num_heads
        self.kernel, self.dropout, self.batch_first = kernel, dropout, batch_first
        self.bandwidth = natural_bandwidth(kernel, self.head_dim) if bandwidth is None else float(bandwidth)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * embed_dim, embed_dim, **where))
        self.register_parameter(
            "in_proj_bias",
            nn.Parameter(torch.zeros(3 * embed_dim, **where)) if bias else None,
        )
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, **where)
        start = torch.full((num_heads,), math.log(self.bandwidth), **where)
        self.register_parameter("log_bandwidth", nn.Parameter(start) if learn_bandwidth else None)
        self._qkv_same_embed_dim = False  # keeps torch's encoder layers from their fused path, which knows one kernel
        nn.init.xavier_uniform_(self.in_proj_weight)
        if bias:
            nn.init.zeros_(self.out_proj.bias)

    @classmethod
    def from_attention(
        cls, attention: nn.MultiheadAttention, *, kernel: str = "exponential", bandwidth: float | None = None,
        learn_bandwidth: bool = False,
    ) -> KernelAttention:  # fmt: skip
        """The layer in place of torch's, with copies of its weights; the exponential kernel computes the same.

        Raises:
            InputError: its keys or values have a width of their own, or it adds keys.
        """
        if not attention._qkv_same_embed_dim or attention.bias_k is not None or attention.add_zero_attn:
            found = "an attention with kdim, vdim, add_bias_kv or add_zero_attn"
            raise InputError("make KernelAttention", found, "Pass one of a single width and without added keys")
        weight = attention.in_proj_weight
        made = cls(
            attention.embed_dim, attention.num_heads, kernel=kernel, bandwidth=bandwidth,
            learn_bandwidth=learn_bandwidth, dropout=attention.dropout, bias=attention.in_proj_bias is not None,
            batch_first=attention.batch_first, device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        made.load_state_dict(attention.state_dict(), strict=not learn_bandwidth)
        return made.train(attention.training)

    def to_attention(self) -> nn.MultiheadAttention:
        """torch's attention that computes the same; a bandwidth other than torch's goes into the queries' weights.

        Raises:
            InputError: the kernel is not the exponential one.
        """
        if self.kernel != "exponential":
            raise InputError("convert KernelAttention", f"its kernel is {self.kernel}", "torch has the exponential one")
        weight, bias = self.in_proj_weight, self.in_proj_bias
        made = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, bias is not None, batch_first=self.batch_first,
            device=weight.device, dtype=weight.dtype,
        )  # fmt: skip
        made.load_state_dict({n: t for n, t in self.state_dict().items() if n != "log_bandwidth"})
        h = torch.as_tensor(self._bandwidths()).detach().double().flatten()
        factor = (self.head_dim**0.5 / h.square()).expand(self.num_heads).repeat_interleave(self.head_dim)
        with torch.no_grad():
            for part in (made.in_proj_weight, made.in_proj_bias):
                if part is not None:
                    rows = factor.to(part.dtype).view(-1, *[1] * (part.dim() - 1))
                    part[: self.embed_dim].mul_(rows)
        return made.train(self.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """The attended values and, where asked for, the weights; masks as in torch: True, or -inf, hides a key.

        `is_causal` says that `attn_mask` is the causal mask; without a mask it makes one.
        """
        single = query.dim() == 2
        if single:
            query, key, value = (t.unsqueeze(0 if self.batch_first else 1) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        if not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._projected(query, key, value)
        mask = self._mask(q, k, key_padding_mask, attn_mask, is_causal)
        found = weights(q, k, self.kernel, self._bandwidths(), mask)
        found = F.dropout(found, self.dropout, self.training) if self.dropout > 0 else found
        out = self.out_proj(torch.matmul(found, v).transpose(1, 2).flatten(2))
        if not self.batch_first:
            out = out.transpose(0, 1)
        shown = (found.mean(1) if average_attn_weights else found) if need_weights else None
        if single:
            return out.squeeze(0 if self.batch_first else 1), None if shown is None else shown.squeeze(0)
        return out, shown

    def extra_repr(self) -> str:
        """Width, heads, kernel and bandwidth."""
        learnt = "learnt" if self.log_bandwidth is not None else f"{self.bandwidth:.4g}"
        return (
            f"{self.embed_dim}, heads={self.num_heads}, kernel={self.kernel}, bandwidth={learnt}, "
            f"dropout={self.dropout:g}, batch_first={self.batch_first}"
        )

    def _bandwidths(self) -> Tensor | float:
        """Of each head; shape (heads, 1, 1), or one number."""
        return self.bandwidth if self.log_bandwidth is None else self.log_bandwidth.exp().view(-1, 1, 1)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values by head; shape (N, heads, L, d)."""
        matrices = self.in_proj_weight.chunk(3)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        made = []
        for x, matrix, bias in zip((query, key, value), matrices, biases, strict=True):
            y = F.linear(x, matrix, bias)
            made.append(y.view(*y.shape[:2], self.num_heads, self.head_dim).transpose(1, 2))
        return made[0], made[1], made[2]

    def _mask(
        self, q: Tensor, k: Tensor, padding: Tensor | None, attn_mask: Tensor | None, is_causal: bool
    ) -> Tensor | None:
        """All masks as one: boolean, True where a key takes part, or a float to add."""
        parts: list[Tensor] = []
        if padding is not None:
            parts.append(padding[:, None, None, :])
        if attn_mask is not None:
            each = attn_mask.dim() == 3
            parts.append(attn_mask.unflatten(0, (-1, self.num_heads)) if each else attn_mask)
        elif is_causal:
            parts.append(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1))
        hiding = [part for part in parts if part.dtype is torch.bool]
        hidden = None if not hiding else hiding[0] if len(hiding) == 1 else hiding[0] | hiding[1]
        added = [part for part in parts if part.dtype is not torch.bool]
        if not added:
            return None if hidden is None else ~hidden
        total = added[0] if len(added) == 1 else added[0] + added[1]
        return total if hidden is None else total.masked_fill(hidden, -math.inf)


def _check(kernel: str) -> None:
    if kernel not in KERNELS:
        raise InputError("attend", f"there is no kernel {kernel!r}", f"Choose one of {', '.join(KERNELS)}")


__all__ = ["KernelAttention", "kernel_attention"]
