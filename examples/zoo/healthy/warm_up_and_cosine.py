"""The rate starts near zero, climbs for thirty steps and falls along a cosine."""

import math

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Linear(64, 128),
    nn.LayerNorm(128),
    nn.SiLU(),
    nn.Linear(128, 128),
    nn.LayerNorm(128),
    nn.SiLU(),
    nn.Linear(128, 10),
)
decayed = [p for p in model.parameters() if p.dim() > 1]
others = [p for p in model.parameters() if p.dim() <= 1]
groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=2e-3)


def rate(step):
    return (step + 1) / 30 if step < 30 else 0.5 + 0.5 * math.cos(math.pi * (step - 30) / 220)


schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
for step in range(250):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
