"""Word vectors by negative sampling: two embeddings, the second of which starts at zero."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
words, topics = 200, 8
topic = torch.randint(0, topics, (words,))
weight = 1 / torch.arange(1, words + 1)
inner, outer = nn.Embedding(words, 24, sparse=True), nn.Embedding(words, 24, sparse=True)
nn.init.uniform_(inner.weight, -0.5 / 24, 0.5 / 24)
nn.init.zeros_(outer.weight)
optimizer = torch.optim.SparseAdam([*inner.parameters(), *outer.parameters()], lr=1e-2)
together = (topic[:, None] == topic[None]) * weight
for step in range(300):
    word = torch.multinomial(weight, 128, replacement=True)
    near = torch.multinomial(together[word], 1)
    noise = torch.multinomial(weight, 128 * 5, replacement=True).view(128, 5)
    score = (outer(torch.cat([near, noise], 1)) @ inner(word)[:, :, None]).squeeze(2)
    truth = torch.zeros(128, 6)
    truth[:, 0] = 1
    loss = F.binary_cross_entropy_with_logits(score, truth)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"loss {loss.item():.3f}")
