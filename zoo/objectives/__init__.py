"""Training objectives: a net and pixels in, named loss terms out."""

from zoo.objectives.denoising import DenoisingObjective
from zoo.objectives.losses import Losses, Objective
from zoo.objectives.reconstruction import ReconstructionObjective

__all__ = ["DenoisingObjective", "Losses", "Objective", "ReconstructionObjective"]
