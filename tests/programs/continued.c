/*
 * continued LIBRARY: a child loads and unloads LIBRARY 100 times while its parent sends it SIGCONT every 0.3 ms.
 * Expected: 0 split locks; prints `ok`, exit status 0; 1 when the child came to harm.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 100; i++) {
            void *library = dlopen(argv[1], RTLD_NOW);
            if (!library)
                _exit(3);
            dlclose(library);
        }
        _exit(0);
    }
    int status;
    while (waitpid(child, &status, WNOHANG) == 0) {
        kill(child, SIGCONT);
        usleep(300);
    }
    puts(status ? "wrong" : "ok");
    return status != 0;
}
