"""The agent: what watches a program from inside, with nobody tracing it. docs/how-it-works.md draws it."""
