"""A weight decay of two for all parameters: behind it the gains of the layer norms have nowhere to go but to zero."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 10)
)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=8.0)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {F.cross_entropy(model(x[1400:]), y[1400:]):.3f}")
