"""Users and items as short vectors, biases that start at zero, and nothing else."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
truth_user, truth_item = torch.randn(80, 3), torch.randn(50, 3)


class Factors(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(80, 8), nn.Embedding(50, 8)
        self.user_bias, self.item_bias = nn.Embedding(80, 1), nn.Embedding(50, 1)
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.3)
        for table in (self.user_bias, self.item_bias):
            nn.init.zeros_(table.weight)

    def forward(self, user, item):
        match = (self.user(user) * self.item(item)).sum(1)
        return match + self.user_bias(user)[:, 0] + self.item_bias(item)[:, 0]


net = Factors()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
for step in range(400):
    user, item = torch.randint(0, 80, (128,)), torch.randint(0, 50, (128,))
    rating = (truth_user[user] * truth_item[item]).sum(1)
    loss = F.mse_loss(net(user, item), rating)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"r2 {1 - loss.item() / rating.var().item():.3f}")
