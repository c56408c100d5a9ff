"""Small batches of 3-D volumes: which normaliser to take when two samples are all that fits.

    python examples/small_volumes.py

Phantoms of 12 x 12 x 12 voxels hold a bright ball or a bright shell of the same mass, in noise, with a contrast and an
offset of each scanner. At two volumes a batch the mean and variance of a batch are noise themselves: batch norm trains
on other statistics than it is evaluated with. Statistics of a volume of its own (`GroupNorm`), or of both, blended by a
gate that knows the batch size (`tightrope.nn.BlendedNorm`), do not have that fault.
"""

import torch
import torch.nn.functional as F
from torch import nn

import tightrope as tr

SIDE, BATCH, STEPS, TESTED = 12, 2, 250, 256


def phantoms(count, generator):
    """Volumes (count, 1, side, side, side), and which of them hold a shell."""
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    grid = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    centre = 2 * torch.rand(count, 3, 1, 1, 1, generator=generator) - 1
    radius = (grid - centre).square().sum(1).sqrt()
    labels = torch.randint(2, (count,), generator=generator)
    ball = (radius < 3.2).float()
    shell = ((radius > 3.0) & (radius < 4.1)).float()
    volume = torch.where(labels.view(-1, 1, 1, 1) == 1, shell, ball)
    contrast = 0.5 + 1.5 * torch.rand(count, 1, 1, 1, generator=generator)
    offset = 2 * torch.randn(count, 1, 1, 1, generator=generator)
    noise = torch.randn(count, SIDE, SIDE, SIDE, generator=generator)
    return (contrast * (volume + 0.2 * noise) + offset).unsqueeze(1), labels


NORMS = {
    "BatchNorm": nn.BatchNorm3d,
    "GroupNorm": lambda channels: nn.GroupNorm(4, channels),
    "BlendedNorm": tr.nn.BlendedNorm,
}


def build(norm, seed=0):
    """Three convolutions with a normaliser each, and a linear head on the mean over voxels."""
    torch.manual_seed(seed)
    parts = []
    for enter, leave, stride in ((1, 8, 2), (8, 16, 1), (16, 32, 2)):
        conv = nn.Conv3d(enter, leave, 3, stride=stride, padding=1, bias=False)
        parts += [conv, NORMS[norm](leave), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(32, 2))


def train(norm, seed=0, steps=STEPS):
    """The model, and its accuracy on other phantoms."""
    generator = torch.Generator().manual_seed(seed)
    model = build(norm, seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(steps):
        x, y = phantoms(BATCH, generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = phantoms(TESTED, torch.Generator().manual_seed(10_000))
    model.eval()
    with torch.no_grad():
        told = model(x).argmax(1)
    return model, float((told == y).float().mean())


def main():
    for norm in NORMS:
        accuracies = [train(norm, seed)[1] for seed in range(2)]
        print(f"{norm:<12} accuracy at two volumes a batch: " + ", ".join(f"{a:.1%}" for a in accuracies), flush=True)
    effects = tr.explain_norm(build("BatchNorm"), phantoms(BATCH, torch.Generator().manual_seed(0))[0])
    print(str(effects).split("\n\n")[0])  # the scanners' effect, of a sample, passes through


if __name__ == "__main__":
    main()
