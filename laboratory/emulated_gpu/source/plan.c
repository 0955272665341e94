/* What a kernel did before, so that it can do it again without computing. */
#include <stdlib.h>
#include <string.h>

#include "plan.h"

enum { MAX_HOST_BYTES = 512, MAX_KEPT_BYTES = 4096 };

static bool append(Key* key, const void* data, size_t size) {
  if (key->num_bytes + size > sizeof key->bytes) return false;
  memcpy(key->bytes + key->num_bytes, data, size);
  key->num_bytes += size;
  return true;
}

static bool add_input(Key* key, const TF_Tensor* tensor, bool on_host) {
  int64_t dims[MAX_DIMS];
  int num_dims = get_dims(tensor, dims);
  if (!append(key, &num_dims, sizeof num_dims) ||
      !append(key, dims, (size_t)num_dims * sizeof *dims))
    return false;
  if (!on_host) return true;
  size_t size = TF_TensorByteSize(tensor);
  return is_plain(TF_TensorType(tensor)) && size <= MAX_HOST_BYTES &&
         append(key, TF_TensorData(tensor), size);
}

void make_key(Key* key, TF_OpKernelContext* context, TF_Tensor* const* inputs, int num_inputs,
              TF_Status* status) {
  key->num_bytes = 0;
  for (int i = 0; i < num_inputs; i++)
    if (!add_input(key, inputs[i], TF_IsHostMemoryInput(context, i, status))) {
      key->num_bytes = 0;
      return;
    }
}

Plan* make_plan(const Key* key, int64_t duration_ns, TF_Tensor* const* outputs, int num_outputs) {
  Plan* plan = calloc(1, sizeof *plan);
  plan->key = malloc(key->num_bytes);
  memcpy(plan->key, key->bytes, key->num_bytes);
  plan->key_bytes = key->num_bytes;
  plan->duration_ns = duration_ns;
  plan->outputs = calloc((size_t)num_outputs + 1, sizeof *plan->outputs);
  plan->num_outputs = num_outputs;
  for (int i = 0; i < num_outputs; i++) {
    OutputPlan* output = &plan->outputs[i];
    output->type = TF_TensorType(outputs[i]);
    output->num_dims = get_dims(outputs[i], output->dims);
    output->num_bytes = (size_t)num_elements(output->dims, output->num_dims) *
                        TF_DataTypeSize(output->type);
    if (!is_plain(output->type) || output->num_bytes > MAX_KEPT_BYTES) continue;
    output->kept = malloc(output->num_bytes + 1);
    if (output->num_bytes) memcpy(output->kept, TF_TensorData(outputs[i]), output->num_bytes);
  }
  return plan;
}

void delete_plan(Plan* plan) {
  for (int i = 0; i < plan->num_outputs; i++) free(plan->outputs[i].kept);
  free(plan->outputs);
  free(plan->key);
  free(plan);
}

bool plan_has_key(const Plan* plan, const Key* key) {
  return plan->key_bytes == key->num_bytes && !memcmp(plan->key, key->bytes, key->num_bytes);
}
