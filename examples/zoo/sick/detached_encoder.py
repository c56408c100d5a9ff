"""The encoder's features are rebuilt as a new tensor on the way: no gradient reaches it."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
y = torch.tensor(digits.target)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(1, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        features = self.encoder(x)
        features = torch.tensor(features.tolist())
        return self.head(features)


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(net(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(net(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
