"""The models whose forecasts are judged, at their default initialisation, each with a batch of random inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from standins import torchvision

NO_MARKS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None}
"""Ids of text marks, which lie outside of a small vocabulary."""

Build = Callable[[], tuple[nn.Module, Any]]


def mlp(activation: type[nn.Module], depth: int = 20, width: int = 512) -> tuple[nn.Module, Any]:
    """He initialisation with the activation's gain."""
    gain = "tanh" if activation is nn.Tanh else "relu"
    layers: list[nn.Module] = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.kaiming_normal_(linear.weight, nonlinearity=gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, activation()]
    return nn.Sequential(*layers), torch.randn(64, width)


def image_model(name: str, size: int, batch: int = 8, **options: Any) -> tuple[nn.Module, Any]:
    torchvision()
    import timm

    return timm.create_model(name, num_classes=10, **options), torch.randn(batch, 3, size, size)


def gpt2() -> tuple[nn.Module, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(n_layer=6, n_embd=256, n_head=8, vocab_size=1000, n_positions=128, **NO_MARKS)
    return GPT2LMHeadModel(config), language(1000, 64)


def llama() -> tuple[nn.Module, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=4,
        vocab_size=1000, **NO_MARKS,
    )  # fmt: skip
    return LlamaForCausalLM(config), language(1000, 64)


def language(vocabulary: int, length: int) -> dict[str, Any]:
    ids = torch.randint(vocabulary, (8, length))
    return {"input_ids": ids, "labels": ids, "use_cache": False}


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last time step."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


def recurrent(kind: type[nn.RNNBase]) -> tuple[nn.Module, Any]:
    return Recurrent(kind(32, 128, batch_first=True), 128), torch.randn(32, 24, 32)


MAIN: dict[str, Build] = {
    "ResNet-18 (64x64)": lambda: image_model("resnet18", 64),
    "MLP 20x512 ReLU": lambda: mlp(nn.ReLU),
    "MLP 20x512 tanh": lambda: mlp(nn.Tanh),
    "MLP 20x512 GELU": lambda: mlp(nn.GELU),
    "GPT-2 (6 layers, width 256)": gpt2,
    "ViT-tiny (64x64)": lambda: image_model("vit_tiny_patch16_224", 64, img_size=64, patch_size=8),
}
MORE: dict[str, Build] = {
    "Llama (6 layers, width 256)": llama,
    "ConvNeXt-atto (64x64)": lambda: image_model("convnext_atto", 64),
    "ViT-tiny (224x224)": lambda: image_model("vit_tiny_patch16_224", 224, batch=4),
    "VGG-11 with batch norm (64x64)": lambda: image_model("vgg11_bn", 64),
    "DenseNet-121 (64x64)": lambda: image_model("densenet121", 64),
    "MobileNet-V3 small (64x64)": lambda: image_model("mobilenetv3_small_100", 64),
    "EfficientNet-B0 (64x64)": lambda: image_model("efficientnet_b0", 64),
    "MLP-Mixer (224x224)": lambda: image_model("mixer_s32_224", 224, batch=4),
    "LSTM": lambda: recurrent(nn.LSTM),
    "GRU": lambda: recurrent(nn.GRU),
}
