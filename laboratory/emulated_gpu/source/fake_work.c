/* FakeWork: gives its input back after `duration_us`, on a GPU's stream or on the CPU. */
#include <stdlib.h>
#include <string.h>

/* ops.h names these without declaring them in C. */
typedef struct TF_OpDefinitionBuilder TF_OpDefinitionBuilder;
typedef struct TF_ShapeHandle TF_ShapeHandle;
typedef struct TF_DimensionHandle TF_DimensionHandle;
typedef struct TF_ShapeInferenceContext TF_ShapeInferenceContext;

#include "emulated_gpu.h"
#include "tensorflow/c/ops.h"

typedef struct FakeWork {
  int64_t duration_us;
  char name[160];
} FakeWork;

static void* create(TF_OpKernelConstruction* construction) {
  FakeWork* work = calloc(1, sizeof *work);
  TF_Status* status = TF_NewStatus();
  TF_OpKernelConstruction_GetAttrInt64(construction, "duration_us", &work->duration_us, status);
  TF_StringView name = TF_OpKernelConstruction_GetName(construction);
  size_t length = name.len < sizeof work->name - 1 ? name.len : sizeof work->name - 1;
  memcpy(work->name, name.data, length);
  TF_DeleteStatus(status);
  return work;
}

static void pass(TF_OpKernelContext* context, TF_Status* status) {
  TF_Tensor* tensor = NULL;
  TF_GetInput(context, 0, &tensor, status);
  if (TF_GetCode(status) != TF_OK) return;
  TF_SetOutput(context, 0, tensor, status);
  TF_DeleteTensor(tensor);
}

static void compute_gpu(void* kernel, TF_OpKernelContext* context) {
  const FakeWork* work = kernel;
  TF_Status* status = TF_NewStatus();
  SP_Stream stream = TF_GetStream(context, status);
  if (stream) run_on_stream(stream, work->duration_us * 1000, "FakeWork", work->name);
  pass(context, status);
  TF_DeleteStatus(status);
}

static void compute_cpu(void* kernel, TF_OpKernelContext* context) {
  const FakeWork* work = kernel;
  TF_Status* status = TF_NewStatus();
  sleep_until(now_ns() + work->duration_us * 1000);
  pass(context, status);
  TF_DeleteStatus(status);
}

static void same_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

void register_fake_work(void) {
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* builder = TF_NewOpDefinitionBuilder("FakeWork");
  TF_OpDefinitionBuilderAddInput(builder, "x: float");
  TF_OpDefinitionBuilderAddOutput(builder, "y: float");
  TF_OpDefinitionBuilderAddAttr(builder, "duration_us: int");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(builder, same_shape);
  TF_RegisterOpDefinition(builder, status);
  TF_RegisterKernelBuilder("FakeWorkGpu",
                           TF_NewKernelBuilder("FakeWork", "GPU", create, compute_gpu, free),
                           status);
  TF_RegisterKernelBuilder("FakeWorkCpu",
                           TF_NewKernelBuilder("FakeWork", "CPU", create, compute_cpu, free),
                           status);
  TF_DeleteStatus(status);
}
