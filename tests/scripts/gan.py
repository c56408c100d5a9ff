"""Two models, two optimizers, three backward passes a step."""

import torch
from hashing import fingerprint, show
from torch import nn

torch.manual_seed(0)
netG = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.Tanh())
netD = nn.Sequential(nn.Linear(16, 32), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(32, 1), nn.Sigmoid())
criterion = nn.BCELoss()
optimizerD = torch.optim.Adam(netD.parameters(), lr=2e-4, betas=(0.5, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=2e-4, betas=(0.5, 0.999))
for _ in range(20):
    netD.zero_grad()
    real = torch.randn(32, 16).tanh()
    errD_real = criterion(netD(real).view(-1), torch.ones(32))
    errD_real.backward()
    fake = netG(torch.randn(32, 8))
    errD_fake = criterion(netD(fake.detach()).view(-1), torch.zeros(32))
    errD_fake.backward()
    optimizerD.step()
    netG.zero_grad()
    errG = criterion(netD(fake).view(-1), torch.ones(32))
    errG.backward()
    optimizerG.step()
    show(errD_real.detach(), errD_fake.detach(), errG.detach())
fingerprint(netG, netD)
