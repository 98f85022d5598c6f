"""`python -m relay.dataplane INDEX FD`: a holder that has replaced its program. `relay upgrade` makes it do so.

It imports what a worker needs and no more, because the worker's connections stand still until it is up.
"""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # nothing that an import makes is garbage, and looking for some would take a tenth of the time
    from relay.dataplane.holder import go_on

    go_on(int(sys.argv[1]), int(sys.argv[2]))
