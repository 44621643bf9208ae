"""The schema of audit.json is the record's: no key more, no key less, in any block."""

import copy
import json

import pytest
from pydantic import ValidationError

from afterimage.standalone import record, statement
from afterimage.standalone.record import SCHEMA_VERSION, AuditRecord, NextStep

from . import records

jsonschema = pytest.importorskip("jsonschema", reason="no independent validator")


@pytest.fixture(scope="module")
def committed(root):
    return json.loads((root / "src/afterimage/standalone/audit.schema.json").read_text())


@pytest.fixture(scope="module")
def values():
    """A record with an entry in every block."""
    share = {"count": 0, "of": 64} | records.SHARE
    findings = records.findings(
        settings=records.TEXT,
        left_out=[{"sample": "a.png", "nearest": None, "l2": 0.1, "kind": "repeated"}],
        flagged_holdout={"training": {"fixed": share}},
        conditions={"kind": "prompt", "different": 3, "with_copies": 1},
        mq={"0.5": {"generations": share, "holdout": share}},
        quality={"FD": {"value": 1.0, "low": 0.5, "high": 1.5, "holdout": 0.1}},
        quality_missing={"KID": "too few"},
    )
    audited = AuditRecord(
        **dict(findings),
        schema_version=SCHEMA_VERSION,
        given=["Yes"],
        risk_statement=statement.risk_statement(findings),
        next_steps=[NextStep(text="Look.", command=None)],
    )
    return json.loads(audited.model_dump_json())


def blocks(value, schema, definitions, path=()):
    """Yield the path and schema of every object in a record that has a schema with keys."""
    while "$ref" in schema or "anyOf" in schema:
        options = schema.get("anyOf", [schema])
        schema = next(option for option in options if option.get("type") != "null")
        if "$ref" in schema:
            schema = definitions[schema["$ref"].rpartition("/")[2]]
    if isinstance(value, list):
        for row, entry in enumerate(value):
            yield from blocks(entry, schema.get("items", {}), definitions, (*path, row))
    if not isinstance(value, dict):
        return
    if "properties" in schema:
        yield path, schema
        children = schema["properties"]
    else:
        children = dict.fromkeys(value, schema.get("additionalProperties", True))
    for name, child in children.items():
        if isinstance(child, dict) and name in value:
            yield from blocks(value[name], child, definitions, (*path, name))


def at(values, path):
    for name in path:
        values = values[name]
    return values


def rejected(values, committed):
    """Whether the committed schema rejects it; the blocks must agree."""
    by_schema = not jsonschema.Draft202012Validator(committed).is_valid(values)
    try:
        AuditRecord.model_validate(values)
    except ValidationError:
        return by_schema
    assert not by_schema
    return False


def test_the_committed_schema_is_that_of_the_code(committed):
    """Else: python -m afterimage.standalone.record > src/afterimage/standalone/audit.schema.json"""
    assert committed == record.schema()
    jsonschema.Draft202012Validator.check_schema(committed)
    assert committed["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert committed["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_every_key_has_a_sentence_and_is_in_the_help(committed):
    for name, key in committed["properties"].items():
        assert key.get("description"), name
        assert f"\n  {name}" in f"\n{record.keys()}"


def test_a_record_fits_and_one_with_another_key_or_without_one_does_not(values, committed):
    assert not rejected(values, committed)
    paths = dict(blocks(values, committed, committed["$defs"]))
    assert {("verdict",), ("left_out", 0), ("mq", "0.5", "holdout"), ("next_steps", 0)} < set(paths)
    for path, schema in paths.items():
        changed = copy.deepcopy(values)
        at(changed, path)["surplus"] = 1
        is_open = path in {("facts",), ("settings",)}
        assert rejected(changed, committed) != is_open, path
        for name in schema["properties"]:
            changed = copy.deepcopy(values)
            assert at(changed, path).pop(name, changed) is not changed, (path, name)
            assert not jsonschema.Draft202012Validator(committed).is_valid(changed), (path, name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict", "outcome"), "no copies"),
        (("counts", "generations"), 1.5),
        (("schema_version",), "2.0"),
        (("quality", "FD", "value"), None),
        (("inputs", "train", "sha256"), 5),
        (("alpha", "others"), {}),
    ],
)
def test_values_of_another_kind_are_rejected(values, committed, path, value):
    changed = copy.deepcopy(values)
    at(changed, path[:-1])[path[-1]] = value
    assert rejected(changed, committed)
