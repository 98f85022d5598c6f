"""What the operating system is asked: sockets, processes, descriptors, memory files, channels, the loop."""
