"""The report of `splitlock scan`: plain data, and the JSON of schema `splitlock/scan/1`, written as it comes."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from splitlock.report.document import Document, encoded

SCHEMA: Final = "splitlock/scan/1"


class Finding(msgspec.Struct, kw_only=True):
    """One thing found in a file: an instruction, or other evidence."""

    kind: str  #: VMLAUNCH, MOV CR4, WRMSR, FOREIGN-CODE, ...
    certainty: Literal["exact", "possible"]  #: on an instruction boundary, or reached by some decodings only
    section: str | None
    offset: str | None  #: hex, bytes from the start of the section
    function: str | None
    instruction: str | None  #: disassembly, Intel syntax
    evidence: str  #: `instruction`, or what else says so: a relocation, imports


class File(msgspec.Struct, kw_only=True):
    """One file and the policy's answer."""

    path: str
    member: str | None  #: inside the package `path`
    name: str | None  #: the module's, as the kernel has it
    sha256: str | None  #: of the image, uncompressed
    verdict: Literal["allow", "refuse", "disable", "error"]
    reason: str
    log: str  #: what the kernel would have said; may be empty
    because: list[str]  #: the kinds that led to the verdict
    sld_safe: bool
    sld_aware: bool
    intree: bool
    signer: str | None
    vermagic: str | None
    depends: list[str]
    srcversion: str | None
    findings: list[Finding]


class Kind(msgspec.Struct, kw_only=True):
    """How often one kind was found."""

    files: int = 0
    instructions: int = 0  #: exact
    possible: int = 0
    evidence: int = 0  #: found otherwise: relocations, imports


class Summary(msgspec.Struct, kw_only=True):
    """The whole scan in numbers."""

    files: int = 0  #: scanned, clean ones and errors included
    clean: int = 0  #: of these, nothing found in them and allowed
    allow: int = 0
    refuse: int = 0
    disable: int = 0
    error: int = 0
    complete: bool = False  #: false: interrupted
    kinds: dict[str, Kind] = {}

    def add(self, file: File) -> None:
        """Count one file."""
        self.files += 1
        setattr(self, file.verdict, getattr(self, file.verdict) + 1)
        if file.verdict == "allow" and not file.findings:
            self.clean += 1
        for finding in file.findings:
            kind = self.kinds.setdefault(finding.kind, Kind())
            if finding.evidence != "instruction":
                kind.evidence += 1
            elif finding.certainty == "exact":
                kind.instructions += 1
            else:
                kind.possible += 1
        for name in {finding.kind for finding in file.findings}:
            self.kinds[name].files += 1

    def add_clean(self, count: int) -> None:
        """Count files that have nothing to say."""
        self.files += count
        self.clean += count
        self.allow += count


class Report(Document, kw_only=True):
    """A whole scan."""

    schema: Literal["splitlock/scan/1"]
    policy: str
    files: list[File]
    summary: Summary


class Json:
    """A report as JSON, a piece at a time: `begin`, `file` for each file, `end`. Together they are one document."""

    def __init__(self, policy: str) -> None:
        self.policy = policy
        self.files = 0

    def begin(self) -> bytes:
        """Up to the first file."""
        head = encoded({"schema": SCHEMA, "policy": self.policy})
        return b"{" + _indented(head)[1:-2] + b',\n  "files": ['

    def file(self, file: File) -> bytes:
        """The next file."""
        self.files += 1
        return (b",\n    " if self.files > 1 else b"\n    ") + _indented(encoded(file), b"    ")

    def end(self, summary: Summary) -> bytes:
        """The rest, with a newline at the end."""
        closing = b"\n  ],\n" if self.files else b"],\n"
        return closing + b'  "summary": ' + _indented(encoded(summary), b"  ") + b"\n}\n"


def _indented(raw: bytes, by: bytes = b"") -> bytes:
    # JSON text has no raw line ends inside strings, so that whole lines can be moved.
    return msgspec.json.format(raw, indent=2).replace(b"\n", b"\n" + by)
