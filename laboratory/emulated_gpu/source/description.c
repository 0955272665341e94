/* Reads what is emulated from the environment variable that description.py writes. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

static Gpu gpus[MAX_GPUS];
static Link links[MAX_GPUS + 1][MAX_GPUS + 1]; /* index 0 is the host */
static int count;
static int64_t steps = 3;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void read_gpu(const char* line) {
  int index = 0, used = 0;
  Gpu gpu = {0};
  if (sscanf(line, "gpu %d %ld %d %lf %lf %lf %ld %lf %15s %n", &index, &gpu.memory_bytes,
             &gpu.num_cores, &gpu.frequency_mhz, &gpu.flops_per_s, &gpu.bytes_per_s,
             &gpu.launch_ns, &gpu.speed, gpu.capability, &used) != 9 ||
      index != count || count == MAX_GPUS)
    return;
  snprintf(gpu.name, sizeof gpu.name, "%s", line + used);
  snprintf(gpu.pci_bus_id, sizeof gpu.pci_bus_id, "0000:%02x:00.0", index + 1);
  gpus[count++] = gpu;
}

static void read_link(const char* line) {
  int source = 0, target = 0;
  Link link = {0};
  if (sscanf(line, "link %d %d %ld %lf", &source, &target, &link.latency_ns, &link.bytes_per_s) ==
          4 &&
      source >= HOST && source < MAX_GPUS && target >= HOST && target < MAX_GPUS)
    links[source + 1][target + 1] = link;
}

static void read_description(void) {
  const char* variable = getenv("MOIRAI_EMULATED_GPUS");
  char* text = strdup(variable ? variable : "");
  char* rest = text;
  for (char* line; (line = strsep(&rest, "\n")) != NULL;) {
    read_gpu(line);
    read_link(line);
  }
  free(text);
  const char* limit = getenv("MOIRAI_EMULATED_GPU_COMPUTE_STEPS");
  if (limit && *limit) steps = atoll(limit);
}

int gpu_count(void) {
  pthread_once(&once, read_description);
  return count;
}

const Gpu* gpu_of(int device) {
  pthread_once(&once, read_description);
  return &gpus[device];
}

const Link* link_of(int source, int target) { return &links[source + 1][target + 1]; }

int64_t compute_steps(void) { return steps; }
