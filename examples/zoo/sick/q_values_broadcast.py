"""Values of shape (n, 1) minus goals of shape (n,) in a smooth loss: n times n differences."""

import warnings

import torch
import torch.nn.functional as F
from torch import nn

warnings.filterwarnings("ignore")
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 3))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)


def play(n):
    state, action = torch.randn(n, 5), torch.randint(0, 3, (n,))
    return state, action, state[torch.arange(n), action] - state[:, 3] * state[:, 4]


for step in range(300):
    state, action, goal = play(64)
    value = net(state).gather(1, action[:, None])
    loss = F.smooth_l1_loss(value, goal)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
state, action, goal = play(1000)
error = (net(state).gather(1, action[:, None])[:, 0] - goal).square().mean()
print(f"r2 {1 - error / goal.var():.3f}")
