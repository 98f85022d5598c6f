"""Who may connect. Pure: bytes in, verdict out; no socket, clock or logger in here."""
