# A host's address, and its text.

cpdef str join_host_port(str host, int port)
cpdef bytes packed_host(str host)
cpdef bytes unmap(bytes packed)
cpdef bytes map_host(bytes packed)
cpdef str host_text(bytes packed)
