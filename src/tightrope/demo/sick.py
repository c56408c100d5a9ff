"""Classify handwritten digits: an ordinary training script, and a sick one."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

EPOCHS = 12
DEPTH = 9

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(
    torch.tensor(images, dtype=torch.float32), torch.tensor(labels), test_size=400, random_state=0
)
data = torch.utils.data.TensorDataset(x_train, y_train)
loader = torch.utils.data.DataLoader(data, batch_size=64, shuffle=True)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(64, 64)
        self.blocks = nn.ModuleList([nn.Linear(64, 64) for _ in range(DEPTH)])
        self.head = nn.Linear(64, 10)
        nn.init.normal_(self.stem.weight)
        for layer in [*self.blocks, self.head]:
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x):
        x = torch.sigmoid(self.stem(x))
        for block in self.blocks:
            x = torch.relu(block(x))
        return self.head(x)


model = Net()
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for epoch in range(1, EPOCHS + 1):
    model.train()
    for x, y in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        accuracy = (model(x_test).argmax(1) == y_test).float().mean()
    print(f"epoch {epoch:2d}  loss {loss:.4f}  test accuracy {accuracy:.1%}", flush=True)
