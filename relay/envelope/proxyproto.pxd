# The PROXY protocol.


cpdef parse(bytes data)
cdef _parse_v1(bytes data)
cdef _parse_v2(bytes data)
