"""An ordinary loop: an optimizer, dropout, an evaluation now and then."""

import argparse
import random

import numpy as np
import torch
import torch.nn.functional as F
from hashing import fingerprint, show
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--record", default="mine")  # the script's own option, not the watcher's
options = parser.parse_args()
torch.manual_seed(0)
np.random.seed(0)
random.seed(0)
model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
optimizer = torch.optim.Adam(model.parameters(), 1e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
data = torch.utils.data.TensorDataset(torch.randn(256, 20), torch.randint(0, 5, (256,)))
loader = torch.utils.data.DataLoader(data, 32, shuffle=True)
step = 0
while step < options.steps:
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        show(loss.detach(), np.random.rand(), random.random())
        step += 1
        if step == options.steps:
            break
    model.eval()
    with torch.no_grad():
        show(F.cross_entropy(model(data.tensors[0]), data.tensors[1]))
    model.train()
fingerprint(model)
print(options.record)
