// The loops of the benches. In C, so that the client costs little beside the kernel and the server. See loops.py.
// Every function answers a time in ns, a count, or -errno.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000L + now.tv_nsec;
}

static int open_to(const struct sockaddr_in *address, int option)
{
    struct linger reset = { 1, 0 };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

    if (option == SO_LINGER)
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    else
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    if (!connect(fd, (const struct sockaddr *)address, sizeof(*address)))
        return fd;
    close(fd);
    return -1;
}

// `count` times: connect, accept, close, close by reset (no TIME_WAIT). Several threads may share a listener.
long open_and_close(int listener, int count)
{
    struct sockaddr_in address;
    socklen_t length = sizeof(address);
    long started = now_ns();

    getsockname(listener, (struct sockaddr *)&address, &length);
    while (count--) {
        int client = open_to(&address, SO_LINGER), server;

        if (client < 0 || (server = accept(listener, NULL, NULL)) < 0)
            return -errno;
        close(server);
        close(client);
    }
    return now_ns() - started;
}

// `count` times: one byte there, one byte back. Both ends are ours: no process has to be woken.
long exchange(int client, int server, int count)
{
    long started = now_ns();
    char byte = 0;

    while (count--)
        if (send(client, &byte, 1, 0) != 1 || recv(server, &byte, 1, 0) != 1 || send(server, &byte, 1, 0) != 1 ||
            recv(client, &byte, 1, 0) != 1)
            return -errno;
    return now_ns() - started;
}

struct worker {
    struct sockaddr_in address;
    const char *request;
    int keep;
    long until, done, error;
    pthread_t thread;
};

// One answer to the end. 1: the connection can be used again, 0: it is over, -1: not a whole answer with status 200.
static int read_answer(int fd)
{
    char text[8192], *body = NULL, *field;
    long got = 0, more, wanted = -1;

    while (wanted < 0 || got < wanted) {
        more = recv(fd, text + got, sizeof(text) - 1 - got, 0);
        if (more <= 0)
            return -1;
        got += more;
        text[got] = 0;
        if (!body && (body = strstr(text, "\r\n\r\n"))) {
            *body = 0;
            field = strcasestr(text, "\r\nContent-Length:");
            if (!field || memcmp(text + 8, " 200", 4))
                return -1;
            wanted = body + 4 - text + atol(field + 17);
        }
    }
    return !strcasestr(text, "\r\nConnection: close");
}

static void *work(void *told)
{
    struct worker *me = told;
    size_t length = strlen(me->request);
    int fd = -1, again, answer;
    char byte;

    while (now_ns() < me->until) {
        again = fd >= 0;
        if (fd < 0 && (fd = open_to(&me->address, TCP_NODELAY)) < 0)
            break;
        answer = send(fd, me->request, length, MSG_NOSIGNAL) == (long)length ? read_answer(fd) : -1;
        me->done += answer >= 0;
        if (answer < 0 && !again)
            break;
        if (answer > 0 && me->keep)
            continue;
        while (answer == 0 && recv(fd, &byte, 1, 0) > 0) // who closes first keeps TIME_WAIT: the server, whose port it is
            ;
        close(fd);
        fd = -1;
    }
    me->error = now_ns() < me->until ? (errno ? errno : EPROTO) : 0;
    if (fd >= 0)
        close(fd);
    return NULL;
}

// HTTP requests of several clients for so many ns; keep: on one connection each. Stores the time that it really took.
long ask(int port, const char *request, int clients, int keep, long for_ns, long *took_ns)
{
    struct worker workers[64];
    long started = now_ns(), done = 0, error = 0;

    for (int i = 0; i < clients; i++) {
        workers[i] = (struct worker){ .request = request, .keep = keep, .until = started + for_ns };
        workers[i].address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_port = htons(port) };
        workers[i].address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    }
    for (int i = 0; i < clients; i++) {
        pthread_join(workers[i].thread, NULL);
        done += workers[i].done;
        error = error ? error : workers[i].error;
    }
    *took_ns = now_ns() - started;
    return error ? -error : done;
}
