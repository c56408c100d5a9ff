"""Words of short texts as counts: nearly all inputs are zero and many columns are rare."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
words, n = 400, 1500
frequency = 1 / torch.arange(1, words + 1)
lean = torch.randn(words)
y = torch.randint(0, 2, (n,))
rates = 12 * frequency / frequency.sum() * torch.exp(0.8 * lean * (y * 2 - 1)[:, None])
x = torch.log1p(torch.poisson(rates))

model = nn.Sequential(nn.Linear(words, 32), nn.ReLU(), nn.Dropout(0.3), nn.Linear(32, 2))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(8):
    for rows in torch.randperm(1200).split(50):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
print(f"accuracy {(model(x[1200:]).argmax(1) == y[1200:]).float().mean():.3f}")
