"""What the command line works on when there is no script: factories.

tightrope check   examples/factory.py:small     one real step, measured and diagnosed
tightrope fix     examples/factory.py:small     the same, repaired and checked again
tightrope predict examples/factory.py:large     thirteen billion parameters, none of them in memory
"""

import torch
import torch.nn.functional as F
from torch import nn

import tightrope as tr


def small():
    """A deep tanh net with weights a third of the size that tanh asks for."""
    torch.manual_seed(0)
    layers = [part for _ in range(12) for part in (nn.Linear(64, 64), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.04)
    batch = torch.randn(128, 64), torch.randint(0, 10, (128,))
    return tr.Subject(model, batch, F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        n, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Tokens in, logits out."""

    def __init__(self, tokens, width, heads, depth):
        super().__init__()
        self.embed = nn.Embedding(tokens, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, tokens, bias=False)

    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def large():
    """The shape of a 13-billion-parameter transformer on the meta device."""
    with torch.device("meta"):
        model = Transformer(tokens=50257, width=5120, heads=40, depth=40)
    return model, torch.randint(0, 50257, (2, 64))
