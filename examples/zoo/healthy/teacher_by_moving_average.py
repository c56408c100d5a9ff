"""Two views; the student predicts the projection of a teacher that follows it as a moving average."""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)

student = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 32))
predictor = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 32))
teacher = copy.deepcopy(student).requires_grad_(False)
optimizer = torch.optim.AdamW([*student.parameters(), *predictor.parameters()], lr=2e-3)
for step in range(200):
    rows = torch.randint(0, 1400, (64,))
    left, right = (x[rows] + 0.1 * torch.randn(64, 64) for _ in range(2))
    with torch.no_grad():
        goals = F.normalize(teacher(right), dim=1), F.normalize(teacher(left), dim=1)
    guesses = (F.normalize(predictor(student(view)), dim=1) for view in (left, right))
    loss = sum((2 - 2 * (guess * goal).sum(1)).mean() for guess, goal in zip(guesses, goals)) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        for mean, now in zip(teacher.parameters(), student.parameters()):
            mean.lerp_(now, 0.03)
print(f"loss {loss.item():.3f}")
