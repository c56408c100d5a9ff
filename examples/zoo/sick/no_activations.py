"""Six linear layers in a row are one linear layer."""

import torch
from sklearn.datasets import make_circles
from torch import nn

torch.manual_seed(0)
points, label = make_circles(600, noise=0.1, factor=0.4, random_state=0)
x, y = torch.tensor(points, dtype=torch.float32), torch.tensor(label)

model = nn.Sequential(
    nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 32), nn.Linear(32, 16), nn.Linear(16, 2)
)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for epoch in range(40):
    for rows in torch.randperm(500).split(50):
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"accuracy {(model(x[500:]).argmax(1) == y[500:]).float().mean():.3f}")
