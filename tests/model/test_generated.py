"""Scenarios by the hundred: each key with each wrong value, and whatever else the keys allow."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitlock._errors import SplitlockError
from splitlock.linux import log
from splitlock.linux.hypervisors import Kind
from splitlock.model.run import run
from splitlock.model.scenario import load

#: What stands in each table of a right file, in this order.
RIGHT: dict[str, dict[str, str]] = {
    "": {"title": "'t'", "tells": "'t'"},
    "host": {
        "processor": "['#AC', '#DB']", "vendor": "'intel'", "linux": "'6.12'", "mode": "'warn'", "mitigate": "true",
        "hz": "250", "threads": "2", "policy": "'none'",
    },
    "vm": {
        "name": "'a'", "hypervisor": "'kvm'", "linux": "'6.1'", "mode": "'warn'", "shown": "[]", "cpus": "2",
        "bus_lock_ratelimit": "0", "comm": "'qemu'", "pid": "7",
    },
    "event": {
        "lock": "'host'", "cpu": "'other'", "where": "'user'", "asks": "false", "bits": "64", "prefixed": "false",
        "emulated": "false", "number": "1", "every_ms": "0.5", "comm": "'c'", "pid": "8", "address": "'0x1'",
    },
}  # fmt: skip
WRONG = ["-1", "99", "1.5", "'no such thing'", "true", "[3]", "{ x = 1 }", "1979-05-27", "''"]
#: What is right there, for all that it looks odd: any text is a name, and the kernel makes something of any mode.
TEXTS = {"title", "tells", "comm", "name", "mode"}
FINE = {"99": {"cpus", "bus_lock_ratelimit", "pid", "number", "every_ms"}, "1.5": {"every_ms"},
        "'no such thing'": TEXTS, "''": TEXTS, "true": {"mitigate", "asks", "prefixed"}}  # fmt: skip


def written(table: str, key: str, value: str, before: str) -> tuple[str, int]:
    """A file in which one value is another, and the line on which it stands. `before`: what comes before each table."""
    lines: list[str] = []
    at = 0
    for name, keys in RIGHT.items():
        lines += before.split("\n")
        if name:
            lines.append(f"[{name}]" if name == "host" else f"[[{name}]]")
        for one, right in keys.items():
            lines.append(f"{one} = {value if (name, one) == (table, key) else right} # [[event]]")
            at = len(lines) if (name, one) == (table, key) else at
    return "\n".join(lines) + "\n", at


KEYS = [(table, key) for table, keys in RIGHT.items() for key in keys]


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_each_wrong_value_is_named_on_its_line(tmp_path: Path, table: str, key: str) -> None:
    path = tmp_path / "x.toml"
    for value, before in product(WRONG, ["", "\n# lock = 1\n", "\n"]):
        text, line = written(table, key, value, before)
        path.write_text(text)
        if key in FINE.get(value, ()):
            load(str(path))
            continue
        with pytest.raises(SplitlockError) as caught:
            load(str(path))
        said = str(caught.value)
        assert said.startswith(f"{path}:{line}: "), (said, value)
        assert f"{key}: " in said
        assert "\n" not in said


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_each_unknown_key_is_named_on_its_line(tmp_path: Path, table: str, key: str) -> None:
    path = tmp_path / "x.toml"
    text, line = written(table, key, RIGHT[table][key], "\n")
    lines = text.split("\n")
    lines.insert(line, "nonsense = 3")
    path.write_text("\n".join(lines))
    with pytest.raises(SplitlockError, match="nonsense: there is no such key; there are ") as caught:
        load(str(path))
    assert str(caught.value).startswith(f"{path}:{line + 1}: ")


def table(keys: dict[str, st.SearchStrategy[Any]], must: str) -> st.SearchStrategy[dict[str, Any]]:
    """Of a table's keys some, and one that must be there."""
    optional = {key: value for key, value in keys.items() if key != must}
    return st.fixed_dictionaries({must: keys[must]}, optional=optional)


DETECTS = st.lists(st.sampled_from(["#AC", "#DB"]), unique=True)
VERSIONS = st.sampled_from(["4.19", "5.4", "5.7", "5.10.50", "5.13.0", "5.19", "6.1", "6.13.0", "6.16", "7.2", "7.4"])
MODES = st.sampled_from(["off", "warn", "fatal", "ratelimit:3", "ratelimit:", "ratelimit:0", "", '"off"', "off on"])
HOST = table(
    {"processor": DETECTS, "vendor": st.sampled_from(["intel", "amd"]), "linux": VERSIONS, "mode": MODES,
     "mitigate": st.booleans(), "hz": st.sampled_from([100, 1000]), "threads": st.sampled_from([1, 2])},
    "linux",
)  # fmt: skip
KINDS = st.sampled_from(get_args(Kind))
MACHINE = table(
    {"hypervisor": KINDS | st.lists(KINDS, min_size=1, max_size=3), "linux": VERSIONS, "mode": MODES, "shown": DETECTS,
     "cpus": st.sampled_from([1, 4]), "bus_lock_ratelimit": st.sampled_from([0, 2])},
    "hypervisor",
)  # fmt: skip
CPUS = st.sampled_from(["boot", "sibling", "other"])
LOCK = table(
    {"lock": st.sampled_from(["host", "a", "a"]), "cpu": CPUS,
     "where": st.sampled_from(["user", "kernel", "interrupt"]), "asks": st.booleans(),
     "bits": st.sampled_from([16, 32, 64]), "prefixed": st.booleans(), "emulated": st.booleans(),
     "number": st.sampled_from([1, 7]), "pid": st.sampled_from([1, 2])},
    "lock",
)  # fmt: skip
OTHER = st.sampled_from(
    [{"resume": "memory"}, {"resume": "idle"}, {"resume": "disk"}, {"online": "sibling"}, {"online": "other"},
     {"step": "host"}, {"step": "host", "cpu": "boot"}, {"unload": "kvm_intel"}]
)  # fmt: skip


def toml(host: dict[str, Any], machine: dict[str, Any], events: list[dict[str, Any]]) -> str:
    """The file. JSON's texts, numbers and lists are TOML's."""
    parts = ['title = "t"']
    for name, keys in (("[host]", host), ("[[vm]]", {"name": "a", **machine}), *(("[[event]]", one) for one in events)):
        parts += [name, *(f"{key} = {json.dumps(value)}" for key, value in keys.items())]
    return "\n".join(parts) + "\n"


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(HOST, MACHINE, st.lists(LOCK | OTHER, min_size=1, max_size=5))
def test_any_scenario(
    tmp_path: Path, host: dict[str, Any], machine: dict[str, Any], events: list[dict[str, Any]]
) -> None:
    """It is refused in one line that says where, or it is told to its end, in the kernel's own sentences."""
    path = tmp_path / "x.toml"
    path.write_text(toml(host, machine, events))
    try:
        scenario = load(str(path))
    except SplitlockError as error:
        number, _, said = str(error).removeprefix(f"{path}:").partition(": ")
        where = path.read_text().splitlines()[int(number) - 1]
        assert said.split(": ")[1] in where  # the key, on its line
        return
    report = run(scenario, "x", lambda name: b"")
    assert len(report.events) == len(events) + 1
    for event in report.events:
        assert event.steps
        for step in event.steps:
            assert step.what
            assert step.source
            found = log.parse(step.log) if step.log else None
            assert not step.log or (found is not None and found.kind != "unknown")
        assert bool(event.victim) == (event.fate in ("sigbus", "oops", "panic", "livelock"))
