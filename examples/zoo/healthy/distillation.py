"""A student learns from a teacher that is frozen in eval mode."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
teacher = nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))
student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
optimizer = torch.optim.Adam(teacher.parameters(), lr=3e-3)
for step in range(120):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(teacher(x[rows]), y[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
teacher.eval()
optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
for step in range(150):
    rows = torch.randint(0, 1400, (64,))
    with torch.no_grad():
        soft = (teacher(x[rows]) / 2).softmax(1)
    loss = F.kl_div((student(x[rows]) / 2).log_softmax(1), soft, reduction="batchmean")
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"accuracy {(student(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
