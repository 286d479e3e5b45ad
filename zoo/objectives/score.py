"""The trainable score of a student's samples, beside the frozen teacher's (arXiv 2305.16213).

Both start as the teacher. `attach` is called once, with the teacher's UNet.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.frozen import Frozen


class ScoreNet(nn.Module, ABC):
    """A denoiser that follows the student; its trainable weights are its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen = Frozen(teacher=None)

    @property
    def frozen_teacher(self) -> Any:
        """The teacher's UNet, outside the module tree."""
        assert self._frozen.teacher is not None, "call attach first"
        return self._frozen.teacher

    @abstractmethod
    def attach(self, teacher: Any) -> None:
        """Begin as the teacher, which is frozen."""

    @abstractmethod
    def forward(self, x_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The prediction [B,...] for the student's distribution, with gradient to the weights."""

    @abstractmethod
    def teacher(self, x_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The teacher's prediction [B,...]."""

    @abstractmethod
    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""


class FullCopy(ScoreNet):
    """A copy of the whole teacher: stable at tiny scale, where LoRA was not."""

    def attach(self, teacher: Any) -> None:
        """Copy the teacher."""
        self.copy = deepcopy(teacher).train().requires_grad_(True)
        self._frozen.teacher = teacher.eval().requires_grad_(False)

    def forward(self, x_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The copy's prediction."""
        prediction: Tensor = self.copy(x_t, timesteps, text).sample
        return prediction

    def teacher(self, x_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The original's prediction."""
        prediction: Tensor = self.frozen_teacher(x_t, timesteps, text).sample
        return prediction

    def checkpoint_gradients(self) -> None:
        """Of the copy."""
        self.copy.enable_gradient_checkpointing()


class LoRA(ScoreNet):
    """Low-rank adapters on the teacher (arXiv 2106.09685), switched off for its own predictions.

    One set of weights serves both, which is what fits a Stable Diffusion into a GPU.

    Args:
        rank: of the adapters.
        alpha: they are scaled by alpha / rank.
        targets: layers that get one, by the end of their names.

    Raises:
        UserError: rank < 1.
    """

    def __init__(
        self, *, rank: int = 64, alpha: float = 108, targets: tuple[str, ...] = ("to_q", "to_v")
    ) -> None:
        super().__init__()
        if rank < 1:
            raise UserError(f"rank = {rank}: give at least 1")
        self.rank, self.alpha, self.targets = rank, alpha, targets

    def attach(self, teacher: Any) -> None:
        """Add the adapters; their product begins at zero.

        Raises:
            UserError: no layer of the teacher has such a name.
        """
        from peft import LoraConfig

        teacher.eval().requires_grad_(False)
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # any number works
            target_modules=list(self.targets),
            init_lora_weights="gaussian",
        )
        try:
            teacher.add_adapter(config)
        except ValueError as error:
            raise UserError(f"the teacher has no layer named {', '.join(self.targets)}") from error
        self._frozen.teacher = teacher
        # the adapters alone are this module's: the teacher is neither saved nor averaged with them
        self.adapters = nn.ParameterDict(
            {
                name.replace(".", "/"): weight.requires_grad_(True)
                for name, weight in teacher.named_parameters()
                if "lora_" in name
            }
        )

    def forward(self, x_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The adapted teacher's prediction."""
        prediction: Tensor = self.frozen_teacher(x_t, timesteps, text).sample
        return prediction

    def teacher(self, x_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """The prediction without the adapters."""
        net = self.frozen_teacher
        net.disable_adapters()
        try:
            with torch.no_grad():
                prediction: Tensor = net(x_t, timesteps, text).sample
        finally:
            net.enable_adapters()
        return prediction

    def checkpoint_gradients(self) -> None:
        """Of the adapted teacher."""
        self.frozen_teacher.enable_gradient_checkpointing()
