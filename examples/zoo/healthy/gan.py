"""A small GAN on two-dimensional points."""

import torch
from torch import nn

torch.manual_seed(0)
generator = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2))
discriminator = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
step_d = torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
step_g = torch.optim.Adam(generator.parameters(), lr=5e-4, betas=(0.5, 0.999))
bce = nn.functional.binary_cross_entropy_with_logits
ones, zeros = torch.ones(64, 1), torch.zeros(64, 1)
for step in range(300):
    angle = torch.rand(64) * 6.283
    real = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(64, 2)
    fake = generator(torch.randn(64, 4))
    loss_d = bce(discriminator(real), ones) + bce(discriminator(fake.detach()), zeros)
    step_d.zero_grad()
    loss_d.backward()
    step_d.step()
    loss_g = bce(discriminator(fake), ones)
    step_g.zero_grad()
    loss_g.backward()
    step_g.step()
print(f"loss {loss_d.item():.3f}")
