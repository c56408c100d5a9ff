"""Recurrent weights of spectral radius two, sixty steps long."""

import torch
from torch import nn

torch.manual_seed(0)


class Rnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(2, 48, nonlinearity="relu")
        nn.init.normal_(self.cell.weight_hh, std=2.0 / 48**0.5)
        self.out = nn.Linear(48, 1)

    def forward(self, x):
        state = x.new_zeros(len(x), 48)
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
        return self.out(state)


net = Rnn()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(40):
    x = torch.randn(32, 60, 2)
    loss = nn.functional.mse_loss(net(x), x.mean(1)[:, :1])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3g}")
