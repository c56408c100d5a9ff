"""The last layer's weights come from N(0, 10^2): the first loss is of the order of a hundred."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
nn.init.normal_(model[-1].weight, std=10.0)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {F.cross_entropy(model(x[1400:]), y[1400:]):.3f}")
