"""The report of `splitlock exports`: plain data, what is in the JSON of schema `splitlock/exports/1`."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document

SCHEMA: Final = "splitlock/exports/1"


class Symbol(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One symbol that was asked for, or found to be the one to remove."""

    name: str
    exporters: list[str]  #: `vmlinux`, or modules; empty when nobody exports it
    users: int  #: modules that import it
    breaks: int  #: modules that no longer load when it alone goes
    used_by: list[str] | None = None  #: the users' names, for `--users`
    alternatives: list[str] | None = None  #: other symbols whose removal has the same effect, for `--break`


class Loss(msgspec.Struct, kw_only=True):
    """A module that no longer loads."""

    module: str
    path: str
    member: str | None  #: its name inside the package at `path`
    wanted: bool  #: it is one of the modules to break
    direct: list[str]  #: the removed symbols that it imports
    through: list[str]  #: the failing modules that it imports from


class Error(msgspec.Struct, kw_only=True):
    """What could not be read."""

    path: str
    member: str | None
    reason: str


class Report(Document, kw_only=True):
    """The answer to one question."""

    schema: Literal["splitlock/exports/1"]
    question: Literal["without", "break", "users"]
    kernels: list[str]  #: releases that the modules were built for
    modules: int  #: that were read
    kernel_exports: str | None  #: where the kernel's own exports are known from; null: taken from what modules import
    symbols: list[Symbol]
    wanted: list[str]  #: the modules to break
    direct: int  #: how many of the losses import a removed symbol themselves
    losses: list[Loss]
    optimal: bool  #: false: the search for the symbols to remove was cut short, there may be better ones
    unresolved: list[str]  #: modules that import what nobody exports: they do not load anyhow and are no losses
    errors: list[Error]
