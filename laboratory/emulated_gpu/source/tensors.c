/* Small questions about tensors. */
#include "emulated_gpu.h"

int get_dims(const TF_Tensor* tensor, int64_t* dims) {
  int num_dims = TF_NumDims(tensor);
  if (num_dims > MAX_DIMS) num_dims = MAX_DIMS; /* TensorFlow's kernels stop at 8 or before */
  for (int i = 0; i < num_dims; i++) dims[i] = TF_Dim(tensor, i);
  return num_dims;
}

int64_t num_elements(const int64_t* dims, int num_dims) {
  int64_t count = 1;
  for (int i = 0; i < num_dims; i++) count *= dims[i];
  return count;
}

bool is_floating(TF_DataType type) {
  return type == TF_FLOAT || type == TF_DOUBLE || type == TF_HALF || type == TF_BFLOAT16 ||
         type == TF_COMPLEX64 || type == TF_COMPLEX128;
}

bool is_plain(TF_DataType type) {
  return type != TF_STRING && type != TF_RESOURCE && type != TF_VARIANT;
}
