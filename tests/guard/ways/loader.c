// Loads a module by the system calls themselves, in the ways that tools do not: loader WAY FILE [OTHER [SECONDS]].
// Prints the error's name, or "ok"; races print how often the module that got in was armed.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static unsigned char *contents, *other;
static size_t size;
static const char *target;
static atomic_bool stop;
static int shared;

static void fail(const char *what)
{
	printf("%s: %s\n", what, strerrorname_np(errno));
	exit(1);
}

static unsigned char *slurp(const char *path, size_t *length)
{
	int file = open(path, O_RDONLY | O_CLOEXEC);
	struct stat status;
	if (file < 0 || fstat(file, &status))
		fail(path);
	unsigned char *data = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (ssize_t done = 0, got; done < status.st_size; done += got)
		if ((got = read(file, data + done, status.st_size - done)) <= 0)
			fail(path);
	close(file);
	*length = status.st_size;
	return data;
}

static int say(long result)
{
	puts(result ? strerrorname_np(errno) : "ok");
	return result != 0;
}

static long finit(int file, int flags) { return syscall(SYS_finit_module, file, "", flags); }
static long init(const void *data, size_t length) { return syscall(SYS_init_module, data, length, ""); }

static int memory_file(unsigned flags)
{
	int file = memfd_create("way", flags);
	if (file < 0 || write(file, contents, size) != (ssize_t)size)
		fail("memfd");
	return file;
}

static void pass(int channel, int file)
{
	char byte = 0, space[CMSG_SPACE(sizeof file)] = { 0 };
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
	struct cmsghdr *head = CMSG_FIRSTHDR(&message);
	head->cmsg_level = SOL_SOCKET;
	head->cmsg_type = SCM_RIGHTS;
	head->cmsg_len = CMSG_LEN(sizeof file);
	memcpy(CMSG_DATA(head), &file, sizeof file);
	if (sendmsg(channel, &message, 0) != 1)
		fail("sendmsg");
}

static int receive(int channel)
{
	char byte, space[CMSG_SPACE(sizeof(int))];
	struct iovec vector = { &byte, 1 };
	struct msghdr message = { .msg_iov = &vector, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space };
	int file;
	if (recvmsg(channel, &message, 0) != 1)
		fail("recvmsg");
	memcpy(&file, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof file);
	return file;
}

// The flipping threads: between the two contents, which differ in the instruction alone.

static void flip(unsigned char *place)
{
	static int turn;
	const unsigned char *from = turn++ & 1 ? other : contents;
	for (size_t at = 0; at < size; at++)
		if (contents[at] != other[at])
			((volatile unsigned char *)place)[at] = from[at];
}

static void *flip_memory(void *place)
{
	while (!stop)
		flip(place);
	return NULL;
}

static void *flip_file(void *unused)
{
	for (int turn = 0; !stop; turn++) {
		int file = open(target, O_WRONLY | O_CLOEXEC); // ETXTBSY while the kernel reads it
		const unsigned char *from = turn & 1 ? other : contents;
		if (file < 0)
			continue;
		for (size_t at = 0; at < size; at++)
			if (contents[at] != other[at])
				pwrite(file, from + at, 1, at);
		close(file);
		sched_yield();
	}
	return unused;
}

static void *flip_name(void *unused)
{
	char next[4096], aside[4096];
	snprintf(next, sizeof next, "%s.next", target);
	snprintf(aside, sizeof aside, "%s.aside", target);
	while (!stop) {
		syscall(SYS_renameat2, AT_FDCWD, next, AT_FDCWD, target, 2 /* RENAME_EXCHANGE */);
		sched_yield();
	}
	return unused;
}

static int armed(const char *name)
{
	char path[256], digit = 0;
	snprintf(path, sizeof path, "/sys/module/%s/parameters/armed", name);
	int file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0 || read(file, &digit, 1) != 1)
		digit = '?';
	close(file);
	return digit == '1';
}

// way_race is the name of the module in both files.
static int race(const char *way, double seconds)
{
	pthread_t thread;
	unsigned char *place = NULL;
	int file = -1, loads = 0, bad = 0, refused = 0, busy = 0, failed = 0, last = 0;
	void *(*work)(void *) = flip_memory;

	if (!strcmp(way, "race-memory")) {
		place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		memcpy(place, contents, size);
	} else if (!strcmp(way, "race-memfd")) {
		file = memory_file(MFD_CLOEXEC);
		place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		if (place == MAP_FAILED)
			fail("mmap");
	} else if (!strcmp(way, "race-mapped")) {
		int writer = open(target, O_RDWR | O_CLOEXEC);
		place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, writer, 0);
		if (place == MAP_FAILED)
			fail("mmap");
		close(writer);
	} else if (!strcmp(way, "race-file")) {
		work = flip_file;
	} else if (!strcmp(way, "race-rename")) {
		work = flip_name;
	} else {
		fail(way);
	}
	if (pthread_create(&thread, NULL, work, place))
		fail("thread");
	struct timespec now, begin;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		long result;
		if (!strcmp(way, "race-memory")) {
			result = init(place, size);
		} else {
			int from = file >= 0 ? file : open(target, O_RDONLY | O_CLOEXEC);
			result = finit(from, 0);
			if (result && errno == ETXTBSY)
				busy++;
			if (from != file)
				close(from);
		}
		if (!result) {
			loads++;
			bad += armed("way_race");
			syscall(SYS_delete_module, "way_race", O_NONBLOCK);
		} else if (errno == EPERM) {
			refused++;
		} else if (errno != ETXTBSY) {
			failed++;
			last = errno;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - begin.tv_sec + (now.tv_nsec - begin.tv_nsec) / 1e9 < seconds);
	stop = 1;
	pthread_join(thread, NULL);
	printf("{\"loads\": %d, \"armed\": %d, \"refused\": %d, \"busy\": %d, \"failed\": %d, \"error\": \"%s\"}\n", loads,
	       bad, refused, busy, failed, last ? strerrorname_np(last) : "");
	return 0;
}

int main(int count, char **words)
{
	if (count < 3)
		return 2;
	const char *way = words[1];
	target = words[2];
	contents = slurp(target, &size);
	signal(SIGPIPE, SIG_IGN);

	if (!strncmp(way, "race-", 5) && count == 5) {
		size_t length;
		other = slurp(words[3], &length);
		if (length != size)
			return 2;
		return race(way, atof(words[4]));
	}
	if (!strcmp(way, "finit")) // the third word: flags
		return say(finit(open(target, O_RDONLY), count > 3 ? atoi(words[3]) : 0));
	if (!strcmp(way, "init"))
		return say(init(contents, size));
	if (!strcmp(way, "init-mapped")) {
		int file = open(target, O_RDONLY);
		return say(init(mmap(NULL, size, PROT_READ, MAP_SHARED, file, 0), size));
	}
	if (!strcmp(way, "init-twice")) { // padded to many pages: the instruction is in a late one
		unsigned char *more = calloc(1, size + (8 << 20));
		memcpy(more, contents, size);
		return say(init(more, size + (8 << 20)));
	}
	if (!strcmp(way, "memfd"))
		return say(finit(memory_file(MFD_CLOEXEC), 0));
	if (!strcmp(way, "memfd-sealed")) {
		int file = memory_file(MFD_CLOEXEC | MFD_ALLOW_SEALING);
		if (fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL))
			fail("seal");
		return say(finit(file, 0));
	}
	if (!strcmp(way, "unlinked")) {
		int file = open(target, O_RDONLY);
		unlink(target);
		return say(finit(file, 0));
	}
	if (!strcmp(way, "tmpfile")) { // a file that never had a name
		int writer = open(words[3], O_TMPFILE | O_RDWR, 0600);
		char path[64];
		if (writer < 0 || write(writer, contents, size) != (ssize_t)size)
			fail("O_TMPFILE");
		snprintf(path, sizeof path, "/proc/self/fd/%d", writer);
		int file = open(path, O_RDONLY);
		close(writer);
		return say(finit(file, 0));
	}
	if (!strcmp(way, "procfd")) {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", open(target, O_RDONLY));
		return say(finit(open(path, O_RDONLY), 0));
	}
	if (!strcmp(way, "opath")) {
		char path[64];
		snprintf(path, sizeof path, "/proc/self/fd/%d", open(target, O_PATH));
		return say(finit(open(path, O_RDONLY), 0));
	}
	if (!strcmp(way, "passed") || !strcmp(way, "pidfd")) {
		int pair[2];
		socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
		shared = !strcmp(way, "pidfd") ? 200 : -1;
		pid_t child = fork();
		if (!child) { // the one that may open the file is not the one that loads it
			int file = open(target, O_RDONLY);
			if (shared > 0)
				dup2(file, shared);
			pass(pair[1], file);
			pause();
			_exit(0);
		}
		int file = receive(pair[0]);
		if (shared > 0)
			file = syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, child, 0), shared, 0);
		int status = say(finit(file, 0));
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
		return status;
	}
	if (!strcmp(way, "thread")) { // not the process's first task, under another name
		prctl(PR_SET_NAME, "systemd-modules");
		pid_t child = fork();
		if (!child)
			_exit(say(finit(open(target, O_RDONLY), 0)));
		int status;
		waitpid(child, &status, 0);
		return WEXITSTATUS(status);
	}
	if (!strcmp(way, "i386") || !strcmp(way, "i386-init")) { // the 32-bit system call table
		long result;
		void *low = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
		memcpy(low, contents, size);
		char *empty = (char *)low + size;
		int file = open(target, O_RDONLY);
		if (!strcmp(way, "i386"))
			asm volatile("int $0x80" : "=a"(result) : "a"(350L), "b"((long)file), "c"(empty), "d"(0L) : "memory", "r8", "r9", "r10", "r11");
		else
			asm volatile("int $0x80" : "=a"(result) : "a"(128L), "b"(low), "c"(size), "d"(empty) : "memory", "r8", "r9", "r10", "r11");
		errno = -(int)result;
		return say(result != 0);
	}
	fprintf(stderr, "%s: no such way\n", way);
	return 2;
}
