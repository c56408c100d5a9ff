"""Two encoders for two kinds of data, scores scaled by a temperature that is learned in the logarithm."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
mix = torch.randn(8, 30)


def draw(n=64):
    common = torch.randn(n, 8)
    return common + 0.1 * torch.randn(n, 8), common @ mix / 3 + 0.1 * torch.randn(n, 30)


first = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 16))
second = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 16))
log_scale = nn.Parameter(torch.tensor(2.66))
optimizer = torch.optim.AdamW([*first.parameters(), *second.parameters(), log_scale], lr=2e-3, weight_decay=0.01)
for step in range(200):
    a, b = draw()
    scores = log_scale.exp() * F.normalize(first(a), dim=1) @ F.normalize(second(b), dim=1).T
    pairs = torch.arange(64)
    loss = (F.cross_entropy(scores, pairs) + F.cross_entropy(scores.T, pairs)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
