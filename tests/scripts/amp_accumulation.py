"""bfloat16 autocast, a gradient scaler that finds an overflow, four backward passes to a step."""

import torch
import torch.nn.functional as F
from hashing import fingerprint, show
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=5)
for step in range(20):
    for _ in range(4):
        x, y = torch.randn(16, 3, 8, 8), torch.randint(0, 4, (16,))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y) / 4
        scaler.scale(loss).backward()
    if step in (0, 9):
        model[0].weight.grad[0] = float("inf")  # the scaler leaves this update out
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    show(loss.detach(), scaler.get_scale())
fingerprint(model)
