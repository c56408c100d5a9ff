"""Writes the stored reports that the tests of the renderers read: run it by hand when the report's data changes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tightrope as tr

ROOT = Path(__file__).parents[2]
FIXTURES = Path(__file__).parent / "fixtures"


class DeepMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(16):
            layer = nn.Linear(64, 64)
            nn.init.normal_(layer.weight, std=0.05)
            layers += [layer, nn.ReLU()]
        self.net = nn.Sequential(*layers)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(x)


class SmallResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(*(Block(16) for _ in range(4)))
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class LogOfZero(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.log(self.encoder(x))
        return self.head(hidden).squeeze(1)


def main() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 10, (64,))
    cases = {
        "sick": (DeepMLP(), (torch.randn(64, 64) * 6 + 5, target), F.cross_entropy),
        "healthy": (SmallResNet(), (torch.randn(64, 3, 16, 16), target), F.cross_entropy),
        "broken": (LogOfZero(), (torch.randn(64, 32), torch.randn(64)), F.mse_loss),
    }
    for name, (model, data, loss) in cases.items():
        report = tr.check(model, data, loss=loss, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        report = dataclasses.replace(report, seconds=0.8, command=f"tightrope check models:{name}")
        (FIXTURES / f"{name}.json").write_text(report.to_json().replace(f"{ROOT}/", "") + "\n", "utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
