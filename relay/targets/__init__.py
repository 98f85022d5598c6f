"""Which instance a connection goes to, and which of them may get one."""
