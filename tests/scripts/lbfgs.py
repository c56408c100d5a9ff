"""An optimizer that calls the loss itself, several times a step."""

import torch
from hashing import fingerprint, show
from torch import nn

torch.manual_seed(0)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm1 = nn.LSTMCell(1, 16)
        self.lstm2 = nn.LSTMCell(16, 16)
        self.linear = nn.Linear(16, 1)

    def forward(self, x):
        h1, c1, h2, c2 = (torch.zeros(x.size(0), 16, dtype=torch.double) for _ in range(4))
        outputs = []
        for part in x.split(1, dim=1):
            h1, c1 = self.lstm1(part, (h1, c1))
            h2, c2 = self.lstm2(h1, (h2, c2))
            outputs.append(self.linear(h2))
        return torch.cat(outputs, dim=1)


waves = torch.sin(torch.arange(12).double() / 3 + torch.arange(6).double().unsqueeze(1))
model = Sequence().double()
criterion = nn.MSELoss()
optimizer = torch.optim.LBFGS(model.parameters(), lr=0.8, max_iter=4)
for _ in range(4):

    def closure():
        optimizer.zero_grad()
        loss = criterion(model(waves[:, :-1]), waves[:, 1:])
        show(loss.detach())
        loss.backward()
        return loss

    optimizer.step(closure)
fingerprint(model)
