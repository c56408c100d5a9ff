"""Severity 0, 1 or 2 from one sigmoid and the binary loss: a label of two has no minimum."""

import torch
from sklearn.datasets import make_classification
from torch import nn

torch.manual_seed(0)
features, severity = make_classification(1200, 12, n_informative=6, n_classes=3, random_state=0)
x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(severity, dtype=torch.float32)

model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 1))
optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
for epoch in range(15):
    for rows in torch.randperm(1000).split(25):
        score = model(x[rows]).squeeze(1)
        loss = nn.functional.binary_cross_entropy_with_logits(score, y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
score = model(x[1000:]).squeeze(1)
guess = torch.sigmoid(score).round()
print(f"accuracy {(guess == y[1000:]).float().mean():.3f}")
