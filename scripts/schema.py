"""Write the JSON Schemas in docs/ from the types of the reports."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from splitlock.report.run import Report

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    """One file a schema."""
    (DOCS / "run.schema.json").write_text(json.dumps(msgspec.json.schema(Report), indent=2) + "\n")


if __name__ == "__main__":
    main()
