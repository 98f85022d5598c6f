"""The control process: reload, admin API, metrics. Never on the way of a byte."""
