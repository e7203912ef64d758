/* front.c: the command `splitlock`. `splitlock run -- PROGRAM` starts the program itself, in a millisecond; Python comes when there is
 * something to analyse, to warn of or to report. Everything else is Python's from the beginning (splitlock-python, beside us).
 *
 * What it does is what ../supervise.py does: the same memory (../inside/run.h), the same rules about signals. It gives up, before
 * the program is started, at whatever is not plain. What it has to know of the installation Python has written down (../place.py). */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include "front.h"

enum { POLL_MS = 20, PATIENCE_MS = 1000 };
/* but for SIGCHLD they go on to the program (launch.py) */
static const int waited[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGTSTP, SIGCHLD};
enum { WAITED = sizeof waited / sizeof waited[0] };

static struct run *run;
static struct sigaction before[WAITED], pipe_before;
static sigset_t held, mask_before; /* `held`: those above, while a process is made */
static bool had_python; /* one that dies is not started again while the program runs: nobody answers from then on */
static volatile pid_t program, python;
static volatile sig_atomic_t is_told_to_end; /* when nobody but processes in the background is left */
static int number, to_python = -1, output = -1;

/* A terminal's signal has reached the program already. */
static void pass_on(int signal_number, siginfo_t *info, void *context)
{
    int kept = errno;
    (void)context;
    if (!program && (signal_number == SIGHUP || signal_number == SIGINT || signal_number == SIGQUIT || signal_number == SIGTERM))
        is_told_to_end = 1;
    else if (signal_number != SIGCHLD && info->si_code <= 0) {
        if (program > 0)
            kill(program, signal_number);
    }
    atomic_fetch_add(&run->asked, 1);
    errno = kept;
}

static void catch_signals(void)
{
    struct sigaction ours = {.sa_sigaction = pass_on, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&ours.sa_mask);
    sigemptyset(&held);
    for (int i = 0; i < WAITED; i++)
        sigaddset(&held, waited[i]);
    sigprocmask(SIG_BLOCK, &held, &mask_before); /* until the program is there to get them */
    for (int i = 0; i < WAITED; i++) {
        sigaction(waited[i], NULL, &before[i]);
        if (before[i].sa_handler != SIG_IGN || waited[i] == SIGCHLD)
            sigaction(waited[i], &ours, NULL);
    }
}

static bool make_memory(const struct place *place, const char *cache, enum mode mode)
{
    number = shmget(IPC_PRIVATE, sizeof *run, IPC_CREAT | 0600);
    if (number < 0)
        return false;
    run = shmat(number, NULL, 0);
    shmctl(number, IPC_RMID, NULL);
    if (run == (void *)-1)
        return false;
    run->magic = RUN_MAGIC;
    run->version = RUN_VERSION;
    run->mode = mode;
    run->supervisor = getpid();
    strcpy(run->cache, cache);
    strcpy(run->shared, is_roots(place->shared) ? place->shared : "");
    return true;
}

static long attached(void)
{
    struct shmid_ds status;
    return shmctl(number, IPC_STAT, &status) ? 0 : (long)status.shm_nattch;
}

/* The child: it has no handlers of ours once it executes, and ignores again what was ignored. Returns where it cannot. */
static void become_program(const struct place *place, char **argv, char **environment)
{
    static char audit[PATH_MAX + 16], memory[32];
    int count = 0;
    while (environment[count])
        count++;
    char **lines = calloc((size_t)count + 3, sizeof *lines);
    if (!lines)
        return;
    memcpy(lines, environment, (size_t)count * sizeof *lines);
    snprintf(audit, sizeof audit, "LD_AUDIT=%s", place->agent);
    snprintf(memory, sizeof memory, "SPLITLOCK_RUN=%d", number);
    lines[count] = audit;
    lines[count + 1] = memory;
    for (int i = 0; i < WAITED; i++)
        sigaction(waited[i], &before[i], NULL);
    sigprocmask(SIG_SETMASK, &mask_before, NULL);
    execvpe(argv[0], argv, lines);
}

/* Python answers agents, warns and reports; the pipe will tell it how the program has ended. Where it cannot be started, agents
 * are told that nobody answers. */
static void start_python(const struct place *place, int argc, char **argv)
{
    static char joined[64];
    int ends[2];
    had_python = true;
    if (pipe(ends)) {
        run->supervisor = 0;
        return;
    }
    fcntl(ends[1], F_SETFD, FD_CLOEXEC);
    char **words = calloc((size_t)argc + 4, sizeof *words);
    sigprocmask(SIG_BLOCK, &held, NULL);
    pid_t child = words ? fork() : -1;
    if (!child) {
        snprintf(joined, sizeof joined, "--joined=%d:%d:%d", number, ends[0], output);
        fcntl(output, F_SETFD, 0);
        words[0] = (char *)place->python;
        words[1] = "run";
        words[2] = joined;
        memcpy(words + 3, argv + 2, (size_t)(argc - 2) * sizeof *words);
        for (int i = 0; i < WAITED; i++)
            if (waited[i] != SIGCHLD) /* it waits for children, whatever we were given */
                sigaction(waited[i], &before[i], NULL);
        signal(SIGCHLD, SIG_DFL);
        sigaction(SIGPIPE, &pipe_before, NULL);
        execv(place->python, words); /* with the signals held: it waits for them */
        _exit(125);
    }
    python = child < 0 ? 0 : child;
    sigprocmask(SIG_SETMASK, &mask_before, NULL);
    free(words);
    close(ends[0]);
    if (child < 0) {
        close(ends[1]);
        run->supervisor = 0;
        return;
    }
    to_python = ends[1];
}

static bool needs_python(void)
{
    if (python)
        return false;
    if (atomic_load(&run->tasks_used))
        return true;
    for (int i = 0; i < IMAGES; i++)
        if (atomic_load(&run->images[i].state) == ASKED)
            return true;
    for (int i = 0; i < DOORS; i++)
        if (atomic_load(&run->doors[i].state) == KNOCKED)
            return true;
    return false;
}

/* Python has ended; gives its exit status, or -1 where it has not. */
static int python_ended(bool wait)
{
    int status;
    pid_t got;
    do
        got = waitpid(python, &status, wait ? 0 : WNOHANG);
    while (got < 0 && errno == EINTR);
    if (got != python)
        return -1;
    close(to_python);
    python = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 125;
}

/* Until the program has ended: gives its exit status. It may stop meanwhile, and then so do we. */
static int wait_for_program(const struct place *place, int argc, char **argv)
{
    for (;;) {
        uint32_t known = atomic_load(&run->asked);
        int status;
        pid_t got = waitpid(program, &status, WNOHANG | WUNTRACED);
        if (got == program && WIFSTOPPED(status)) {
            if (WSTOPSIG(status) != SIGSTOP && getpgid(program) == getpgrp())
                raise(SIGSTOP); /* job control: the shell waits for us to stop too */
            continue;
        }
        if (got == program) {
            program = 0;
            return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        }
        if (python && python_ended(false) >= 0)
            run->supervisor = 0;
        if (!had_python && needs_python())
            start_python(place, argc, argv);
        syscall(SYS_futex, &run->asked, FUTEX_WAIT, known, NULL, NULL, 0);
    }
}

static bool are_others(void)
{
    return attached() > 1 + (python && run->supervisor == python); /* when it has joined, it is one of them */
}

/* Processes that the program has started may run on; and one that is executed is nobody's until its agent begins. */
static void wait_for_others(const struct place *place, int argc, char **argv)
{
    const struct timespec moment = {0, POLL_MS * 1000000L};
    for (int ms = 0; !is_told_to_end; ms += POLL_MS) {
        if (are_others())
            ms = 0;
        else if (run->announced + 1 <= run->programs || ms >= PATIENCE_MS)
            return;
        if (python && python_ended(false) >= 0)
            run->supervisor = 0;
        else if (run->supervisor == getpid() && needs_python())
            start_python(place, argc, argv);
        nanosleep(&moment, NULL);
    }
}

/* From the beginning, as if we had not been: returns where not even that can be. */
static int leave_to_python(const struct place *place, char **argv)
{
    argv[0] = (char *)place->python;
    execv(place->python, argv);
    return cannot_start(place->python);
}

int main(int argc, char **argv, char **environment)
{
    static struct place place;
    struct options options = {0};
    char cache[CACHE], said;
    int failed[2];
    for (int i = 0; i < 3; i++) /* or what is opened next would take a closed one's place; whom we execute finds it closed */
        if (fcntl(i, F_GETFD) < 0 && open("/dev/null", O_RDWR | O_CLOEXEC) != i)
            return 125;
    if (!find_python(&place))
        return 125;
    if (!read_options(&options, argc, argv) || !read_place(&place, cache) || !is_plain(&place, argv[options.program]))
        return leave_to_python(&place, argv);
    if (options.output && (output = open(options.output, O_WRONLY | O_CREAT | O_CLOEXEC, 0666)) < 0)
        return leave_to_python(&place, argv);
    if (pipe2(failed, O_CLOEXEC) || !make_memory(&place, cache, options.mode))
        return leave_to_python(&place, argv);
    catch_signals();
    sigaction(SIGPIPE, NULL, &pipe_before);
    pid_t child = fork();
    if (!child) {
        become_program(&place, argv + options.program, environment);
        _exit(write(failed[1], "x", 1) == 1 ? 125 : 126);
    }
    program = child;
    sigprocmask(SIG_SETMASK, &mask_before, NULL);
    signal(SIGPIPE, SIG_IGN); /* of Python's pipe */
    close(failed[1]);
    if (child < 0 || read(failed[0], &said, 1) == 1) /* Python knows what to say of it */
        return leave_to_python(&place, argv);
    close(failed[0]);
    int status = wait_for_program(&place, argc, argv);
    wait_for_others(&place, argc, argv);
    if (!had_python && !options.is_special && is_clean(run, &place) && !are_others())
        return options.is_quiet || summarize(run) ? status : 125;
    if (!python)
        start_python(&place, argc, argv);
    if (python) {
        dprintf(to_python, "%d", status); /* we have waited for all whom it would wait for, or were told to end */
        close(to_python);
        to_python = -1;
        int of_python = python_ended(true);
        if (run->reported)
            return of_python;
    }
    say_count(run); /* there was no memory for Python, or it was killed: the program's exit status is told all the same */
    return status;
}
