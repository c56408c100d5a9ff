"""Raw digits standardised by one mean and one standard deviation: some pixels never change, which is harmless."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
x = (x - x[:1400].mean()) / x[:1400].std()

model = nn.Sequential(nn.Linear(64, 96), nn.ELU(), nn.Linear(96, 48), nn.ELU(), nn.Linear(48, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 6], 0.2)
for epoch in range(8):
    for rows in torch.randperm(1400).split(50):
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
