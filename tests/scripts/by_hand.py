"""No module, no optimizer: parameters are tensors, updated by hand from backward or from autograd.grad."""

import sys

import torch
from hashing import fingerprint, show

torch.manual_seed(0)
w1 = torch.randn(20, 64, requires_grad=True)
w2 = torch.randn(64, 1, requires_grad=True)
x, y = torch.randn(64, 20), torch.randn(64, 1)
for _ in range(20):
    loss = (x.mm(w1).clamp(min=0).mm(w2) - y).pow(2).mean()
    if "grad" in sys.argv:
        grads = torch.autograd.grad(loss, (w1, w2))
        with torch.no_grad():
            for w, g in zip((w1, w2), grads, strict=True):
                w.sub_(1e-4 * g)
    else:
        loss.backward()
        for w in (w1, w2):
            w.data.sub_(1e-4 * w.grad)
            w.grad.zero_()
    show(loss.detach())
fingerprint(w1, w2)
