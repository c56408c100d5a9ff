"""New users get rows in a new table when the optimizer has long been built."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.items, self.users = nn.Embedding(40, 8), nn.Embedding(1, 8)

    def forward(self, user, item):
        return (self.users(user) * self.items(item)).sum(1)


net = Net()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
net.users = nn.Embedding(60, 8)
truth_user, truth_item = torch.randn(60, 3), torch.randn(40, 3)
for step in range(400):
    user, item = torch.randint(0, 60, (128,)), torch.randint(0, 40, (128,))
    rating = (truth_user[user] * truth_item[item]).sum(1)
    loss = F.mse_loss(net(user, item), rating)
    optimizer.zero_grad()
    net.zero_grad()
    loss.backward()
    optimizer.step()
print(f"r2 {1 - loss.item() / rating.var().item():.3f}")
