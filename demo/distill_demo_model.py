"""Distil the flow demo model to four steps of euler with the scheduler simple, at cfg 1.

    python -m demo.distill_demo_model --comfyui DIR --checkpoint FOLDER \
        --start-from demo/emoji_flow_unet.safetensors

The student is the flow model plus factors of low rank (a LoRA). It takes its four steps as it will
be used; after each step, its velocity is compared with the one that leads back to the trajectory of
the teacher, the guided flow model in many steps from the same noise. So it learns the mean velocity
of each step, guidance, and to correct its own errors.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path

import torch
from torch.nn.utils import parametrize

from .train_demo_model import Trainer, argument_parser, train

STEPS = 4
SUBSTEPS = 4  # of the teacher, in a step of the student
GUIDANCE = 3.0  # the teacher's cfg
RANK = 8
REFRESH = 8  # steps between new trajectories
TRAJECTORIES = 32  # new ones, each time


class LowRank(torch.nn.Module):
    """A weight plus the product of two trained factors, which is zero at first."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        rank = min(RANK, rows)
        self.down = torch.nn.Parameter(torch.randn(rank, columns) / columns**0.5)
        self.up = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with what was learned."""
        return weight + (self.up @ self.down).reshape(weight.shape)


class Distiller(Trainer):
    """A student of low rank and its teacher's trajectories, which are not in the checkpoint."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__(options)
        self.levels = torch.linspace(1, 0, STEPS + 1)
        self.states = torch.empty(0)  # (trajectories, STEPS + 1, 3, size, size)
        self.prompts = torch.empty(0, dtype=torch.long)

    def trainable(self) -> list[torch.nn.Parameter]:
        """The low-rank factors of all weights but biases and norms."""
        self.teacher = copy.deepcopy(self.network).requires_grad_(False)
        self.network.requires_grad_(False)
        self.factors: dict[str, LowRank] = {}
        for name, module in list(self.network.named_modules()):
            weight = getattr(module, "weight", None)
            if weight is not None and weight.ndim > 1:
                self.factors[name] = LowRank(weight)
                parametrize.register_parametrization(module, "weight", self.factors[name])
        return [factor for pair in self.factors.values() for factor in (pair.down, pair.up)]

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW for all factors."""
        groups = [{"params": self.parameters, "factor": 1.0}]
        return [torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)]

    def backward(self) -> torch.Tensor:
        """Set the gradients of a batch of samples; returns the mean loss of their steps."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        if self.step % REFRESH == 0 or not len(self.states):
            self.add_trajectories(generator)
        pick = torch.randint(len(self.states), (self.options.batch,), generator=generator)
        states, tokens = self.states[pick], self.prompts[pick]
        x, losses = states[:, 0], []
        for index, (sigma, next_sigma) in enumerate(self.levels.unfold(0, 2, 1).tolist()):
            velocity = self.output(x, torch.full((len(x),), sigma), tokens)
            step = next_sigma - sigma
            loss = ((velocity - (states[:, index + 1] - x) / step) ** 2).mean() / STEPS
            loss.backward()
            losses.append(loss.detach())
            x = x + step * velocity.detach()
        return torch.stack(losses).sum()

    @torch.no_grad()
    def add_trajectories(self, generator: torch.Generator) -> None:
        """Sample the teacher for random captions and keep its states at the student's levels."""
        pick = torch.randint(len(self.tokens), (TRAJECTORIES,), generator=generator)
        tokens = self.tokens[pick]
        x = torch.randn(TRAJECTORIES, *self.pixels.shape[1:], generator=generator)
        states, count, before = [x], STEPS * SUBSTEPS, None
        for index in range(count):
            velocity = self.guided_velocity(x, 1 - index / count, tokens)
            # Adams-Bashforth: of second order with one call a step
            x = x - (velocity if before is None else 1.5 * velocity - 0.5 * before) / count
            before = velocity
            if (index + 1) % SUBSTEPS == 0:
                states.append(x)
        self.states = torch.cat([self.states, torch.stack(states, 1)])
        self.prompts = torch.cat([self.prompts, tokens])

    def guided_velocity(self, x: torch.Tensor, sigma: float, tokens: torch.Tensor) -> torch.Tensor:
        """The teacher's velocity with guidance against the empty caption."""
        student, self.forward = self.forward, self.teacher
        both = torch.cat([tokens, torch.zeros_like(tokens)])
        velocity = self.output(torch.cat([x, x]), torch.full((len(both),), sigma), both)
        self.forward = student
        prompt, empty = velocity.chunk(2)
        return empty + GUIDANCE * (prompt - empty)

    def shipped(self) -> dict[str, torch.Tensor]:
        """The averaged factors, named and shaped like a LoRA's."""
        tensors, values = {}, iter(self.average)
        for name in self.factors:
            key = self.demo.NETWORK_PREFIX + name
            tensors[f"{key}.lora_down.weight"] = next(values)
            tensors[f"{key}.lora_up.weight"] = next(values)
        return tensors

    def file_name(self) -> str:
        """Of the shipped file."""
        return self.demo.LORAS["flow turbo"][1].name


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argument_parser()
    parser.set_defaults(batch=16, learning_rate=2e-3, steps=400)
    parser.add_argument("--start-from", type=Path, required=True, help="the flow model's weights")
    return parser.parse_args(namespace=argparse.Namespace(prediction="flow"))


if __name__ == "__main__":
    train(Distiller, parse_arguments())
