"""Sweeps: one arm at several values of its keys, each an arm of its own.

A study is expanded when it is read, before its arms are validated, so that everything else sees
plain arms. An expanded study keeps its sweeps and is not changed by another expansion.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from itertools import product
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

from afterimage.config.arm import Arm
from afterimage.config.arms import AnyArm
from afterimage.config.base import LONGEST, Block, Name
from afterimage.config.explain import allowed, explain
from afterimage.config.training import Train, overridden


def _plain(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?e[-+]?\d+", value, re.IGNORECASE):
        value = float(value)  # 1e-3 is text in YAML 1.1
    try:
        return validate(value)
    except ValidationError as error:
        raise ValueError(
            f"{value!r} is not a number, a word, true, false, null or a list of these; a block is "
            "swept by its keys, such as train.updates"
        ) from error


Scalar = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str
Value = Annotated[Scalar | list[Scalar] | None, WrapValidator(_plain)]
"""What a swept key can be set to."""
Point = dict[str, Value]
"""Swept key -> one of its values."""


class Sweep(Block):
    """One arm at every combination of some values of its keys. Each combination is an ordinary arm,
    with the other settings and the control of the swept one; where it changes nothing, it is the
    swept arm itself."""

    of: str
    """The arm, one of ``arms``. The others are named after it, the last word of each key, and the
    value: ``agc_agc_threshold0p25`` (p for a point, m for minus), ``erasediff_target_uniform``."""
    over: Annotated[
        dict[str, Annotated[list[Value], Field(min_length=1)]],
        Field(min_length=1),
    ]
    """Key of the arm -> its values. Keys of a block have dots: ``train.updates``. With several
    keys, every combination."""

    def points(self) -> list[Point]:
        """Return all combinations, the last key's values fastest."""
        return [
            dict(zip(self.over, values, strict=True)) for values in product(*self.over.values())
        ]

    def name(self, point: Point) -> str:
        """Return the name of the arm at a point."""
        return self.of + "".join(
            f"_{key.rpartition('.')[2]}{_word(value)}" for key, value in point.items()
        )


class _Arms(BaseModel):
    arms: dict[str, AnyArm]


_SWEEPS = TypeAdapter(dict[Name, Sweep])


def expand(params: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a study with the arms of its sweeps, each sweep's after its own arm.

    Sweeps and arms that are not valid by themselves are left to the validation of their fields.

    Raises:
        ValueError: naming the sweep's key, its value and what is allowed.
    """
    try:
        sweeps = _SWEEPS.validate_python(params.get("sweeps") or {})
    except ValidationError:
        return params
    arms = params.get("arms")
    if not isinstance(arms, Mapping) or not sweeps:
        return params
    shared = params.get("train")
    train = shared if isinstance(shared, Mapping) else {}
    added: dict[str, dict[str, Any]] = {}
    for sweep_name, sweep in sweeps.items():
        if sweep.of not in arms:
            raise ValueError(
                f"sweeps.{sweep_name}.of = {sweep.of!r} is not an arm; "
                f"{allowed('arms', sweep.of, [str(arm) for arm in arms])}"
            )
        try:
            swept = _arm(sweep.of, arms[sweep.of])
        except ValidationError:
            continue
        seen: list[tuple[str, Any]] = []
        for point in sweep.points():
            name, origin = sweep.name(point), said(sweep_name, point)
            settings = _at(arms[sweep.of], point, sweep_name)
            if len(name) > LONGEST:
                raise ValueError(
                    f"{origin}: the arm's name {name} has {len(name)} characters; at most "
                    f"{LONGEST}: give arms.{sweep.of} a shorter name"
                )
            try:
                arm = _arm(name, settings)
            except ValidationError as error:
                raise ValueError(f"{origin}: {explain(error, _Arms)}") from error
            comparable = _comparable(arm, train)
            for other, same in seen:
                if same == comparable:
                    raise ValueError(
                        f"{origin}: {name} is the same as {other}; give each value once"
                    )
            seen.append((name, comparable))
            if name in arms:
                try:
                    clash = _comparable(_arm(name, arms[name]), train) != comparable
                except ValidationError:
                    clash = True
                if clash:
                    raise ValueError(
                        f"{origin} makes an arm that arms.{name} has the name of; rename that"
                    )
            elif comparable != _comparable(swept, train):
                added.setdefault(sweep.of, {})[name] = settings
    expanded: dict[str, Any] = {}
    for name, settings in arms.items():
        expanded |= {name: settings} | added.get(name, {})
    return {**params, "arms": expanded}


def swept_arms(sweeps: Mapping[str, Sweep], arms: Mapping[str, Arm]) -> dict[str, dict[str, Point]]:
    """Return sweep -> arm -> its values of the swept keys, in an expanded study."""
    return {
        sweep_name: {
            name if (name := sweep.name(point)) in arms else sweep.of: point
            for point in sweep.points()
        }
        for sweep_name, sweep in sweeps.items()
    }


def said(sweep: str, point: Point) -> str:
    """Return a point as messages name it."""
    return ", ".join(f"sweeps.{sweep}.over.{key} = {value!r}" for key, value in point.items())


def _arm(name: str, settings: Any) -> Arm:
    return _Arms.model_validate({"arms": {name: settings}}).arms[name]


def _comparable(arm: Arm, train: Mapping[str, Any]) -> tuple[Arm, Train | dict[str, Any]]:
    """Return what makes two arms the same: the settings of the method, and those of the training,
    as they are after the study's ``train`` (as written, if they are not valid)."""
    try:
        trained: Train | dict[str, Any] = overridden(train, arm.train)
    except ValidationError:
        trained = {**train, **arm.train}
    return arm.model_copy(update={"train": {}}), trained


def _at(settings: Mapping[str, Any], point: Point, sweep: str) -> dict[str, Any]:
    """Return the settings of an arm with a point's values."""
    changed = deepcopy(dict(settings))
    for key, value in point.items():
        *blocks, last = key.split(".")
        inner = changed
        for depth, block in enumerate(blocks, 1):
            if inner.get(block) is None:
                inner[block] = {}
            inner = inner[block]
            if not isinstance(inner, dict):
                raise ValueError(
                    f"sweeps.{sweep}.over.{key}: {'.'.join(blocks[:depth])} = {inner!r} is not a "
                    "block of keys"
                )
        inner[last] = value
    return changed


def _word(value: Value) -> str:
    """Return a value as a part of a name: a number follows its key at once, anything else after an
    underscore."""
    if isinstance(value, list):
        return "_" + "_".join(_word(item).removeprefix("_") for item in value)
    if value is None:
        return "_none"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    text = str(value).lower()
    if not isinstance(value, bool) and isinstance(value, int | float):
        text = text.replace(".", "p").replace("-", "m")
    text = re.sub(r"[^a-z0-9_]", "_", text)
    return text if text[:1].isdigit() else f"_{text}"
