"""Two layers, no module, no optimizer: the steps are found all the same.

tightrope run --record 1,50 examples/by_hand.py
"""

import torch

torch.manual_seed(0)
x, y = torch.randn(256, 32), torch.randn(256, 1)
w1 = (torch.randn(32, 64) / 32**0.5).requires_grad_()
w2 = (torch.randn(64, 1) / 64**0.5).requires_grad_()
for step in range(1, 101):
    loss = ((x @ w1).tanh() @ w2 - y).square().mean()
    loss.backward()
    with torch.no_grad():
        for w in (w1, w2):
            w -= 0.1 * w.grad
            w.grad = None
    if step % 25 == 0:
        print(f"step {step}  loss {loss.item():.4f}")
