/* loadgen: one epoll loop that asks a server prebuilt requests over many connections.

       requests file --> connection 0 ... connection n-1 --> server
                         (each walks the file from a start of its own, round and round)

   Closed loop (depth=D): a connection sends D requests at once, and the next D when all D replies are in.
   Open loop (rate=R):    request k is due at start + k/R, whatever the replies do, and its latency counts from the
                          moment it was due: a server that stalls is charged for every request it kept waiting.

   Files hold records: u32 little-endian size, then that many bytes. `greeting` records are asked once per connection
   before the clock starts; their replies are frames (u32 big-endian size, then the payload). Every reply to a request
   has one known size and opening, so a reply of another shape ends the run: errors are never counted as answers.
   The checksum adds the 64-bit words of the payload of each connection's first `check` replies: the same data and
   the same keys give the same sum, whatever the server. Prints one line of JSON. Exit code 1: the run failed. */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { RING = 1 << 16, RECEIVE_SIZE = 1 << 18, EVENTS_MAX = 256, PRECISION_BITS = 7 };
enum { BUCKETS = (64 - PRECISION_BITS + 1) << PRECISION_BITS };

struct records {
    unsigned char *bytes; /* the records without their sizes, one after the other */
    size_t size, count;
    uint32_t *sizes;
};

struct connection {
    int fd;
    int waits_for_room;        /* the socket was full: EPOLLOUT is on */
    size_t next;               /* record to queue next */
    size_t cursor, unsent;     /* bytes of the file still to send begin at cursor */
    uint64_t *due;             /* ring of due times of what was queued and not answered */
    uint64_t queued, answered; /* counts since the start */
    unsigned char *buffer;
    size_t filled;
};

static struct {
    int port, connections, depth, check;
    double seconds, warmup, rate;
    size_t reply_size, payload_size, tail_size;
    const unsigned char *opening;
    size_t opening_size;
} options;

static struct records requests;
static uint64_t histogram[BUCKETS], recorded, checksum, window_opens, window_closes;
static int poller;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("loadgen: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* Histogram of constant relative precision (under 1 %): exact below 128 ns, then 128 buckets per power of two. */

static size_t bucket_of(uint64_t value) {
    if (value < (1u << PRECISION_BITS)) return (size_t)value;
    unsigned shift = 63u - (unsigned)__builtin_clzll(value) - PRECISION_BITS;
    return ((size_t)shift << PRECISION_BITS) + (size_t)(value >> shift);
}

static uint64_t bucket_top(size_t bucket) {
    if (bucket < (1u << PRECISION_BITS)) return bucket;
    size_t shift = (bucket >> PRECISION_BITS) - 1;
    uint64_t mantissa = bucket - (shift << PRECISION_BITS);
    return ((mantissa + 1) << shift) - 1;
}

static double percentile_us(double percent) {
    uint64_t rank = (uint64_t)((double)recorded * percent / 100.0), seen = 0;
    for (size_t bucket = 0; bucket < BUCKETS; bucket++) {
        seen += histogram[bucket];
        if (seen > rank || seen == recorded) return (double)bucket_top(bucket) / 1000.0;
    }
    return 0.0;
}

static struct records records_read(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail("cannot open %s: %s", path, strerror(errno));
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    /* A record is at least its size of 4 bytes, so both arrays hold whatever the file does. */
    struct records records = {.bytes = malloc(size + 1), .sizes = malloc(size + 4)};
    if (!records.bytes || !records.sizes) fail("out of memory");
    uint32_t record_size;
    while (fread(&record_size, 4, 1, file) == 1) {
        if (record_size > size || fread(records.bytes + records.size, 1, record_size, file) != record_size)
            fail("%s ends inside a record", path);
        records.size += record_size;
        records.sizes[records.count++] = record_size;
    }
    fclose(file);
    if (!records.count) fail("%s holds no record", path);
    return records;
}

static void send_all(int fd, const unsigned char *bytes, size_t size) {
    while (size) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent <= 0) fail("greeting: send: %s", strerror(errno));
        bytes += sent;
        size -= (size_t)sent;
    }
}

static void receive_all(int fd, unsigned char *bytes, size_t size) {
    while (size) {
        ssize_t got = recv(fd, bytes, size, 0);
        if (got <= 0) fail("greeting: the server closed the connection");
        bytes += got;
        size -= (size_t)got;
    }
}

static void greet(int fd, const struct records *greeting, unsigned char *buffer) {
    const unsigned char *bytes = greeting->bytes;
    for (size_t i = 0; i < greeting->count; bytes += greeting->sizes[i++]) {
        uint32_t size;
        send_all(fd, bytes, greeting->sizes[i]);
        receive_all(fd, (unsigned char *)&size, 4);
        size = ntohl(size);
        if (size > RECEIVE_SIZE) fail("greeting: a reply of %u bytes", size);
        receive_all(fd, buffer, size);
    }
}

static void connection_open(struct connection *connection, const struct records *greeting) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
    int on = 1;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection->fd, (struct sockaddr *)&address, sizeof address))
        fail("connect to port %d: %s", options.port, strerror(errno));
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    connection->buffer = malloc(RECEIVE_SIZE);
    connection->due = malloc(RING * sizeof(uint64_t));
    if (!connection->buffer || !connection->due) fail("out of memory");
    if (greeting->count) greet(connection->fd, greeting, connection->buffer);
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, connection->fd, &event)) fail("epoll_ctl: %s", strerror(errno));
}

static void connection_watch(struct connection *connection, int for_room) {
    struct epoll_event event = {.events = EPOLLIN | (for_room ? EPOLLOUT : 0), .data.ptr = connection};
    if (connection->waits_for_room == for_room) return;
    connection->waits_for_room = for_room;
    epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
}

static void connection_queue(struct connection *connection, uint64_t due) {
    if (connection->queued - connection->answered == RING) fail("the server is %d requests behind: lower rate=", RING);
    connection->due[connection->queued++ % RING] = due;
    connection->unsent += requests.sizes[connection->next];
    connection->next = (connection->next + 1) % requests.count;
}

static void connection_send(struct connection *connection) {
    while (connection->unsent) {
        size_t to_end = requests.size - connection->cursor;
        size_t size = connection->unsent < to_end ? connection->unsent : to_end;
        ssize_t sent = send(connection->fd, requests.bytes + connection->cursor, size, MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == EINTR)) {
            connection_watch(connection, 1);
            return;
        }
        if (sent <= 0) fail("send: %s", strerror(errno));
        connection->unsent -= (size_t)sent;
        connection->cursor = (connection->cursor + (size_t)sent) % requests.size;
    }
    connection_watch(connection, 0);
}

static void connection_fill(struct connection *connection, uint64_t now) {
    for (int i = 0; i < options.depth; i++) connection_queue(connection, now);
    connection_send(connection);
}

static void reply_take(struct connection *connection, const unsigned char *reply, uint64_t now) {
    if (memcmp(reply, options.opening, options.opening_size)) fail("a reply does not open as answers do");
    if (connection->answered < (uint64_t)options.check) {
        const unsigned char *payload = reply + options.reply_size - options.tail_size - options.payload_size;
        for (size_t at = 0; at + 8 <= options.payload_size; at += 8) {
            uint64_t word;
            memcpy(&word, payload + at, 8);
            checksum += word;
        }
    }
    uint64_t due = connection->due[connection->answered++ % RING];
    if (due >= window_opens && due < window_closes) {
        histogram[bucket_of(now - due)]++;
        recorded++;
    }
}

static void connection_receive(struct connection *connection) {
    ssize_t got = recv(connection->fd, connection->buffer + connection->filled, RECEIVE_SIZE - connection->filled, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) fail("the server closed a connection");
    uint64_t now = now_ns();
    size_t at = 0;
    connection->filled += (size_t)got;
    while (connection->filled - at >= options.reply_size) {
        if (connection->answered == connection->queued) fail("a reply that nobody asked for");
        reply_take(connection, connection->buffer + at, now);
        at += options.reply_size;
    }
    memmove(connection->buffer, connection->buffer + at, connection->filled - at);
    connection->filled -= at;
}

/* Replies still to come, and requests still to send for the checksum. */
static uint64_t outstanding(const struct connection *connections) {
    uint64_t total = 0, check = (uint64_t)options.check;
    for (int i = 0; i < options.connections; i++) {
        const struct connection *connection = &connections[i];
        total += (connection->queued > check ? connection->queued : check) - connection->answered;
    }
    return total;
}

/* After the window closes, what is still due is waited for (5 s at most): leaving the slowest replies out would flatter
   the server. A connection that has not had its checked replies by then asks on, outside the window. */
static void run(struct connection *connections) {
    struct epoll_event events[EVENTS_MAX];
    uint64_t start = now_ns(), asked = 0, now = start;
    double interval_ns = options.rate > 0 ? 1e9 / options.rate : 0;
    window_opens = start + (uint64_t)(options.warmup * 1e9);
    window_closes = window_opens + (uint64_t)(options.seconds * 1e9);
    if (!interval_ns)
        for (int i = 0; i < options.connections; i++) connection_fill(&connections[i], now);
    while (now < window_closes || (outstanding(connections) && now < window_closes + 5000000000u)) {
        if (interval_ns) {
            uint64_t due;
            while ((due = start + (uint64_t)((double)asked * interval_ns)) <= now &&
                   (due < window_closes || asked < (uint64_t)options.connections * (uint64_t)options.check)) {
                struct connection *connection = &connections[asked++ % (uint64_t)options.connections];
                connection_queue(connection, due);
                connection_send(connection);
            }
        }
        int ready = epoll_wait(poller, events, EVENTS_MAX, interval_ns ? 0 : 100);
        for (int i = 0; i < ready; i++) {
            struct connection *connection = events[i].data.ptr;
            if (events[i].events & EPOLLOUT) connection_send(connection);
            if (events[i].events & ~(uint32_t)EPOLLOUT) connection_receive(connection);
            if (!interval_ns && connection->answered == connection->queued &&
                (now < window_closes || connection->answered < (uint64_t)options.check))
                connection_fill(connection, now_ns());
        }
        now = now_ns();
    }
    if (outstanding(connections)) fail("%llu requests were never answered", (unsigned long long)outstanding(connections));
}

static const unsigned char *bytes_of_hex(const char *text, size_t *size) {
    unsigned char *bytes = malloc(strlen(text) / 2 + 1);
    *size = strlen(text) / 2;
    for (size_t i = 0; i < *size; i++)
        if (sscanf(text + 2 * i, "%2hhx", &bytes[i]) != 1) fail("opening=%s is not hexadecimal", text);
    return bytes;
}

static void options_parse(int count, char **words, const char **requests_path, const char **greeting_path) {
    options.connections = 50;
    options.depth = 1;
    options.seconds = 1;
    options.opening = (const unsigned char *)"";
    for (int i = 1; i < count; i++) {
        char *value = strchr(words[i], '=');
        if (!value) fail("%s: want name=value", words[i]);
        *value++ = 0;
        if (!strcmp(words[i], "port")) options.port = atoi(value);
        else if (!strcmp(words[i], "connections")) options.connections = atoi(value);
        else if (!strcmp(words[i], "depth")) options.depth = atoi(value);
        else if (!strcmp(words[i], "seconds")) options.seconds = atof(value);
        else if (!strcmp(words[i], "warmup")) options.warmup = atof(value);
        else if (!strcmp(words[i], "rate")) options.rate = atof(value);
        else if (!strcmp(words[i], "check")) options.check = atoi(value);
        else if (!strcmp(words[i], "reply_size")) options.reply_size = (size_t)atol(value);
        else if (!strcmp(words[i], "payload_size")) options.payload_size = (size_t)atol(value);
        else if (!strcmp(words[i], "tail_size")) options.tail_size = (size_t)atol(value);
        else if (!strcmp(words[i], "opening")) options.opening = bytes_of_hex(value, &options.opening_size);
        else if (!strcmp(words[i], "requests")) *requests_path = value;
        else if (!strcmp(words[i], "greeting")) *greeting_path = value;
        else fail("no option %s", words[i]);
    }
    if (!*requests_path || options.port <= 0 || options.connections <= 0 || options.depth <= 0 || options.depth > RING)
        fail("need requests=FILE port=N connections>0 0<depth<=%d", RING);
    if (options.reply_size < options.payload_size + options.tail_size || options.reply_size < options.opening_size ||
        options.reply_size == 0 || options.reply_size > RECEIVE_SIZE)
        fail("reply_size=%zu does not hold the opening and the payload", options.reply_size);
}

int main(int count, char **words) {
    const char *requests_path = NULL, *greeting_path = NULL;
    options_parse(count, words, &requests_path, &greeting_path);
    struct records greeting = {0};
    requests = records_read(requests_path);
    if (greeting_path) greeting = records_read(greeting_path);
    poller = epoll_create1(0);
    struct connection *connections = calloc((size_t)options.connections, sizeof *connections);
    size_t stride = requests.count / (size_t)options.connections;
    for (size_t record = 0, at = 0, i = 0; i < (size_t)options.connections; i++) {
        for (; record < i * stride; record++) at += requests.sizes[record];
        connections[i].next = record;
        connections[i].cursor = at;
        connection_open(&connections[i], &greeting);
    }
    struct rusage before, after;
    getrusage(RUSAGE_SELF, &before);
    uint64_t began = now_ns();
    run(connections);
    double wall = (double)(now_ns() - began) / 1e9;
    getrusage(RUSAGE_SELF, &after);
    double busy = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec - before.ru_stime.tv_sec) +
                  (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec - before.ru_stime.tv_usec) / 1e6;
    if (!recorded) fail("no reply inside the measured window");
    printf("{\"count\": %llu, \"per_second\": %.1f, \"generator_busy\": %.3f, \"checksum\": \"%016llx\", \"percentiles_us\": {",
           (unsigned long long)recorded, (double)recorded / options.seconds, busy / wall, (unsigned long long)checksum);
    static const double percents[] = {50, 75, 90, 95, 99, 99.5, 99.9, 99.99, 100};
    for (size_t i = 0; i < sizeof percents / sizeof *percents; i++)
        printf("%s\"%g\": %.3f", i ? ", " : "", percents[i], percentile_us(percents[i]));
    puts("}}");
    return 0;
}
