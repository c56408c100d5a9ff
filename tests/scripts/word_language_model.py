"""An LSTM language model with a hidden state that is carried on, updated by hand through `.data`."""

import torch
from hashing import fingerprint, show
from torch import nn


class RNNModel(nn.Module):
    def __init__(self, tokens, width, layers):
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.encoder = nn.Embedding(tokens, width)
        self.rnn = nn.LSTM(width, width, layers, dropout=0.2)
        self.decoder = nn.Linear(width, tokens)
        nn.init.uniform_(self.encoder.weight, -0.1, 0.1)
        nn.init.zeros_(self.decoder.bias)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)
        self.tokens, self.width, self.layers = tokens, width, layers

    def forward(self, tokens, hidden):
        output, hidden = self.rnn(self.drop(self.encoder(tokens)), hidden)
        decoded = self.decoder(self.drop(output)).view(-1, self.tokens)
        return torch.log_softmax(decoded, dim=1), hidden

    def init_hidden(self, batch):
        weight = next(self.parameters())
        return (weight.new_zeros(self.layers, batch, self.width), weight.new_zeros(self.layers, batch, self.width))


torch.manual_seed(0)
model = RNNModel(40, 24, 2)
criterion = nn.NLLLoss()
text = torch.randint(0, 40, (200, 6))
hidden = model.init_hidden(6)
for i in range(0, 190, 10):
    data, targets = text[i : i + 10], text[i + 1 : i + 11].view(-1)
    model.zero_grad()
    hidden = tuple(h.detach() for h in hidden)
    output, hidden = model(data, hidden)
    loss = criterion(output, targets)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
    for p in model.parameters():
        p.data.add_(p.grad, alpha=-2.0)
    show(loss.detach())
fingerprint(model)
