// An op that TensorFlow lacks: MoiraiTwice gives twice its input.
#include <cstddef>
#include <cstdint>

#include "tensorflow/c/kernels.h"
#include "tensorflow/c/ops.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

constexpr int MOST_DIMENSIONS = 8;

#ifdef NEEDS_HELPER
extern "C" int moirai_helper(void);  // of a library that a package loads before this one
#else
static int moirai_helper(void) { return 0; }
#endif

static void same_shape(TF_ShapeInferenceContext* context, TF_Status* status) {
  TF_ShapeHandle* shape = TF_NewShapeHandle();
  TF_ShapeInferenceContextGetInput(context, 0, shape, status);
  TF_ShapeInferenceContextSetOutput(context, 0, shape, status);
  TF_DeleteShapeHandle(shape);
}

static void twice(void* kernel, TF_OpKernelContext* context) {
  (void)kernel;
  TF_Status* status = TF_NewStatus();
  TF_Tensor* in = nullptr;
  TF_GetInput(context, 0, &in, status);
  int64_t sizes[MOST_DIMENSIONS];
  int rank = TF_NumDims(in);
  for (int i = 0; i < rank && i < MOST_DIMENSIONS; ++i) sizes[i] = TF_Dim(in, i);
  TF_Tensor* out =
      TF_AllocateOutput(context, 0, TF_FLOAT, sizes, rank, TF_TensorByteSize(in), status);
  const float* from = static_cast<const float*>(TF_TensorData(in));
  float* to = static_cast<float*>(TF_TensorData(out));
  for (int64_t i = 0; i < TF_TensorElementCount(in); ++i) to[i] = 2 * from[i];
  TF_DeleteTensor(in);
  TF_DeleteTensor(out);
  TF_DeleteStatus(status);
}

__attribute__((constructor)) static void register_twice(void) {
  if (moirai_helper() != 0) return;
  TF_Status* status = TF_NewStatus();
  TF_OpDefinitionBuilder* op = TF_NewOpDefinitionBuilder("MoiraiTwice");
  TF_OpDefinitionBuilderAddInput(op, "x: float");
  TF_OpDefinitionBuilderAddOutput(op, "y: float");
  TF_OpDefinitionBuilderSetShapeInferenceFunction(op, same_shape);
  TF_RegisterOpDefinition(op, status);
  TF_KernelBuilder* kernel = TF_NewKernelBuilder("MoiraiTwice", "CPU", nullptr, twice, nullptr);
  TF_RegisterKernelBuilder("MoiraiTwice", kernel, status);
  TF_DeleteStatus(status);
}
