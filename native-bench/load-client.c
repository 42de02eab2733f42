/*
 * Closed-loop load: C connections, each sends its ICCID once and then AP3000 heartbeats (21, ten ports, 29 bytes) with
 * one in flight. Every reply is compared byte for byte. One thread.
 *
 *   build/load-client PORT CONNECTIONS WARMUP_S SECONDS
 * prints "measuring" when the warm-up is over and one JSON object at the end of the measured time; storm_ms in it is the
 * time from the first connect to the moment when every connection had its first reply, -1 when that never came.
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

enum { FRAME_BYTES = 29, REPLY_BYTES = 15, BUFFER = 1024, EVENTS_MAX = 512, MICROS_MAX = 2000000 };

struct connection {
  int fd;
  uint32_t id;
  uint16_t message;
  uint16_t held;
  uint64_t sent_ns;
  int is_answered;
  uint8_t bytes[BUFFER];
};

static uint32_t micros[MICROS_MAX];
static uint64_t replies, mismatches, others, closed;
static int is_measuring;
/* Connections that had no reply yet, and when the last of them got one. */
static int unanswered;
static uint64_t all_answered_ns;

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void put_u16(uint8_t *at, unsigned value) {
  at[0] = value & 0xff;
  at[1] = value >> 8 & 0xff;
}

static void close_sum(uint8_t *frame, int bytes) {
  unsigned sum = 0;
  for (int at = 0; at < bytes - 2; at++) sum += frame[at];
  put_u16(frame + bytes - 2, sum);
}

static void head(uint8_t *frame, const struct connection *connection, int bytes) {
  memcpy(frame, "DNY", 3);
  put_u16(frame + 3, (unsigned)bytes - 5);
  put_u16(frame + 5, connection->id);
  put_u16(frame + 7, connection->id >> 16);
  put_u16(frame + 9, connection->message);
  frame[11] = 0x21;
}

static void beat(struct connection *connection) {
  uint8_t frame[FRAME_BYTES] = {0};
  connection->message++;
  head(frame, connection, FRAME_BYTES);
  put_u16(frame + 12, 2305);
  frame[14] = 10;
  frame[26] = 93;
  close_sum(frame, FRAME_BYTES);
  connection->sent_ns = now_ns();
  if (send(connection->fd, frame, FRAME_BYTES, MSG_NOSIGNAL) != FRAME_BYTES) closed++;
}

static void check(struct connection *connection, const uint8_t *frame, int bytes) {
  if (frame[11] != 0x21) {
    others++;
    return;
  }
  uint8_t expected[REPLY_BYTES] = {0};
  head(expected, connection, REPLY_BYTES);
  close_sum(expected, REPLY_BYTES);
  if (bytes != REPLY_BYTES || memcmp(frame, expected, REPLY_BYTES)) {
    mismatches++;
    return;
  }
  if (!connection->is_answered) {
    connection->is_answered = 1;
    if (--unanswered == 0) all_answered_ns = now_ns();
  }
  if (is_measuring) {
    uint64_t took = (now_ns() - connection->sent_ns) / 1000;
    micros[took < MICROS_MAX ? took : MICROS_MAX - 1]++;
    replies++;
  }
  beat(connection);
}

static void readable(struct connection *connection, int set) {
  ssize_t got = recv(connection->fd, connection->bytes + connection->held, BUFFER - connection->held, 0);
  if (got < 0 && errno == EAGAIN) return;
  if (got <= 0) {
    closed++;
    epoll_ctl(set, EPOLL_CTL_DEL, connection->fd, NULL);
    close(connection->fd);
    return;
  }
  int count = connection->held + (int)got, at = 0;
  while (count - at >= 5) {
    uint8_t *frame = connection->bytes + at;
    int bytes = 5 + (frame[3] | frame[4] << 8);
    if (memcmp(frame, "DNY", 3) || bytes > BUFFER) {
      mismatches++;
      at = count;
      break;
    }
    if (count - at < bytes) break;
    check(connection, frame, bytes);
    at += bytes;
  }
  connection->held = (uint16_t)(count - at);
  memmove(connection->bytes, connection->bytes + at, connection->held);
}

static double percentile_us(double share) {
  uint64_t wanted = (uint64_t)((double)replies * share), seen = 0;
  for (int us = 0; us < MICROS_MAX; us++)
    if ((seen += micros[us]) > wanted) return us;
  return MICROS_MAX;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fprintf(stderr, "load-client PORT CONNECTIONS WARMUP_S SECONDS\n");
    return 2;
  }
  int count = atoi(argv[2]), set = epoll_create1(0), one = 1;
  double warmup_s = atof(argv[3]), seconds = atof(argv[4]);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  struct connection *connections = calloc((size_t)count, sizeof *connections);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  uint64_t storm_ns = now_ns();
  unanswered = count;
  for (int index = 0; index < count; index++) {
    struct connection *connection = connections + index;
    connection->id = 0x04200000u + (uint32_t)index;
    connection->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(connection->fd, (void *)&address, sizeof address)) {
      perror("connect");
      return 1;
    }
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    char iccid[21];
    snprintf(iccid, sizeof iccid, "898604%014d", 500000 + index);
    if (send(connection->fd, iccid, 20, MSG_NOSIGNAL) != 20) return 1;
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    epoll_ctl(set, EPOLL_CTL_ADD, connection->fd, &event);
    beat(connection);
  }
  uint64_t start = now_ns(), measure_at = start + (uint64_t)(warmup_s * 1e9), end = measure_at + (uint64_t)(seconds * 1e9);
  struct epoll_event events[EVENTS_MAX];
  for (;;) {
    uint64_t now = now_ns();
    if (!is_measuring && now >= measure_at) {
      is_measuring = 1;
      measure_at = now;
      printf("measuring\n");
      fflush(stdout);
    }
    if (now >= end) break;
    int ready = epoll_wait(set, events, EVENTS_MAX, 10);
    for (int index = 0; index < ready; index++) readable(events[index].data.ptr, set);
  }
  double took_s = (double)(now_ns() - measure_at) / 1e9;
  printf("{\"replies\":%llu,\"seconds\":%.3f,\"msgs_per_s\":%.0f,\"p50_us\":%.0f,\"p99_us\":%.0f,\"mismatches\":%llu,"
         "\"other_frames\":%llu,\"closed\":%llu,\"storm_ms\":%.0f}\n",
         (unsigned long long)replies, took_s, (double)replies / took_s, percentile_us(0.5), percentile_us(0.99),
         (unsigned long long)mismatches, (unsigned long long)others, (unsigned long long)closed,
         all_answered_ns ? (double)(all_answered_ns - storm_ns) / 1e6 : -1.0);
  return 0;
}
