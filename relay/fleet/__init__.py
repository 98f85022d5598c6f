"""Who is in the service, and which of them this machine is."""
