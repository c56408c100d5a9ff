"""A hinge GAN whose critic has its spectral norms held at one, and takes two steps for the generator's one."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
bound = nn.utils.parametrizations.spectral_norm
generator = nn.Sequential(nn.Linear(8, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2))
critic = nn.Sequential(
    bound(nn.Linear(2, 64)), nn.LeakyReLU(0.2), bound(nn.Linear(64, 64)), nn.LeakyReLU(0.2), bound(nn.Linear(64, 1))
)
step_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.0, 0.9))
step_c = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.0, 0.9))
for step in range(200):
    for _ in range(2):
        real = torch.randn(64, 2) * torch.tensor([1.0, 0.2]) + 1
        with torch.no_grad():
            fake = generator(torch.randn(64, 8))
        loss_c = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(fake)).mean()
        step_c.zero_grad()
        loss_c.backward()
        step_c.step()
    loss_g = -critic(generator(torch.randn(64, 8))).mean()
    step_g.zero_grad()
    loss_g.backward()
    step_g.step()
print(f"loss {(generator(torch.randn(500, 8)).mean(0) - 1).square().mean():.3f}")
