"""A variational autoencoder on digits."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
x = torch.tensor(load_digits().data / 16, dtype=torch.float32)


class Vae(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decoder = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        mean, log_var = self.encoder(x).chunk(2, 1)
        z = mean + torch.exp(log_var / 2) * torch.randn_like(mean)
        return self.decoder(z), mean, log_var


vae = Vae()
optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
for step in range(300):
    rows = torch.randint(0, 1797, (64,))
    logits, mean, log_var = vae(x[rows])
    fit = F.binary_cross_entropy_with_logits(logits, x[rows], reduction="sum") / 64
    kl = 0.5 * (mean**2 + log_var.exp() - 1 - log_var).sum(1).mean()
    loss = fit + kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.2f}")
