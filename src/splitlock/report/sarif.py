"""The report of `splitlock scan` as SARIF 2.1.0 (OASIS), for code scanning services; written as it comes."""

from __future__ import annotations

import os
from urllib.parse import quote

import msgspec

from splitlock.report.document import encoded

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from splitlock.report.scan import File, Finding, Summary

VERSION = "2.1.0"
_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_MODULE = "POLICY"  # the rule of verdicts that no finding led to
_LEVELS = {"refuse": "error", "disable": "warning", "allow": "note"}


class Sarif:
    """A report as SARIF, a piece at a time: `begin`, `file` for each file, `end`. Together they are one document.

    `rules` are all kinds that may be found, as (name, what it is).
    """

    def __init__(self, policy: str, version: str, rules: Iterable[tuple[str, str]]) -> None:
        self.policy = policy
        self.version = version
        self.rules = [*rules, (_MODULE, f"the policy {policy} turns the module away as a whole")]
        self.index = {name: number for number, (name, _) in enumerate(self.rules)}
        self.results = 0
        self.failures: list[dict[str, Any]] = []

    def begin(self) -> bytes:
        """Up to the first result."""
        driver = {
            "name": "splitlock",
            "version": self.version,
            "rules": [
                {"id": name, "shortDescription": {"text": text}, "defaultConfiguration": {"level": "note"}}
                for name, text in self.rules
            ],
        }
        head = encoded({"$schema": _SCHEMA, "version": VERSION})[:-1]
        return head + b',"runs":[{"tool":' + encoded({"driver": driver}) + b',"results":['

    def file(self, file: File) -> bytes:
        """A result for each finding; for a verdict that has none, one for the file."""
        where = _location(file)
        if file.verdict == "error":
            self.failures.append({"level": "error", "message": {"text": file.reason}, "locations": [where]})
            return b""
        results = [self._result(file, finding) for finding in file.findings]
        if file.verdict != "allow" and not any(finding.kind in file.because for finding in file.findings):
            results.append(self._of(file, _MODULE, file.reason, where, f"{file.sha256}:{_MODULE}"))
        raw = [encoded(result) for result in results]
        text = (b"," if self.results and raw else b"") + b",\n".join(raw)
        self.results += len(raw)
        return text

    def end(self, summary: Summary) -> bytes:
        """The rest, with a newline at the end. Files that could not be read are notifications of the run."""
        run = {"executionSuccessful": summary.complete and not summary.error}
        if self.failures:
            run["toolExecutionNotifications"] = self.failures  # type: ignore[assignment]
        properties = {"policy": self.policy, "summary": msgspec.to_builtins(summary)}
        tail = encoded({"invocations": [run], "properties": properties})
        return b"]," + tail[1:] + b"]}\n"

    def _result(self, file: File, finding: Finding) -> dict[str, Any]:
        decisive = finding.kind in file.because
        words = [finding.instruction or finding.kind]
        if finding.certainty == "possible":
            words.append("(possible)")
        if finding.evidence != "instruction":
            words.append(f"by {finding.evidence}")
        text = f"{file.name or file.path}: {' '.join(words)}: {file.verdict}: {file.reason}"
        where = _location(file, finding)
        print_ = f"{file.sha256}:{finding.section}:{finding.offset}:{finding.kind}"
        return self._of(file, finding.kind, text, where, print_, "note" if not decisive else "")

    def _of(
        self, file: File, rule: str, text: str, where: dict[str, Any], fingerprint: str, level: str = ""
    ) -> dict[str, Any]:
        result: dict[str, Any] = {
            "ruleId": rule,
            "level": level or _LEVELS[file.verdict],
            "message": {"text": text},
            "locations": [where],
            "partialFingerprints": {"splitlock/v1": fingerprint},
        }
        if rule in self.index:
            result["ruleIndex"] = self.index[rule]
        return result


def _location(file: File, finding: Finding | None = None) -> dict[str, Any]:
    """Where it is: SARIF's address is within the section, since modules have no addresses yet."""
    physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(file.path)}}
    logical: list[dict[str, Any]] = []
    if file.member:
        logical.append({"name": file.member, "kind": "member"})
    if finding is not None:
        if finding.section and finding.offset:
            physical["address"] = {
                "kind": "instruction" if finding.evidence == "instruction" else "reference",
                "fullyQualifiedName": f"{finding.section}+{finding.offset}",
                "offsetFromParent": int(finding.offset, 16),
            }
        if finding.function:
            full = f"{file.name}.{finding.function}" if file.name else finding.function
            logical.append({"name": finding.function, "fullyQualifiedName": full, "kind": "function"})
    location: dict[str, Any] = {"physicalLocation": physical}
    if logical:
        location["logicalLocations"] = logical
    return location


def _uri(path: str) -> str:
    quoted = quote(path.replace(os.sep, "/").encode("utf-8", "surrogateescape"))
    return f"file://{quoted}" if path.startswith("/") else quoted
