# Dialling: a socket for a target, and connect(2).

cimport cython

from relay cimport calls
from relay.kernel.bare_socket cimport BareSocket

cdef int _IPV4, _IPV6, _UNIX, _SOCKET, _OOBINLINE, _EPHEMERAL_MIN


@cython.locals(family=int, fd=int)
cpdef BareSocket target_socket(row, str speaks_as=*, bint foreign=*)
@cython.locals(host=str, port=int, code=int)
cpdef int connect(BareSocket target, row) except? -1
