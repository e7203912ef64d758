"""What does the kernel make of `split_lock_detect=` on its command line?

Sources: arch/x86/lib/cmdline.c, __cmdline_find_option(); arch/x86/kernel/cpu/bus_lock.c (intel.c before 6.13),
match_option() and sld_state_setup(), split_lock_setup() before 5.13.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from splitlock.linux.delays import RATES

Mode = Literal["off", "warn", "fatal", "ratelimit"]
MODES: tuple[Mode, ...] = ("off", "warn", "fatal", "ratelimit")
NAME = "split_lock_detect"

_NAMED: dict[str, Mode] = {"off": "off", "warn": "warn", "fatal": "fatal"}
_BUFFER = 20  # bytes, the terminating zero among them: of a longer value the kernel looks at the start
_BLANK = re.compile("[\0- ]+")  # myisspace(): whatever is not above a blank
_NUMBER = re.compile(r"ratelimit:(-?\d{1,12})")  # sscanf("ratelimit:%d"): what follows the digits is not looked at


class Setting(NamedTuple):
    """A value as the kernel understands it."""

    mode: Mode
    rate: int = 0  #: bus locks a second; 0: none is set
    ignored: str = ""  #: why the value counts for nothing, and the mode is the default; empty: it counts


def find(command_line: str) -> str | None:
    """The value that counts: of the last word that begins with the option. Quotes mean nothing here, `--` neither."""
    values = [word[len(NAME) + 1 :] for word in _BLANK.split(command_line) if word.startswith(NAME + "=")]
    return values[-1] if values else None


def setting(value: str | None, *, ratelimit: bool = True) -> Setting:
    """What a value comes to; None: it is not given. `ratelimit`: this kernel knows this mode (versions.RATELIMIT)."""
    if value is None:
        return Setting("warn")
    if value in _NAMED:
        return Setting(_NAMED[value])
    number = _NUMBER.match(value[: _BUFFER - 1])
    if not ratelimit:
        known = "off, warn and fatal"
        return Setting("warn", ignored=f"this kernel knows {known}; {value!r} leaves the default, warn")
    if number and int(number[1]) in RATES:
        return Setting("ratelimit", int(number[1]))
    if value == "ratelimit:":  # its length is that of the option: the mode is set, and no limit
        return Setting("ratelimit", 0)
    if number:
        why = f"{number[1]} is not one of {RATES[0]} to {RATES[-1]}"
    elif value.strip("\"'") != value:
        why = "the kernel takes the quotes for a part of the value"
    elif value.lower() != value and value.lower() in _NAMED:
        why = "the kernel tells capitals and small letters apart"
    else:
        why = "no mode has this name"
    return Setting("warn", ignored=f"{why}: the kernel takes its default, warn")
