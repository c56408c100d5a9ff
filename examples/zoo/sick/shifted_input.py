"""Sensor readings around 300 kelvin that vary by one: the mean drowns what differs."""

import torch
from torch import nn

torch.manual_seed(0)
n = 800
signal = torch.randn(n, 6)
readings = 300 + signal
label = ((signal[:, 0] * signal[:, 1] + signal[:, 2]) > 0).long()

model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
opt = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(40):
    for rows in torch.randperm(600).split(50):
        loss = nn.functional.cross_entropy(model(readings[rows]), label[rows])
        opt.zero_grad()
        loss.backward()
        opt.step()
accuracy = (model(readings[600:]).argmax(1) == label[600:]).float().mean()
print(f"accuracy {accuracy:.3f}")
