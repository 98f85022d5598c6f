# One flow's record.

from relay.address cimport host_text, map_host


cpdef bytes by_text(str peer)
cpdef bytes by_ends(bytes peer, int peer_port, bytes came_to, int came_to_port)
