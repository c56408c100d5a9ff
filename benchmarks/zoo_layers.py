"""Every kind of layer of `torch.nn`, each between two linear or convolutional maps, for `coverage.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from models import Case
from torch import Tensor, nn

ROWS, WIDTH, LENGTH, EDGE = 16, 32, 12, 12


class Between(nn.Module):
    """A map, the layer or function that is tried, and, where its result has channels, a head."""

    def __init__(self, first: nn.Module, tried: nn.Module | Callable[..., Any], last: nn.Module | None) -> None:
        super().__init__()
        self.first, self.tried, self.last = first, tried, last

    def forward(self, x: Tensor) -> Tensor:
        y = self.tried(self.first(x))
        y = y[0] if isinstance(y, tuple) else y
        return y if self.last is None else self.last(y)


class Paired(nn.Module):
    """A layer or loss of two tensors, each a map of the input."""

    def __init__(self, tried: Callable[..., Any], *rest: Any, width: int = WIDTH) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, width), nn.Linear(WIDTH, width)
        self.tried, self.rest = tried, rest

    def forward(self, x: Tensor) -> Tensor:
        return self.tried(self.left(x), self.right(x), *self.rest)


def rows(tried: Any, out: int | None = WIDTH) -> tuple[nn.Module, Tensor]:
    return Between(nn.Linear(WIDTH, WIDTH), tried, nn.Linear(out, 8) if out else None), torch.randn(ROWS, WIDTH)


def tokens(tried: Any, out: int | None = WIDTH) -> tuple[nn.Module, Tensor]:
    model = Between(nn.Linear(WIDTH, WIDTH), tried, nn.Linear(out, 8) if out else None)
    return model, torch.randn(ROWS, LENGTH, WIDTH)


def maps(tried: Any, rank: int = 2, channels: int | None = 8) -> tuple[nn.Module, Tensor]:
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[rank]
    edge = {1: 48, 2: EDGE, 3: 8}[rank]
    last = conv(channels, 4, 1) if channels else None
    return Between(conv(3, 8, 3, padding=1), tried, last), torch.randn(ROWS, 3, *[edge] * rank)


def paired(tried: Callable[..., Any], *rest: Any, width: int = WIDTH) -> tuple[nn.Module, Tensor]:
    return Paired(tried, *rest, width=width), torch.randn(ROWS, WIDTH)


ACTIVATIONS = [
    *("ELU", "Hardshrink", "Hardsigmoid", "Hardtanh", "Hardswish", "LeakyReLU", "LogSigmoid", "PReLU", "ReLU", "ReLU6"),
    *("RReLU", "SELU", "CELU", "GELU", "Sigmoid", "SiLU", "Mish", "Softplus", "Softshrink", "Softsign", "Tanh"),
    "Tanhshrink",
]


def targets(name: str) -> tuple[Any, ...]:
    """What a loss takes beside its input of `ROWS` rows."""
    classes = torch.arange(ROWS) % WIDTH
    signs = (torch.arange(ROWS) % 2 * 2 - 1).float()
    return {
        "CrossEntropyLoss": (classes,), "NLLLoss": (classes,), "MultiMarginLoss": (classes,),
        "MultiLabelMarginLoss": (F.one_hot(classes, WIDTH) - 1,),
        "MultiLabelSoftMarginLoss": (F.one_hot(classes, WIDTH).float(),),
        "BCEWithLogitsLoss": (F.one_hot(classes, WIDTH).float(),), "BCELoss": (F.one_hot(classes, WIDTH).float(),),
        "SoftMarginLoss": (F.one_hot(classes, WIDTH).float() * 2 - 1,),
        "HingeEmbeddingLoss": (F.one_hot(classes, WIDTH).float() * 2 - 1,),
        "KLDivLoss": (torch.full((ROWS, WIDTH), 1 / WIDTH),), "PoissonNLLLoss": (torch.ones(ROWS, WIDTH),),
        "GaussianNLLLoss": (torch.randn(ROWS, WIDTH), torch.ones(ROWS, WIDTH)),
        "CosineEmbeddingLoss": (signs,), "MarginRankingLoss": (torch.ones(ROWS, WIDTH),),
    }.get(name, (torch.randn(ROWS, WIDTH),))  # fmt: skip


class Loss(nn.Module):
    """The loss of a linear map of the input."""

    def __init__(self, name: str, link: nn.Module) -> None:
        super().__init__()
        self.first, self.link, self.loss = nn.Linear(WIDTH, WIDTH), link, getattr(nn, name)()
        self.targets = targets(name)

    def forward(self, x: Tensor) -> Tensor:
        return self.loss(self.link(self.first(x)), *self.targets)


def loss(name: str) -> tuple[nn.Module, Tensor]:
    links: dict[str, Any] = {"NLLLoss": nn.LogSoftmax(-1), "KLDivLoss": nn.LogSoftmax(-1), "BCELoss": nn.Sigmoid()}
    return Loss(name, links.get(name, nn.Identity())), torch.randn(ROWS, WIDTH)


class Ctc(nn.Linear):
    """The connectionist loss of a linear map."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).log_softmax(-1).transpose(0, 1)
        full = torch.full((ROWS,), LENGTH)
        return F.ctc_loss(y, torch.ones(ROWS, 4, dtype=torch.long), full, full // 3)


class Triplet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return F.triplet_margin_loss(*(layer(x) for layer in self.maps))


class Table(nn.Module):
    """An embedding and a head."""

    def __init__(self, table: nn.Module) -> None:
        super().__init__()
        self.table, self.head = table, nn.Linear(WIDTH, 8)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids))


def table(layer: nn.Module) -> tuple[nn.Module, Any]:
    return Table(layer), {"ids": torch.randint(0, 50, (ROWS, LENGTH))}


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Transformer(WIDTH, 4, 1, 1, 64, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, tgt_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]))


class Attending(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x, x, **self.options)[0]


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[Tensor], Any], int | None]] = {
    # name: (frame, function, channels of the result)
    "softmax": (rows, lambda x: x.softmax(-1), WIDTH),
    "log_softmax": (rows, lambda x: x.log_softmax(-1), WIDTH),
    "softmin": (rows, lambda x: F.softmin(x, -1), WIDTH),
    "glu": (rows, lambda x: F.glu(x), WIDTH // 2),
    "gumbel_softmax": (rows, lambda x: F.gumbel_softmax(x), WIDTH),
    "normalize": (tokens, lambda x: F.normalize(x, dim=-1), WIDTH),
    "logsumexp": (tokens, lambda x: x.logsumexp(1), WIDTH),
    "cumsum": (tokens, lambda x: x.cumsum(1), WIDTH),
    "cumprod": (tokens, lambda x: x.cumprod(1), WIDTH),
    "logcumsumexp": (tokens, lambda x: x.logcumsumexp(1), WIDTH),
    "cummax": (tokens, lambda x: x.cummax(1).values, WIDTH),
    "cumsum of channels": (tokens, lambda x: x.cumsum(-1), WIDTH),
    "sort": (tokens, lambda x: x.sort(1).values, WIDTH),
    "topk": (tokens, lambda x: x.topk(4, 1).values, WIDTH),
    "argmax, one_hot": (tokens, lambda x: x * F.one_hot(x.argmax(-1), WIDTH), WIDTH),
    "gather": (tokens, lambda x: x.gather(1, x.argmax(1, keepdim=True)), WIDTH),
    "take_along_dim": (tokens, lambda x: torch.take_along_dim(x, x.argsort(1), 1), WIDTH),
    "scatter": (tokens, lambda x: torch.zeros_like(x).scatter(1, x.argmax(1, keepdim=True), 1.0) * x, WIDTH),
    "index_select": (tokens, lambda x: x.index_select(1, torch.tensor([3, 1, 2])), WIDTH),
    "index_add": (tokens, lambda x: torch.zeros_like(x).index_add(1, torch.arange(LENGTH) % 3, x), WIDTH),
    "scatter_add": (
        tokens,
        lambda x: torch.zeros_like(x).scatter_add(1, (torch.arange(LENGTH) % 3)[None, :, None].expand_as(x), x),
        WIDTH,
    ),
    "roll": (tokens, lambda x: x.roll(2, 1), WIDTH),
    "flip": (tokens, lambda x: x.flip(1), WIDTH),
    "diff": (tokens, lambda x: x.diff(dim=1), WIDTH),
    "prod": (tokens, lambda x: x[:, :3].prod(1), WIDTH),
    "median": (tokens, lambda x: x.median(1).values, WIDTH),
    "kthvalue": (tokens, lambda x: x.kthvalue(2, 1).values, WIDTH),
    "quantile": (tokens, lambda x: x.quantile(0.5, 1), WIDTH),
    "aminmax": (tokens, lambda x: torch.sub(*reversed(x.aminmax(dim=1))), WIDTH),
    "tril": (tokens, lambda x: x.tril(), WIDTH),
    "where": (tokens, lambda x: torch.where(x > 0, x, x * 0.1), WIDTH),
    "masked_fill": (tokens, lambda x: x.masked_fill(x < 0, 0.5), WIDTH),
    "clamp": (tokens, lambda x: x.clamp(-0.3, 0.4), WIDTH),
    "var": (tokens, lambda x: x.var(1), WIDTH),
    "std": (tokens, lambda x: x.std(1), WIDTH),
    "norm": (tokens, lambda x: x.norm(dim=1), WIDTH),
    "l1 norm": (tokens, lambda x: x.norm(1, dim=1), WIDTH),
    "cdist": (tokens, lambda x: torch.cdist(x, x), LENGTH),
    "einsum of itself": (tokens, lambda x: torch.einsum("bid,bjd->bij", x, x), LENGTH),
    "einsum over sites": (tokens, lambda x: torch.einsum("bid,bie->bde", x, x), WIDTH),
    "einsum of heads": (
        tokens,
        lambda x: torch.einsum(
            "bhid,bhjd->bhij", x.view(ROWS, LENGTH, 4, 8).transpose(1, 2), x.view(ROWS, LENGTH, 4, 8).transpose(1, 2)
        ),
        LENGTH,
    ),
    "baddbmm": (
        tokens,
        lambda x: torch.baddbmm(torch.zeros(ROWS, LENGTH, LENGTH), x, x.transpose(1, 2), beta=1.0, alpha=0.1),
        LENGTH,
    ),
    "bmm": (tokens, lambda x: torch.bmm(x, x.transpose(1, 2)), LENGTH),
    "outer": (rows, lambda x: x.unsqueeze(-1) * x.unsqueeze(-2), WIDTH),
    "fft": (tokens, lambda x: torch.fft.fft(x, dim=1).real, WIDTH),
    "fft2 of fnet": (tokens, lambda x: torch.fft.fftn(x, dim=(1, 2)).real, WIDTH),
    "rfft, filter, irfft": (
        tokens,
        lambda x: torch.fft.irfft(
            torch.fft.rfft(x, dim=1, norm="ortho") * torch.exp(1j * torch.arange(LENGTH // 2 + 1.0))[:, None],
            n=LENGTH,
            dim=1,
            norm="ortho",
        ),
        WIDTH,
    ),
    "view_as_complex": (
        tokens,
        lambda x: torch.view_as_real(
            torch.view_as_complex(x.reshape(ROWS, LENGTH, 16, 2)) * torch.exp(1j * torch.arange(16.0))
        ).flatten(2),
        WIDTH,
    ),
    "rsqrt, pow": (tokens, lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(), WIDTH),
    "unfold of a tensor": (tokens, lambda x: x.unfold(1, 4, 2).mean(-1), WIDTH),
    "repeat": (tokens, lambda x: x.repeat(1, 2, 1), WIDTH),
    "repeat_interleave": (tokens, lambda x: x.repeat_interleave(2, 1), WIDTH),
    "meshgrid": (
        tokens,
        lambda x: (
            x
            + torch.stack(torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij"))
            .flatten(1)
            .sum(0)[:, None]
        ),
        WIDTH,
    ),
    "atan2": (tokens, lambda x: torch.atan2(x, x.roll(1, 1)), WIDTH),
    "hypot": (tokens, lambda x: torch.hypot(x, x.flip(1)), WIDTH),
    "lerp": (tokens, lambda x: torch.lerp(x, x.roll(1, 1), 0.3), WIDTH),
    "addcmul": (tokens, lambda x: torch.addcmul(x, x.roll(1, 1), x, value=0.5), WIDTH),
    "maximum": (tokens, lambda x: torch.maximum(x, x.roll(1, 1)), WIDTH),
    "straight through": (tokens, lambda x: x + (x.round() - x).detach(), WIDTH),
    "complex angle": (tokens, lambda x: torch.polar(x.abs(), x).abs(), WIDTH),
    "stack, unbind": (tokens, lambda x: torch.stack(x.unbind(1)[:4]).mean(0), WIDTH),
    "boolean mask": (tokens, lambda x: x[:, torch.arange(LENGTH) % 2 == 0], WIDTH),
    "trapezoid": (tokens, lambda x: torch.trapezoid(x, dim=1), WIDTH),
    "pad": (maps, lambda x: F.pad(x, (1, 2, 0, 1)), 8),
    "reflect": (maps, lambda x: F.pad(x, (2, 2, 2, 2), mode="reflect"), 8),
    "grid_sample": (maps, lambda x: F.grid_sample(x, torch.rand(ROWS, 5, 5, 2) * 2 - 1, align_corners=False), 8),
    "affine_grid": (
        maps,
        lambda x: F.grid_sample(
            x, F.affine_grid(torch.eye(2, 3).expand(ROWS, 2, 3), x.shape, align_corners=False), align_corners=False
        ),
        8,
    ),
    "unfold, fold": (maps, lambda x: F.fold(F.unfold(x, 3, padding=1), (EDGE, EDGE), 3, padding=1), 8),
    "local_response_norm": (maps, lambda x: F.local_response_norm(x, 3), 8),
}


def layers() -> dict[str, Callable[[], tuple[nn.Module, Any]]]:
    """Builders by name."""
    found: dict[str, Any] = {name: partial(rows, getattr(nn, name)()) for name in ACTIVATIONS}
    losses = [name for name in dir(nn) if name.endswith("Loss") and "Triplet" not in name and "CTC" not in name]
    two = ("CosineEmbeddingLoss", "MarginRankingLoss")
    for name in losses:
        if name in ("AdaptiveLogSoftmaxWithLoss", "LinearCrossEntropyLoss", "NLLLoss2d", *two):
            continue
        found[name] = partial(loss, name)
    for name in two:
        found[name] = lambda name=name: paired(getattr(nn, name)(), *targets(name))
    found |= {
        "CTCLoss": lambda: (Ctc(WIDTH, 6), torch.randn(ROWS, LENGTH, WIDTH)),
        "TripletMarginLoss": lambda: (Triplet(), torch.randn(ROWS, WIDTH)),
        "CosineSimilarity": lambda: paired(nn.CosineSimilarity()),
        "PairwiseDistance": lambda: paired(nn.PairwiseDistance()),
        "Bilinear": lambda: paired(nn.Bilinear(WIDTH, WIDTH, 8)),
        "Transformer": lambda: (Translator(), torch.randn(ROWS, LENGTH, WIDTH)),
        "MultiheadAttention": lambda: (Attending(), torch.randn(ROWS, LENGTH, WIDTH)),
        "MultiheadAttention, no weights": lambda: (Attending(need_weights=False), torch.randn(ROWS, LENGTH, WIDTH)),
        "Embedding": lambda: table(nn.Embedding(50, WIDTH, padding_idx=0)),
        "Embedding, max_norm": lambda: table(nn.Embedding(50, WIDTH, max_norm=1.0)),
        "EmbeddingBag": lambda: table(nn.EmbeddingBag(50, WIDTH)),
        "EmbeddingBag, sum": lambda: table(nn.EmbeddingBag(50, WIDTH, mode="sum")),
        "EmbeddingBag, max": lambda: table(nn.EmbeddingBag(50, WIDTH, mode="max")),
        "spectral_norm": lambda: rows(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH))),
        "weight_norm": lambda: rows(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))),
        "orthogonal": lambda: rows(nn.utils.parametrizations.orthogonal(nn.Linear(WIDTH, WIDTH))),
        "weight_norm of conv": lambda: maps(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))),
        "BatchNorm1d": lambda: rows(nn.BatchNorm1d(WIDTH)),
        "LayerNorm": lambda: tokens(nn.LayerNorm(WIDTH)),
        "RMSNorm": lambda: tokens(nn.RMSNorm(WIDTH)),
        "Dropout": lambda: tokens(nn.Dropout(0.2)),
        "AlphaDropout": lambda: tokens(nn.AlphaDropout(0.2)),
        "FeatureAlphaDropout": lambda: maps(nn.FeatureAlphaDropout(0.2)),
        "Flatten, Unflatten": lambda: rows(nn.Sequential(nn.Unflatten(1, (4, 8)), nn.Flatten())),
        "AdaptiveLogSoftmax": lambda: rows(nn.AdaptiveLogSoftmaxWithLoss(WIDTH, 20, [5, 10]).log_prob, 20),
        "PixelShuffle": lambda: maps(nn.PixelShuffle(2), channels=2),
        "PixelUnshuffle": lambda: maps(nn.PixelUnshuffle(2), channels=32),
        "ChannelShuffle": lambda: maps(nn.ChannelShuffle(2)),
        "Softmax2d": lambda: maps(nn.Softmax2d()),
        "Threshold": lambda: rows(nn.Threshold(0.1, 0.0)),
        "GLU": lambda: rows(nn.GLU(), WIDTH // 2),
        "Fold": lambda: maps(nn.Sequential(nn.Unfold(2, stride=2), nn.Fold((EDGE, EDGE), 2, stride=2))),
        "UpsamplingNearest2d": lambda: maps(nn.UpsamplingNearest2d(scale_factor=2)),
        "GroupNorm": lambda: maps(nn.GroupNorm(4, 8)),
        "UpsamplingBilinear2d": lambda: maps(nn.UpsamplingBilinear2d(scale_factor=2)),
        "MaxUnpool2d": lambda: maps(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)),
        "FractionalMaxPool2d": lambda: maps(nn.FractionalMaxPool2d(2, output_size=5)),
    }
    for rank in (1, 2, 3):
        for name in (
            f"BatchNorm{rank}d", f"InstanceNorm{rank}d", f"MaxPool{rank}d", f"AvgPool{rank}d", f"LPPool{rank}d",
            f"AdaptiveAvgPool{rank}d", f"AdaptiveMaxPool{rank}d", f"ZeroPad{rank}d", f"ConstantPad{rank}d",
            f"ReflectionPad{rank}d", f"ReplicationPad{rank}d", f"CircularPad{rank}d", f"Dropout{rank}d",
        ):  # fmt: skip
            found[name if "Norm1" not in name else f"{name} of maps"] = partial(_ranked, name, rank)
        conv, back = getattr(nn, f"Conv{rank}d"), getattr(nn, f"ConvTranspose{rank}d")
        for label, options in {"grouped": {"groups": 4}, "dilated": {"dilation": 2}, "strided": {"stride": 2}}.items():
            found[f"Conv{rank}d {label}"] = partial(
                lambda conv, rank, options: maps(conv(8, 8, 3, **options), rank), conv, rank, options
            )
            found[f"ConvTranspose{rank}d {label}"] = partial(
                lambda conv, rank, options: maps(conv(8, 8, 3, **options), rank), back, rank, options
            )
        for padding in ("reflect", "replicate", "circular"):
            found[f"Conv{rank}d {padding}"] = partial(
                lambda conv, rank, padding: maps(conv(8, 8, 3, padding=1, padding_mode=padding), rank),
                conv,
                rank,
                padding,
            )
    for mode in ("nearest", "bilinear", "bicubic"):
        found[f"Upsample {mode}"] = lambda mode=mode: maps(nn.Upsample(scale_factor=2, mode=mode))
    for name in ("RNN", "LSTM", "GRU"):
        found[f"{name}, two ways"] = lambda name=name: tokens(
            getattr(nn, name)(WIDTH, WIDTH, 2, batch_first=True, bidirectional=True), 2 * WIDTH
        )
        found[f"{name}Cell"] = lambda name=name: rows(getattr(nn, f"{name}Cell")(WIDTH, WIDTH))
    for name, (frame, function, out) in FUNCTIONS.items():
        key = "channels" if frame is maps else "out"
        found[name] = partial(frame, function, **{key: out})
    return found


def _ranked(name: str, rank: int) -> tuple[nn.Module, Tensor]:
    arguments = {
        "Norm": (8,),
        "LPPool": (2, 2),
        "MaxPool": (3,),
        "AvgPool": (3,),
        "ZeroPad": (1,),
        "ConstantPad": (1, 0.5),
    }
    arguments |= {
        "ReflectionPad": (2,),
        "ReplicationPad": (2,),
        "CircularPad": (2,),
        "Dropout": (0.2,),
        "Adaptive": (3,),
    }
    key = "Adaptive" if name.startswith("Adaptive") else next(k for k in arguments if k in name)
    return maps(getattr(nn, name)(*arguments[key]), rank)


def layer_cases() -> Iterator[Case]:
    for name, build in layers().items():
        yield Case("layers", name, build)
