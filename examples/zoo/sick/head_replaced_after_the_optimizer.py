"""The head is exchanged for one with ten outputs when the optimizer has already seen the old one."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 12), nn.ReLU())
        self.head = nn.Linear(12, 100)

    def forward(self, x):
        return self.head(self.body(x))


net = Net()
optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
net.head = nn.Linear(12, 10)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(net(x[rows]), y[rows])
    optimizer.zero_grad()
    net.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(net(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
