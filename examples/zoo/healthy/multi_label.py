"""Five yes-or-no answers for each sample."""

import torch
from sklearn.datasets import make_multilabel_classification
from sklearn.preprocessing import StandardScaler
from torch import nn

torch.manual_seed(0)
features, labels = make_multilabel_classification(1500, 20, n_classes=5, random_state=0)
x = torch.tensor(StandardScaler().fit_transform(features), dtype=torch.float32)
y = torch.tensor(labels, dtype=torch.float32)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
for epoch in range(8):
    for rows in torch.randperm(1200).split(50):
        loss = nn.functional.binary_cross_entropy_with_logits(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
print(f"loss {nn.functional.binary_cross_entropy_with_logits(model(x[1200:]), y[1200:]):.3f}")
