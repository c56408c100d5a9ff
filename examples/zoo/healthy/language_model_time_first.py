"""An LSTM that reads (time, batch), carries its state from segment to segment, and is clipped at every step."""

import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)
rules = torch.softmax(2.5 * torch.randn(30, 30), 1)
text = torch.zeros(400, 20, dtype=torch.long)
for t in range(1, 400):
    text[t] = torch.multinomial(rules[text[t - 1]], 1).squeeze(1)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(30, 32), nn.LSTM(32, 64, 2, dropout=0.1), nn.Linear(64, 30)

    def forward(self, ids, state):
        read, state = self.lstm(self.embed(ids), state)
        return self.out(read), state


model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=5.0)
for epoch in range(8):
    state = None
    for start in range(0, 399 - 20, 20):
        scores, state = model(text[start : start + 20], state)
        state = tuple(part.detach() for part in state)
        loss = F.cross_entropy(scores.flatten(0, 1), text[start + 1 : start + 21].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
print(f"loss {loss.item():.3f}")
