/* Grappler's layout optimizer gives GPUs convolutions in NCHW, which CPU kernels do not have. */
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

/* Operators whose first input and first output are images; their other arguments are not. */
static const char* const image_ops[] = {
    "Conv2D",          "_FusedConv2D",     "DepthwiseConv2dNative", "_FusedDepthwiseConv2dNative",
    "MaxPool",         "AvgPool",          "BiasAdd",               "FusedBatchNorm",
    "FusedBatchNormV2", "FusedBatchNormV3", "_FusedBatchNormEx",     "DepthToSpace",
    "SpaceToDepth",    "LRN",
};

/* Attributes with one number per dimension, or two. */
static const char* const per_dimension[] = {"strides", "dilations", "ksize", "explicit_paddings"};

static void permute_attr(Node* node, const char* name) {
  static const int order[] = {0, 2, 3, 1};
  int64_t old[8], new[8];
  int count = int_list_attr(node, name, old, 8);
  if (count != 4 && count != 8) return;
  int each = count / 4;
  for (int i = 0; i < count; i++) new[i] = old[order[i / each] * each + i % each];
  set_int_list_attr(node, name, new, count);
}

bool make_channels_last(Node* node) {
  char format[16];
  string_attr(node, "data_format", format, sizeof format);
  bool known = false;
  for (size_t i = 0; i < sizeof image_ops / sizeof *image_ops; i++)
    known |= !strcmp(node->op, image_ops[i]);
  if (!known || strcmp(format, "NCHW")) return false;
  set_string_attr(node, "data_format", "NHWC");
  for (size_t i = 0; i < sizeof per_dimension / sizeof *per_dimension; i++)
    permute_attr(node, per_dimension[i]);
  return true;
}

static void swap(char* to, const char* from, int64_t rows, int64_t columns, size_t size) {
  for (int64_t row = 0; row < rows; row++)
    for (int64_t column = 0; column < columns; column++)
      memcpy(to + (size_t)(column * rows + row) * size,
             from + (size_t)(row * columns + column) * size, size);
}

/* Each image is a matrix of rows x columns that is transposed. */
static TF_Tensor* permuted(const TF_Tensor* tensor, const int64_t* dims, int64_t rows,
                           int64_t columns) {
  size_t bytes = TF_TensorByteSize(tensor);
  TF_Tensor* result = TF_AllocateTensor(TF_TensorType(tensor), dims, 4, bytes);
  int64_t per_image = rows * columns;
  if (!per_image || !dims[0]) return result;
  size_t size = bytes / (size_t)(dims[0] * per_image);
  for (int64_t image = 0; image < dims[0]; image++) {
    size_t offset = (size_t)(image * per_image) * size;
    swap((char*)TF_TensorData(result) + offset, (const char*)TF_TensorData(tensor) + offset, rows,
         columns, size);
  }
  return result;
}

TF_Tensor* to_channels_last(const TF_Tensor* tensor) {
  int64_t d[MAX_DIMS];
  if (get_dims(tensor, d) != 4) return NULL;
  const int64_t dims[] = {d[0], d[2], d[3], d[1]};
  return permuted(tensor, dims, d[1], d[2] * d[3]);
}

TF_Tensor* to_channels_first(const TF_Tensor* tensor) {
  int64_t d[MAX_DIMS];
  if (get_dims(tensor, d) != 4) return NULL;
  const int64_t dims[] = {d[0], d[3], d[1], d[2]};
  return permuted(tensor, dims, d[1] * d[2], d[3]);
}
