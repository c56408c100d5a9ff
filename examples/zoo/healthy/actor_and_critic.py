"""One trunk, a policy and a value; the advantage is detached on purpose."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 3), nn.Linear(64, 1)
        nn.init.orthogonal_(self.policy.weight, gain=0.01)

    def forward(self, state):
        x = self.trunk(state)
        return torch.distributions.Categorical(logits=self.policy(x)), self.value(x).squeeze(1)


agent = Agent()
optimizer = torch.optim.RMSprop(agent.parameters(), lr=3e-3, alpha=0.99, eps=1e-5)
for step in range(300):
    state = torch.randn(80, 6)
    policy, value = agent(state)
    action = policy.sample()
    reward = (action == state[:, :3].argmax(1)).float() + 0.2 * state[:, 3]
    advantage = (reward - value).detach()
    loss = (
        -(policy.log_prob(action) * advantage).mean() + 0.5 * F.mse_loss(value, reward) - 0.01 * policy.entropy().mean()
    )
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
    optimizer.step()
print(f"accuracy {(action == state[:, :3].argmax(1)).float().mean():.3f}")
