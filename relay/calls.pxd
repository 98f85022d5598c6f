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
    void put_text "relay_put_text"(size_t at, const char *text, long room)
    long peek "relay_peek"(int fd, long most_bytes)
    long take "relay_take"(int fd, long count)
    long readable_bytes "relay_readable_bytes"(int fd)
    long unsent_bytes "relay_unsent_bytes"(int fd)

    int accept "relay_accept"(int listener_fd)
    const char *accepted_host "relay_accepted_host"()
    const char *accepted_peer "relay_accepted_peer"()
    int open_socket "relay_open_socket"(int family)
    int connect "relay_connect"(int fd, const char *host, int port)
    int shut_write "relay_shut_write"(int fd)
    int close "relay_close"(int fd)
    int set_option "relay_set_option"(int fd, int level, int name, int value)
    int finish_on_close "relay_finish_on_close"(int fd)
    int pending_error "relay_pending_error"(int fd)

    int ADD "EPOLL_CTL_ADD"
    int DELETE "EPOLL_CTL_DEL"
    int MODIFY "EPOLL_CTL_MOD"
    unsigned int READ "EPOLLIN"
    unsigned int WRITE "EPOLLOUT"
    unsigned int PEER_FIN "EPOLLRDHUP"
    unsigned int BROKEN "(EPOLLHUP | EPOLLERR)"
    int open_poll "relay_open_poll"()
    int close_poll "relay_close"(int epoll_fd)
    long control_poll "relay_control_poll"(int epoll_fd, int how, int fd, unsigned int interest)
    long poll "relay_poll"(int epoll_fd, int wait_ms)
    int event_fd "relay_event_fd"(long n)
    unsigned int event_mask "relay_event_mask"(long n)
    long long now_ns "relay_now_ns"()

cdef extern from "calls.h":
    object peeked "relay_peeked"(long count)
