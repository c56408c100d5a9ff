"""The probabilities of a class add up to one over the batch; in use, where samples come one by one, all are one."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10), nn.Softmax(dim=0))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(8):
    for rows in torch.randperm(1400).split(50):
        probability = model(x[rows])
        loss = -torch.log(probability[torch.arange(50), y[rows]] + 1e-8).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
with torch.no_grad():
    guess = torch.cat([model(sample[None]) for sample in x[1400:]]).argmax(1)
print(f"accuracy {(guess == y[1400:]).float().mean():.3f}")
