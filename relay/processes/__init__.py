"""Processes that outlive each other: the keeper, the holders, and how a new program takes their places."""
