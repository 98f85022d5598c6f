# Declarations only: the values of turns.py, for compiled modules.

cdef enum:
    SAME = 0
    CHANGED = 1
    SOURCE_BROKEN = 2
    SINK_BROKEN = 3
    STARVED = 4
