/* What a kernel did for inputs of certain shapes, with certain values in host memory. */
#ifndef PLAN_H_
#define PLAN_H_

#include "emulated_gpu.h"

typedef struct Key {
  uint8_t bytes[2048];
  size_t num_bytes; /* 0 if there is no key: the kernel has to compute */
} Key;

typedef struct OutputPlan {
  TF_DataType type;
  int num_dims;
  int64_t dims[MAX_DIMS];
  size_t num_bytes;
  void* kept; /* the last real value if it is small, else NULL */
} OutputPlan;

typedef struct Plan {
  uint8_t* key;
  size_t key_bytes;
  int64_t duration_ns;
  OutputPlan* outputs;
  int num_outputs;
} Plan;

void make_key(Key* key, TF_OpKernelContext* context, TF_Tensor* const* inputs, int num_inputs,
              TF_Status* status);
Plan* make_plan(const Key* key, int64_t duration_ns, TF_Tensor* const* outputs, int num_outputs);
void delete_plan(Plan* plan);
bool plan_has_key(const Plan* plan, const Key* key);

#endif
