"""False findings on healthy models: every check on library models at their default initialisation.

    python benchmarks/silence.py [NAME ...]

prints one row per model: findings of severity `warning` or worse, advice, and the time of the check beside the time
of one plain training step. Exit code 1 when any model raised a warning.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

Subject = tuple[nn.Module, Any, Callable[..., Tensor] | None]


def vision(name: str, size: int, batch: int = 8) -> Callable[[], Subject]:
    """A classifier of timm's, on standard normal images."""

    def make() -> Subject:
        from tests.standins import torchvision

        torchvision()
        import timm

        model = timm.create_model(
            name, pretrained=False, num_classes=10, **({"img_size": size} if "vit" in name else {})
        )
        return model, (torch.randn(batch, 3, size, size), torch.arange(batch) % 10), F.cross_entropy

    return make


def language(kind: str) -> Callable[[], Subject]:
    """A language model of transformers', on uniform tokens."""

    def make() -> Subject:
        import transformers as hf

        ids = torch.randint(0, 1000, (4, 64))
        if kind == "gpt2":
            model: Any = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=1000, n_layer=4, n_embd=128, n_head=4))
        elif kind == "bert":
            config = hf.BertConfig(
                vocab_size=1000, hidden_size=128, num_hidden_layers=4, num_attention_heads=4, intermediate_size=512
            )
            model = hf.BertForSequenceClassification(config)
            return model, {"input_ids": ids, "labels": torch.arange(4) % 2}, None
        elif kind == "llama":
            model = hf.LlamaForCausalLM(
                hf.LlamaConfig(
                    vocab_size=1000, hidden_size=128, intermediate_size=344, num_hidden_layers=4, num_attention_heads=4
                )
            )
        else:
            config = hf.T5Config(
                vocab_size=1000, d_model=128, d_kv=32, d_ff=256, num_layers=3, num_heads=4, decoder_start_token_id=0
            )
            model = hf.T5ForConditionalGeneration(config)
        return model, {"input_ids": ids, "labels": ids}, None

    return make


def mlp(depth: int, width: int, act: type[nn.Module]) -> Callable[[], Subject]:
    """A plain net at PyTorch's default initialisation, on standard normal data."""

    def make() -> Subject:
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(64 if i == 0 else width, width), act()]
        model = nn.Sequential(*layers, nn.Linear(width, 10))
        return model, (torch.randn(64, 64), torch.arange(64) % 10), F.cross_entropy

    return make


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last output."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.body = kind(32, 64, batch_first=True)
        self.head = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0][:, -1])


def recurrent(kind: type[nn.Module]) -> Callable[[], Subject]:
    def make() -> Subject:
        return Recurrent(kind), (torch.randn(16, 20, 32), torch.arange(16) % 4), F.cross_entropy

    return make


def transformer() -> Subject:
    model = nn.Transformer(64, 4, 2, 2, 128, batch_first=True)
    return model, (torch.randn(4, 12, 64), torch.randn(4, 9, 64)), None


def encoder() -> Subject:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), nn.Linear(64, 5))
    return model, (torch.randn(8, 12, 64), torch.randn(8, 12, 5)), F.mse_loss


def autoencoder() -> Subject:
    x = torch.rand(64, 64)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 64), nn.Sigmoid())
    return model, (x, x), F.binary_cross_entropy


def lenet() -> Subject:
    """An MNIST-like script's net, on images in [0, 1] that are mostly zero."""
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.25),
        nn.Flatten(), nn.Linear(9216, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, 10), nn.LogSoftmax(1),
    )  # fmt: skip
    x = torch.rand(32, 1, 28, 28) * (torch.rand(32, 1, 28, 28) > 0.8)
    return model, (x, torch.arange(32) % 10), F.nll_loss


MODELS: dict[str, Callable[[], Subject]] = {
    "resnet18": vision("resnet18", 64), "vgg16": vision("vgg16", 64, 4), "mobilenetv2": vision("mobilenetv2_100", 96),
    "convnext_tiny": vision("convnext_tiny", 64, 4), "vit_tiny": vision("vit_tiny_patch16_224", 64),
    "mixer": vision("mixer_s32_224", 224, 2), "densenet121": vision("densenet121", 64, 4),
    "efficientnet_b0": vision("efficientnet_b0", 64), "swin_tiny": vision("swin_tiny_patch4_window7_224", 224, 1),
    "resnet50": vision("resnet50", 64, 4), "nf_regnet_b0": vision("nf_regnet_b0", 64, 4),
    "gpt2": language("gpt2"), "bert": language("bert"), "llama": language("llama"), "t5": language("t5"),
    "mlp-relu": mlp(3, 256, nn.ReLU), "mlp-tanh": mlp(3, 256, nn.Tanh), "mlp-gelu": mlp(3, 256, nn.GELU),
    "mlp-sigmoid": mlp(2, 256, nn.Sigmoid), "lstm": recurrent(nn.LSTM), "gru": recurrent(nn.GRU),
    "rnn": recurrent(nn.RNN), "transformer": transformer, "encoder": encoder, "autoencoder": autoencoder,
    "lenet": lenet,
}  # fmt: skip


def plain(model: nn.Module, data: Any, loss: Callable[..., Tensor] | None) -> float:
    """Seconds of one training step without an observer."""
    begin = time.perf_counter()
    if isinstance(data, dict):
        model(**data).loss.backward()
    elif loss is None:
        model(*data).sum().backward()
    else:
        loss(model(data[0]), data[1]).backward()
    model.zero_grad()
    return time.perf_counter() - begin


def main(names: list[str]) -> int:
    torch.set_num_threads(1)
    alarms = 0
    print(f"{'model':16} {'alarms':>6} {'advice':>6} {'step s':>7} {'check s':>8} {'ratio':>6}  unknown")
    for name in names or list(MODELS):
        torch.manual_seed(0)
        model, data, loss = MODELS[name]()
        model.train()
        plain(model, data, loss)
        step = plain(model, data, loss)
        begin = time.perf_counter()
        report = tr.check(model, data, loss=loss)
        seconds = time.perf_counter() - begin
        bad = [finding for finding in report.findings if finding.severity.value != "advice"]
        advice = len(report.findings) - len(bad)
        alarms += len(bad)
        unknown = report.tensors["unknown"]
        print(
            f"{name:16} {len(bad):6} {advice:6} {step:7.2f} {seconds:8.2f} {seconds / step:6.1f}  {unknown}", flush=True
        )
        for finding in bad:
            print(f"    {finding.severity.value} {finding.check} in {finding.module}: {finding.summary}")
    print(f"{alarms} warnings or faults on {len(names or MODELS)} healthy models")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
