/* One SMTP connection, plain or under TLS, blocking and used by one thread: what the generator and the sink share.
 *
 * Output is queued and leaves when the connection is about to wait for input, so that a pipelined group, or the
 * replies to one, is one write.
 */
#ifndef BENCH_CONN_H
#define BENCH_CONN_H

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum { IN_OCTETS = 65536, OUT_OCTETS = 4096, STACK_OCTETS = 256 * 1024 };

struct conn {
    int fd;
    SSL *ssl;
    size_t start, end; /* what was received and not yet used: in[start..end) */
    size_t queued;     /* what waits in out[] */
    char in[IN_OCTETS];
    char out[OUT_OCTETS];
};

static inline double seconds_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static inline struct conn *conn_new(int fd)
{
    struct conn *c = malloc(sizeof *c);
    if (!c)
        abort();
    c->fd = fd;
    c->ssl = NULL;
    c->start = c->end = c->queued = 0;
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return c;
}

static inline void conn_free(struct conn *c)
{
    if (c->ssl) {
        SSL_shutdown(c->ssl);
        SSL_free(c->ssl);
    }
    close(c->fd);
    free(c);
}

/* All of it, or -1. */
static inline int conn_write(struct conn *c, const char *octets, size_t count)
{
    while (count > 0) {
        ssize_t done = c->ssl ? SSL_write(c->ssl, octets, (int)(count < 1 << 20 ? count : 1 << 20))
                              : send(c->fd, octets, count, MSG_NOSIGNAL);
        if (done <= 0) {
            if (!c->ssl && done < 0 && errno == EINTR)
                continue;
            return -1;
        }
        octets += done;
        count -= (size_t)done;
    }
    return 0;
}

static inline int conn_flush(struct conn *c)
{
    size_t count = c->queued;
    c->queued = 0;
    return count ? conn_write(c, c->out, count) : 0;
}

/* Queues a short text; 0, or -1 where the connection is lost. */
static inline int conn_put(struct conn *c, const char *text)
{
    size_t count = strlen(text);
    if (c->queued + count > sizeof c->out && conn_flush(c))
        return -1;
    if (count > sizeof c->out)
        return conn_write(c, text, count);
    memcpy(c->out + c->queued, text, count);
    c->queued += count;
    return 0;
}

/* Waits for more input, behind what is there; -1 at the end, on failure, or where no room is left. */
static inline int conn_fill(struct conn *c)
{
    if (conn_flush(c))
        return -1;
    if (c->start) {
        memmove(c->in, c->in + c->start, c->end - c->start);
        c->end -= c->start;
        c->start = 0;
    }
    size_t room = sizeof c->in - c->end;
    if (room == 0)
        return -1;
    ssize_t got;
    do
        got = c->ssl ? SSL_read(c->ssl, c->in + c->end, (int)room) : recv(c->fd, c->in + c->end, room, 0);
    while (!c->ssl && got < 0 && errno == EINTR);
    if (got <= 0)
        return -1;
    c->end += (size_t)got;
    return 0;
}

/* The next line, without its line end, NUL-terminated in place; NULL at the end. */
static inline char *conn_line(struct conn *c)
{
    for (;;) {
        char *line = c->in + c->start;
        char *feed = memchr(line, '\n', c->end - c->start);
        if (feed) {
            c->start = (size_t)(feed - c->in) + 1;
            *feed = '\0';
            if (feed > line && feed[-1] == '\r')
                feed[-1] = '\0';
            return line;
        }
        if (conn_fill(c))
            return NULL;
    }
}

#endif
