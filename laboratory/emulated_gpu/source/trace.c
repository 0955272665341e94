/* Remembers what ran on the streams while a profiler wants to know. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "emulated_gpu.h"

enum { MAX_RECORDS = 1 << 20 };

static Record* records;
static int num_records, max_records;
static bool tracing;
static int64_t started_ns, started_wall_ns;

void trace(RecordKind kind, SP_Stream stream, int target, int64_t start_ns, int64_t end_ns,
           int64_t num_bytes, const char* op_type, const char* node) {
  if (!tracing || num_records == MAX_RECORDS) return;
  if (num_records == max_records) {
    max_records = max_records ? 2 * max_records : 1024;
    records = realloc(records, (size_t)max_records * sizeof *records);
  }
  Record* record = &records[num_records++];
  *record = (Record){.kind = kind,
                     .device = stream->device,
                     .stream = stream->id,
                     .target = target,
                     .enqueued_ns = now_ns(),
                     .start_ns = start_ns,
                     .end_ns = end_ns,
                     .num_bytes = num_bytes,
                     .thread = syscall(SYS_gettid)};
  snprintf(record->op_type, sizeof record->op_type, "%s", op_type);
  snprintf(record->node, sizeof record->node, "%s", node);
}

void start_trace(void) {
  struct timespec wall;
  lock_clocks();
  num_records = 0;
  tracing = true;
  clock_gettime(CLOCK_REALTIME, &wall);
  started_wall_ns = wall.tv_sec * INT64_C(1000000000) + wall.tv_nsec;
  started_ns = now_ns();
  unlock_clocks();
}

void stop_trace(void) {
  lock_clocks();
  tracing = false;
  unlock_clocks();
}

Record* take_trace(int* count, int64_t* start_ns, int64_t* start_wall_ns) {
  lock_clocks();
  Record* taken = malloc((size_t)num_records * sizeof *taken + 1);
  if (num_records) memcpy(taken, records, (size_t)num_records * sizeof *taken);
  *count = num_records;
  *start_ns = started_ns;
  *start_wall_ns = started_wall_ns;
  unlock_clocks();
  return taken;
}
