/* What a kernel takes: its launch + the longer of computing and moving bytes.
 *
 * Products and convolutions count two operations per multiplication and addition; everything else
 * is counted by the bytes of inputs and outputs alone.
 */
#include <string.h>

#include "emulated_gpu.h"

static int64_t elements(const TF_Tensor* tensor) {
  int64_t dims[MAX_DIMS];
  return num_elements(dims, get_dims(tensor, dims));
}

/* Every output element sums over a filter without its output channels, the last dimension. */
static double convolution_flops(const TF_Tensor* filter, const TF_Tensor* output) {
  int64_t dims[MAX_DIMS];
  int rank = get_dims(filter, dims);
  return rank < 2 ? 0 : 2.0 * (double)elements(output) * (double)num_elements(dims, rank - 1);
}

/* Every output element sums over one channel's filter of height x width. */
static double depthwise_flops(const TF_Tensor* filter, const TF_Tensor* output) {
  int64_t dims[MAX_DIMS];
  return get_dims(filter, dims) != 4 ? 0
                                     : 2.0 * (double)elements(output) * (double)(dims[0] * dims[1]);
}

static double product_flops(const TF_Tensor* left, bool transposed, const TF_Tensor* output) {
  int64_t dims[MAX_DIMS];
  int rank = get_dims(left, dims);
  if (rank < 2) return 0;
  return 2.0 * (double)elements(output) * (double)dims[transposed ? rank - 2 : rank - 1];
}

/* The product of the dimensions of all letters of the equation; `...` is one dimension of what is
 * left over. */
static double einsum_flops(const Node* node, TF_Tensor* const* inputs, int num_inputs) {
  char equation[256];
  double sizes[256] = {0}, ellipsis = 1, flops = num_inputs > 1 ? 2 : 1;
  string_attr(node, "equation", equation, sizeof equation);
  const char* at = equation;
  for (int i = 0; i < num_inputs; i++) {
    int64_t dims[MAX_DIMS];
    int rank = get_dims(inputs[i], dims), dim = 0;
    int letters = 0;
    for (const char* c = at; *c && *c != ',' && *c != '-'; c++) letters += *c != '.' && *c != ' ';
    double rest = 1;
    for (; *at && *at != ',' && *at != '-'; at++) {
      if (*at == ' ') continue;
      if (*at == '.') {
        for (int skipped = rank - letters; skipped > 0 && dim < rank; skipped--)
          rest *= (double)dims[dim++];
        while (at[1] == '.') at++;
      } else if (dim < rank) {
        sizes[(unsigned char)*at] = (double)dims[dim++];
      }
    }
    if (ellipsis < rest) ellipsis = rest;
    if (*at == ',') at++;
  }
  for (int i = 0; i < 256; i++)
    if (sizes[i] > 0) flops *= sizes[i];
  return flops * ellipsis;
}

/* At every step, all weights of all gates for every sequence; biases are counted too. */
static double recurrent_flops(TF_Tensor* const* inputs) {
  int64_t dims[MAX_DIMS] = {0};
  get_dims(inputs[0], dims);
  return 2.0 * (double)(dims[0] * dims[1]) * (double)elements(inputs[3]);
}

static double flops_of(const Node* node, TF_Tensor* const* inputs, int num_inputs,
                       TF_Tensor* const* outputs, int num_outputs) {
  const char* op = node->op;
  if (!num_inputs || !num_outputs) return 0;
  if (!strcmp(op, "Einsum")) return einsum_flops(node, inputs, num_inputs);
  if (num_inputs < 2) return 0;
  if (is_recurrent(node) && num_inputs > 3) return recurrent_flops(inputs);
  if (!strcmp(op, "Conv2D") || !strcmp(op, "_FusedConv2D") || !strcmp(op, "Conv3D") ||
      !strcmp(op, "Conv"))
    return convolution_flops(inputs[1], outputs[0]);
  if (!strcmp(op, "Conv2DBackpropInput")) /* sizes, filter, what was the output */
    return num_inputs < 3 ? 0 : convolution_flops(inputs[1], inputs[2]);
  if (!strcmp(op, "DepthwiseConv2dNative") || !strcmp(op, "_FusedDepthwiseConv2dNative"))
    return depthwise_flops(inputs[1], outputs[0]);
  if (!strcmp(op, "MatMul") || !strcmp(op, "_FusedMatMul"))
    return product_flops(inputs[0], bool_attr(node, "transpose_a"), outputs[0]);
  if (!strncmp(op, "BatchMatMul", strlen("BatchMatMul")))
    return product_flops(inputs[0], bool_attr(node, "adj_x"), outputs[0]);
  return 0;
}

static double bytes_of(TF_Tensor* const* tensors, int count) {
  double sum = 0;
  for (int i = 0; i < count; i++)
    if (is_plain(TF_TensorType(tensors[i])))
      sum += (double)elements(tensors[i]) * (double)TF_DataTypeSize(TF_TensorType(tensors[i]));
  return sum;
}

int64_t kernel_ns(const Gpu* gpu, const Node* node, TF_Tensor* const* inputs, int num_inputs,
                  TF_Tensor* const* outputs, int num_outputs) {
  double compute = flops_of(node, inputs, num_inputs, outputs, num_outputs) / gpu->flops_per_s;
  double bytes = bytes_of(inputs, num_inputs) + bytes_of(outputs, num_outputs);
  double memory = bytes / gpu->bytes_per_s;
  return gpu->launch_ns + (int64_t)(1e9 * (compute > memory ? compute : memory) / gpu->speed);
}
