"""The models whose forecasts are judged, at their default initialisation, each with a batch of inputs, by group."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from standins import torchvision

NO_MARKS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
"""Ids of text marks, which lie outside of a small vocabulary."""
VOCABULARY = 1000


@dataclass(frozen=True)
class Goal:
    """Relative errors that a group is to stay below: (median, 90th percentile) of std and of gradient rms."""

    forward: tuple[float, float]
    backward: tuple[float, float]


@dataclass(frozen=True)
class Case:
    """One model with its inputs; `build` draws both from torch's global generator."""

    group: str
    name: str
    build: Callable[[], tuple[nn.Module, Any]]


GOALS = {
    "convolution, noise": Goal((0.01, 0.05), (0.05, 0.20)),
    "convolution, pictures": Goal((0.02, 0.10), (0.10, 0.30)),
    "vision tokens": Goal((0.005, 0.03), (0.03, 0.10)),
    "language": Goal((0.01, 0.05), (0.05, 0.20)),
    "mlp": Goal((0.01, 0.03), (0.05, 0.20)),
    "recurrent": Goal((0.02, 0.08), (0.10, 0.30)),
}


# --- pictures ---------------------------------------------------------------------------------------------------------

CONVOLUTIONAL = (
    "resnet18", "resnet50", "vgg16", "vgg16_bn", "densenet121", "mobilenetv2_100", "mobilenetv3_large_100",
    "efficientnet_b0", "regnety_004", "inception_v3",
)  # fmt: skip
TOKENS = {
    "convnext_tiny": {}, "vit_tiny_patch16_224": {}, "deit_tiny_patch16_224": {}, "mixer_s16_224": {},
    "swin_tiny_patch4_window7_224": {},
}  # fmt: skip


@cache
def photographs() -> tuple[Tensor, ...]:
    """Colour pictures that scikit-learn and scikit-image ship, (3, height, width) in [0, 1]."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    pictures = [*load_sample_images().images, data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    return tuple(torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255 for picture in pictures)


def crops(batch: int, size: int) -> Tensor:
    """Random crops of real pictures, each between half and all of the height, normalised by channel as for ImageNet."""
    images = []
    for _ in range(batch):
        picture = photographs()[int(torch.randint(len(photographs()), ()))]
        edge = int(min(picture.shape[1:]) * (0.5 + 0.5 * torch.rand(())))
        top, left = (int(torch.randint(length - edge + 1, ())) for length in picture.shape[1:])
        part = picture[None, :, top : top + edge, left : left + edge]
        images.append(F.interpolate(part, (size, size), mode="bilinear", antialias=True, align_corners=False))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (torch.cat(images) - mean[:, None, None]) / std[:, None, None]


def picture_model(name: str, size: int, batch: int = 8, *, real: bool = False, **options: Any) -> tuple[nn.Module, Any]:
    torchvision()
    import timm

    model = timm.create_model(name, num_classes=10, **options)
    return model, crops(batch, size) if real else torch.randn(batch, 3, size, size)


# --- language ---------------------------------------------------------------------------------------------------------


def tokens(length: int = 64, *, zipf: bool = False) -> Tensor:
    """(8, length) token ids: all alike probable, or by Zipf's law with exponent 1."""
    if not zipf:
        return torch.randint(VOCABULARY, (8, length))
    weights = 1.0 / torch.arange(1, VOCABULARY + 1)
    return torch.multinomial(weights, 8 * length, replacement=True).view(8, length)


def gpt2(ids: Tensor) -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=6, n_embd=384, n_head=6, vocab_size=VOCABULARY, n_positions=128, **NO_MARKS)
    return GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids, "use_cache": False}


def bert(ids: Tensor) -> tuple[nn.Module, Any]:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536, vocab_size=VOCABULARY
    )
    return BertForMaskedLM(config), {"input_ids": ids, "labels": ids}


def llama(ids: Tensor) -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6, num_key_value_heads=3,
        vocab_size=VOCABULARY, **NO_MARKS,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids, "use_cache": False}


def t5(ids: Tensor) -> tuple[nn.Module, Any]:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        d_model=384, d_kv=64, d_ff=1536, num_layers=6, num_heads=6, vocab_size=VOCABULARY, decoder_start_token_id=0
    )
    return T5ForConditionalGeneration(config), {"input_ids": ids, "labels": ids.roll(1, 1), "use_cache": False}


def opt(ids: Tensor) -> tuple[nn.Module, Any]:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        hidden_size=384, ffn_dim=1536, num_hidden_layers=6, num_attention_heads=6, vocab_size=VOCABULARY,
        word_embed_proj_dim=384, max_position_embeddings=128, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    return OPTForCausalLM(config), {"input_ids": ids, "labels": ids, "use_cache": False}


LANGUAGE = {"gpt2": gpt2, "bert": bert, "llama": llama, "t5": t5, "opt": opt}


# --- plain and recurrent nets -----------------------------------------------------------------------------------------

ACTIVATIONS = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "sigmoid": nn.Sigmoid, "selu": nn.SELU,
}  # fmt: skip
NORMALISERS: dict[str, Callable[[int], nn.Module] | None] = {"": None, "ln": nn.LayerNorm, "bn": nn.BatchNorm1d}
GAINS = {"relu": "relu", "tanh": "tanh", "gelu": "relu", "silu": "relu", "sigmoid": "sigmoid", "selu": "selu"}


def mlp(activation: str, depth: int, width: int = 256, normaliser: str = "") -> tuple[nn.Module, Any]:
    """Linear layers with He's initialisation by the activation's gain, a normaliser behind each if one is named."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity=GAINS[activation])
        nn.init.zeros_(linear.bias)
        make = NORMALISERS[normaliser]
        layers += [linear, *([make(width)] if make else []), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers), torch.randn(64, width)


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last time step."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


def recurrent(kind: type[nn.RNNBase], layers: int) -> tuple[nn.Module, Any]:
    return Recurrent(kind(32, 128, layers, batch_first=True), 128), torch.randn(32, 64, 32)


# --- the table --------------------------------------------------------------------------------------------------------


def cases(size: int = 224) -> list[Case]:
    """Every case, in the order of the table; `size` is the edge of the convolutional nets' pictures."""
    found: list[Case] = []

    def add(group: str, name: str, build: Callable[..., tuple[nn.Module, Any]], *args: Any, **options: Any) -> None:
        found.append(Case(group, name, lambda: build(*args, **options)))

    for name in CONVOLUTIONAL:
        add("convolution, noise", name, picture_model, name, max(size, 96) if name == "inception_v3" else size)
    for name in ("resnet18", "resnet50"):
        add("convolution, noise", f"{name}, gammas 1", picture_model, name, size, zero_init_last=False)
    for name in CONVOLUTIONAL:
        edge = max(size, 96) if name == "inception_v3" else size
        add("convolution, pictures", name, picture_model, name, edge, real=True)
    for name, options in TOKENS.items():
        add("vision tokens", name, picture_model, name, 224, **options)
    for name, make in LANGUAGE.items():
        for zipf in (False, True):
            add("language", f"{name}{', zipf' if zipf else ''}", lambda m=make, z=zipf: m(tokens(zipf=z)))
    for depth in (10, 50, 100):
        for name in ACTIVATIONS:
            for normaliser in NORMALISERS:
                label = f"{depth} x {name}{' ' + normaliser if normaliser else ''}"
                add("mlp", label, mlp, name, depth, normaliser=normaliser)
    for kind in (nn.RNN, nn.GRU, nn.LSTM):
        for layers in (1, 2):
            add("recurrent", f"{kind.__name__}{' x 2' if layers > 1 else ''}", recurrent, kind, layers)
    return found
