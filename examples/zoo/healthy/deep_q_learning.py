"""Values, a target net that is copied now and then, a loss against what the target net foresees."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
target_net = copy.deepcopy(net)
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(300):
    state, action = torch.randn(64, 4), torch.randint(0, 2, (64,))
    reward = torch.where(action == (state[:, 0] > 0).long(), 1.0, -1.0)
    after = 0.9 * state + 0.3 * torch.randn(64, 4)
    with torch.no_grad():
        goal = reward + 0.8 * target_net(after).max(1).values
    value = net(state).gather(1, action[:, None]).squeeze(1)
    loss = F.smooth_l1_loss(value, goal)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(net.parameters(), 10.0)
    optimizer.step()
    if step % 25 == 0:
        target_net.load_state_dict(net.state_dict())
state = torch.randn(1000, 4)
print(f"accuracy {(net(state).argmax(1) == (state[:, 0] > 0)).float().mean():.3f}")
