/* What TensorFlow calls when it loads the plugin: platform, devices, kernels. */
#include <string.h>

#include "emulated_gpu.h"

static void device_count(const SP_Platform* platform, int* count, TF_Status* status) {
  *count = gpu_count();
  TF_SetStatus(status, TF_OK, "");
}

static void create_device(const SP_Platform* platform, SE_CreateDeviceParams* params,
                          TF_Status* status) {
  const Gpu* gpu = gpu_of(params->ordinal);
  params->device->struct_size = SP_DEVICE_STRUCT_SIZE;
  params->device->ordinal = params->ordinal;
  params->device->hardware_name = gpu->name;
  params->device->device_vendor = "Emulated";
  params->device->pci_bus_id = gpu->pci_bus_id;
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_device(const SP_Platform* platform, SP_Device* device) {}

static int32_t numa_node(const SP_Device* device) { return 0; }

static int64_t memory_bandwidth(const SP_Device* device) {
  return (int64_t)gpu_of(device->ordinal)->bytes_per_s;
}

static double gflops(const SP_Device* device) { return gpu_of(device->ordinal)->flops_per_s / 1e9; }

static void create_device_fns(const SP_Platform* platform, SE_CreateDeviceFnsParams* params,
                              TF_Status* status) {
  params->device_fns->struct_size = SP_DEVICE_FNS_STRUCT_SIZE;
  params->device_fns->get_numa_node = numa_node;
  params->device_fns->get_memory_bandwidth = memory_bandwidth;
  params->device_fns->get_gflops = gflops;
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_device_fns(const SP_Platform* platform, SP_DeviceFns* functions) {}

static void create_executor(const SP_Platform* platform, SE_CreateStreamExecutorParams* params,
                            TF_Status* status) {
  params->stream_executor->struct_size = SP_STREAMEXECUTOR_STRUCT_SIZE;
  fill_memory_functions(params->stream_executor);
  fill_clock_functions(params->stream_executor);
  fill_copy_functions(params->stream_executor);
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_executor(const SP_Platform* platform, SP_StreamExecutor* executor) {}

static void create_timer_fns(const SP_Platform* platform, SP_TimerFns* functions,
                             TF_Status* status) {
  functions->struct_size = SP_TIMER_FNS_STRUCT_SIZE;
  fill_timer_functions(functions);
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_timer_fns(const SP_Platform* platform, SP_TimerFns* functions) {}

static void destroy_platform(SP_Platform* platform) {}

static void destroy_platform_fns(SP_PlatformFns* functions) {}

EXPORTED void SE_InitPlugin(SE_PlatformRegistrationParams* params, TF_Status* status) {
  SP_Platform* platform = params->platform;
  platform->struct_size = SP_PLATFORM_STRUCT_SIZE;
  platform->name = PLATFORM_NAME;
  platform->type = "GPU";
  platform->supports_unified_memory = 0;
  platform->use_bfc_allocator = 1;
  platform->force_memory_growth = 1; /* what is not used costs no host memory */
  SP_PlatformFns* functions = params->platform_fns;
  functions->get_device_count = device_count;
  functions->create_device = create_device;
  functions->destroy_device = destroy_device;
  functions->create_device_fns = create_device_fns;
  functions->destroy_device_fns = destroy_device_fns;
  functions->create_stream_executor = create_executor;
  functions->destroy_stream_executor = destroy_executor;
  functions->create_timer_fns = create_timer_fns;
  functions->destroy_timer_fns = destroy_timer_fns;
  params->destroy_platform = destroy_platform;
  params->destroy_platform_fns = destroy_platform_fns;
  TF_SetStatus(status, TF_OK, "");
}

EXPORTED void TF_InitKernel(void) {
  register_generic_kernels();
  register_fake_work();
  register_device_names();
  register_profiler();
}
