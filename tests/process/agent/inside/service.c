/* service OUT [notify|accept]: a unit's program. Takes one split lock, writes who it is into the file OUT, says that it is ready to
 * NOTIFY_SOCKET, or accepts a connection on descriptor 3; executes true; ends at SIGTERM, with 3. */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

__attribute__((aligned(64))) static char memory[128];

static void end(int number)
{
    (void)number;
    _exit(3);
}

static int say(const char *text)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    const char *name = getenv("NOTIFY_SOCKET");
    if (!name)
        return 9;
    strncpy(address.sun_path, name, sizeof address.sun_path - 1);
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    if (name[0] == '@')
        address.sun_path[0] = 0;
    int to = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    return sendto(to, text, strlen(text), 0, (struct sockaddr *)&address, size) < 0;
}

int main(int argc, char **argv)
{
    const char *how = argc > 2 ? argv[2] : "";
    signal(SIGTERM, end);
    __atomic_fetch_add((int *)(memory + 62), 1, __ATOMIC_SEQ_CST);
    FILE *out = fopen(argv[1], "w");
    if (!out)
        return 8;
    const char *listens = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    fprintf(out, "pid %d parent %d listens %s fds %s\n", getpid(), getppid(), listens ? listens : "-", count ? count : "-");
    if (!fork()) {
        execl("/bin/true", "true", NULL);
        _exit(9);
    }
    int status;
    wait(&status);
    fprintf(out, "child %d\n", status);
    if (!strcmp(how, "accept")) {
        int peer = accept(3, NULL, NULL);
        fprintf(out, "peer %d\n", write(peer, "served\n", 7) == 7);
        close(peer);
    }
    fclose(out);
    if (!strcmp(how, "notify") && say("READY=1"))
        return 7;
    if (!strcmp(how, "now"))
        return 5;
    for (;;)
        pause();
}
