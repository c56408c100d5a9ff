"""The hidden layers live in a plain list: model.parameters() does not know them."""

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
        self.hidden = [nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 8)]
        self.out = nn.Linear(8, 10)

    def forward(self, x):
        for layer in self.hidden:
            x = torch.relu(layer(x))
        return self.out(x)


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(net(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(net(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
