/* Runs an operator by TensorFlow's own CPU kernel, through the eager C API. */
#include <pthread.h>
#include <stdlib.h>

#include "emulated_gpu.h"
#include "tensorflow/c/eager/c_api.h"

static TFE_Context* context;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void make_context(void) {
  /* A serialized ConfigProto: device_count {"GPU": 0}. Without it the context would have the
   * emulated GPUs too, and place operators there. */
  static const char config[] = {0x0a, 0x07, 0x0a, 0x03, 'G', 'P', 'U', 0x10, 0x00};
  TF_Status* status = TF_NewStatus();
  TFE_ContextOptions* options = TFE_NewContextOptions();
  TFE_ContextOptionsSetConfig(options, config, sizeof config, status);
  context = TFE_NewContext(options, status);
  TFE_DeleteContextOptions(options);
  TF_DeleteStatus(status);
}

static void add_input(TFE_Op* op, const TF_Tensor* tensor, TF_Status* status) {
  if (TF_GetCode(status) != TF_OK) return;
  TFE_TensorHandle* handle = TFE_NewTensorHandle(tensor, status);
  if (!handle) return;
  if (TF_GetCode(status) == TF_OK) TFE_OpAddInput(op, handle, status);
  TFE_DeleteTensorHandle(handle); /* the operator holds it */
}

static void execute(TFE_Op* op, TF_Tensor** outputs, int num_outputs, TF_Status* status) {
  TFE_TensorHandle** handles = calloc((size_t)num_outputs + 1, sizeof *handles);
  int count = num_outputs;
  if (TF_GetCode(status) == TF_OK) TFE_Execute(op, handles, &count, status);
  for (int i = 0; i < num_outputs; i++) {
    outputs[i] = TF_GetCode(status) == TF_OK ? TFE_TensorHandleResolve(handles[i], status) : NULL;
    if (handles[i]) TFE_DeleteTensorHandle(handles[i]);
  }
  free(handles);
}

static void run(const Node* node, TF_Tensor* const* inputs, int num_inputs, TF_Tensor** outputs,
                int num_outputs, TF_Status* status) {
  TFE_Op* op = TFE_NewOp(context, node->op, status);
  if (TF_GetCode(status) != TF_OK) return;
  for (int i = 0; i < node->num_attrs && TF_GetCode(status) == TF_OK; i++)
    TFE_OpSetAttrValueProto(op, node->attrs[i].name, node->attrs[i].value,
                            node->attrs[i].value_bytes, status);
  for (int i = 0; i < num_inputs; i++) add_input(op, inputs[i], status);
  execute(op, outputs, num_outputs, status);
  TFE_DeleteOp(op);
}

static void run_channels_last(const Node* node, TF_Tensor* const* inputs, int num_inputs,
                              TF_Tensor** outputs, int num_outputs, TF_Status* status) {
  TF_Tensor** changed = calloc((size_t)num_inputs + 1, sizeof *changed);
  for (int i = 0; i < num_inputs; i++) changed[i] = inputs[i];
  TF_Tensor* image = to_channels_last(inputs[0]);
  if (image) changed[0] = image;
  run(node, changed, num_inputs, outputs, num_outputs, status);
  if (image) TF_DeleteTensor(image);
  if (TF_GetCode(status) == TF_OK && image) {
    TF_Tensor* result = to_channels_first(outputs[0]);
    TF_DeleteTensor(outputs[0]);
    outputs[0] = result;
  }
  free(changed);
}

void run_on_cpu(const Node* node, bool channels_last, TF_Tensor* const* inputs, int num_inputs,
                TF_Tensor** outputs, int num_outputs, TF_Status* status) {
  pthread_once(&once, make_context);
  for (int i = 0; i < num_outputs; i++) outputs[i] = NULL;
  TF_SetStatus(status, TF_OK, "");
  if (is_fused_batch_norm(node))
    run_fused_batch_norm(node, channels_last, inputs, num_inputs, outputs, num_outputs, status);
  else
    (is_recurrent(node) ? run_recurrent : channels_last ? run_channels_last : run)(
        node, inputs, num_inputs, outputs, num_outputs, status);
  if (TF_GetCode(status) == TF_OK) return;
  for (int i = 0; i < num_outputs; i++) {
    if (outputs[i]) TF_DeleteTensor(outputs[i]);
    outputs[i] = NULL;
  }
}
