/* The little of CUDA's runtime library that Grappler asks for: what a GPU is.
 *
 * Without it Grappler takes GPUs for unknown devices and does not optimize layouts for them
 * (`GetLocalGPUInfo` in tensorflow/core/grappler/clusters/utils.cc). TensorFlow opens the library
 * by its name, and every function that is missing is an error to whoever calls it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../emulated_gpu.h"
#include "driver_types.h"

enum { BITS_PER_CYCLE = 256 * 2 };

static int clock_khz(const Gpu* gpu) { return (int)(gpu->frequency_mhz * 1000); }

/* Grappler's bandwidth is bus width x 2 x memory clock; the bus has 256 bits here. */
static int memory_clock_khz(const Gpu* gpu) {
  return (int)(gpu->bytes_per_s * 8 / BITS_PER_CYCLE / 1000);
}

EXPORTED cudaError_t cudaGetDeviceProperties_v2(struct cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= gpu_count()) return cudaErrorInvalidDevice;
  const Gpu* gpu = gpu_of(device);
  memset(properties, 0, sizeof *properties);
  snprintf(properties->name, sizeof properties->name, "%s", gpu->name);
  sscanf(gpu->capability, "%d.%d", &properties->major, &properties->minor);
  properties->multiProcessorCount = gpu->num_cores;
  properties->totalGlobalMem = (size_t)gpu->memory_bytes;
  properties->memoryBusWidth = BITS_PER_CYCLE / 2;
#if CUDART_VERSION < 13000
  properties->clockRate = clock_khz(gpu);
  properties->memoryClockRate = memory_clock_khz(gpu);
#endif
  properties->regsPerMultiprocessor = 65536; /* these three as of a V100 */
  properties->l2CacheSize = 6 << 20;
  properties->sharedMemPerMultiprocessor = 96 << 10;
  return cudaSuccess;
}

EXPORTED cudaError_t cudaDeviceGetAttribute(int* value, enum cudaDeviceAttr attribute,
                                            int device) {
  if (device < 0 || device >= gpu_count()) return cudaErrorInvalidDevice;
  if (attribute == cudaDevAttrClockRate)
    *value = clock_khz(gpu_of(device));
  else if (attribute == cudaDevAttrMemoryClockRate)
    *value = memory_clock_khz(gpu_of(device));
  else
    return cudaErrorInvalidValue;
  return cudaSuccess;
}
