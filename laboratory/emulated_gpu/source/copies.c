/* Copies between memories: latency + bytes / bandwidth, one tensor at a time through a port.
 *
 * The host and every GPU send at most one tensor and receive at most one at a time. A copy takes
 * the first time when its stream, the sender's and the receiver's port are all free: work that is
 * put on a stream early, and has to wait for its kernels, does not hold up a copy that is ready
 * before. From GPU to GPU, what was not computed is not moved either.
 */
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

typedef struct Span {
  int64_t start_ns, end_ns;
} Span;

typedef struct Port {
  Span* spans; /* of the future, by time, apart from each other */
  int count, size;
} Port;

static Port outward[MAX_GPUS + 1], inward[MAX_GPUS + 1]; /* index 0 is the host */

static void forget_past(Port* port, int64_t now) {
  int past = 0;
  while (past < port->count && port->spans[past].end_ns <= now) past++;
  if (past) {
    port->count -= past;
    memmove(port->spans, port->spans + past, (size_t)port->count * sizeof(Span));
  }
}

/* The first moment from `start` on when the port is free for so long. */
static int64_t first_gap(const Port* port, int64_t start, int64_t duration) {
  for (int i = 0; i < port->count; i++) {
    if (start + duration <= port->spans[i].start_ns) break;
    if (start < port->spans[i].end_ns) start = port->spans[i].end_ns;
  }
  return start;
}

static void occupy(Port* port, int64_t start, int64_t end) {
  if (port->count == port->size) {
    port->size = port->size ? 2 * port->size : 16;
    port->spans = realloc(port->spans, (size_t)port->size * sizeof(Span));
  }
  int place = port->count++;
  for (; place > 0 && port->spans[place - 1].start_ns > start; place--)
    port->spans[place] = port->spans[place - 1];
  port->spans[place] = (Span){start, end};
}

/* With clocks locked: when a copy that is ready at some moment starts. Both ports are taken. */
static int64_t pass_ports(int source, int target, int64_t ready, int64_t duration) {
  Port* out = &outward[source + 1];
  Port* in = &inward[target + 1];
  const int64_t now = now_ns();
  forget_past(out, now);
  forget_past(in, now);
  int64_t start = ready;
  for (;;) {
    int64_t later = first_gap(in, first_gap(out, start, duration), duration);
    if (later == start) break;
    start = later;
  }
  occupy(out, start, start + duration);
  occupy(in, start, start + duration);
  return start;
}

static RecordKind kind_of(int source, int target) {
  if (source == HOST) return COPY_H2D;
  if (target == HOST) return COPY_D2H;
  return source == target ? COPY_D2D : COPY_P2P;
}

/* When a copy ends that was given at some moment; it goes into the trace of the stream, if any. */
static int64_t schedule_copy(SP_Stream stream, int source, int target, uint64_t size,
                             int64_t start) {
  lock_clocks();
  if (stream && start < stream->until_ns) start = stream->until_ns;
  int64_t duration = 0;
  if (source == target) { /* read and written by the GPU itself */
    const Gpu* gpu = gpu_of(source);
    duration = gpu->launch_ns + (int64_t)(2e9 * (double)size / gpu->bytes_per_s / gpu->speed);
  } else {
    const Link* link = link_of(source, target);
    duration = link->latency_ns + (int64_t)(1e9 * (double)size / link->bytes_per_s);
    start = pass_ports(source, target, start, duration);
  }
  if (stream) {
    set_stream_clock(stream, start + duration);
    trace(kind_of(source, target), stream, target, start, start + duration, (int64_t)size, "", "");
  }
  unlock_clocks();
  return start + duration;
}

static void copy(SP_Stream stream, void* to, int target, const void* from, int source,
                 uint64_t size, TF_Status* status) {
  const int64_t given = now_ns(); /* the work of this machine is no part of the copy's time */
  const bool moves = target == HOST || !is_stale(from);
  if (moves) memcpy(to, from, size);
  if (target != HOST) set_stale(to, !moves);
  int64_t end = schedule_copy(stream, source, target, size, given);
  if (!stream) sleep_until(end);
  TF_SetStatus(status, TF_OK, "");
}

static void device_to_host(const SP_Device* device, SP_Stream stream, void* to,
                           const SP_DeviceMemoryBase* from, uint64_t size, TF_Status* status) {
  copy(stream, to, HOST, from->opaque, device->ordinal, size, status);
}

static void host_to_device(const SP_Device* device, SP_Stream stream, SP_DeviceMemoryBase* to,
                           const void* from, uint64_t size, TF_Status* status) {
  copy(stream, to->opaque, device->ordinal, from, HOST, size, status);
}

/* The device is that of the stream; either address may be another GPU's. */
static void device_to_device(const SP_Device* device, SP_Stream stream, SP_DeviceMemoryBase* to,
                             const SP_DeviceMemoryBase* from, uint64_t size, TF_Status* status) {
  int source = owner_of(from->opaque), target = owner_of(to->opaque);
  copy(stream, to->opaque, target == HOST ? device->ordinal : target, from->opaque,
       source == HOST ? device->ordinal : source, size, status);
}

static void sync_device_to_host(const SP_Device* device, void* to, const SP_DeviceMemoryBase* from,
                                uint64_t size, TF_Status* status) {
  device_to_host(device, NULL, to, from, size, status);
}

static void sync_host_to_device(const SP_Device* device, SP_DeviceMemoryBase* to, const void* from,
                                uint64_t size, TF_Status* status) {
  host_to_device(device, NULL, to, from, size, status);
}

static void sync_device_to_device(const SP_Device* device, SP_DeviceMemoryBase* to,
                                  const SP_DeviceMemoryBase* from, uint64_t size,
                                  TF_Status* status) {
  device_to_device(device, NULL, to, from, size, status);
}

/* The memory has been written; the stream takes as long as the GPU would. */
static void filled(SP_Stream stream, const SP_DeviceMemoryBase* location, uint64_t size,
                   TF_Status* status) {
  set_stale(location->opaque, false);
  const Gpu* gpu = gpu_of(stream->device);
  run_on_stream(stream,
                gpu->launch_ns + (int64_t)(1e9 * (double)size / gpu->bytes_per_s / gpu->speed),
                "Memset", "");
  TF_SetStatus(status, TF_OK, "");
}

static void fill8(const SP_Device* device, SP_Stream stream, SP_DeviceMemoryBase* location,
                  uint8_t pattern, uint64_t size, TF_Status* status) {
  memset(location->opaque, pattern, size);
  filled(stream, location, size, status);
}

static void fill_zero(const SP_Device* device, SP_Stream stream, SP_DeviceMemoryBase* location,
                      uint64_t size, TF_Status* status) {
  fill8(device, stream, location, 0, size, status);
}

static void fill32(const SP_Device* device, SP_Stream stream, SP_DeviceMemoryBase* location,
                   uint32_t pattern, uint64_t size, TF_Status* status) {
  for (uint64_t i = 0; i < size / 4; i++) ((uint32_t*)location->opaque)[i] = pattern;
  filled(stream, location, size, status);
}

void fill_copy_functions(SP_StreamExecutor* executor) {
  executor->memcpy_dtoh = device_to_host;
  executor->memcpy_htod = host_to_device;
  executor->memcpy_dtod = device_to_device;
  executor->sync_memcpy_dtoh = sync_device_to_host;
  executor->sync_memcpy_htod = sync_host_to_device;
  executor->sync_memcpy_dtod = sync_device_to_device;
  executor->mem_zero = fill_zero;
  executor->memset = fill8;
  executor->memset32 = fill32;
}
