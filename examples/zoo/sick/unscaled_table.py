"""Tumour measurements as they come: areas in the hundreds beside fractions of one."""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(1)
features, labels = load_breast_cancer(return_X_y=True)
train_x, test_x, train_y, test_y = train_test_split(features, labels, random_state=0)
to_tensor = lambda a: torch.tensor(a, dtype=torch.float32)  # noqa: E731
loader = DataLoader(TensorDataset(to_tensor(train_x), to_tensor(train_y)), batch_size=32, shuffle=True)

model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1))
criterion = nn.BCEWithLogitsLoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for epoch in range(20):
    for batch, target in loader:
        optimizer.zero_grad()
        loss = criterion(model(batch).squeeze(1), target)
        loss.backward()
        optimizer.step()
with torch.no_grad():
    predicted = (model(to_tensor(test_x)).squeeze(1) > 0).float()
print(f"accuracy {(predicted == to_tensor(test_y)).float().mean():.3f}")
