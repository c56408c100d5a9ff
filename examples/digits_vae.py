"""A variational autoencoder of digits: laws run through the noise and through both terms of the loss.

tightrope run examples/digits_vae.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn


class VAE(nn.Module):
    def __init__(self, width=128, latent=8):
        super().__init__()
        self.encode = nn.Linear(64, width)
        self.mean, self.logvar = nn.Linear(width, latent), nn.Linear(width, latent)
        self.decode = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, 64))

    def forward(self, x):
        h = F.relu(self.encode(x))
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)
        return self.decode(z), mean, logvar


torch.manual_seed(0)
pixels = torch.tensor(load_digits().data, dtype=torch.float32) / 16
loader = torch.utils.data.DataLoader(pixels, 64, shuffle=True)
model = VAE()
optimizer = torch.optim.Adam(model.parameters(), 2e-3)
for epoch in range(1, 6):
    total = 0.0
    for x in loader:
        logits, mean, logvar = model(x)
        error = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        divergence = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum()
        loss = (error + divergence) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    print(f"epoch {epoch}  {total / len(pixels):.2f} nats per digit")
