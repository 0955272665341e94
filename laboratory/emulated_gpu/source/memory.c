/* Device memory: host memory with an owner and a limit. */
#include <pthread.h>
#include <stdlib.h>

#include "emulated_gpu.h"

typedef struct Range {
  const char* start;
  uint64_t size;
  int device;
} Range;

static pthread_rwlock_t ranges_lock = PTHREAD_RWLOCK_INITIALIZER;
static Range* ranges; /* few: TensorFlow's allocator takes memory in large regions */
static int num_ranges, max_ranges;
static int64_t used_bytes[MAX_GPUS], peak_bytes[MAX_GPUS], allocations[MAX_GPUS];

static const uint64_t ALIGNMENT = 256;

/* TensorFlow leaves 6 % of a GPU's free memory alone, at least 300 MiB, and 255 MiB below 2 GiB
 * (`MinSystemMemory` in common_runtime/pluggable_device/pluggable_device_factory.cc). So that it
 * may use what the cluster file says, the GPU has that much more. */
static int64_t total_bytes(int64_t usable_bytes) {
  const int64_t mib = 1 << 20;
  if (usable_bytes + 255 * mib < (INT64_C(1) << 31)) return usable_bytes + 255 * mib;
  int64_t share = (int64_t)((double)usable_bytes / 0.94);
  return share > usable_bytes + 300 * mib ? share : usable_bytes + 300 * mib;
}

static void add_range(void* start, uint64_t size, int device) {
  if (num_ranges == max_ranges) {
    max_ranges = max_ranges ? 2 * max_ranges : 64;
    ranges = realloc(ranges, (size_t)max_ranges * sizeof *ranges);
  }
  ranges[num_ranges++] = (Range){start, size, device};
  used_bytes[device] += (int64_t)size;
  allocations[device] += 1;
  if (peak_bytes[device] < used_bytes[device]) peak_bytes[device] = used_bytes[device];
}

static void allocate(const SP_Device* device, uint64_t size, int64_t memory_space,
                     SP_DeviceMemoryBase* memory) {
  const int ordinal = device->ordinal;
  memory->struct_size = SP_DEVICE_MEMORY_BASE_STRUCT_SIZE;
  memory->opaque = NULL;
  memory->size = 0;
  pthread_rwlock_wrlock(&ranges_lock);
  void* start = NULL;
  if (used_bytes[ordinal] + (int64_t)size <= gpu_of(ordinal)->memory_bytes &&
      posix_memalign(&start, ALIGNMENT, size ? size : 1) == 0) {
    add_range(start, size, ordinal);
    memory->opaque = start;
    memory->size = size;
  }
  pthread_rwlock_unlock(&ranges_lock);
}

static void deallocate(const SP_Device* device, SP_DeviceMemoryBase* memory) {
  pthread_rwlock_wrlock(&ranges_lock);
  for (int i = 0; i < num_ranges; i++)
    if (ranges[i].start == memory->opaque) {
      used_bytes[ranges[i].device] -= (int64_t)ranges[i].size;
      ranges[i] = ranges[--num_ranges];
      break;
    }
  pthread_rwlock_unlock(&ranges_lock);
  free(memory->opaque);
  memory->opaque = NULL;
  memory->size = 0;
}

int owner_of(const void* address) {
  const char* wanted = address;
  int owner = HOST;
  pthread_rwlock_rdlock(&ranges_lock);
  for (int i = 0; i < num_ranges && owner == HOST; i++)
    if (ranges[i].start <= wanted && wanted < ranges[i].start + ranges[i].size)
      owner = ranges[i].device;
  pthread_rwlock_unlock(&ranges_lock);
  return owner;
}

/* By address; one that falls on another's place is forgotten, and then its tensor is copied. */
static _Atomic(const void*) stale[1 << 16];

static _Atomic(const void*)* stale_place(const void* address) {
  return &stale[((uintptr_t)address / ALIGNMENT) % (sizeof stale / sizeof *stale)];
}

void set_stale(const void* address, bool is_now) {
  _Atomic(const void*)* place = stale_place(address);
  if (is_now)
    *place = address;
  else if (*place == address)
    *place = NULL;
}

bool is_stale(const void* address) { return address && *stale_place(address) == address; }

static void* allocate_host(const SP_Device* device, uint64_t size) {
  void* start = NULL;
  return posix_memalign(&start, ALIGNMENT, size ? size : 1) ? NULL : start;
}

static void deallocate_host(const SP_Device* device, void* memory) { free(memory); }

static TF_Bool allocator_stats(const SP_Device* device, SP_AllocatorStats* stats) {
  const int ordinal = device->ordinal;
  pthread_rwlock_rdlock(&ranges_lock);
  stats->struct_size = SP_ALLOCATORSTATS_STRUCT_SIZE;
  stats->num_allocs = allocations[ordinal];
  stats->bytes_in_use = used_bytes[ordinal];
  stats->peak_bytes_in_use = peak_bytes[ordinal];
  stats->has_bytes_limit = 1;
  stats->bytes_limit = gpu_of(ordinal)->memory_bytes;
  pthread_rwlock_unlock(&ranges_lock);
  return 1;
}

static TF_Bool memory_usage(const SP_Device* device, int64_t* free_bytes, int64_t* all_bytes) {
  const int ordinal = device->ordinal;
  pthread_rwlock_rdlock(&ranges_lock);
  *all_bytes = total_bytes(gpu_of(ordinal)->memory_bytes);
  *free_bytes = *all_bytes - used_bytes[ordinal];
  pthread_rwlock_unlock(&ranges_lock);
  return 1;
}

void fill_memory_functions(SP_StreamExecutor* executor) {
  executor->allocate = allocate;
  executor->deallocate = deallocate;
  executor->host_memory_allocate = allocate_host;
  executor->host_memory_deallocate = deallocate_host;
  executor->get_allocator_stats = allocator_stats;
  executor->device_memory_usage = memory_usage;
}
