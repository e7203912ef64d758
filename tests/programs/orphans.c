/*
 * Forty times: a child that forks and makes threads as fast as it can is killed at a random moment, so that some
 * grandchildren lose their parent before anybody hears of them. Expected: 0 split locks; prints `ok`, exit status 0.
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static void *nothing(void *unused)
{
    return unused;
}

int main(void)
{
    srand(14);
    for (int round = 0; round < 40; round++) {
        pid_t child = fork();
        if (child == 0) {
            for (int i = 0; i < 50; i++) {
                pthread_t thread;
                pthread_create(&thread, NULL, nothing, NULL);
                if (fork() == 0)
                    _exit(0);
            }
            _exit(0);
        }
        usleep(300 + rand() % 4000);
        kill(child, SIGKILL);
        waitpid(child, NULL, 0);
    }
    puts("ok");
    return 0;
}
