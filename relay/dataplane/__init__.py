"""The way of a connection: listen, decide, dial, splice, close, record."""
