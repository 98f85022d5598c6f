"""From text to an immutable snapshot: read, validate, cross-check, compile, compare."""
