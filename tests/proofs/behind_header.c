/* Shows a program the elements of an array as if they were a file of their own: its file begins where the header ends.
 *
 * Preloaded (LD_PRELOAD) into programs that can only test a file from its first byte on, while a header cannot be
 * written. All calls on the file named by BEHIND_HEADER_FILE are passed on to the same call with BEHIND_HEADER_LEN,
 * a multiple of the page size, added to the offset; it is neither created nor emptied. What is asked of its length is
 * answered with the whole file's: programs that look at it do not fit. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#define MAX_FD 1024
static unsigned char is_ours[MAX_FD];

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static off64_t shift(int fd)
{
    if (fd < 0 || fd >= MAX_FD || !is_ours[fd])
        return 0;
    return atoll(getenv("BEHIND_HEADER_LEN"));
}

int open64(const char *path, int flags, ...)
{
    const char *file = getenv("BEHIND_HEADER_FILE");
    int ours = file && strcmp(path, file) == 0;
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    int fd = NEXT(open64)(path, ours ? flags & ~(O_CREAT | O_TRUNC) : flags, mode);
    if (fd >= 0 && fd < MAX_FD) {
        is_ours[fd] = ours;
        if (ours)
            NEXT(lseek64)(fd, shift(fd), SEEK_SET);
    }
    return fd;
}

int close(int fd)
{
    if (fd >= 0 && fd < MAX_FD)
        is_ours[fd] = 0;
    return NEXT(close)(fd);
}

off64_t lseek64(int fd, off64_t offset, int whence)
{
    off64_t by = shift(fd);
    off64_t at = NEXT(lseek64)(fd, whence == SEEK_SET ? offset + by : offset, whence);
    return at < 0 ? at : at - by;
}

ssize_t pread64(int fd, void *bytes, size_t len, off64_t offset)
{
    return NEXT(pread64)(fd, bytes, len, offset + shift(fd));
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t offset)
{
    return NEXT(pwrite64)(fd, bytes, len, offset + shift(fd));
}

void *mmap64(void *address, size_t len, int protection, int flags, int fd, off64_t offset)
{
    return NEXT(mmap64)(address, len, protection, flags, fd, offset + shift(fd));
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t len)
{
    off64_t by = shift(from);
    if (!offset)
        return NEXT(sendfile64)(to, from, offset, len);
    *offset += by;
    ssize_t sent = NEXT(sendfile64)(to, from, offset, len);
    *offset -= by;
    return sent;
}

int posix_fadvise64(int fd, off64_t offset, off64_t len, int advice)
{
    return NEXT(posix_fadvise64)(fd, offset + shift(fd), len, advice);
}

/* Some make this call by its number, because C libraries lacked it for long. */
static long copy_range(int from, off64_t *in, int to, off64_t *out, size_t len, unsigned flags)
{
    off64_t in_by = shift(from), out_by = shift(to);
    *in += in_by;
    *out += out_by;
    long n = NEXT(syscall)(SYS_copy_file_range, from, in, to, out, len, flags);
    *in -= in_by;
    *out -= out_by;
    return n;
}

long syscall(long number, ...)
{
    va_list rest;
    va_start(rest, number);
    long a = va_arg(rest, long), b = va_arg(rest, long), c = va_arg(rest, long);
    long d = va_arg(rest, long), e = va_arg(rest, long), f = va_arg(rest, long);
    va_end(rest);
    if (number == SYS_copy_file_range && b && d)
        return copy_range(a, (off64_t *)b, c, (off64_t *)d, e, f);
    return NEXT(syscall)(number, a, b, c, d, e, f);
}

/* On 64-bit machines the names without a number are the same calls. */
int open(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open64(path, flags, mode);
}
off_t lseek(int fd, off_t offset, int whence) { return lseek64(fd, offset, whence); }
ssize_t pread(int fd, void *bytes, size_t len, off_t offset) { return pread64(fd, bytes, len, offset); }
ssize_t pwrite(int fd, const void *bytes, size_t len, off_t offset) { return pwrite64(fd, bytes, len, offset); }
void *mmap(void *address, size_t len, int protection, int flags, int fd, off_t offset)
{
    return mmap64(address, len, protection, flags, fd, offset);
}
ssize_t sendfile(int to, int from, off_t *offset, size_t len) { return sendfile64(to, from, offset, len); }
int posix_fadvise(int fd, off_t offset, off_t len, int advice) { return posix_fadvise64(fd, offset, len, advice); }
