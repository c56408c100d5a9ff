"""Fine-tuning with batch norms frozen in eval mode and a small rate, after a first training."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
y = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3),
    nn.BatchNorm2d(16),
    nn.ReLU(),
    nn.Conv2d(16, 32, 3),
    nn.BatchNorm2d(32),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(32, 10),
)


def train(optimizer, steps, freeze):
    for step in range(steps):
        model.train()
        if freeze:
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        rows = torch.randint(0, 1400, (64,))
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


train(torch.optim.Adam(model.parameters(), lr=3e-3), 150, freeze=False)
train(torch.optim.Adam(model.parameters(), lr=1e-4), 60, freeze=True)
model.eval()
with torch.no_grad():
    print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
