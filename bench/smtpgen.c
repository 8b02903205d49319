/* smtpgen: SMTP load, one thread a connection; or many connections that only stay.
 *
 *     smtpgen -p port [-a address] [-e plain|starttls|tls] [-c connections] [-t seconds] [-m messages] [-s octets]
 *             [-P] [-L] [-r recipient] [-S sources] [-H held]
 *
 * -c connections at once, each worth -m messages (0: until the time is over) of -s content octets, then opened anew;
 * -P sends command by command even where PIPELINING is offered; -L speaks LMTP; -S connects from so many addresses,
 * 127.0.1.1 and up.  A message begun is finished, so every octet of work the peer did belongs to a counted message.
 * Prints one JSON line.
 *
 * -H opens that many sessions (greeted, TLS, EHLO again) and holds them.  Then each line on standard input is
 * answered, after a NOOP on every session, by the number that answered; the end of standard input ends it.
 */
#define _GNU_SOURCE
#include "conn.h"

#include <arpa/inet.h>
#include <openssl/err.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <strings.h>

enum { LATENCIES = 1 << 17, REPLY_SECONDS = 60, OPENERS = 8 };

static enum { PLAIN, STARTTLS, IMPLICIT } encryption = STARTTLS;
static struct sockaddr_in there;
static SSL_CTX *context;
static const char *hello = "EHLO gen.test\r\n";
static const char *recipient = "user@dest.test";
static int want_pipelining = 1, sources, messages_per_connection = 1;
static double end_time;
static char *content;
static size_t content_octets;

static pthread_mutex_t error_lock = PTHREAD_MUTEX_INITIALIZER;
static char first_error[200];
static atomic_long errors, dialled;

struct worker {
    pthread_t thread;
    long messages, connections, timed;
    float *latencies; /* milliseconds, of the first LATENCIES messages */
};

/* Counts a failure and keeps the first as text fit for JSON. */
static int failed(const char *where, const char *what)
{
    errors++;
    pthread_mutex_lock(&error_lock);
    if (!first_error[0]) {
        snprintf(first_error, sizeof first_error, "%s: %s", where, what ? what : "connection ended");
        for (char *at = first_error; *at; at++)
            if (*at == '"' || *at == '\\' || (unsigned char)*at < ' ')
                *at = '?';
    }
    pthread_mutex_unlock(&error_lock);
    return -1;
}

/* Reads one reply and wants its first digit.  `pipelining`: set where a line of it offers that. */
static int expect(struct conn *c, char digit, const char *where, int *pipelining)
{
    for (;;) {
        char *line = conn_line(c);
        if (!line || strlen(line) < 3)
            return failed(where, line);
        if (pipelining && line[3] && strcasecmp(line + 4, "PIPELINING") == 0)
            *pipelining = want_pipelining;
        if (line[3] == '-')
            continue;
        return line[0] == digit ? 0 : failed(where, line);
    }
}

static int ask(struct conn *c, const char *command, char digit, const char *where)
{
    return conn_put(c, command) ? failed(where, NULL) : expect(c, digit, where, NULL);
}

static int handshake(struct conn *c)
{
    c->ssl = SSL_new(context);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_tlsext_host_name(c->ssl, "mail.test");
    if (SSL_connect(c->ssl) == 1)
        return 0;
    char text[160];
    ERR_error_string_n(ERR_get_error(), text, sizeof text);
    return failed("handshake", text);
}

static struct conn *dial(void)
{
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        failed("socket", strerror(errno));
        return NULL;
    }
    struct timeval patience = {REPLY_SECONDS, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (sources) {
        struct sockaddr_in from = {.sin_family = AF_INET};
        from.sin_addr.s_addr = htonl(0x7f000101u + (uint32_t)(dialled++ % sources));
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
        if (bind(fd, (void *)&from, sizeof from))
            failed("bind", strerror(errno));
    }
    if (connect(fd, (void *)&there, sizeof there)) {
        failed("connect", strerror(errno));
        close(fd);
        return NULL;
    }
    return conn_new(fd);
}

/* A session ready for MAIL, or NULL. */
static struct conn *open_session(int *pipelining)
{
    struct conn *c = dial();
    if (!c)
        return NULL;
    *pipelining = 0;
    if (encryption == IMPLICIT && handshake(c))
        goto lost;
    if (expect(c, '2', "greeting", NULL) || conn_put(c, hello) || expect(c, '2', "EHLO", pipelining))
        goto lost;
    if (encryption == STARTTLS) {
        if (ask(c, "STARTTLS\r\n", '2', "STARTTLS"))
            goto lost;
        c->start = c->end = 0;
        *pipelining = 0;
        if (handshake(c) || conn_put(c, hello) || expect(c, '2', "EHLO in TLS", pipelining))
            goto lost;
    }
    return c;
lost:
    conn_free(c);
    return NULL;
}

static int send_message(struct conn *c, int pipelining)
{
    static const char mail[] = "MAIL FROM:<sender@source.test>\r\n";
    char rcpt[300];
    snprintf(rcpt, sizeof rcpt, "RCPT TO:<%s>\r\n", recipient);
    if (pipelining) {
        if (conn_put(c, mail) || conn_put(c, rcpt) || conn_put(c, "DATA\r\n"))
            return failed("MAIL", NULL);
        if (expect(c, '2', "MAIL", NULL) || expect(c, '2', "RCPT", NULL) || expect(c, '3', "DATA", NULL))
            return -1;
    } else if (ask(c, mail, '2', "MAIL") || ask(c, rcpt, '2', "RCPT") || ask(c, "DATA\r\n", '3', "DATA"))
        return -1;
    return conn_write(c, content, content_octets) ? failed("content", NULL) : expect(c, '2', "end of data", NULL);
}

static void *work(void *argument)
{
    struct worker *w = argument;
    double begun;
    while ((begun = seconds_now()) < end_time) {
        int pipelining, sent = 0;
        struct conn *c = open_session(&pipelining);
        if (!c) {
            usleep(2000);
            continue;
        }
        w->connections++;
        while (send_message(c, pipelining) == 0) {
            double done = seconds_now();
            w->messages++;
            if (w->timed < LATENCIES)
                w->latencies[w->timed++] = (float)((done - begun) * 1e3);
            begun = done;
            if (++sent == messages_per_connection || done >= end_time) {
                ask(c, "QUIT\r\n", '2', "QUIT");
                break;
            }
        }
        conn_free(c);
    }
    return NULL;
}

/* Headers, then prose with dots in it, as mail has: a checker's shortcut for content without dots must not win here. */
static void make_content(size_t octets)
{
    static const char line[] = "Octets that mean nothing. They fill lines of 74, with a dot here. And there.\r\n";
    content = malloc(octets + 1024);
    content_octets = (size_t)sprintf(content, "From: <sender@source.test>\r\nTo: <%s>\r\nSubject: load\r\n"
                                     "Date: Mon, 23 Nov 2026 22:00:00 +0000\r\nMessage-ID: <1@gen.test>\r\n\r\n", recipient);
    while (content_octets + sizeof line - 1 < octets) {
        memcpy(content + content_octets, line, sizeof line - 1);
        content_octets += sizeof line - 1;
    }
    while (content_octets + 2 < octets)
        content[content_octets++] = 'x';
    if (content[content_octets - 1] != '\n') {
        memcpy(content + content_octets, "\r\n", 2);
        content_octets += 2;
    }
    memcpy(content + content_octets, ".\r\n", 3);
    content_octets += 3;
}

static int by_size(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void start(pthread_t *thread, void *(*body)(void *), void *argument)
{
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, STACK_OCTETS);
    if (pthread_create(thread, &small, body, argument)) {
        fprintf(stderr, "smtpgen: no thread to be had\n");
        exit(2);
    }
}

static void run_load(int count, double seconds)
{
    struct worker *workers = calloc((size_t)count, sizeof *workers);
    double begun = seconds_now();
    long messages = 0, connections = 0, timed = 0;
    end_time = begun + seconds;
    for (int i = 0; i < count; i++) {
        workers[i].latencies = malloc(LATENCIES * sizeof(float));
        start(&workers[i].thread, work, &workers[i]);
    }
    for (int i = 0; i < count; i++) {
        pthread_join(workers[i].thread, NULL);
        messages += workers[i].messages;
        connections += workers[i].connections;
        timed += workers[i].timed;
    }
    double took = seconds_now() - begun;
    float *all = malloc(((size_t)timed + 1) * sizeof *all), *at = all;
    for (int i = 0; i < count; i++) {
        memcpy(at, workers[i].latencies, (size_t)workers[i].timed * sizeof *all);
        at += workers[i].timed;
    }
    qsort(all, (size_t)timed, sizeof *all, by_size);
    printf("{\"messages\": %ld, \"connections\": %ld, \"errors\": %ld, \"error\": \"%s\", \"seconds\": %.4f, "
           "\"octets\": %ld, \"p50_ms\": %.3f, \"p99_ms\": %.3f}\n",
           messages, connections, (long)errors, first_error, took, messages * (long)(content_octets - 3),
           timed ? all[timed / 2] : 0.0, timed ? all[timed * 99 / 100] : 0.0);
}

static struct conn **held;
static int held_wanted;
static atomic_int held_tried, held_open;

static void *open_some(void *argument)
{
    int pipelining;
    (void)argument;
    while (held_tried++ < held_wanted) {
        struct conn *c = open_session(&pipelining);
        if (c)
            held[held_open++] = c;
    }
    return NULL;
}

static void hold(void)
{
    pthread_t openers[OPENERS];
    char line[64];
    held = calloc((size_t)held_wanted, sizeof(struct conn *));
    for (int i = 0; i < OPENERS; i++)
        start(&openers[i], open_some, NULL);
    for (int i = 0; i < OPENERS; i++)
        pthread_join(openers[i], NULL);
    printf("{\"held\": %d, \"error\": \"%s\"}\n", held_open, first_error);
    while (fgets(line, sizeof line, stdin)) {
        int answered = 0;
        for (int i = 0; i < held_open; i++)
            answered += ask(held[i], "NOOP\r\n", '2', "NOOP") == 0;
        printf("{\"answered\": %d, \"error\": \"%s\"}\n", answered, first_error);
    }
}

int main(int argc, char **argv)
{
    static const char usage[] = "smtpgen -p port [-a address] [-e plain|starttls|tls] [-c connections] [-t seconds]\n"
                                "        [-m messages] [-s octets] [-P] [-L] [-r recipient] [-S sources] [-H held]\n";
    const char *address = "127.0.0.1";
    int option, port = 0, connections = 16;
    size_t octets = 4096;
    double seconds = 5;
    while ((option = getopt(argc, argv, "a:p:e:c:t:m:s:PLr:S:H:")) > 0)
        switch (option) {
        case 'a': address = optarg; break;
        case 'p': port = atoi(optarg); break;
        case 'e': encryption = *optarg == 'p' ? PLAIN : *optarg == 's' ? STARTTLS : IMPLICIT; break;
        case 'c': connections = atoi(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'm': messages_per_connection = atoi(optarg); break;
        case 's': octets = strtoul(optarg, NULL, 10); break;
        case 'P': want_pipelining = 0; break;
        case 'L': hello = "LHLO gen.test\r\n"; break;
        case 'r': recipient = optarg; break;
        case 'S': sources = atoi(optarg); break;
        case 'H': held_wanted = atoi(optarg); break;
        default: fputs(usage, stderr); return 2;
        }
    there.sin_family = AF_INET;
    there.sin_port = htons((uint16_t)port);
    if (port <= 0 || connections <= 0 || strlen(recipient) > 250 || inet_pton(AF_INET, address, &there.sin_addr) != 1) {
        fputs(usage, stderr);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    setvbuf(stdout, NULL, _IOLBF, 0);
    context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION);
    SSL_CTX_set_mode(context, SSL_MODE_AUTO_RETRY | SSL_MODE_RELEASE_BUFFERS);
    make_content(octets);
    if (held_wanted)
        hold();
    else
        run_load(connections, seconds);
    return 0;
}
