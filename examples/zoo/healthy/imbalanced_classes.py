"""One positive in twenty."""

import torch
from sklearn.datasets import make_classification
from sklearn.preprocessing import StandardScaler
from torch import nn

torch.manual_seed(0)
features, label = make_classification(3000, 20, weights=[0.95], random_state=0)
x = torch.tensor(StandardScaler().fit_transform(features), dtype=torch.float32)
y = torch.tensor(label, dtype=torch.float32)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1))
criterion = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(10.0))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(5):
    for rows in torch.randperm(2400).split(64):
        loss = criterion(model(x[rows]).squeeze(1), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"loss {criterion(model(x[2400:]).squeeze(1), y[2400:]):.3f}")
