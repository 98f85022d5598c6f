# The first message of a TLS connection.

cimport cython

cdef int _EXTENSION_SERVER_NAME, _EXTENSION_ALPN, _EXTENSION_HEADER_BYTES, _RECORD_HEADER_BYTES


cdef class _Reader:
    cdef public bytes data
    cdef public long at, end

    @cython.locals(start=long)
    cdef long skip(self, long length) except -1
    @cython.locals(start=long)
    cpdef bytes take(self, long length)
    @cython.locals(value=long, start=long, at=long)
    cpdef long number(self, int width_bytes) except -1
    @cython.locals(length=long)
    cpdef bytes vector(self, int width_bytes, long least, long most)


@cython.locals(length=long)
cdef str _wrong_record(bytes header)


cdef class HelloSoFar(_Reader):
    cdef object _message
    cdef long _wire_at, _left_bytes, _extensions_at
    cdef str _wrong_record, _sni
    cdef tuple _alpn

    @cython.locals(at=long, left=long, header=bytes, part=bytes)
    cdef _unframe(self, bytes data)
    @cython.locals(data=bytes, end=long, have=long, at=long, kind=long, after=long)
    cdef _read(self)
    @cython.locals(kind=long, length=long)
    cdef bint _read_up_to_extensions(self) except -1
    cdef _read_extension(self, long kind, bytes body)


@cython.locals(outer=_Reader, reader=_Reader, names=bytes, host=bytes)
cdef str _server_name(bytes body)
@cython.locals(outer=_Reader, reader=_Reader, names=bytes)
cdef tuple _protocols(bytes body)
