"""An LSTM by hand whose candidate and output pass a ReLU instead of a tanh: nothing bounds its state."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Lstm(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.gates = nn.Linear(inputs + width, 4 * width)
        nn.init.orthogonal_(self.gates.weight, gain=5.0)
        self.width = width

    def forward(self, x):
        state = cell = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            enter, forget, out, new = self.gates(torch.cat([x[:, t], state], 1)).chunk(4, 1)
            cell = torch.sigmoid(forget + 1) * cell + torch.sigmoid(enter) * torch.relu(new)
            state = torch.sigmoid(out) * torch.relu(cell)
        return state


net = nn.Sequential(Lstm(3, 128), nn.Linear(128, 1))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
for step in range(50):
    x = torch.randn(32, 40, 3)
    loss = F.mse_loss(net(x)[:, 0], x[:, :, 0].mean(1))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3g}")
