/* A saved /dev/kmsg in the place of the device: preloaded into dmesg, which then does as it does on a machine.
 * One read gives one record, which its text and the lines that begin with a blank behind it are. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int device = -1;

static int opened(const char *path, int flags, int mode)
{
	int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
	if (strcmp(path, "/dev/kmsg"))
		return real(path, flags, mode);
	return device = real(getenv("SAVED_KMSG"), 0);
}

int open(const char *path, int flags, int mode) { return opened(path, flags, mode); }
int open64(const char *path, int flags, int mode) { return opened(path, flags, mode); }
int __open_2(const char *path, int flags) { return opened(path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(path, flags, 0); }

static off_t seek(int file, off_t offset, int whence)
{
	off_t (*real)(int, off_t, int) = dlsym(RTLD_NEXT, "lseek");
	return real(file, offset, whence);
}

off_t lseek(int file, off_t offset, int whence) { return file == device ? seek(file, 0, SEEK_SET) : seek(file, offset, whence); }
off_t lseek64(int file, off_t offset, int whence) { return lseek(file, offset, whence); }

ssize_t read(int file, void *buffer, size_t size)
{
	ssize_t (*real)(int, void *, size_t) = dlsym(RTLD_NEXT, "read");
	off_t start = file == device ? seek(file, 0, SEEK_CUR) : 0;
	ssize_t got = real(file, buffer, size), length = 0;
	char *text = buffer;
	if (file != device || got < 0)
		return got;
	if (!got) {
		errno = EAGAIN;
		return -1;
	}
	while (length < got && (text[length] != '\n' || (length + 1 < got && text[length + 1] == ' ')))
		length++;
	seek(file, start + length + 1, SEEK_SET);
	return length + 1;
}

ssize_t __read_chk(int file, void *buffer, size_t size, size_t room) { return read(file, buffer, size < room ? size : room); }
