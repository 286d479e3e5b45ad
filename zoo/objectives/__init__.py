"""Training objectives: a net and pixels in, named loss terms out."""

from zoo.objectives.adversarial import Adversarial
from zoo.objectives.denoising import DenoisingObjective
from zoo.objectives.losses import Losses, Objective
from zoo.objectives.reconstruction import ReconstructionObjective
from zoo.objectives.regularizers import KL, MMD, CauchySchwarz, Regularizer, SplitKL

__all__ = [
    "KL",
    "MMD",
    "Adversarial",
    "CauchySchwarz",
    "DenoisingObjective",
    "Losses",
    "Objective",
    "ReconstructionObjective",
    "Regularizer",
    "SplitKL",
]
