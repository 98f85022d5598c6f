# Looking at a connection's first bytes.

cimport cython

from relay cimport calls
from relay.envelope cimport proxyproto
from relay.kernel.bare_socket cimport BareSocket


@cython.locals(data=bytes, come=long)
cpdef tuple first_bytes(BareSocket client, str protocol, long seen_bytes, before=*)
@cython.locals(come=long)
cpdef tuple header(BareSocket client, long seen_bytes)
cpdef take(BareSocket client, long header_bytes)
cdef _await_more(BareSocket client, bint incomplete, long come_bytes, long seen_bytes)
