"""The file that says what a sweep trains: a workflow, and what varies in it.

workflow: train.json              # API format (in ComfyUI: File > Export (API)), beside this file
axes:                             # every combination of values is trained
  sampler_name: [euler, dpmpp_2m] # an input of the node that trains
  steps: [3, 4, 6]
  size:                           # inputs of any nodes, by the nodes' ids: a value for each
    inputs: [4.width, 4.height]
    values: [[512, 512], [768, 768]]
  lora:                           # or the same value for all
    inputs: [10.strength_model, 10.strength_clip]
    values: [0, 0.5, 1]
set: {quality: normal}            # inputs of the node that trains, the same in all cells
skip: [{sampler_name: euler, steps: 6}]  # combinations that are not trained
also_steps: true                  # one training for all steps, see also_steps of the node
training: 5                       # the node that trains, if there are several
name: sd15                        # names of schedules begin with it; by default the file's name
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

TRAINERS = ("LD3TrainSchedule", "LD3TrainScheduleAdvanced")
KEYS = {"workflow", "axes", "set", "skip", "also_steps", "training", "name"}
OWN = {"name": "the sweep names schedules", "retrain": "finished cells are not trained again"}
STEPS, ALSO = "steps", "also_steps"
Value = str | int | float | bool
Prompt = dict[str, dict[str, Any]]


class GridError(ValueError):
    """A grid that cannot be run; the text says where, what was found and what is expected."""


@dataclass(frozen=True)
class Axis:
    """What varies.

    Attributes:
        name: as the index shows it.
        inputs: (node id, input), which receive a value.
        values: for each place on the axis, one value for each input.
        labels: for each place, its value as the index shows it and `skip` names it.
    """

    name: str
    inputs: tuple[tuple[str, str], ...]
    values: tuple[tuple[Value, ...], ...]
    labels: tuple[Value, ...]


@dataclass(frozen=True)
class Grid:
    """A checked grid.

    Attributes:
        prompt: the workflow in API format, with what `set` says.
        training: id of the node that trains.
        skip: by axis name, the label that is left out.
    """

    name: str
    prompt: Prompt
    training: str
    axes: tuple[Axis, ...]
    skip: tuple[dict[str, Value], ...] = ()
    also_steps: bool = False
    path: Path = field(default=Path(), compare=False)


def read_grid(path: Path) -> Grid:
    """Read and check a file; GridError says what is wrong with it."""
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise GridError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError(f"{path} is no YAML: {error}") from error
    try:
        return _grid(found, path)
    except GridError as error:
        raise GridError(f"{path}: {error}") from error


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice, which YAML would let pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{', '.join(sorted(twice))} is given twice, {node.start_mark}")
        return super().construct_mapping(node, deep)


def _grid(found: Any, path: Path) -> Grid:
    _require(isinstance(found, dict), "expected a mapping with the keys workflow and axes")
    unknown = sorted(str(key) for key in found if key not in KEYS)
    _require(not unknown, f"unknown key {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}")
    _require("workflow" in found and "axes" in found, "the keys workflow and axes are needed")
    prompt = _workflow(path.parent / str(found["workflow"]))
    training = _training(prompt, found.get("training"))
    constants = found.get("set", {})
    _require(isinstance(constants, dict), f"set is {constants!r}; write input: value")
    for name, value in constants.items():
        _check_input(prompt, training, str(name), "set")
        _require(_is_value(value), f"set: {name} is {value!r}; write a number or a text")
        prompt[training]["inputs"][name] = value
    axes = _axes(found["axes"], prompt, training)
    also = found.get(ALSO, False)
    _require(isinstance(also, bool), f"{ALSO} is {also!r}; write true or false")
    steps = [axis for axis in axes if axis.inputs == ((training, STEPS),)]
    _require(not also or bool(steps), f"{ALSO} is true, which needs the axis {STEPS}")
    name = found.get("name", path.stem)
    _require(isinstance(name, str) and bool(name.strip()), f"name is {name!r}; write a text")
    skip = _skip(found.get("skip", []), axes)
    return Grid(name.strip(), prompt, training, axes, skip, also, path)


def _workflow(path: Path) -> Prompt:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GridError(f"workflow: {path}: {error.strerror}") from error
    except ValueError as error:
        raise GridError(f"workflow: {path} is no JSON: {error}") from error
    api = isinstance(found, dict) and all(
        isinstance(node, dict)
        and isinstance(node.get("class_type"), str)
        and isinstance(node.get("inputs"), dict)
        for node in found.values()
    )
    _require(
        api and bool(found),
        f"workflow: {path} is not in API format; export it in ComfyUI with File > Export (API)",
    )
    return found


def _training(prompt: Prompt, given: Any) -> str:
    found = [key for key, node in prompt.items() if node["class_type"] in TRAINERS]
    listed = ", ".join(found) or "none"
    if given is not None:
        _require(str(given) in found, f"training is {given!r}; nodes that train are: {listed}")
        return str(given)
    _require(
        len(found) == 1,
        f"the workflow must have one node that trains ({' or '.join(TRAINERS)}), or the key "
        f"training must name one; found {listed}",
    )
    return found[0]


def _axes(found: Any, prompt: Prompt, training: str) -> tuple[Axis, ...]:
    _require(isinstance(found, dict) and bool(found), "axes must have at least one axis")
    axes = tuple(_axis(str(name), given, prompt, training) for name, given in found.items())
    used: dict[tuple[str, str], str] = {}
    for axis in axes:
        for node, name in axis.inputs:
            other = used.setdefault((node, name), axis.name)
            _require(other == axis.name, f"axes: {other} and {axis.name} both set {node}.{name}")
    return axes


def _axis(name: str, given: Any, prompt: Prompt, training: str) -> Axis:
    where = f"axes: {name}"
    if isinstance(given, dict):
        _require(set(given) == {"inputs", "values"}, f"{where} needs the keys inputs and values")
        texts, values = given["inputs"], given["values"]
        _require(isinstance(texts, list) and bool(texts), f"{where}: inputs must be a list")
        inputs = tuple(_place(str(text), where) for text in texts)
    else:
        inputs, values = ((training, name),), given
    _require(
        isinstance(values, list) and bool(values), f"{where} is {values!r}; write a list of values"
    )
    for node, key in inputs:
        _require(node in prompt, f"{where}: the workflow has no node {node!r}")
        _check_input(prompt, node, key, where)
    rows = tuple(_row(value, len(inputs), where) for value in values)
    typed = [tuple(map(_typed, row)) for row in rows]
    twice = [value for value, row in zip(values, typed, strict=True) if typed.count(row) > 1]
    _require(not twice, f"{where} contains {twice[:1]} twice")
    labels = [" x ".join(map(str, v)) if isinstance(v, list) else v for v in values]
    return Axis(name, inputs, rows, tuple(labels))


def _place(text: str, where: str) -> tuple[str, str]:
    node, dot, name = text.partition(".")
    _require(bool(node and dot and name), f"{where}: input {text!r}; write NODE.INPUT, as 4.width")
    return node, name


def _check_input(prompt: Prompt, node: str, name: str, where: str) -> None:
    """GridError unless the node has this widget."""
    inputs, kind = prompt[node]["inputs"], prompt[node]["class_type"]
    if prompt[node]["class_type"] in TRAINERS:
        reason = OWN.get(name, "")
        _require(not reason, f"{where}: {name} cannot be set: {reason}")
    widgets = sorted(key for key, value in inputs.items() if not isinstance(value, list))
    _require(
        name in inputs,
        f"{where}: node {node} ({kind}) has no input {name!r} in the workflow; it has "
        f"{', '.join(widgets)}",
    )
    _require(name in widgets, f"{where}: input {name} of node {node} ({kind}) is connected")


def _row(value: Any, count: int, where: str) -> tuple[Value, ...]:
    row = value if isinstance(value, list) else [value] * count
    _require(
        len(row) == count, f"{where}: {value!r} has {len(row)} values, and there are {count} inputs"
    )
    _require(all(map(_is_value, row)), f"{where}: {value!r} is no number or text")
    return tuple(row)


def _skip(found: Any, axes: tuple[Axis, ...]) -> tuple[dict[str, Value], ...]:
    _require(isinstance(found, list), "skip must be a list")
    labels = {axis.name: axis.labels for axis in axes}
    for part in found:
        _require(isinstance(part, dict) and bool(part), f"skip: {part!r}; write axis: value")
        for name, value in part.items():
            _require(name in labels, f"skip: there is no axis {name!r}")
            known = ", ".join(map(str, labels[name]))
            _require(value in labels[name], f"skip: {name} has no value {value!r}; it has {known}")
    return tuple(found)


def _is_value(value: Any) -> bool:
    return isinstance(value, str | int | float)


def _typed(value: Value) -> tuple[bool, Value]:
    """1 and 1.0 are one value, 1 and True are two."""
    return isinstance(value, bool), value


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise GridError(text)
