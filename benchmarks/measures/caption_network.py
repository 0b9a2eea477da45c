"""A small replacement for LPIPS' pretrained network, trained here to predict words of a caption.

LPIPS compares features of a network that classifies photographs. Those networks are downloads that
a benchmark should not need, and emoji of 32x32 pixels are not photographs. Therefore a
squeezenet1_1 (alexnet starts with a stride of 4 pixels, vgg16 costs a hundred times more) learns
from the demo model's data which words occur in an emoji's caption. This is not LPIPS as published:
its calibrated heads were fitted to ImageNet's channels and are only fixed positive weights here.
The distance is called "lpips (emoji-caption network)"; compare it only with itself.

Every eighth emoji, in random order, is held out: the accuracies in `Network` on those show whether
the features are meaningful.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
from lpips.lpips import ScalingLayer
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from ld3.lpips_features import LpipsFeatures

NET = "squeeze"
SEED = 0
STEPS, BATCH, LEARNING_RATE, WARM_UP = 1500, 64, 1e-3, 100
HELD_OUT = 8  # one emoji in this many
LEAST_EMOJI = 4  # whose captions contain a word, for it to be learned
SHIFT = 3  # pixels, at most
NOISE = 0.1  # of pixels in [0, 1], at most
FILLERS = {"and", "at", "for", "in", "of", "on", "the", "to", "with"}
SIDED = {
    "left", "right", "leftwards", "rightwards", "clockwise", "anticlockwise", "symbol", "sign",
    "letter", "squared", "ideograph", "clock", "quarter", "crescent",
}  # fmt: skip  # words of emoji whose mirror images have another name, or none


class Data(NamedTuple):
    """Images (n, 3, height, width) in [0, 1] with their words.

    Attributes:
        labels: (n, words), 1 where the caption contains the word, otherwise 0.
        flips: (n,), whether the mirror image has the same caption.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor

    def at(self, chosen: Tensor) -> Data:
        """The images at indices, or where a mask is true."""
        return Data(*(part[chosen] for part in self))


class Network(NamedTuple):
    """A trained network and its accuracy on held-out emoji.

    Attributes:
        backbone: `features.*` of torchvision's squeezenet1_1.
        heldout_precision: mean average precision over the words of held-out emoji.
        chance: that of random scores, the words' mean share of those emoji.
        heldout_accuracy: how often the most likely word is correct, for emoji with any word.
        most_frequent: that of always choosing the most frequent word.
    """

    backbone: dict[str, Tensor]
    heldout_precision: float
    chance: float
    heldout_accuracy: float
    most_frequent: float


def labelled(images: Tensor, captions: Sequence[str]) -> Data:
    """The training data of images uint8 (n, height, width, 3) with their captions."""
    sets = [set(caption.replace("-", " ").split()) for caption in captions]
    counts = Counter(word for words in sets for word in words - FILLERS)
    vocabulary = sorted(word for word, count in counts.items() if count >= LEAST_EMOJI)
    labels = torch.tensor([[float(word in words) for word in vocabulary] for words in sets])
    flips = torch.tensor([not words & SIDED for words in sets])
    return Data(images.permute(0, 3, 1, 2).float() / 255, labels, flips)


@functools.cache
def trained() -> Network:
    """The network of the demo model's data, trained once per run of the benchmark."""
    started = time.monotonic()
    network = train(emoji_data())
    print(
        f"emoji-caption network, trained in {time.monotonic() - started:.0f} s; on held-out emoji: "
        f"mean average precision {network.heldout_precision:.3f} (chance {network.chance:.3f}), "
        f"most likely word correct {network.heldout_accuracy:.3f} (most frequent word "
        f"{network.most_frequent:.3f})",
        flush=True,
    )
    return network


@functools.cache
def features() -> LpipsFeatures:
    """LPIPS with that network: images in [0, 1] -> features."""
    return LpipsFeatures(NET, trained().backbone)


def install(folder: Path) -> Path:
    """Save the network as the file in which the pack expects LPIPS' own; returns its path.

    Only for the temporary folder that a benchmark passes to ComfyUI: `folder` must be empty, so
    that no real network is hidden or replaced.
    """
    from ld3.comfy.image_distance import BACKBONES

    stem, _ = BACKBONES[NET]
    path = folder / f"{stem}.safetensors"
    if path.exists():
        return path
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder} has files; pass an empty temporary folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(trained().backbone, path, {"network": "emoji captions, not ImageNet"})
    return path


@functools.cache
def emoji_data() -> Data:
    """The demo model's data."""
    from demo import emoji

    images, captions = emoji.load_emoji()
    return labelled(torch.from_numpy(images), captions)


def augmented(data: Data, generator: torch.Generator) -> Tensor:
    """Each image shifted, mirrored or not, with a little noise: (n, 3, height, width)."""
    images = data.images
    count, _, height, width = images.shape
    mirrored = data.flips & (torch.rand(count, generator=generator) < 0.5)
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    padded = functional.pad(images, [SHIFT] * 4, value=1.0)  # the background is white
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    shifted = padded.permute(0, 2, 3, 1)[
        torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]
    ].permute(0, 3, 1, 2)
    strength = NOISE * torch.rand(count, 1, 1, 1, generator=generator)
    return shifted + strength * torch.randn(shifted.shape, generator=generator)


def train(data: Data, seed: int = SEED, steps: int = STEPS) -> Network:
    """Train on seven eighths of the data, measure on the rest; deterministic for a seed."""
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(seed))
    held_out = torch.arange(len(order)) % HELD_OUT == 0
    training, unseen = data.at(order[~held_out]), data.at(order[held_out])
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        network = torchvision.models.squeezenet1_1(num_classes=data.labels.shape[1])
        _descend(network, training, seed, steps)
    network.eval()
    with torch.no_grad():
        scores = word_scores(network, unseen.images)
    backbone = {k: v for k, v in network.state_dict().items() if k.startswith("features.")}
    prior = training.labels.mean(0).expand_as(scores)
    named = unseen.labels.sum(0) > 0
    return Network(
        backbone,
        mean_average_precision(scores, unseen.labels),
        float(unseen.labels[:, named].mean()),
        _first_is_right(scores, unseen.labels),
        _first_is_right(prior, unseen.labels),
    )


def _descend(network: torch.nn.Module, data: Data, seed: int, steps: int) -> None:
    """Adam on the cross-entropy of words, with a one-cycle learning rate."""
    generator = torch.Generator().manual_seed(seed)
    data = data.at(data.labels.sum(1) > 0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=steps + 1, pct_start=min(0.3, WARM_UP / steps)
    )
    for _ in range(steps):
        batch = data.at(torch.randint(len(data.labels), (BATCH,), generator=generator))
        scores = word_scores(network, augmented(batch, generator))
        targets = batch.labels / batch.labels.sum(1, keepdim=True)
        optimizer.zero_grad()
        functional.cross_entropy(scores, targets).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        rate.step()


def word_scores(network: torch.nn.Module, images: Tensor) -> Tensor:
    """A score for each word, (n, words); images are scaled as LPIPS scales them."""
    scaled = ScalingLayer()(2 * images - 1)
    # without the classifier's last ReLU, which would hide negative scores
    return network.classifier[:2](network.features(scaled)).mean((2, 3))


def mean_average_precision(scores: Tensor, labels: Tensor) -> float:
    """Mean over words that occur in any caption; scores and labels are (n, words)."""
    ranked = labels.gather(0, scores.argsort(0, descending=True))
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1)[:, None]
    named = ranked.sum(0) > 0
    return float(((precision * ranked).sum(0) / ranked.sum(0))[named].mean())


def _first_is_right(scores: Tensor, labels: Tensor) -> float:
    right = labels.gather(1, scores.argmax(1, keepdim=True))
    return float(right[labels.sum(1) > 0].mean())
