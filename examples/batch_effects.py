"""Batch effects in gene expression: what the laboratory adds to every gene, and a net that learns the laboratory.

Generated data: 200 genes of samples from six laboratories, each with a shift and a scale of its own for every gene, and
more sick samples in some laboratories than in others. A disease moves 30 genes a little. Four laboratories are trained
on, two are not seen.

python examples/batch_effects.py
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import tightrope as tr

GENES, LABS, EACH = 200, 6, 120
torch.manual_seed(0)
effect = torch.zeros(GENES)
effect[:30] = 0.6 * torch.randn(30).sign()
lab = torch.arange(LABS).repeat_interleave(EACH)
sick = (torch.rand(LABS * EACH) < torch.tensor([0.8, 0.2, 0.7, 0.3, 0.5, 0.5])[lab]).long()
biology = torch.randn(LABS * EACH, GENES) + sick[:, None] * effect
expression = torch.randn(LABS, GENES)[lab] + torch.exp(0.4 * torch.randn(LABS, GENES))[lab] * biology
seen = lab < 4


def between(x):
    """Share of the variance of a gene that lies between laboratories."""
    means = torch.stack([x[lab == k].mean(0) for k in range(LABS)])
    return float((means.var(0, correction=0) / x.var(0, correction=0)).mean())


def per_lab(x):
    """Every laboratory on its own scale: deletes the component of the laboratory, as a normaliser its axis's."""
    return torch.cat([tr.nn.Standardize().fit([x[lab == k]])(x[lab == k]) for k in range(LABS)])


def fit(x):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(GENES, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.1)
    loader = DataLoader(TensorDataset(x[seen], sick[seen]), 32, shuffle=True)
    for _ in range(25):
        for batch, label in loader:
            loss = F.cross_entropy(model(batch), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


print(f"{'data':<28} {'between labs':>12} {'accuracy, known labs':>21} {'new labs':>9}  verdict on the new labs")
pooled = tr.nn.Standardize().fit([expression[seen]])(expression)
for name, x in (("standardised together", pooled), ("standardised per laboratory", per_lab(expression))):
    model = fit(x)
    right = (model(x).argmax(1) == sick).float()
    told = tr.calibration(model(x[~seen]), sick[~seen])
    known, new = right[seen].mean(), right[~seen].mean()
    print(f"{name:<28} {100 * between(x):>10.0f} % {known:>21.2f} {new:>9.2f}  {told.verdict}")

# Files come laboratory by laboratory. A batch of one laboratory repeats itself.
print("\nGradients of a new net, batches of 32 from one laboratory each, and mixed:")
model = nn.Sequential(nn.Linear(GENES, 32), nn.ReLU(), nn.Linear(32, 2))
for name, x in (("standardised together", pooled), ("standardised per laboratory", per_lab(expression))):
    for shuffle in (False, True):
        data = TensorDataset(x, sick)
        if shuffle:
            loader = DataLoader(data, 32, shuffle=True, drop_last=True)
        else:
            batches = [rows for k in range(LABS) for rows in torch.nonzero(lab == k)[:96, 0].split(32)]
            loader = DataLoader(data, batch_sampler=[rows.tolist() for rows in batches])
        noise = tr.batch_noise(model, loader, loss=F.cross_entropy, batches=18)
        order = "mixed" if shuffle else "one laboratory"
        print(f"  {name:<28} {order:<15} rho {noise.rho}; a batch of 32 is worth {noise.effective.value:.3g}")
