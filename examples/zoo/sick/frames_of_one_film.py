"""Each batch holds consecutive frames of one film, and batch norm takes its statistics from them."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
films, frames, pixels = 60, 40, 24
scene = torch.randn(films, 1, pixels)
moving = torch.cumsum(torch.randn(films, frames, pixels) * 0.05, 1)
clips = 2 * scene + moving
label = (scene[:, 0, :2].prod(1) > 0).long()[:, None].expand(films, frames)
clips, label = clips.flatten(0, 1), label.flatten()

model = nn.Sequential(
    nn.Linear(24, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 2)
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
for epoch in range(8):
    for start in range(0, 2400, 40):
        loss = F.cross_entropy(model(clips[start : start + 40]), label[start : start + 40])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
model.eval()
print(f"accuracy {(model(clips).argmax(1) == label).float().mean():.3f}")
