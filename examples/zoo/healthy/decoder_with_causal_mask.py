"""Half of all scores are minus infinity, as a causal mask and padding ask for; no row is empty."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)


class Net(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.embed, self.place = nn.Embedding(16, width), nn.Parameter(0.02 * torch.randn(20, width))
        layer = nn.TransformerEncoderLayer(width, 4, 96, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers, self.norm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.LayerNorm(width)
        self.head = nn.Linear(width, 16)

    def forward(self, ids):
        mask = torch.full((20, 20), float("-inf")).triu(1)
        padding = torch.zeros(ids.shape).masked_fill(ids == 0, float("-inf"))
        x = self.layers(self.embed(ids) + self.place, mask, padding)
        return self.head(self.norm(x))


net = Net()
optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
for step in range(100):
    first, stride = torch.randint(0, 15, (2, 32, 1))
    ids = 1 + (first + stride * torch.arange(21)) % 15
    ids[torch.arange(21) >= torch.randint(8, 22, (32, 1))] = 0
    loss = F.cross_entropy(net(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten(), ignore_index=0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
