"""Names of the service: a DNS server on a loopback address, and a block of a hosts file."""
