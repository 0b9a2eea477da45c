"""The benchmark `ablation`: rows, figure, and the network that replaces LPIPS' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.measures import caption_network
from benchmarks.measures.caption_network import (
    Data,
    augmented,
    labelled,
    mean_average_precision,
    train,
)
from benchmarks.suites import ablation
from benchmarks.suites.ablation.demo_cells import LPIPS
from benchmarks.suites.ablation.plot import PANELS
from ld3.lpips_features import LpipsFeatures

pytestmark = pytest.mark.usefixtures("one_thread")
COLOURS = {"red": (220, 40, 40), "green": (40, 180, 40), "blue": (40, 60, 220)}
SIZE = 32


def shapes(count: int = 96) -> tuple[Tensor, list[str]]:
    """Rectangles of three colours on white, wide or tall, all different: uint8 (n, 32, 32, 3)."""
    generator = torch.Generator().manual_seed(0)
    images, captions = torch.full((count, SIZE, SIZE, 3), 255, dtype=torch.uint8), []
    for i, image in enumerate(images):
        colour, form = list(COLOURS)[i % 3], ("wide", "tall")[i // 3 % 2]
        long, short = (int(torch.randint(*ends, (), generator=generator)) for ends in ENDS)
        height, width = (short, long) if form == "wide" else (long, short)
        y, x = (SIZE - height) // 2, (SIZE - width) // 2
        image[y : y + height, x : x + width] = torch.tensor(COLOURS[colour], dtype=torch.uint8)
        captions.append(f"{colour} shape of {form} form with number {i}")
    return images, captions


ENDS = ((20, 30), (6, 12))


def some_data() -> Data:
    return labelled(*shapes())


def distances(features: LpipsFeatures, one: Tensor, other: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cdist(features(one), features(other)).square()


def test_labels_are_frequent_words_without_fillers() -> None:
    data = some_data()
    # blue, form, green, number, red, shape, tall, wide
    assert data.images.shape == (96, 3, SIZE, SIZE) and data.labels.shape == (96, 8)
    assert data.labels.sum(1).eq(5).all()
    assert float(data.images.min()) >= 0 and float(data.images.max()) == 1


def test_captions_that_name_a_side_are_not_mirrored() -> None:
    images = torch.zeros(4, 8, 8, 3, dtype=torch.uint8)
    captions = ["leftwards arrow", "grinning face", "right hand", "red heart"]
    assert labelled(images, captions).flips.tolist() == [False, True, False, True]


def test_augmentation_shifts_by_few_pixels_on_white() -> None:
    images = torch.ones(64, 3, SIZE, SIZE)
    images[:, :, 16, 12] = 0
    data = Data(images, torch.zeros(64, 1), torch.zeros(64, dtype=torch.bool))
    made = augmented(data, torch.Generator().manual_seed(0))
    place = made.mean(1).flatten(1).argmin(1)
    rows, columns = place // SIZE, place % SIZE
    shift = caption_network.SHIFT
    assert (int(rows.min()), int(rows.max())) == (16 - shift, 16 + shift)
    assert (int(columns.min()), int(columns.max())) == (12 - shift, 12 + shift)
    assert 0 < float((made - 1).abs().median()) < caption_network.NOISE


def test_average_precision_is_one_for_perfect_scores_and_the_share_for_useless_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(4000, 3, generator=generator) < torch.tensor([0.1, 0.2, 0.3])).float()
    assert mean_average_precision(labels, labels) == pytest.approx(1)
    useless = torch.rand(labels.shape, generator=generator)
    assert mean_average_precision(useless, labels) == pytest.approx(0.2, abs=0.03)
    # hits at ranks 1 and 3
    scores, one_word = torch.tensor([[3.0], [2.0], [1.0]]), torch.tensor([[1.0], [0.0], [1.0]])
    assert mean_average_precision(scores, one_word) == pytest.approx((1 + 2 / 3) / 2)


def test_same_seed_trains_the_same_network_and_draws_no_global_numbers() -> None:
    before, data = torch.get_rng_state(), some_data()
    first, again, other = (train(data, seed, steps=2) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert first[1:] == again[1:]
    for name, weight in first.backbone.items():
        assert torch.equal(weight, again.backbone[name]), name
    assert any(not torch.equal(w, other.backbone[n]) for n, w in first.backbone.items())


@pytest.mark.slow
def test_trained_network_classifies_and_ranks_unseen_images() -> None:
    data = some_data()
    network = train(data, steps=120)
    assert network.heldout_precision > network.chance + 0.2
    features = LpipsFeatures(caption_network.NET, network.backbone)
    moved = augmented(data._replace(flips=torch.zeros(96).bool()), torch.Generator().manual_seed(1))
    found = distances(features, data.images, moved.clamp(0, 1))
    kind = torch.arange(96) % 6
    alike = kind[:, None] == kind[None, :]
    assert float(found.diagonal().mean()) < float(found[alike].mean()) < float(found[~alike].mean())
    assert float((found.diagonal()[:, None] < found)[~alike].float().mean()) > 0.95


def test_network_is_installed_where_the_pack_looks_and_never_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    from ld3.comfy import folders, image_distance

    network = train(some_data(), steps=1)
    monkeypatch.setattr(caption_network, "trained", lambda: network)
    known = ([str(tmp_path / "lpips")], {".pth", ".safetensors"})
    monkeypatch.setitem(folder_paths.folder_names_and_paths, folders.LPIPS_KEY, known)
    path = caption_network.install(folders.lpips_folder())
    assert caption_network.install(folders.lpips_folder()) == path
    assert image_distance.backbone_path(caption_network.NET) == path
    LpipsFeatures(caption_network.NET, image_distance.find_backbone(caption_network.NET))
    path.rename(path.with_suffix(".pth"))
    with pytest.raises(ValueError, match="has files"):
        caption_network.install(folders.lpips_folder())


def test_every_cell_is_named_once_and_distances_of_the_demo_model_are_there() -> None:
    cells = list(ablation.cells())
    keys = [tuple(cell[name] for name in ablation.KEYS) for cell in cells]
    assert len(keys) == len(set(keys))
    demo = [c for c in cells if c["model"] == "demo" and c["ablation"] == "distance"]
    assert [c["setting"] for c in demo] == [
        f"{distance} +s" for distance in ("pseudo-huber", "l2", "l1", LPIPS)
    ]
    assert {c["cfg"] for c in demo} == {1.0}


@pytest.mark.slow
def test_rows_of_exact_problems_have_no_lpips() -> None:
    row = ablation.row(**next(iter(ablation.cells())))
    assert set(ablation.KEYS) | set(ablation.COLUMNS) <= set(row)
    assert row["heldout_error"] > 0 and row["heldout_lpips"] is None


def test_figure_shows_both_measures_over_their_own_yardsticks() -> None:
    def row(which: str, setting: str, error: float, lpips: float | None) -> dict[str, Any]:
        place = {"model": "demo", "sampler": "dpmpp_2m", "steps": 4, "cfg": 1.0, "seed": 0}
        return {"ablation": which, "setting": setting, **place} | {
            "heldout_error": error,
            "heldout_lpips": lpips,
        }

    rows = [
        row("yardstick", "scheduler:best", 0.5, 0.2),
        row("distance", "l2 +s", 0.25, 0.15),
        row("distance", f"{LPIPS} +s", 0.3, 0.1),
        row("teacher steps", "2n +s", 0.4, None),
    ]
    axes = {axis.get_title(): axis for axis in ablation.plot(rows).axes}

    def heights(ablation: str) -> list[list[float]]:
        axis = axes[PANELS[ablation]]
        return [list(bars.lines[0].get_ydata()) for bars in axis.containers]

    assert heights("distance") == [pytest.approx([0.5, 0.6]), pytest.approx([0.75, 0.5])]
    assert heights("teacher steps") == [pytest.approx([0.8])]
    text = ablation.summary(rows)
    assert f"| | l2 | {LPIPS} |" in text
    assert "| demo, dpmpp_2m, 4 steps, cfg 1, full solver | 0.50 | 0.60 |" in text
    assert "| demo, dpmpp_2m, 4 steps, cfg 1, full solver, by LPIPS | 0.75 | 0.50 |" in text
