"""A model inside DistributedDataParallel or torch.compile, or fed by worker processes."""

import sys

import torch
import torch.nn.functional as F
from hashing import fingerprint, show
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


class Doubled(nn.Module):
    def forward(self, x):
        return x * 2


class Data(torch.utils.data.Dataset):
    transform = Doubled()

    def __len__(self):
        return 64

    def __getitem__(self, i):
        return self.transform(torch.randn(8, generator=torch.Generator().manual_seed(i))), i % 3


torch.manual_seed(0)
net = Net()
way = sys.argv[1]
if way == "ddp":
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    model = nn.parallel.DistributedDataParallel(net)
elif way == "compile":
    model = torch.compile(net, backend="eager")
else:
    model = net
optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
loader = torch.utils.data.DataLoader(Data(), 16, num_workers=2 if way == "workers" else 0)
for _ in range(2):
    for x, y in loader:
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        show(loss.detach())
fingerprint(net)
if way == "ddp":
    torch.distributed.destroy_process_group()
