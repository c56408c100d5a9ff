"""Network packets: an address as a whole number of three thousand million beside ports and flags."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
n = 800
address = torch.randint(3_232_000_000, 3_232_300_000, (n, 2)).float()
port, flags = torch.randint(1, 65536, (n, 2)).float(), torch.randint(0, 2, (n, 6)).float()
y = ((port[:, 0] < 20000) ^ (flags[:, 0] > 0)).float()
x = torch.cat([address, port, flags], 1)

model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
for epoch in range(50):
    for rows in torch.randperm(600).split(20):
        loss = F.binary_cross_entropy_with_logits(model(x[rows])[:, 0], y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"accuracy {((model(x[600:])[:, 0] > 0).float() == y[600:]).float().mean():.3f}")
