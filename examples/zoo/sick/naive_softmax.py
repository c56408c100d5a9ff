"""exp over sum of exp, by hand, at a temperature of 0.005: scores beyond 88 are infinite."""

import torch
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


def softmax(scores):
    weights = torch.exp(scores)
    return weights / weights.sum(1, keepdim=True)


model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
nn.init.kaiming_normal_(model[0].weight)
nn.init.kaiming_normal_(model[2].weight)
optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
for step in range(100):
    rows = torch.randint(0, 1400, (64,))
    probability = softmax(model(x[rows]) / 0.005)
    loss = -torch.log(probability[torch.arange(64), y[rows]] + 1e-6).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
