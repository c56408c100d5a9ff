"""Trustworthy classification of tumours: how sure each prediction is, why, and when to ask a doctor instead.

python examples/breast_cancer.py
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn

import tightrope as tr

torch.manual_seed(0)
data = load_breast_cancer()
x, y = torch.tensor(data.data, dtype=torch.float32), torch.tensor(data.target)
order = torch.randperm(len(x))
train, held_out, test = order[:250], order[250:400], order[400:]


def build():
    standardize = tr.nn.Standardize().fit([x[train]])  # of the training patients only; part of the model
    return nn.Sequential(standardize, nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def fit(model, steps=200):
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(steps):
        rows = train[torch.randint(len(train), (64,))]
        loss = F.cross_entropy(model(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


members = [fit(build()) for _ in range(8)]
single = members[0]

print("One net, trained until it is certain, on patients that it has not seen:")
print(tr.calibration(single(x[test]), y[test]))

found = tr.temperature(single, (x[held_out], y[held_out]))
print("\nIts logits divided by a number fitted on other patients:")
print(found)
print(f"  on the test patients {F.cross_entropy(single(x[test]), y[test]):.3f} nats before,", end=" ")
print(f"{F.cross_entropy(found.model(x[test]), y[test]):.3f} after")

told = tr.uncertainty(members, x[test], head="logits")
print("\nEight nets, on the test patients:")
print(told)

wrong = told.mean.argmax(1) != y[test]
sure = told.predictive_entropy.argsort()  # the surest first
for share in (0.5, 0.8, 0.9, 1.0):
    kept = sure[: round(share * len(sure))]
    print(f"  decide on {100 * share:3.0f} % of patients: {int(wrong[kept].sum())} of {len(kept)} wrong")

# A patient whose measurements come from nowhere near the training data: every column drawn on its own, tripled.
columns = [3 * (x[train, k][torch.randint(len(train), (100,))] - x[train, k].mean()) for k in range(30)]
foreign = x[train].mean(0) + torch.stack(columns, 1)
strange = tr.uncertainty(members, foreign, head="logits")
print("\nOn measurements that no patient has:")
print(strange)
ratio = strange.entropy.epistemic.average / told.entropy.epistemic.average
print(f"  the members disagree {ratio:.1f} times as much as on patients")
