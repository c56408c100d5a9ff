"""No optimizer: two tensors, their gradients, and a subtraction."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data / 16, dtype=torch.float32)
y = torch.tensor(digits.target)
w1 = (torch.randn(64, 64) * (2 / 64) ** 0.5).requires_grad_()
b1 = torch.zeros(64, requires_grad=True)
w2 = (torch.randn(64, 10) * (1 / 64) ** 0.5).requires_grad_()
b2 = torch.zeros(10, requires_grad=True)


def model(x):
    return torch.relu(x @ w1 + b1) @ w2 + b2


for step in range(300):
    rows = torch.randint(0, 1400, (64,))
    loss = F.cross_entropy(model(x[rows]), y[rows])
    loss.backward()
    with torch.no_grad():
        for weight in (w1, b1, w2, b2):
            weight -= 0.3 * weight.grad
            weight.grad = None
print(f"accuracy {(model(x[1400:]).argmax(1) == y[1400:]).float().mean():.3f}")
