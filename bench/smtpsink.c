/* smtpsink: an MTA that accepts everything for *.test, quickly, and keeps nothing but counters.
 *
 *     smtpsink [-a address] [-p port] [-c certificate -k key] [-x] [-m messages]
 *
 * -p 0 (the default) takes a free port; the first line printed is the port.  -c and -k offer STARTTLS, -x offers
 * XCLIENT, -m closes each connection after so many messages.  Each line on standard input is answered by one JSON
 * line of counters; the end of standard input ends the sink, so it cannot outlive the runner.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <strings.h>

static SSL_CTX *context;
static int offer_xclient;
static long messages_per_connection;
static atomic_long messages, connections, handshakes, octets;

static int is(const char *line, const char *verb)
{
    return strncasecmp(line, verb, strlen(verb)) == 0;
}

static int say_ehlo(struct conn *c)
{
    if (conn_put(c, "250-sink.test\r\n250-PIPELINING\r\n250-SIZE 104857600\r\n250-8BITMIME\r\n250-CHUNKING\r\n"))
        return -1;
    if (context && !c->ssl && conn_put(c, "250-STARTTLS\r\n"))
        return -1;
    if (offer_xclient && conn_put(c, "250-XCLIENT NAME ADDR PORT PROTO HELO DESTADDR DESTPORT\r\n"))
        return -1;
    return conn_put(c, "250-SMTPUTF8\r\n250-DSN\r\n250 ENHANCEDSTATUSCODES\r\n");
}

static int start_tls(struct conn *c)
{
    if (conn_put(c, "220 2.0.0 ready\r\n") || conn_flush(c))
        return -1;
    c->start = c->end = 0; /* nothing that came in clear is read under TLS */
    c->ssl = SSL_new(context);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->fd) || SSL_accept(c->ssl) != 1)
        return -1;
    handshakes++;
    return 0;
}

/* Reads up to and with the lone dot.  The content's octets are counted with its last CRLF, dot-stuffed as sent. */
static int read_data(struct conn *c)
{
    static const char end_of_data[] = "\r\n.\r\n";
    const size_t length = sizeof end_of_data - 1;
    size_t count = 0;
    while (c->end - c->start < 3)
        if (conn_fill(c))
            return -1;
    if (memcmp(c->in + c->start, ".\r\n", 3) == 0) {
        c->start += 3;
        return 0;
    }
    for (;;) {
        char *found = memmem(c->in + c->start, c->end - c->start, end_of_data, length);
        if (found) {
            count += (size_t)(found - (c->in + c->start)) + 2;
            c->start = (size_t)(found - c->in) + length;
            octets += (long)count;
            return 0;
        }
        if (c->end - c->start >= length) { /* all but what may be the beginning of the end */
            count += c->end - c->start - (length - 1);
            c->start = c->end - (length - 1);
        }
        if (conn_fill(c))
            return -1;
    }
}

static int read_chunk(struct conn *c, size_t size)
{
    octets += (long)size;
    for (;;) {
        size_t here = c->end - c->start;
        if (here >= size) {
            c->start += size;
            return 0;
        }
        size -= here;
        c->start = c->end = 0;
        if (conn_fill(c))
            return -1;
    }
}

static int message_done(struct conn *c, long *left)
{
    messages++;
    if (conn_put(c, "250 2.0.0 accepted\r\n"))
        return -1;
    return --*left == 0 ? -1 : 0;
}

/* One command; -1 ends the connection. */
static int serve_command(struct conn *c, const char *line, long *left)
{
    if (is(line, "EHLO") || is(line, "LHLO"))
        return say_ehlo(c);
    if (is(line, "DATA")) {
        if (conn_put(c, "354 go ahead\r\n") || read_data(c))
            return -1;
        return message_done(c, left);
    }
    if (is(line, "BDAT")) {
        char *rest = NULL;
        size_t size = strtoul(line + 4, &rest, 10);
        int last = strcasestr(rest, "LAST") != NULL; /* the line is gone once the chunk is read */
        if (read_chunk(c, size))
            return -1;
        return last ? message_done(c, left) : conn_put(c, "250 2.0.0 ok\r\n");
    }
    if (is(line, "STARTTLS"))
        return context && !c->ssl ? start_tls(c) : conn_put(c, "503 5.5.1 not now\r\n");
    if (is(line, "XCLIENT"))
        return conn_put(c, "220 sink.test ESMTP\r\n");
    if (is(line, "QUIT")) {
        conn_put(c, "221 2.0.0 bye\r\n");
        return -1;
    }
    if (is(line, "RCPT") && !strcasestr(line, ".test>")) /* an MTA is no open relay, and is asked whether it is */
        return conn_put(c, "554 5.7.1 relay access denied\r\n");
    return conn_put(c, "250 2.0.0 ok\r\n");
}

static void *serve(void *argument)
{
    struct conn *c = argument;
    long left = messages_per_connection;
    char *line;
    connections++;
    conn_put(c, "220 sink.test ESMTP\r\n");
    while ((line = conn_line(c)) && serve_command(c, line, &left) == 0)
        ;
    conn_flush(c);
    conn_free(c);
    return NULL;
}

static void *accept_all(void *argument)
{
    int listener = *(int *)argument;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_OCTETS);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) {
            usleep(1000);
            continue;
        }
        struct conn *c = conn_new(fd);
        pthread_t thread;
        if (pthread_create(&thread, &small, serve, c))
            conn_free(c);
    }
    return NULL;
}

static SSL_CTX *server_context(const char *certificate, const char *key)
{
    SSL_CTX *made = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(made, SSL_MODE_AUTO_RETRY | SSL_MODE_RELEASE_BUFFERS);
    if (SSL_CTX_use_certificate_chain_file(made, certificate) != 1 ||
        SSL_CTX_use_PrivateKey_file(made, key, SSL_FILETYPE_PEM) != 1) {
        fprintf(stderr, "smtpsink: %s and %s are no certificate and its key\n", certificate, key);
        exit(2);
    }
    return made;
}

int main(int argc, char **argv)
{
    const char *address = "127.0.0.1", *certificate = NULL, *key = NULL;
    int option, port = 0, on = 1;
    while ((option = getopt(argc, argv, "a:p:c:k:xm:")) > 0)
        switch (option) {
        case 'a': address = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'c': certificate = optarg; break;
        case 'k': key = optarg; break;
        case 'x': offer_xclient = 1; break;
        case 'm': messages_per_connection = atol(optarg); break;
        default: fprintf(stderr, "smtpsink [-a address] [-p port] [-c certificate -k key] [-x] [-m messages]\n"); return 2;
        }
    signal(SIGPIPE, SIG_IGN);
    if (certificate)
        context = server_context(certificate, key ? key : certificate);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    socklen_t size = sizeof here;
    if (inet_pton(AF_INET, address, &here.sin_addr) != 1 || bind(listener, (void *)&here, size) ||
        listen(listener, 4096) || getsockname(listener, (void *)&here, &size)) {
        perror("smtpsink");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("%d\n", ntohs(here.sin_port));
    pthread_t acceptor;
    if (pthread_create(&acceptor, NULL, accept_all, &listener))
        return 2;
    char line[64];
    while (fgets(line, sizeof line, stdin))
        printf("{\"messages\": %ld, \"connections\": %ld, \"handshakes\": %ld, \"octets\": %ld}\n", messages,
               connections, handshakes, octets);
    return 0;
}
