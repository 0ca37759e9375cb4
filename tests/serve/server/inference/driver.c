/* Plays NVIDIA's driver, libcuda.so.1, to a server and to its clients, on a machine without a GPU.

   What is real: processes that share memory by a handle of 64 bytes, addresses that the processor can't follow, contexts
   that belong to a thread, copies that are done only once their stream is waited for, errors. What is not: a GPU. The
   memory of one is POSIX shared memory that its handle names; a page before it says how large it is, of which
   process, and with which error the device fails at it, 0 for none. */

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define BLOCKS 64
#define DEVICES 2
#define FIRST (1ULL << 60) /* no address of the processor's */
#define EACH (1ULL << 40)

enum { OK, INVALID_VALUE, OUT_OF_MEMORY, NOT_INITIALIZED, NO_DEVICE = 100, INVALID_DEVICE, INVALID_CONTEXT = 201,
       INVALID_HANDLE = 400, ILLEGAL_ADDRESS = 700 };
typedef unsigned long long Pointer;
typedef struct { char name[64]; } Handle;
typedef struct { size_t size; int owner, broken; } Page;
typedef struct { Handle handle; Page *page; int device, opened; } Block; /* device: of the context that it is for */

static int ready, retained[DEVICES];
static Block blocks[BLOCKS];
static __thread void *stack[8];
static __thread int depth;
static __thread struct { char *target; const char *source; size_t size; Block *block; } pending;

static int current(void) { return depth ? (int *)stack[depth - 1] - retained : -1; }

/* The block that holds `size` bytes from a pointer of this thread's context. */
static Block *find(Pointer pointer, size_t size) {
    if (pointer < FIRST || pointer >= FIRST + BLOCKS * EACH) return NULL;
    Block *block = blocks + (pointer - FIRST) / EACH;
    if (!block->page || block->device != current()) return NULL;
    return (pointer - FIRST) % EACH + size <= block->page->size ? block : NULL;
}

static int map(Handle handle, int flags, size_t size, Pointer *pointer) {
    int free = 0;
    while (free < BLOCKS && blocks[free].page) free++;
    if (free == BLOCKS) return OUT_OF_MEMORY;
    if (handle.name[0] != '/' || !memchr(handle.name, 0, sizeof handle)) return INVALID_HANDLE;
    int file = shm_open(handle.name, O_RDWR | flags, 0600);
    if (file < 0) return INVALID_HANDLE;
    if (flags && ftruncate(file, PAGE + size)) return OUT_OF_MEMORY;
    Page *page = mmap(NULL, lseek(file, 0, SEEK_END), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (page == MAP_FAILED) return OUT_OF_MEMORY;
    blocks[free] = (Block){handle, page, current(), 1};
    *pointer = FIRST + free * EACH;
    return OK;
}

static void unmap(Block *block) {
    munmap(block->page, PAGE + block->page->size);
    block->page = NULL;
}

static int start(char *target, const char *source, size_t size, Block *block, size_t stream) {
    if (depth == 0) return INVALID_CONTEXT;
    if (!block || stream != 2 || pending.block) return INVALID_VALUE;
    pending.target = target, pending.source = source, pending.size = size, pending.block = block;
    return OK;
}

static char *host(Pointer pointer) {
    return (char *)blocks[(pointer - FIRST) / EACH].page + PAGE + (pointer - FIRST) % EACH;
}

int cuInit(unsigned flags) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (flags) return INVALID_VALUE;
    if (visible && !*visible) return NO_DEVICE;
    ready = 1;
    return OK;
}

int cuGetErrorName(int error, const char **name) {
    switch (error) {
    case INVALID_VALUE: *name = "CUDA_ERROR_INVALID_VALUE"; return OK;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; return OK;
    case NOT_INITIALIZED: *name = "CUDA_ERROR_NOT_INITIALIZED"; return OK;
    case NO_DEVICE: *name = "CUDA_ERROR_NO_DEVICE"; return OK;
    case INVALID_DEVICE: *name = "CUDA_ERROR_INVALID_DEVICE"; return OK;
    case INVALID_CONTEXT: *name = "CUDA_ERROR_INVALID_CONTEXT"; return OK;
    case INVALID_HANDLE: *name = "CUDA_ERROR_INVALID_HANDLE"; return OK;
    case ILLEGAL_ADDRESS: *name = "CUDA_ERROR_ILLEGAL_ADDRESS"; return OK;
    default: *name = NULL; return INVALID_VALUE;
    }
}

int cuDeviceGetCount(int *count) {
    *count = DEVICES;
    return ready ? OK : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return !ready ? NOT_INITIALIZED : ordinal < 0 || ordinal >= DEVICES ? INVALID_DEVICE : OK;
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    retained[device]++;
    *context = retained + device;
    return OK;
}

int cuDevicePrimaryCtxRelease_v2(int device) { return retained[device]-- > 0 ? OK : INVALID_CONTEXT; }

int cuCtxPushCurrent_v2(void *context) {
    if (!context || depth == 8 || !*(int *)context) return INVALID_CONTEXT;
    stack[depth++] = context;
    return OK;
}

int cuCtxPopCurrent_v2(void **context) {
    if (!depth) return INVALID_CONTEXT;
    *context = stack[--depth];
    return OK;
}

int cuIpcOpenMemHandle_v2(Pointer *pointer, Handle handle, unsigned flags) {
    if (flags != 1) return INVALID_VALUE;
    if (!depth) return INVALID_CONTEXT;
    for (int i = 0; i < BLOCKS; i++)
        if (blocks[i].page && blocks[i].device == current() && !memcmp(&blocks[i].handle, &handle, sizeof handle)) {
            if (blocks[i].page->owner == getpid()) return INVALID_CONTEXT;
            blocks[i].opened++;
            *pointer = FIRST + i * EACH;
            return OK;
        }
    return map(handle, 0, 0, pointer);
}

int cuIpcCloseMemHandle(Pointer pointer) {
    Block *block = find(pointer, 0);
    if (!block || block->page->owner == getpid()) return INVALID_VALUE;
    int error = block->page->broken;
    if (!--block->opened) unmap(block);
    return error;
}

int cuMemGetAddressRange_v2(Pointer *base, size_t *size, Pointer pointer) {
    Block *block = find(pointer, 0);
    if (!block) return INVALID_VALUE;
    *base = FIRST + (block - blocks) * EACH;
    *size = block->page->size;
    return block->page->broken;
}

int cuMemcpyDtoHAsync_v2(void *target, Pointer source, size_t size, size_t stream) {
    Block *block = find(source, size);
    return start(target, block ? host(source) : NULL, size, block, stream);
}

int cuMemcpyHtoDAsync_v2(Pointer target, const void *source, size_t size, size_t stream) {
    Block *block = find(target, size);
    return start(block ? host(target) : NULL, source, size, block, stream);
}

int cuStreamSynchronize(size_t stream) {
    if (depth == 0) return INVALID_CONTEXT;
    if (stream != 2) return INVALID_VALUE;
    Block *block = pending.block;
    pending.block = NULL;
    if (!block) return OK;
    if (block->page->broken) return block->page->broken;
    memcpy(pending.target, pending.source, pending.size);
    return OK;
}

/* What an owner of memory asks. */

int cuMemAlloc_v2(Pointer *pointer, size_t size) {
    static int count;
    Handle handle = {{0}};
    if (!depth) return INVALID_CONTEXT;
    snprintf(handle.name, sizeof handle, "/ferryman-gpu-%d-%d", getpid(), count++);
    int error = map(handle, O_CREAT | O_EXCL, size, pointer);
    if (!error) *blocks[(*pointer - FIRST) / EACH].page = (Page){size, getpid(), 0};
    return error;
}

int cuMemFree_v2(Pointer pointer) {
    Block *block = find(pointer, 0);
    if (!block) return INVALID_VALUE;
    shm_unlink(block->handle.name);
    unmap(block);
    return OK;
}

int cuIpcGetMemHandle(Handle *handle, Pointer pointer) {
    Block *block = find(pointer, 0);
    if (!block) return INVALID_VALUE;
    *handle = block->handle;
    return OK;
}
