"""Both optimizers of a GAN were built from the discriminator's parameters."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
discriminator = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
step_d = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
step_g = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
bce = nn.functional.binary_cross_entropy_with_logits
ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
for step in range(400):
    real = torch.randn(64, 2) * 0.3 + 1
    fake = generator(torch.randn(64, 4))
    loss_d = bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)
    step_d.zero_grad()
    loss_d.backward()
    step_d.step()
    loss_g = bce(discriminator(fake), ones)
    step_g.zero_grad()
    loss_g.backward()
    step_g.step()
print(f"loss {(generator(torch.randn(500, 4)).mean(0) - 1).square().mean():.3f}")
