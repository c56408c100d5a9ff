"""A deep tanh network at PyTorch's default initialisation, on two hundred random samples.

tightrope check examples/deep_mlp.py:build
tightrope predict examples/deep_mlp.py:build
tightrope fix examples/deep_mlp.py:build
"""

import torch
from torch import nn

import tightrope as tr


def build() -> tr.Subject:
    """Model, batch, loss and optimizer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(16):
        layers += [nn.Linear(128, 128), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(128, 10))
    batch = (torch.randn(200, 128), torch.randint(10, (200,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return tr.Subject(model, batch, nn.functional.cross_entropy, optimizer)
