"""The same layer, six times over, on purpose."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


class Universal(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.layer, self.head = nn.LayerNorm(64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x):
        for _ in range(6):
            x = x + F.relu(self.layer(self.norm(x)))
        return self.head(self.norm(x))


model = Universal()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
