/*
 * Yardstick: the least a server can do. One thread, one epoll set, one recv and one send per readiness: finds AP3000
 * frames by length, checks the sum, answers 20 and 21 with the 15-byte result, skips ICCID and link. No sessions, no
 * rows, no timers. What the gateway costs above this is what it does above this.
 *
 *   cc -O2 -o build/epoll-server epoll-server.c && build/epoll-server PORT     (0: any; prints "listening PORT")
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
#include <unistd.h>

enum { FDS_MAX = 65536, PENDING_MAX = 1024, EVENTS_MAX = 512, READ_BYTES = 65536, LENGTH_MIN = 9, LENGTH_MAX = 512 };

/* Bytes of a frame that a read cut; most connections never have any. */
struct connection {
  uint16_t pending;
  uint8_t bytes[PENDING_MAX];
};
static struct connection *connections[FDS_MAX];

static uint8_t out[READ_BYTES];
static size_t out_bytes;

static unsigned u16(const uint8_t *at) { return at[0] | at[1] << 8; }

static void answer(const uint8_t *frame) {
  uint8_t *reply = out + out_bytes;
  memcpy(reply, frame, 12);
  reply[3] = 10;
  reply[4] = 0;
  reply[12] = 0;
  unsigned sum = 0;
  for (int at = 0; at < 13; at++) sum += reply[at];
  reply[13] = sum & 0xff;
  reply[14] = sum >> 8 & 0xff;
  out_bytes += 15;
}

/* Takes whole units from the front; returns how many bytes were taken. */
static size_t consume(const uint8_t *bytes, size_t count) {
  size_t at = 0;
  while (at < count) {
    const uint8_t *unit = bytes + at;
    size_t left = count - at;
    if (unit[0] == '8') {
      if (left < 20) break;
      at += 20;
    } else if (unit[0] == 'l') {
      if (left < 4) break;
      at += 4;
    } else if (unit[0] == 'D') {
      if (left < 5) break;
      unsigned length = u16(unit + 3);
      if (unit[1] != 'N' || unit[2] != 'Y' || length < LENGTH_MIN || length > LENGTH_MAX) {
        at++;
        continue;
      }
      size_t frame = 5 + length;
      if (left < frame) break;
      unsigned sum = 0;
      for (size_t byte = 0; byte < frame - 2; byte++) sum += unit[byte];
      if ((sum & 0xffff) != u16(unit + frame - 2)) {
        at++;
        continue;
      }
      if ((unit[11] == 0x20 || unit[11] == 0x21) && out_bytes + 15 <= sizeof out) answer(unit);
      at += frame;
    } else
      at++;
  }
  return at;
}

static void drop(int fd) {
  free(connections[fd]);
  connections[fd] = NULL;
  close(fd);
}

static void readable(int fd) {
  static uint8_t in[PENDING_MAX + READ_BYTES];
  struct connection *connection = connections[fd];
  size_t kept = connection ? connection->pending : 0;
  if (kept) memcpy(in, connection->bytes, kept);
  ssize_t got = recv(fd, in + kept, READ_BYTES, 0);
  if (got == 0 || (got < 0 && errno != EAGAIN)) {
    drop(fd);
    return;
  }
  if (got < 0) return;
  size_t count = kept + (size_t)got;
  out_bytes = 0;
  size_t taken = consume(in, count);
  size_t rest = count - taken;
  if (rest > 0) {
    if (!connection) connection = connections[fd] = calloc(1, sizeof *connection);
    memcpy(connection->bytes, in + taken, rest);
  }
  if (connection) connection->pending = (uint16_t)rest;
  /* a peer that does not read gets nothing more: a yardstick keeps no queue */
  if (out_bytes > 0 && send(fd, out, out_bytes, MSG_NOSIGNAL) != (ssize_t)out_bytes) drop(fd);
}

int main(int argc, char **argv) {
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(argc > 1 ? atoi(argv[1]) : 0)};
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  socklen_t size = sizeof address;
  if (bind(listener, (void *)&address, size) || listen(listener, 4096)) {
    perror("listen");
    return 1;
  }
  getsockname(listener, (void *)&address, &size);
  printf("listening %d\n", ntohs(address.sin_port));
  fflush(stdout);
  int set = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS_MAX];
  epoll_ctl(set, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int ready = epoll_wait(set, events, EVENTS_MAX, -1);
    for (int index = 0; index < ready; index++) {
      int fd = events[index].data.fd;
      if (fd != listener) {
        readable(fd);
        continue;
      }
      for (int accepted; (accepted = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0;) {
        if (accepted >= FDS_MAX) {
          close(accepted);
          continue;
        }
        setsockopt(accepted, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        event.events = EPOLLIN;
        event.data.fd = accepted;
        epoll_ctl(set, EPOLL_CTL_ADD, accepted, &event);
      }
    }
  }
}
