/* Preloaded into who writes GVM's files: write(2) of a freeze returns the positive NV_STATUS that the driver's handler
   returns when RM fails. FUSE cannot (the kernel makes EIO of it), so the fake leaves the number in an extended
   attribute. Everything else passes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/xattr.h>

ssize_t write(int fd, const void *data, size_t count)
{
	static ssize_t (*real)(int, const void *, size_t);
	if (!real)
		real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
	ssize_t written = real(fd, data, count);
	if (written == -1 && errno == EIO) {
		char text[24];
		ssize_t length = fgetxattr(fd, "user.nv_status", text, sizeof text - 1);
		errno = EIO;
		if (length > 0) {
			text[length] = 0;
			return atoi(text);
		}
	}
	return written;
}
