"""Write the JSON Schemas in docs/ from the types of the reports."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from splitlock.report import (
    advise,
    cache,
    exports,
    guard,
    guest,
    matrix,
    matrix_vmx,
    probe,
    run,
    scan,
    simulate,
    status,
    watch,
)

DOCS = Path(__file__).parents[1] / "docs"
REPORTS = {
    "run": run.Report,
    "cache": cache.Report,
    "scan": scan.Report,
    "exports": exports.Report,
    "guard": guard.Decision,
    "guard-status": guard.Status,
    "guest": guest.Report,
    "probe": probe.Report,
    "matrix": matrix.Report,
    "matrix-vmx": matrix_vmx.Report,
    "status": status.Report,
    "simulate": simulate.Report,
    "simulate-matrix": simulate.Matrix,
    "advise": advise.Report,
    "watch": watch.Event,
    "watch-summary": watch.Summary,
}


def main() -> None:
    """One file a schema."""
    for name, report in REPORTS.items():
        (DOCS / f"{name}.schema.json").write_text(json.dumps(msgspec.json.schema(report), indent=2) + "\n")


if __name__ == "__main__":
    main()
