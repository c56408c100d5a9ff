"""The optimizer was given the decoder's parameters; the encoder trains by its gradients alone, that is not at all."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data / 16, dtype=torch.float32)

encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 6))
decoder = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 64))
optimizer = torch.optim.Adam(decoder.parameters(), lr=3e-3)
for step in range(400):
    rows = torch.randint(0, 1400, (64,))
    loss = nn.functional.mse_loss(decoder(encoder(x[rows])), x[rows])
    optimizer.zero_grad()
    encoder.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {nn.functional.mse_loss(decoder(encoder(x[1400:])), x[1400:]):.4f}")
