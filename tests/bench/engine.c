/* The engine behind a router that is measured: one thread, epoll, fixed answers, fast enough not to be measured itself.
 *
 * engine PORT CHUNKS INTERVAL_MS
 * A POST whose body holds "stream":true is answered with CHUNKS server-sent events, INTERVAL_MS apart (the first at once); any other
 * request with one small JSON that carries usage and kv_transfer_params.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 4096
#define BUFFER 65536

struct connection {
    char *in;
    int used;
    int left;        /* events still to be sent; 0: not streaming */
    double due;      /* when the next is sent */
};

static struct connection connections[MAX_FD];
static int streaming[MAX_FD], streams;
static const char BODY[] =
    "{\"id\":\"c\",\"object\":\"chat.completion\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"message\":"
    "{\"role\":\"assistant\",\"content\":\"hello there\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":8,"
    "\"completion_tokens\":3,\"total_tokens\":11},\"kv_transfer_params\":{\"remote_engine_id\":\"e\",\"remote_block_ids\":[1,2]}}";
static const char EVENT[] =
    "data: {\"id\":\"c\",\"object\":\"chat.completion.chunk\",\"created\":1,\"model\":\"m\",\"choices\":[{\"index\":0,\"delta\":"
    "{\"content\":\"token \"},\"finish_reason\":null}]}\n\n";
static char answer[2048], head[256], event[512], last[64];
static int answer_length, head_length, event_length, last_length;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static void put(int fd, const char *data, int length) {
    while (length > 0) {
        ssize_t sent = send(fd, data, length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) continue;
            return;
        }
        data += sent;
        length -= sent;
    }
}

static void drop(int fd) {
    connections[fd].used = 0;
    connections[fd].left = 0;
    close(fd);
}

/* Answer every whole request in the buffer. */
static void answer_all(int fd, int chunks) {
    struct connection *c = &connections[fd];
    for (;;) {
        char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
        if (!end) return;
        int body = end + 4 - c->in, length = 0;
        c->in[c->used] = 0;
        char *field = strcasestr(c->in, "content-length:");
        if (field && field < end) length = atoi(field + 15);
        if (c->used < body + length) return;
        char *stream = memmem(c->in + body, length, "\"stream\":true", 13);
        memmove(c->in, c->in + body + length, c->used - body - length);
        c->used -= body + length;
        if (stream) {
            put(fd, head, head_length);
            c->left = chunks;
            c->due = now();
            streaming[streams++] = fd;
        } else {
            put(fd, answer, answer_length);
        }
    }
}

int main(int argc, char **argv) {
    int port = atoi(argv[1]), chunks = atoi(argv[2]);
    double interval = atof(argv[3]) / 1000.0;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    answer_length = snprintf(answer, sizeof answer,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s", sizeof BODY - 1, BODY);
    head_length = snprintf(head, sizeof head,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    event_length = snprintf(event, sizeof event, "%zx\r\n%s\r\n", sizeof EVENT - 1, EVENT);
    last_length = snprintf(last, sizeof last, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");

    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) return perror("listen"), 1;
    int poll = epoll_create1(0);
    struct epoll_event watch = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &watch);
    (void)argc;
    for (;;) {
        int timeout = -1;
        double time = streams ? now() : 0;
        for (int i = 0; i < streams; i++) {
            struct connection *c = &connections[streaming[i]];
            while (c->left > 0 && c->due <= time) {
                put(streaming[i], event, event_length);
                c->left--;
                c->due += interval;
                if (!c->left) put(streaming[i], last, last_length);
            }
            if (!c->left) {
                streaming[i--] = streaming[--streams];
                continue;
            }
            int wait = (int)((c->due - time) * 1000.0) + 1;
            if (timeout < 0 || wait < timeout) timeout = wait;
        }
        int count = epoll_wait(poll, ready, 256, timeout);
        for (int i = 0; i < count; i++) {
            int fd = ready[i].data.fd;
            if (fd == listener) {
                int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (client < 0) continue;
                if (client >= MAX_FD) { close(client); continue; }
                setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                if (!connections[client].in) connections[client].in = malloc(BUFFER + 1);
                connections[client].used = connections[client].left = 0;
                watch.data.fd = client;
                epoll_ctl(poll, EPOLL_CTL_ADD, client, &watch);
                continue;
            }
            struct connection *c = &connections[fd];
            ssize_t got = recv(fd, c->in + c->used, BUFFER - c->used, 0);
            if (got <= 0) { if (got == 0 || errno != EAGAIN) drop(fd); continue; }
            c->used += got;
            answer_all(fd, chunks);
        }
    }
}
