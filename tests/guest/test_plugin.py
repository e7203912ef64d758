"""The plugin without QEMU around it: what it says to a QEMU that it does not know."""

from __future__ import annotations

import ctypes
import os

import pytest

from splitlock.guest.machine import PLUGIN


class _Info(ctypes.Structure):
    _fields_ = (
        ("target_name", ctypes.c_char_p), ("least", ctypes.c_int), ("current", ctypes.c_int),
        ("system_emulation", ctypes.c_bool), ("smp", ctypes.c_int), ("most", ctypes.c_int),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ((b"x86_64", 1, 5, True, 1, 1), "QEMU's plugin interface is version 5, known are 1 to 4"),
        ((b"x86_64", 0, 0, True, 1, 1), "version 0"),
        ((b"x86_64", 1, 4, False, 1, 1), "whole x86_64 machines"),
        ((b"aarch64", 1, 4, True, 1, 1), "whole x86_64 machines"),
        ((b"x86_64", 1, 4, True, 1, 999), "at most 256 CPUs"),
    ],
)
def test_refuses(capfd: pytest.CaptureFixture[str], info: tuple[object, ...], said: str) -> None:
    """A version it does not know, and what is no machine, is an error that says so."""
    plugin = ctypes.CDLL(PLUGIN, mode=os.RTLD_LAZY)  # QEMU's functions are not there, and not called
    assert plugin.qemu_plugin_install(ctypes.c_uint64(1), ctypes.byref(_Info(*info)), 0, None) == -1
    ctypes.CDLL(None).fflush(None)
    assert said in capfd.readouterr().err


def test_version_is_the_hosts() -> None:
    """Where nothing of version 2 is there, it says 1."""
    plugin = ctypes.CDLL(PLUGIN, mode=os.RTLD_LAZY)
    assert ctypes.c_int.in_dll(plugin, "qemu_plugin_version").value == 1
