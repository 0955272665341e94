/* _FusedBatchNormEx, whose kernel on CPUs does nothing: Grappler makes it for GPUs of a batch norm,
 * a sum with another tensor, if any, and an activation. */
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

enum { NORM_INPUTS = 5 };

bool is_fused_batch_norm(const Node* node) { return !strcmp(node->op, "_FusedBatchNormEx"); }

/* Puts the result of an operator of one type in the place of the first output. */
static void then(char* op, const Node* node, TF_Tensor* second, TF_Tensor** outputs,
                 TF_Status* status) {
  if (TF_GetCode(status) != TF_OK) return;
  Attr* type = (Attr*)find_attr(node, "T");
  const Node next = {.name = "", .op = op, .attrs = type, .num_attrs = 1};
  TF_Tensor* inputs[] = {outputs[0], second};
  TF_Tensor* result = NULL;
  run_on_cpu(&next, false, inputs, second ? 2 : 1, &result, 1, status);
  if (!result) return;
  TF_DeleteTensor(outputs[0]);
  outputs[0] = result;
}

void run_fused_batch_norm(const Node* node, bool channels_last, TF_Tensor* const* inputs,
                          int num_inputs, TF_Tensor** outputs, int num_outputs,
                          TF_Status* status) {
  char activation[16];
  string_attr(node, "activation_mode", activation, sizeof activation);
  Node norm = *node;
  norm.op = "FusedBatchNormV3";
  norm.attrs = calloc((size_t)node->num_attrs + 1, sizeof *norm.attrs);
  norm.num_attrs = 0;
  for (int i = 0; i < node->num_attrs; i++)
    if (strcmp(node->attrs[i].name, "activation_mode") &&
        strcmp(node->attrs[i].name, "num_side_inputs"))
      norm.attrs[norm.num_attrs++] = node->attrs[i];
  run_on_cpu(&norm, channels_last, inputs, NORM_INPUTS, outputs, num_outputs, status);
  free(norm.attrs);
  if (num_inputs > NORM_INPUTS) then("AddV2", node, inputs[NORM_INPUTS], outputs, status);
  if (!strcmp(activation, "Relu")) then("Relu", node, NULL, outputs, status);
}
