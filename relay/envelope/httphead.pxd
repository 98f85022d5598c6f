# The first line of an HTTP connection.


cpdef look(bytes data)
