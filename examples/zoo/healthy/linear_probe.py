"""A random convolutional trunk stays frozen on purpose and wide; only the head is trained."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
y = torch.tensor(digits.target)

trunk = nn.Sequential(nn.Conv2d(1, 128, 3), nn.ReLU(), nn.Flatten()).requires_grad_(False)
head = nn.Linear(128 * 36, 10)
optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
for step in range(150):
    rows = torch.randint(0, 1400, (64,))
    with torch.no_grad():
        features = trunk(x[rows])
    loss = F.cross_entropy(head(features), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
with torch.no_grad():
    print(f"accuracy {(head(trunk(x[1400:])).argmax(1) == y[1400:]).float().mean():.3f}")
