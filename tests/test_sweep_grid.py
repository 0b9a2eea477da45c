"""The file of a sweep: which cells it means, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from scripts.sweeping.cells import Cell, cells_of
from scripts.sweeping.grid import GridError, read_grid

from .sweep_grids import ROOT, TRAIN, grid_file, workflow

SIZE = {"inputs": ["4.width", "4.height"], "values": [[16, 16], [16, 24]]}
BOTH = {"inputs": ["5.cfg", "1.batch_size"], "values": [1, 2]}


def cells(folder: Path, **grid: Any) -> list[Cell]:
    return cells_of(read_grid(grid_file(folder, **grid)))


def widgets(cell: Cell) -> dict[str, Any]:
    return cell.prompt[TRAIN]["inputs"]


def test_every_combination_is_a_cell_of_its_own(tmp_path: Path) -> None:
    axes = {"sampler_name": ["euler", "ipndm"], "steps": [3, 4, 6], "size": SIZE, "both": BOTH}
    found = cells(tmp_path, axes=axes, name="mine")
    assert len(found) == 24 == len({cell.key for cell in found}) == len({c.name for c in found})
    for cell in found:
        assert widgets(cell)["sampler_name"] == cell.labels["sampler_name"]
        assert cell.steps == (widgets(cell)["steps"],) == (cell.labels["steps"],)
        size = cell.prompt["4"]["inputs"]
        assert cell.labels["size"] == f"{size['width']} x {size['height']}"
        assert widgets(cell)["cfg"] == cell.prompt["1"]["inputs"]["batch_size"]
        assert widgets(cell)["name"] == cell.name and cell.name.startswith("mine sampler_name")


def test_the_workflow_itself_is_not_changed(tmp_path: Path) -> None:
    grid = read_grid(grid_file(tmp_path, set={"quality": "normal"}))
    before = json.dumps(grid.prompt)
    cells_of(grid)
    assert json.dumps(grid.prompt) == before
    assert grid.prompt[TRAIN]["inputs"]["quality"] == "normal"


def test_one_training_learns_all_steps_if_the_grid_says_so(tmp_path: Path) -> None:
    axes = {"steps": [4, 3, 6], "sampler_name": ["euler", "ipndm"]}
    skip = [{"sampler_name": "euler", "steps": 4}]
    euler, ipndm = cells(tmp_path, axes=axes, also_steps=True, skip=skip)
    assert ipndm.steps == (4, 3, 6) and widgets(ipndm)["steps"] == 4
    assert widgets(ipndm)["also_steps"] == "3, 6"
    assert euler.steps == (3, 6) and widgets(euler)["steps"] == 3
    assert widgets(euler)["also_steps"] == "6" and euler.labels == {"sampler_name": "euler"}


def test_combinations_to_skip_are_left_out(tmp_path: Path) -> None:
    axes = {"sampler_name": ["euler", "ipndm"], "steps": [3, 4]}
    found = cells(tmp_path, axes=axes, skip=[{"sampler_name": "euler", "steps": 3}])
    labels = [(cell.labels["sampler_name"], cell.labels["steps"]) for cell in found]
    assert sorted(labels) == [("euler", 4), ("ipndm", 3), ("ipndm", 4)]
    with pytest.raises(GridError, match="0 cells"):
        cells(tmp_path, axes=axes, skip=[{"steps": 3}, {"steps": 4}])


def test_cells_with_the_same_teacher_stand_together(tmp_path: Path) -> None:
    """Sampler and steps are the student's; cfg, size and seed are the teacher's too."""
    axes = {"steps": [3, 4], "cfg": [1, 2], "sampler_name": ["euler", "ipndm"], "size": SIZE}
    teachers = [cell.teacher for cell in cells(tmp_path, axes=axes)]
    assert len(set(teachers)) == 4
    changes = sum(a != b for a, b in zip(teachers, teachers[1:], strict=False))
    assert changes == 3
    assert len({cell.teacher for cell in cells(tmp_path, axes={"seed": [0, 1]})}) == 2


def test_a_key_depends_on_what_is_trained_not_on_names(tmp_path: Path) -> None:
    plain, renamed = cells(tmp_path), cells(tmp_path, name="another")
    assert [cell.key for cell in plain] == [cell.key for cell in renamed]
    assert [cell.key for cell in plain] != [c.key for c in cells(tmp_path, set={"seed": 1})]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"axes": {}}, ["axes must have at least one"]),
        ({"axis": {}}, ["unknown key axis", "axes"]),
        ({"axes": {"stepz": [3]}}, ["axes: stepz", "no input 'stepz'", "steps"]),
        ({"axes": {"steps": []}}, ["steps", "list of values"]),
        ({"axes": {"steps": 3}}, ["steps is 3", "list of values"]),
        ({"axes": {"steps": [3, 3.0]}}, ["steps contains", "twice"]),
        ({"axes": {"steps": [{}]}}, ["no number or text"]),
        ({"axes": {"name": ["a"]}}, ["name cannot be set"]),
        ({"axes": {"model": ["a"]}}, ["input model", "connected"]),
        ({"axes": {"size": SIZE | {"values": [[16]]}}}, ["has 1 values", "2 inputs"]),
        ({"axes": {"size": SIZE | {"inputs": ["width"]}}}, ["'width'", "NODE.INPUT"]),
        ({"axes": {"size": SIZE | {"inputs": ["9.width"]}}}, ["no node '9'"]),
        ({"axes": {"size": {"values": [1]}}}, ["keys inputs and values"]),
        ({"axes": {"cfg": [1], "both": BOTH}}, ["cfg and both both set 5.cfg"]),
        ({"set": {"retrain": True}}, ["set: retrain cannot be set"]),
        ({"set": {"quality": []}}, ["set: quality"]),
        ({"skip": [{"cfg": 1}]}, ["skip", "no axis 'cfg'"]),
        ({"skip": [{"steps": 5}]}, ["no value 5", "3, 4"]),
        ({"also_steps": "yes"}, ["also_steps is 'yes'", "true or false"]),
        ({"also_steps": True, "axes": {"cfg": [1]}}, ["needs the axis steps"]),
        ({"training": "4"}, ["training is '4'", "5"]),
        ({"workflow": "absent.json"}, ["absent.json"]),
        ({"workflow": str(ROOT / "workflows" / "LD3 demo - train and compare.json")}, ["API"]),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(GridError) as refused:
        cells(tmp_path, **changes)
    for word in ["grid.yaml", *words]:
        assert word in str(refused.value)


def test_two_nodes_that_train_need_a_choice(tmp_path: Path) -> None:
    path = grid_file(tmp_path)
    prompt = workflow()
    prompt["6"] = prompt[TRAIN]
    (tmp_path / "train.json").write_text(json.dumps(prompt), encoding="utf-8")
    with pytest.raises(GridError, match="found 5, 6"):
        read_grid(path)
    path.write_text(path.read_text("utf-8") + "training: 6\n", encoding="utf-8")
    assert read_grid(path).training == "6"


@pytest.mark.parametrize(
    "text", ["", "[", "axes: {}\naxes: {}", "- 1", "workflow: a", "\x00", "a: !!python/name:os.x"]
)
def test_a_file_that_is_no_grid_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(GridError, match="grid.yaml"):
        read_grid(path)
    with pytest.raises(GridError, match="absent"):
        read_grid(tmp_path / "absent.yaml")


def test_any_change_of_a_grid_is_read_or_refused(tmp_path: Path) -> None:
    """No other exception for 200 files with random pieces."""
    path = grid_file(tmp_path, axes={"steps": [3, 4], "size": SIZE}, skip=[{"steps": 3}])
    text, drawn = path.read_text("utf-8"), random.Random(0)
    pieces = [
        "-",
        ":",
        "[",
        "]",
        "{",
        "}",
        "\n",
        " ",
        "3",
        "null",
        "steps",
        "'",
        "&a",
        "*a",
        "true",
    ]
    for _ in range(200):
        at = drawn.randrange(len(text))
        end = at + drawn.choice([0, 1, 5])
        path.write_text(text[:at] + drawn.choice(pieces) + text[end:], encoding="utf-8")
        try:
            cells_of(read_grid(path))
        except GridError:
            pass


def test_the_example_is_a_grid() -> None:
    found = cells_of(read_grid(ROOT / "docs" / "examples" / "demo_sweep.yaml"))
    assert len(found) == 4 and all(cell.steps == (4, 3, 6) for cell in found)
    for cell in found:
        assert cell.prompt["9"]["inputs"]["cfg"] == widgets(cell)["cfg"] == cell.labels["cfg"]
