"""Anchor, positive, negative, a margin: once a triplet is far enough apart its loss is zero."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
by_class = [(y[:1400] == k).nonzero().squeeze(1) for k in range(10)]
for step in range(150):
    kinds = torch.rand(64, 10).argsort(1)[:, :2].tolist()
    pick = lambda k: by_class[k][torch.randint(0, len(by_class[k]), ())]  # noqa: E731
    anchor, positive, negative = (encoder(x[torch.stack([pick(pair[i]) for pair in kinds])]) for i in (0, 0, 1))
    loss = F.triplet_margin_loss(anchor, positive, negative, margin=1.0)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
