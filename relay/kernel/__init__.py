"""What the operating system is asked, in one place: sockets, processes, descriptors, memory files, channels, the loop."""
