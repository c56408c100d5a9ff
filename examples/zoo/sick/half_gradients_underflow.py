"""Half precision without a loss scale: gradients below six in a hundred million are zero."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-12)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    with torch.autocast("cpu", dtype=torch.float16):
        scores = model(x[rows])
    loss = F.cross_entropy(scores.float(), y[rows]) / 100_000
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
