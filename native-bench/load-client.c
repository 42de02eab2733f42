/*
 * Load of AP3000 devices on one thread. Connects all of them first: ICCID and registration (20), at most STORM_WINDOW of
 * them unanswered at a time; then does what stdin says, one line each. Every reply is compared byte for byte.
 *
 *   build/load-client PORT CONNECTIONS
 *
 *   beat                       one heartbeat (21, ten ports, 29 bytes) on each connection, all answered
 *   order                      a report of a running order (06) on each connection, then a beat
 *   closed WARMUP_S SECONDS    one heartbeat in flight on each connection
 *   open WARMUP_S SECONDS RATE heartbeats at RATE a second over all connections, evenly spread. Latency runs from the moment
 *                              a heartbeat was due, sent or not: a server that stands still is charged for what it kept
 *                              waiting
 *
 * Prints "connected MS" (-1: not all of them), then for each line "measuring" and "measured" around the measured time of
 * closed and open, and one JSON object. Connections come from an address of 127/8 of their own per run, so that ports in
 * TIME_WAIT of earlier runs are in nobody's way.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
  BEAT_BYTES = 29,
  ORDER_BYTES = 59,
  REGISTER_BYTES = 20,
  REPLY_BYTES = 15,
  BUFFER = 256,
  EVENTS_MAX = 512,
  MICROS_MAX = 5000000,
  STORM_WINDOW = 512,
  STORM_MS_MAX = 120000,
  DRAIN_MS = 2000
};
enum { ORDER = 0x06, REGISTER = 0x20, BEAT = 0x21 };

struct connection {
  int fd;
  uint32_t id;
  /* Of the last beat sent and of the last one answered; 0 is the registration. */
  uint32_t sent, answered;
  /* Answered before the measurement. */
  uint32_t before;
  uint16_t held;
  uint64_t sent_ns;
  uint8_t bytes[BUFFER];
};

static uint32_t micros[MICROS_MAX];
static uint64_t replies, mismatches, others, closed, sent_in_time;
static int set, count, registered;
/* Answer every reply with the next beat. */
static int is_closed_loop;
/* Beats that are not answered yet. */
static long in_flight;
/* Open loop: beat n of connection i is due at base_ns + (n * count + i) * step_ns. */
static double step_ns;
static uint64_t base_ns, measure_ns, end_ns;

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void put_u16(uint8_t *at, unsigned value) {
  at[0] = value & 0xff;
  at[1] = value >> 8 & 0xff;
}

static void finish(uint8_t *frame, uint32_t id, unsigned message, int command, int bytes) {
  memcpy(frame, "DNY", 3);
  put_u16(frame + 3, (unsigned)bytes - 5);
  put_u16(frame + 5, id);
  put_u16(frame + 7, id >> 16);
  put_u16(frame + 9, message);
  frame[11] = (uint8_t)command;
  unsigned sum = 0;
  for (int at = 0; at < bytes - 2; at++) sum += frame[at];
  put_u16(frame + bytes - 2, sum);
}

static void drop(struct connection *connection) {
  if (connection->fd < 0) return;
  closed++;
  in_flight -= connection->sent - connection->answered;
  close(connection->fd);
  connection->fd = -1;
}

static void beat(struct connection *connection, uint64_t now) {
  if (connection->fd < 0) return;
  uint8_t frame[BEAT_BYTES] = {0};
  put_u16(frame + 12, 2305);
  frame[14] = 10;
  frame[26] = 93;
  connection->sent++;
  in_flight++;
  connection->sent_ns = now;
  finish(frame, connection->id, connection->sent & 0xffff, BEAT, BEAT_BYTES);
  if (send(connection->fd, frame, BEAT_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT) != BEAT_BYTES) drop(connection);
}

static int is_measured(uint64_t at) { return measure_ns && at >= measure_ns && at < end_ns; }

static void check(struct connection *connection, const uint8_t *frame, int bytes, int index) {
  int command = frame[11];
  if (command != REGISTER && command != BEAT) {
    others++;
    return;
  }
  if (command == BEAT) {
    connection->answered++;
    in_flight--;
  }
  uint8_t expected[REPLY_BYTES] = {0};
  finish(expected, connection->id, command == BEAT ? connection->answered & 0xffff : 0, command, REPLY_BYTES);
  if (bytes != REPLY_BYTES || memcmp(frame, expected, REPLY_BYTES)) {
    mismatches++;
    return;
  }
  if (command == REGISTER) {
    registered++;
    return;
  }
  uint64_t now = now_ns();
  uint64_t due = step_ns > 0 ? base_ns + (uint64_t)(((double)(connection->answered - connection->before - 1) * count + index) * step_ns)
                             : connection->sent_ns;
  if (step_ns > 0 ? is_measured(due) : is_measured(now)) {
    uint64_t took = now > due ? (now - due) / 1000 : 0;
    micros[took < MICROS_MAX ? took : MICROS_MAX - 1]++;
    replies++;
  }
  if (is_closed_loop) beat(connection, now);
}

static void readable(struct connection *connection, int index) {
  if (connection->fd < 0) return;
  ssize_t got = recv(connection->fd, connection->bytes + connection->held, (size_t)(BUFFER - connection->held), MSG_DONTWAIT);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    drop(connection);
    return;
  }
  int bytes = connection->held + (int)got, at = 0;
  while (bytes - at >= 5) {
    uint8_t *frame = connection->bytes + at;
    int size = 5 + (frame[3] | frame[4] << 8);
    if (memcmp(frame, "DNY", 3) || size > BUFFER) {
      mismatches++;
      at = bytes;
      break;
    }
    if (bytes - at < size) break;
    check(connection, frame, size, index);
    at += size;
  }
  connection->held = (uint16_t)(bytes - at);
  memmove(connection->bytes, connection->bytes + at, connection->held);
}

static struct connection *connections;

static void wait_once(int timeout_ms) {
  static struct epoll_event events[EVENTS_MAX];
  int ready = epoll_wait(set, events, EVENTS_MAX, timeout_ms);
  for (int at = 0; at < ready; at++) {
    int index = (int)events[at].data.u32;
    readable(connections + index, index);
  }
}

static int open_one(int index, const struct sockaddr_in *server) {
  struct connection *connection = connections + index;
  int one = 1;
  connection->id = 0x04200000u + (uint32_t)index;
  connection->fd = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(connection->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
  struct sockaddr_in source = {.sin_family = AF_INET};
  source.sin_addr.s_addr = htonl(0x7f000001u | (uint32_t)(1 + getpid() % 250) << 16 | (uint32_t)(getpid() / 250 % 250) << 8);
  if (bind(connection->fd, (void *)&source, sizeof source) || connect(connection->fd, (const void *)server, sizeof *server)) {
    perror("connect");
    return 0;
  }
  setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct epoll_event event = {.events = EPOLLIN, .data.u32 = (uint32_t)index};
  epoll_ctl(set, EPOLL_CTL_ADD, connection->fd, &event);
  uint8_t hello[20 + REGISTER_BYTES + 1] = {0};
  snprintf((char *)hello, 21, "898604%014d", 500000 + index);
  uint8_t *frame = hello + 20;
  memset(frame, 0, REGISTER_BYTES + 1);
  put_u16(frame + 12, 126);
  frame[14] = 10;
  frame[16] = 0x21;
  frame[18] = 0;
  finish(frame, connection->id, 0, REGISTER, REGISTER_BYTES);
  if (send(connection->fd, hello, 20 + REGISTER_BYTES, MSG_NOSIGNAL) != 20 + REGISTER_BYTES) return 0;
  return 1;
}

static void report_order(struct connection *connection, int index) {
  static const uint8_t data[45] = {1, 1, 0x2c, 1, 5, 0, 1, 0xe8, 3, 0x10, 4, 0, 0, 0xe8, 3, [33] = 0x10, 4, 0x2b, 9, 0xa9, 1, 0x5d, 0x60};
  if (connection->fd < 0) return;
  uint8_t frame[ORDER_BYTES];
  char order[17];
  memcpy(frame + 12, data, sizeof data);
  snprintf(order, sizeof order, "BENCH%011d", index);
  memcpy(frame + 12 + 15, order, 16);
  finish(frame, connection->id, 0x7fff, ORDER, ORDER_BYTES);
  if (send(connection->fd, frame, ORDER_BYTES, MSG_NOSIGNAL | MSG_DONTWAIT) != ORDER_BYTES) drop(connection);
}

static double percentile_us(double share) {
  uint64_t wanted = (uint64_t)((double)replies * share), seen = 0;
  for (int us = 0; us < MICROS_MAX; us++)
    if ((seen += micros[us]) > wanted) return us;
  return MICROS_MAX;
}

/* Sends every beat that is due; returns when the next one is. */
static uint64_t beat_all_due(uint64_t *next) {
  for (uint64_t now = now_ns();;) {
    uint64_t due = base_ns + (uint64_t)((double)*next * step_ns);
    if (due > now || due >= end_ns) return due;
    beat(connections + *next % (uint64_t)count, now);
    if (is_measured(due)) sent_in_time++;
    /* a glance at the clock now and then: far behind, the loop would never read */
    if (++*next % 64 == 0) {
      now = now_ns();
      wait_once(0);
    }
  }
}

static void drain(int ms_max) {
  for (uint64_t until = now_ns() + (uint64_t)ms_max * 1000000u; in_flight > 0 && now_ns() < until;) wait_once(5);
}

/* One beat each, a window of them at a time: ten thousand at once would measure the queue. */
static void beat_once(int with_order) {
  for (int index = 0; index < count; index++) {
    if (with_order) report_order(connections + index, index);
    beat(connections + index, now_ns());
    while (in_flight >= STORM_WINDOW) {
      long before = in_flight;
      wait_once(1000);
      if (in_flight == before) break;
    }
  }
  drain(DRAIN_MS);
}

static void measure(double warmup_s, double seconds, double rate) {
  memset(micros, 0, sizeof micros);
  replies = sent_in_time = 0;
  for (int index = 0; index < count; index++) connections[index].before = connections[index].answered;
  uint64_t next = 0;
  int is_told = 0;
  base_ns = now_ns();
  measure_ns = base_ns + (uint64_t)(warmup_s * 1e9);
  end_ns = measure_ns + (uint64_t)(seconds * 1e9);
  step_ns = rate > 0 ? 1e9 / rate : 0;
  is_closed_loop = rate == 0;
  if (is_closed_loop)
    for (int index = 0; index < count; index++) beat(connections + index, now_ns());
  for (uint64_t now; (now = now_ns()) < end_ns;) {
    if (!is_told && now >= measure_ns) {
      is_told = 1;
      printf("measuring\n");
      fflush(stdout);
    }
    int timeout_ms = 10;
    if (step_ns > 0) {
      uint64_t due = beat_all_due(&next);
      now = now_ns();
      /* the last millisecond is spent looking: epoll_wait counts whole ones */
      timeout_ms = due <= now ? 0 : due - now > 10000000u ? 10 : (int)((due - now) / 1000000u);
    }
    wait_once(timeout_ms);
  }
  is_closed_loop = 0;
  double took_s = (double)(now_ns() - measure_ns) / 1e9;
  printf("measured\n");
  fflush(stdout);
  drain(DRAIN_MS);
  measure_ns = 0;
  printf("{\"replies\":%llu,\"seconds\":%.3f,\"msgs_per_s\":%.0f,\"p50_us\":%.0f,\"p99_us\":%.0f,\"p999_us\":%.0f,",
         (unsigned long long)replies, took_s, (double)replies / took_s, percentile_us(0.5), percentile_us(0.99),
         percentile_us(0.999));
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "load-client PORT CONNECTIONS\n");
    return 2;
  }
  count = atoi(argv[2]);
  set = epoll_create1(0);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  connections = calloc((size_t)count, sizeof *connections);
  struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
  inet_pton(AF_INET, "127.0.0.1", &server.sin_addr);

  uint64_t storm_ns = now_ns(), give_up_ns = storm_ns + (uint64_t)STORM_MS_MAX * 1000000u;
  for (int index = 0; index < count; index++) {
    if (!open_one(index, &server)) return 1;
    while (index + 1 - registered - (int)closed >= STORM_WINDOW && now_ns() < give_up_ns) wait_once(10);
    if (index % 16 == 0) wait_once(0);
  }
  while (registered + (int)closed < count && now_ns() < give_up_ns) wait_once(10);
  printf("connected %.0f\n", registered == count ? (double)(now_ns() - storm_ns) / 1e6 : -1);
  fflush(stdout);

  char line[128];
  while (fgets(line, sizeof line, stdin)) {
    double warmup_s, seconds, rate;
    if (!strcmp(line, "beat\n") || !strcmp(line, "order\n")) {
      beat_once(line[0] == 'o');
      printf("{");
    } else if (sscanf(line, "closed %lf %lf", &warmup_s, &seconds) == 2)
      measure(warmup_s, seconds, 0);
    else if (sscanf(line, "open %lf %lf %lf", &warmup_s, &seconds, &rate) == 3 && rate > 0)
      measure(warmup_s, seconds, rate);
    else
      return 2;
    printf("\"mismatches\":%llu,\"other_frames\":%llu,\"closed\":%llu,\"unanswered\":%ld}\n", (unsigned long long)mismatches,
           (unsigned long long)others, (unsigned long long)closed, in_flight);
    fflush(stdout);
  }
  return 0;
}
