"""Factories as users write them: in each form that is read, and in each way that is refused."""

import torch
import torch.nn.functional as F
from torch import nn

from tightrope import Subject


def net(depth=3, std=None):
    torch.manual_seed(0)
    layers = [part for _ in range(depth) for part in (nn.Linear(32, 32), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(32, 4))
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if std is not None:
                nn.init.normal_(layer.weight, std=std)
    return model


def batch():
    return torch.randn(64, 32), torch.randint(0, 4, (64,))


def healthy():
    return net(), batch(), F.cross_entropy


def subject():
    model = net()
    return Subject(model, batch(), F.cross_entropy, torch.optim.SGD(model.parameters(), 0.1))


def loader():
    data = torch.utils.data.TensorDataset(torch.randn(256, 32), torch.randint(0, 4, (256,)))
    return net(), torch.utils.data.DataLoader(data, 64), F.cross_entropy


def sick():
    return net(depth=12, std=0.02), batch(), F.cross_entropy


def meta():
    with torch.device("meta"):
        return net(depth=12), torch.empty(64, 32)


def meta_sick():
    with torch.device("meta"):
        return net(depth=12, std=0.02), torch.empty(64, 32)


def bare():
    return net()


def no_model():
    return 3


def no_parameters():
    return nn.ReLU(), torch.randn(4, 4)


def raises():
    raise FileNotFoundError("weights.pt")


VALUE = 7
