"""A momentum of 0.0001, as other libraries count it from the other side: running statistics stay where they were."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 4
y = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16, momentum=1e-4), nn.ReLU(), nn.Conv2d(16, 16, 3),
    nn.BatchNorm2d(16, momentum=1e-4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for step in range(150):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
model.eval()
with torch.no_grad():
    print(f"loss {F.cross_entropy(model(x[1400:]), y[1400:]):.3f}")
