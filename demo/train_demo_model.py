"""Train a demo model on rendered emoji; seeded, resumable, a few hours on two CPU cores.

    python -m demo.train_demo_model --comfyui DIR --steps 6000 --checkpoint FOLDER
    python -m demo.train_demo_model --comfyui DIR --steps 4000 --checkpoint FOLDER \
        --prediction flow --start-from demo/emoji_unet.safetensors

The learning rate is constant and then falls linearly over the last quarter of --steps, so a run
can be stopped and resumed with other --steps as long as that quarter has not begun.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import math
import signal
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scripts import comfyui_import

from . import emoji
from .muon import Muon
from .objectives import EpsObjective, FlowObjective

log = logging.getLogger("demo.train_demo_model")
CAPTION_DROPOUT = 0.1
WARM_UP = 100  # steps
DECAY_SHARE = 0.25  # of all steps, at the end
EMA_DECAY = 0.998
LOG_EVERY = 50  # steps


def argument_parser() -> argparse.ArgumentParser:
    """The options of every training."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--comfyui", type=Path, required=True, help="folder of ComfyUI")
    parser.add_argument("--checkpoint", type=Path, required=True, help="folder to resume from")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=4.0, help="between checkpoints")
    parser.add_argument("--compile", action="store_true", help="use torch.compile (needs gcc)")
    parser.add_argument("--bf16", action="store_true", help="compute the network in bfloat16")
    parser.add_argument("--font", type=Path, default=emoji.FONT)
    return parser


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argument_parser()
    parser.add_argument("--prediction", choices=("eps", "flow"), default="eps")
    parser.add_argument(
        "--start-from", type=Path, help="weights to start from; their words stay as they are"
    )
    return parser.parse_args()


def import_demo_model(comfyui: Path) -> Any:
    """Import ComfyUI with PyTorch's attention (its default is slow on a CPU), then the models."""
    comfyui_import.prepare(comfyui)
    return importlib.import_module(".demo_model", __package__)


def initialise(network: torch.nn.Module) -> None:
    """Give every layer PyTorch's usual start values (ComfyUI's layers leave memory as it is).

    The last layer of each residual branch starts at zero, so each branch starts as the identity.
    """
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None:
            continue
        if weight.ndim == 1:  # a norm
            torch.nn.init.ones_(weight)
            torch.nn.init.zeros_(module.bias)
            continue
        torch.nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
        if module.bias is not None:
            torch.nn.init.zeros_(module.bias)
        if name.endswith(("out_layers.3", "proj_out")) or name == "out.2":
            torch.nn.init.zeros_(weight)


class Trainer:
    """The network, its word table, their running average and the optimizer."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.demo = import_demo_model(options.comfyui)
        torch.set_num_threads(options.threads)
        torch.manual_seed(options.seed)
        images, captions = emoji.load_emoji(options.font, self.demo.SIZE)
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        self.pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.vocabulary = sorted({word for text in captions for word in self.demo.words_of(text)})
        base = self.demo.build_model(torch.device("cpu"), options.prediction)
        self.network = base.diffusion_model.requires_grad_(True).train()
        initialise(self.network)
        self.network.to(memory_format=torch.channels_last)
        self.words = torch.nn.Embedding(1 + len(self.vocabulary), self.demo.CONTEXT_DIM)
        if options.start_from:
            self.start_from(options.start_from)
        tokens = [self.demo.token_ids(text, self.vocabulary)[0] for text in captions]
        self.tokens = torch.tensor(tokens)
        self.forward = torch.compile(self.network) if options.compile else self.network
        self.sampling = base.model_sampling
        flow = options.prediction == "flow"
        self.objective = FlowObjective() if flow else EpsObjective(self.sampling.sigmas)
        self.parameters = self.trainable()
        self.optimizers = self.make_optimizers()
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = 0
        self.seconds = 0.0
        self.stopping = False

    def start_from(self, file: Path) -> None:
        """Set the network to another demo model's weights and share its words."""
        with safe_open(file, framework="pt") as weights:
            self.vocabulary = json.loads(weights.metadata()["vocabulary"])
            tensors = {key: weights.get_tensor(key).float() for key in weights.keys()}
        # Frozen, so that all models take the same prompts.
        table = tensors.pop(self.demo.WORDS_KEY)
        self.words = torch.nn.Embedding.from_pretrained(table, freeze=True)
        prefix = self.demo.NETWORK_PREFIX
        self.network.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items()})

    def trainable(self) -> list[torch.nn.Parameter]:
        """What the optimizers change."""
        parameters = [*self.network.parameters(), *self.words.parameters()]
        return [parameter for parameter in parameters if parameter.requires_grad]

    def make_optimizers(self) -> list[torch.optim.Optimizer]:
        """Muon for the inner matrices; AdamW for the ends, biases, norms and words."""
        ends = {"input_blocks.0.0.weight", "out.2.weight"}
        matrices, others = [], []
        for name, parameter in self.network.named_parameters():
            inner = parameter.ndim > 1 and name not in ends
            (matrices if inner else others).append(parameter)
        adam_groups = [{"params": others, "factor": 1.0}]
        if self.words.weight.requires_grad:
            # A rare word gets few gradients; a higher rate lets it catch up.
            adam_groups.append({"params": list(self.words.parameters()), "factor": 3.0})
        return [
            Muon([{"params": matrices, "factor": 1.5}], lr=0.0),
            torch.optim.AdamW(adam_groups, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0),
        ]

    def learning_rate(self) -> float:
        """Warm-up, a long constant phase, a linear fall to zero."""
        decay = max(1.0, DECAY_SHARE * self.options.steps)
        left = (self.options.steps - self.step) / decay
        return self.options.learning_rate * min(1.0, (self.step + 1) / WARM_UP, left)

    def batch(self) -> tuple[torch.Tensor, ...]:
        """Draw pictures, tokens, noise levels and noise from a generator of (seed, step)."""
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        count = self.options.batch
        pick = torch.randint(len(self.pixels), (count,), generator=generator)
        tokens = self.tokens[pick]
        tokens[torch.rand(count, generator=generator) < CAPTION_DROPOUT] = 0
        # One noise level a stratum: less variance than independent draws.
        uniform = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        sigmas = self.objective.sigmas(uniform).float()
        noise = torch.randn(self.pixels[pick].shape, generator=generator)
        return self.pixels[pick], tokens, sigmas, noise

    def output(self, x: torch.Tensor, sigmas: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """The network's output (batch, 3, size, size) for noisy pictures at sigmas (batch,)."""
        x = self.sampling.calculate_input(sigmas, x).contiguous(memory_format=torch.channels_last)
        timestep = self.sampling.timestep(sigmas).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.options.bf16):
            return self.forward(x, timestep, context=self.words(tokens)).float()

    def backward(self) -> torch.Tensor:
        """Set the gradients of one batch; returns its loss."""
        x0, tokens, sigmas, noise = self.batch()
        output = self.output(self.sampling.noise_scaling(sigmas, noise, x0), sigmas, tokens)
        loss = self.objective.loss(output, x0, noise, sigmas)
        loss.backward()
        return loss.detach()

    def train_step(self) -> torch.Tensor:
        """One optimizer step; returns the loss."""
        loss = self.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        rate = self.learning_rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["factor"]
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        keep = min(EMA_DECAY, self.step / (self.step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - keep)
        return loss

    def shipped(self) -> dict[str, torch.Tensor]:
        """The averaged weights by their names in the shipped file."""
        names = [self.demo.NETWORK_PREFIX + name for name, _ in self.network.named_parameters()]
        words = [] if self.words.weight.requires_grad else [self.words.weight.detach()]
        return dict(zip([*names, self.demo.WORDS_KEY], [*self.average, *words], strict=True))

    def file_name(self) -> str:
        """Of the shipped file."""
        return self.demo.WEIGHTS[self.options.prediction].name

    def save(self) -> None:
        """Write the checkpoint and the shipped weights, each replaced in one go."""
        folder = self.options.checkpoint
        state = {
            "network": self.network.state_dict(),
            "words": self.words.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.seconds,
        }
        torch.save(state, folder / "checkpoint.tmp")
        (folder / "checkpoint.tmp").replace(folder / "checkpoint.pt")
        halves = {key: value.half().contiguous() for key, value in self.shipped().items()}
        metadata = {
            "prediction": self.options.prediction,
            "vocabulary": json.dumps(self.vocabulary),
            "steps": str(self.step),
            "batch": str(self.options.batch),
            "seconds": str(round(self.seconds)),
        }
        save_file(halves, folder / "weights.tmp", metadata)
        (folder / "weights.tmp").replace(folder / self.file_name())

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one."""
        file = self.options.checkpoint / "checkpoint.pt"
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.words.load_state_dict(state["words"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("resumed at step %d", self.step)

    def stop(self, *_signal: object) -> None:
        """End after the step under way, with a checkpoint."""
        self.stopping = True

    def run(self) -> None:
        """Train to the last step, with a checkpoint every few minutes."""
        began = last_save = last_log = time.monotonic()
        before, losses = self.seconds, []
        while self.step < self.options.steps and not self.stopping:
            losses.append(self.train_step())
            now = time.monotonic()
            self.seconds = before + now - began
            if self.step % LOG_EVERY == 0:
                loss, pace = torch.stack(losses).mean(), (now - last_log) / len(losses)
                rate = self.learning_rate()
                log.info("step %d loss %.4f lr %.2e %.3f s/step", self.step, loss, rate, pace)
                losses, last_log = [], now
            if now - last_save > 60 * self.options.minutes:
                self.save()
                last_save = now
        self.save()


def train(make: type[Trainer], options: argparse.Namespace) -> None:
    """Train, or go on training."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.checkpoint.mkdir(parents=True, exist_ok=True)
    trainer = make(options)
    count = sum(p.numel() for p in trainer.parameters)
    log.info("%d parameters, %d emoji", count, len(trainer.pixels))
    trainer.resume()
    signal.signal(signal.SIGINT, trainer.stop)
    signal.signal(signal.SIGTERM, trainer.stop)
    trainer.run()


if __name__ == "__main__":
    train(Trainer, parse_arguments())
