# Declarations only: compiled modules call the kernel from C, where interpreted ones go by calls.py.

cdef extern from "calls.h" nogil:
    ctypedef long long word "relay_word"  # of the ledger
    ctypedef unsigned int length "relay_length"
    ctypedef int integer "relay_int"

    const long AGAIN "RELAY_AGAIN"

    long splice "relay_splice"(int source_fd, int sink_fd, long most_bytes)
    long receive_message "relay_receive_message"(int fd, size_t header_at)
    long send_message "relay_send_message"(int fd, size_t header_at)
    long write_at "relay_write_at"(int fd, size_t at, long count)
    long readable_bytes "relay_readable_bytes"(int fd)
    long unsent_bytes "relay_unsent_bytes"(int fd)

    int ADD "EPOLL_CTL_ADD"
    int DELETE "EPOLL_CTL_DEL"
    int MODIFY "EPOLL_CTL_MOD"
    int open_poll "relay_open_poll"()
    int close_poll "close"(int epoll_fd)
    long control_poll "relay_control_poll"(int epoll_fd, int how, int fd, unsigned int interest)
    long poll "relay_poll"(int epoll_fd, int wait_ms)
    int event_fd "relay_event_fd"(long n)
    unsigned int event_mask "relay_event_mask"(long n)
    long long now_ns "relay_now_ns"()
