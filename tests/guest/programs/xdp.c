/* xdp: what makes some kernels take split locks themselves (docs/kernel-bug-xdp.md), as the first program of a guest:
 * an XDP program on `lo` that takes packets in parts, a raw socket, and UDP packets from the machine to itself.
 *
 * The kernel's command line may end in `-- WORD...`:
 *   whole  the XDP program does not take packets in parts
 *   bare   there is no XDP program
 *   deaf   there is no raw socket
 *   tap    a packet socket is in the raw one's place
 *   /FILE  packets go to the network namespace of that file instead, to 10.9.0.2 and its interface veth0
 * It is for a guest alone: where it is not process 1 it does nothing. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_link.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    FIRST = 3400, /* bytes in a packet: from shorter than what the kernel copies into one page ... */
    LAST = 5000,  /* ... to so long that a part is left over */
    HEADERS = sizeof(struct iphdr) + sizeof(struct udphdr),
};

static int got, changed; /* packets, as both sockets gave them */

static void leave(void)
{
    fflush(stdout);
    reboot(RB_POWER_OFF);
}

static int must(int result, const char *what)
{
    if (result < 0) {
        printf("xdp: %s: %s\n", what, strerror(errno));
        leave();
    }
    return result;
}

static int bpf(enum bpf_cmd command, union bpf_attr *what)
{
    return syscall(SYS_bpf, command, what, sizeof *what);
}

static void attach(const char *interface, uint32_t flags)
{
    const struct bpf_insn pass[] = {
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_EXIT},
    };
    union bpf_attr load = {
        .prog_type = BPF_PROG_TYPE_XDP,
        .insns = (uintptr_t)pass,
        .insn_cnt = sizeof pass / sizeof *pass,
        .license = (uintptr_t) "MIT",
        .prog_flags = flags,
        .expected_attach_type = BPF_XDP,
    };
    union bpf_attr link = {.link_create = {
        .prog_fd = must(bpf(BPF_PROG_LOAD, &load), "BPF_PROG_LOAD"),
        .target_ifindex = if_nametoindex(interface),
        .attach_type = BPF_XDP,
        .flags = strcmp(interface, "lo") ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE, /* lo has no XDP of its own */
    }};
    must(bpf(BPF_LINK_CREATE, &link), "BPF_LINK_CREATE"); /* it stays as long as this program runs */
}

/* Reads a packet, which a busy machine may deliver late; a raw socket gives the headers too. The bytes tell how long it was. */
static void take(int socket, int headers)
{
    static unsigned char data[ETH_HLEN + HEADERS + LAST];
    const struct timeval patience = {.tv_sec = 5};
    must(setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), "SO_RCVTIMEO");
    ssize_t size = must(recv(socket, data, sizeof data, 0), "recv") - headers;
    int wrong = 0;
    for (ssize_t i = 0; i < size; i++)
        wrong |= data[headers + i] != (unsigned char)(size + i);
    got++;
    changed += wrong;
}

static void talk(int out, size_t length)
{
    unsigned char data[LAST];
    for (size_t i = 0; i < length; i++)
        data[i] = length + i;
    must(send(out, data, length, 0), "send");
}

int main(int count, char **words)
{
    int whole = 0, bare = 0, deaf = 0, tap = 0;
    const char *away = NULL;
    if (getpid() != 1) {
        fprintf(stderr, "xdp: it runs as a guest's first program only\n");
        return 2;
    }
    for (int i = 1; i < count; i++) {
        whole |= !strcmp(words[i], "whole");
        bare |= !strcmp(words[i], "bare");
        deaf |= !strcmp(words[i], "deaf");
        tap |= !strcmp(words[i], "tap");
        if (*words[i] == '/')
            away = words[i];
    }
    cpu_set_t one; /* a packet to the machine itself stays on its CPU, and each CPU has pages of its own */
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    must(sched_setaffinity(0, sizeof one, &one), "sched_setaffinity");

    int out = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    struct ifreq up = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    must(ioctl(out, SIOCSIFFLAGS, &up), "lo up");
    if (away)
        must(setns(must(open(away, O_RDONLY), away), CLONE_NEWNET), "setns");
    int in = must(socket(AF_INET, SOCK_DGRAM, 0), "socket");
    int raw = deaf  ? -1
              : tap ? must(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_IP)), "packet socket")
                    : must(socket(AF_INET, SOCK_RAW, IPPROTO_UDP), "raw socket");
    struct sockaddr_in there = {.sin_family = AF_INET, .sin_port = htons(5300)};
    inet_pton(AF_INET, away ? "10.9.0.2" : "127.0.0.1", &there.sin_addr);
    must(bind(in, (struct sockaddr *)&there, sizeof there), "bind");
    must(connect(out, (struct sockaddr *)&there, sizeof there), "connect");
    if (!bare)
        attach(away ? "veth0" : "lo", whole ? 0 : BPF_F_XDP_HAS_FRAGS);

    printf("xdp: begins\n");
    fflush(stdout);
    for (size_t length = FIRST; length < LAST; length++) {
        talk(out, length); /* what is left over of this one lies in a page ... */
        talk(out, 1);      /* ... that this one shares */
        for (int i = 0; i < 2; i++) {
            take(in, 0);
            if (!deaf)
                take(raw, tap ? ETH_HLEN + HEADERS : HEADERS);
        }
    }
    printf("xdp: all done, %d packets, %d changed\n", got, changed);
    leave();
}
