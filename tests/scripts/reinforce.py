"""REINFORCE: an episode of single decisions, then one backward pass through all of them."""

import torch
import torch.nn.functional as F
from hashing import fingerprint, show
from torch import nn
from torch.distributions import Categorical


class Policy(nn.Module):
    def __init__(self):
        super().__init__()
        self.affine1 = nn.Linear(4, 64)
        self.dropout = nn.Dropout(p=0.3)
        self.affine2 = nn.Linear(64, 2)
        self.saved_log_probs, self.rewards = [], []

    def forward(self, x):
        x = F.relu(self.dropout(self.affine1(x)))
        return F.softmax(self.affine2(x), dim=1)


torch.manual_seed(0)
policy = Policy()
optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
for _ in range(12):
    state = torch.zeros(4)
    for _ in range(15):
        m = Categorical(policy(state.unsqueeze(0)))
        action = m.sample()
        policy.saved_log_probs.append(m.log_prob(action))
        state = (0.9 * state + torch.randn(4) * 0.1).roll(int(action))
        policy.rewards.append(float(-state.square().sum()))
    returns = torch.tensor(policy.rewards).flip(0).cumsum(0).flip(0)
    returns = (returns - returns.mean()) / (returns.std() + 1e-6)
    losses = [-p * r for p, r in zip(policy.saved_log_probs, returns, strict=True)]
    optimizer.zero_grad()
    loss = torch.cat(losses).sum()
    loss.backward()
    optimizer.step()
    show(loss.detach())
    del policy.rewards[:], policy.saved_log_probs[:]
fingerprint(policy)
