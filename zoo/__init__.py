"""A model zoo for generative vision.

import zoo
zoo.list_models()                       # names
net = zoo.create("cdt_tiny")            # random weights
net = zoo.load("dir:runs/quickstart/export")
z = net.encode(video).mean              # video: [B,3,T,H,W] in [-1,1]
back = net.decode(z, size=video.shape[2:])
"""

from zoo.errors import RunError, UserError
from zoo.hub import ModelEntry, info, list_models, load
from zoo.registry import create

__version__ = "0.1.0"

__all__ = [
    "ModelEntry",
    "RunError",
    "UserError",
    "create",
    "info",
    "list_models",
    "load",
]
