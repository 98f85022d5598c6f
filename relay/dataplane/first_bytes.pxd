# Looking at a connection's first bytes.

cimport cython

from relay cimport calls
from relay.envelope cimport proxyproto
from relay.kernel.bare_socket cimport BareSocket


cpdef tuple first_bytes(BareSocket client, str protocol, long seen_bytes, before=*)
cpdef tuple header(BareSocket client, long seen_bytes)
cpdef take(BareSocket client, long header_bytes)
@cython.locals(come=long)
cdef tuple _look(BareSocket client, long most_bytes, judge, long seen_bytes)
