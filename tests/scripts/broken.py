"""Ends in each of the ways in which a script can end badly."""

import os
import signal
import sys

import torch
from torch import nn

way = sys.argv[1]
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), 0.1)


def helper(x):
    if way == "crash-first":
        return model(x) @ torch.ones(2, 2)
    return model(x)


for step in range(1, 6):
    x = torch.randn(16, 4)
    if way == "gap" and step == 3:
        x[2, 1] = float("inf")
    optimizer.zero_grad()
    y = helper(x)
    if way == "log":
        y = torch.log(y - y.detach())
    if way == "overflow" and step == 3:
        y = y * 1e38
    loss = y.square().mean()
    loss.backward()
    optimizer.step()
    print("step", step, flush=True)
    if step == 2 and way == "crash":
        raise ValueError("the disk is full")
    if step == 2 and way == "interrupt":
        os.kill(os.getpid(), signal.SIGINT)
    if step == 2 and way == "exit":
        sys.exit(7)
    if step == 2 and way == "message":
        sys.exit("no such data set")
