/* A webcam for programs that expect one of Linux's: /dev/video42, without hardware, kernel module or privileges.
 *
 *     gcc -shared -fPIC -O2 -o camera.so tests/tools/v4l2_emulator.c
 *     LD_PRELOAD=./camera.so python -c "import cv2; print(cv2.VideoCapture(42).read()[0])"
 *
 * What a program asks of that path with open, ioctl, mmap, read and close is answered here; all else goes to the C
 * library. The device's descriptor is a timer of the kernel that expires when a frame is ready, so that select and poll
 * are the real ones. One program may hold the device once.
 *
 *     exposure          ready                exposure          ready
 *     |---EXPOSURE_MS---|                    |---EXPOSURE_MS---|            YUYV, 640 x 480, 30 frames a second
 *     '---------------------- 1/30 s --------'
 *     the stamp of the buffer, CLOCK_MONOTONIC, flagged as start of exposure
 *
 * A frame shows its own number: sixteen stripes from top to bottom, the highest bit on top, white for 1.
 *
 * Environment:
 *     EMULATED_V4L2_LOG          file that gets "NUMBER STAMP_US" of each frame that is handed out, as stamped
 *     EMULATED_V4L2_EXPOSURE_MS  between a frame's exposure and the moment when it is ready; 20
 *     EMULATED_V4L2_STAMPS       true; zero; wall: since 1970; back: every third frame an hour too early
 *     EMULATED_V4L2_STOPS_WHEN   no more frames once this file is there
 *
 * Source: Linux, include/uapi/linux/videodev2.h and "Video for Linux API", chapter "Streaming I/O (Memory Mapping)".
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/videodev2.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define DEVICE "/dev/video42"
enum { WIDTH = 640, HEIGHT = 480, LINE_BYTES = 2 * WIDTH, FRAME_BYTES = LINE_BYTES * HEIGHT };
enum { RATE_HZ = 30, BITS = 16, MOST_BUFFERS = 8, NONE = -1 };
enum { BLACK = 16, WHITE = 235, GREY = 128 };
static const int64_t US_PER_S = 1000000;

/* Numbers of buffers, the oldest first. */
struct fifo {
    int items[MOST_BUFFERS], length;
};

static struct {
    int fd, memory;             /* the timer that stands for the device; the file that holds its buffers */
    uint8_t *frames;            /* our own view of that file */
    struct v4l2_buffer buffers[MOST_BUFFERS];
    int count, streaming;
    struct fifo empty, full;    /* queued by the program; filled, and not fetched yet */
    int64_t start_us, frame;    /* CLOCK_MONOTONIC at STREAMON; number of the next frame */
} camera = {.fd = NONE, .memory = NONE};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static int64_t now_us(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * US_PER_S + now.tv_nsec / 1000;
}

static const char *option(const char *name, const char *otherwise) {
    const char *value = getenv(name);
    return value ? value : otherwise;
}

static void push(struct fifo *fifo, int item) { fifo->items[fifo->length++] = item; }

static int pop(struct fifo *fifo) {
    if (fifo->length == 0) return NONE;
    int first = fifo->items[0];
    memmove(fifo->items, fifo->items + 1, --fifo->length * sizeof *fifo->items);
    return first;
}

/* ---- frames ---- */

static int64_t ready_us(int64_t frame) { return camera.start_us + (frame + 1) * US_PER_S / RATE_HZ; }

static int64_t stamp_us(int64_t frame) {
    const char *kind = option("EMULATED_V4L2_STAMPS", "true");
    int64_t exposure_us = ready_us(frame) - 1000 * atoll(option("EMULATED_V4L2_EXPOSURE_MS", "20"));
    if (!strcmp(kind, "zero")) return 0;
    if (!strcmp(kind, "wall")) return exposure_us + now_us(CLOCK_REALTIME) - now_us(CLOCK_MONOTONIC);
    if (!strcmp(kind, "back") && frame % 3 == 2) return exposure_us - 3600 * US_PER_S;
    return exposure_us;
}

static void paint(uint8_t *frame, int64_t number) {
    for (int y = 0; y < HEIGHT; y++) {
        int bit = BITS - 1 - y * BITS / HEIGHT;
        for (int x = 0; x < LINE_BYTES; x += 2) {
            frame[y * LINE_BYTES + x] = number >> bit & 1 ? WHITE : BLACK;
            frame[y * LINE_BYTES + x + 1] = GREY;
        }
    }
}

static void fill(int index, int64_t frame) {
    struct v4l2_buffer *buffer = &camera.buffers[index];
    paint(camera.frames + buffer->m.offset, frame);
    int64_t at_us = stamp_us(frame);
    buffer->timestamp = (struct timeval){at_us / US_PER_S, at_us % US_PER_S};
    buffer->sequence = frame;
    buffer->bytesused = FRAME_BYTES;
    push(&camera.full, index);
}

static int gives_frames(void) {
    return camera.streaming && access(option("EMULATED_V4L2_STOPS_WHEN", ""), F_OK) != 0;
}

/* What happened since somebody looked: each frame whose time has come took an empty buffer, or was lost. */
static void catch_up(void) {
    for (; gives_frames() && ready_us(camera.frame) <= now_us(CLOCK_MONOTONIC); camera.frame++)
        if (camera.empty.length) fill(pop(&camera.empty), camera.frame);
}

/* The descriptor is readable at once if a frame waits, else when the next one is ready, or never. */
static void set_timer(void) {
    int64_t at_us = camera.full.length ? 1 : gives_frames() ? ready_us(camera.frame) : 0;
    struct itimerspec timer = {.it_value = {at_us / US_PER_S, at_us % US_PER_S * 1000}};
    timerfd_settime(camera.fd, TFD_TIMER_ABSTIME, &timer, NULL);
}

/* ---- requests: 0, or a number of errno ---- */

static int tell_capabilities(struct v4l2_capability *told) {
    *told = (struct v4l2_capability){.driver = "emulated", .card = "emulated webcam", .bus_info = "usb-emulated"};
    told->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
    told->capabilities = told->device_caps | V4L2_CAP_DEVICE_CAPS;
    return 0;
}

/* There is one format. As any driver, this one answers with the nearest that it has. */
static int tell_format(struct v4l2_format *format) {
    if (format->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return EINVAL;
    format->fmt.pix = (struct v4l2_pix_format){.width = WIDTH, .height = HEIGHT, .pixelformat = V4L2_PIX_FMT_YUYV,
                                               .field = V4L2_FIELD_NONE, .bytesperline = LINE_BYTES,
                                               .sizeimage = FRAME_BYTES, .colorspace = V4L2_COLORSPACE_SRGB};
    return 0;
}

static int list_format(struct v4l2_fmtdesc *told) {
    if (told->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || told->index > 0) return EINVAL;
    told->pixelformat = V4L2_PIX_FMT_YUYV;
    strcpy((char *)told->description, "YUYV 4:2:2");
    return 0;
}

static int tell_rate(struct v4l2_streamparm *told) {
    if (told->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return EINVAL;
    told->parm.capture = (struct v4l2_captureparm){.capability = V4L2_CAP_TIMEPERFRAME, .timeperframe = {1, RATE_HZ}};
    return 0;
}

static int stop(void) {
    camera.streaming = camera.empty.length = camera.full.length = 0;
    return 0;
}

static int start(void) {
    camera.start_us = now_us(CLOCK_MONOTONIC);
    camera.frame = 0;
    camera.streaming = 1;
    return 0;
}

static int make_buffers(struct v4l2_requestbuffers *wanted) {
    if (wanted->type != V4L2_BUF_TYPE_VIDEO_CAPTURE || wanted->memory != V4L2_MEMORY_MMAP) return EINVAL;
    stop();
    camera.count = wanted->count = wanted->count < MOST_BUFFERS ? wanted->count : MOST_BUFFERS;
    for (int i = 0; i < camera.count; i++)
        camera.buffers[i] = (struct v4l2_buffer){
            .index = i, .type = wanted->type, .memory = wanted->memory, .field = V4L2_FIELD_NONE, .length = FRAME_BYTES,
            .m.offset = i * FRAME_BYTES,
            .flags = V4L2_BUF_FLAG_MAPPED | V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC | V4L2_BUF_FLAG_TSTAMP_SRC_SOE};
    return 0;
}

static int tell_buffer(struct v4l2_buffer *told) {
    if ((int)told->index >= camera.count) return EINVAL;
    *told = camera.buffers[told->index];
    return 0;
}

static int take_empty(const struct v4l2_buffer *given) {
    if ((int)given->index >= camera.count || camera.empty.length == MOST_BUFFERS) return EINVAL;
    push(&camera.empty, given->index);
    return 0;
}

static int give_full(struct v4l2_buffer *given) {
    if (!camera.streaming) return EINVAL;
    int index = pop(&camera.full);
    if (index == NONE) return EAGAIN;
    *given = camera.buffers[index];
    FILE *log = fopen(option("EMULATED_V4L2_LOG", "/dev/null"), "a");
    fprintf(log, "%u %lld\n", given->sequence, given->timestamp.tv_sec * (long long)US_PER_S + given->timestamp.tv_usec);
    return fclose(log) ? errno : 0;
}

static int answer(unsigned long request, void *argument) {
    switch (request) {
        case VIDIOC_QUERYCAP: return tell_capabilities(argument);
        case VIDIOC_ENUM_FMT: return list_format(argument);
        case VIDIOC_G_FMT:
        case VIDIOC_S_FMT:
        case VIDIOC_TRY_FMT: return tell_format(argument);
        case VIDIOC_G_PARM:
        case VIDIOC_S_PARM: return tell_rate(argument);
        case VIDIOC_REQBUFS: return make_buffers(argument);
        case VIDIOC_QUERYBUF: return tell_buffer(argument);
        case VIDIOC_QBUF: return take_empty(argument);
        case VIDIOC_DQBUF: return give_full(argument);
        case VIDIOC_STREAMON: return start();
        case VIDIOC_STREAMOFF: return stop();
        case VIDIOC_QUERYCTRL:
        case VIDIOC_G_CTRL:
        case VIDIOC_S_CTRL: return EINVAL;  /* it has no controls */
        default: return ENOTTY;
    }
}

/* ---- what stands before the C library ---- */

#define THEIRS(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int open_device(void) {
    if (camera.fd != NONE) return errno = EBUSY, -1;
    camera.memory = memfd_create("frames", MFD_CLOEXEC);
    camera.fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (camera.fd == NONE || ftruncate(camera.memory, MOST_BUFFERS * FRAME_BYTES)) return -1;
    camera.frames = THEIRS(mmap)(NULL, MOST_BUFFERS * FRAME_BYTES, PROT_WRITE, MAP_SHARED, camera.memory, 0);
    return camera.fd;
}

static int open_any(__typeof__(&open) theirs, const char *path, int flags, mode_t mode) {
    if (strcmp(path, DEVICE)) return theirs(path, flags, mode);
    pthread_mutex_lock(&lock);
    int fd = open_device();
    pthread_mutex_unlock(&lock);
    return fd;
}

/* The mode is there only where a file is made; reading it elsewhere gives a number that nobody looks at. */
#define MODE_AFTER(last, mode) \
    va_list rest;              \
    va_start(rest, last);      \
    mode_t mode = va_arg(rest, mode_t); \
    va_end(rest)

int open(const char *path, int flags, ...) {
    MODE_AFTER(flags, mode);
    return open_any(THEIRS(open), path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_AFTER(flags, mode);
    return open_any(THEIRS(open64), path, flags, mode);
}

int ioctl(int fd, unsigned long request, ...) {
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (fd == NONE || fd != camera.fd) return THEIRS(ioctl)(fd, request, argument);
    pthread_mutex_lock(&lock);
    catch_up();
    int error = answer(request, argument);
    set_timer();
    pthread_mutex_unlock(&lock);
    return error ? errno = error, -1 : 0;
}

void *mmap(void *near, size_t length, int protection, int flags, int fd, off_t offset) {
    return THEIRS(mmap)(near, length, protection, flags, fd != NONE && fd == camera.fd ? camera.memory : fd, offset);
}

void *mmap64(void *near, size_t length, int protection, int flags, int fd, off64_t offset) {
    return mmap(near, length, protection, flags, fd, offset);
}

/* As uvcvideo's: frames are fetched by buffer only. FFmpeg, which OpenCV asks first, takes that for no video file. */
ssize_t read(int fd, void *bytes, size_t length) {
    if (fd == NONE || fd != camera.fd) return THEIRS(read)(fd, bytes, length);
    return errno = EINVAL, -1;
}

int close(int fd) {
    if (fd == NONE || fd != camera.fd) return THEIRS(close)(fd);
    pthread_mutex_lock(&lock);
    stop();
    munmap(camera.frames, MOST_BUFFERS * FRAME_BYTES);
    THEIRS(close)(camera.memory);
    camera.fd = camera.memory = NONE;
    int status = THEIRS(close)(fd);
    pthread_mutex_unlock(&lock);
    return status;
}
