/* CudnnRNN, which has no kernel on CPUs: Grappler puts it in the place of Keras's LSTM and GRU
 * layers on GPUs. One layer in one direction, which is all that Keras asks for. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"

/* Gates of cuDNN, in its order: input, forget, cell, output; or reset, update, new. */
enum { LSTM_GATES = 4, GRU_GATES = 3 };

typedef struct Layer {
  int gates;
  int64_t batch, time, inputs, units;
  int64_t batch_stride, time_stride; /* of sequences, in steps */
  const float *x, *kernel, *recurrent, *bias, *recurrent_bias;
  const int32_t* lengths; /* NULL if all sequences are whole */
  float *h, *c, *y;
} Layer;

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* Of one gate and unit: a row of its matrix times a vector + its bias. */
static float row(const float* matrix, const float* bias, const float* vector, int64_t index,
                 int64_t columns) {
  float sum = bias[index];
  for (int64_t i = 0; i < columns; i++) sum += matrix[index * columns + i] * vector[i];
  return sum;
}

static void unit(const Layer* layer, const float* x, const float* h, float* next_h, float* c,
                 int64_t u) {
  float from_x[LSTM_GATES], from_h[LSTM_GATES];
  for (int gate = 0; gate < layer->gates; gate++) {
    int64_t index = gate * layer->units + u;
    from_x[gate] = row(layer->kernel, layer->bias, x, index, layer->inputs);
    from_h[gate] = row(layer->recurrent, layer->recurrent_bias, h, index, layer->units);
  }
  if (layer->gates == LSTM_GATES) {
    c[u] = sigmoid(from_x[1] + from_h[1]) * c[u] +
           sigmoid(from_x[0] + from_h[0]) * tanhf(from_x[2] + from_h[2]);
    next_h[u] = sigmoid(from_x[3] + from_h[3]) * tanhf(c[u]);
  } else {
    float new = tanhf(from_x[2] + sigmoid(from_x[0] + from_h[0]) * from_h[2]);
    float keep = sigmoid(from_x[1] + from_h[1]);
    next_h[u] = (1.0f - keep) * new + keep * h[u];
  }
}

static void run_layer(const Layer* layer) {
  float* next_h = malloc((size_t)layer->units * sizeof *next_h + 1);
  for (int64_t b = 0; b < layer->batch; b++) {
    float *h = layer->h + b * layer->units, *c = layer->c + b * layer->units;
    int64_t length = layer->lengths ? layer->lengths[b] : layer->time;
    for (int64_t t = 0; t < length && t < layer->time; t++) {
      int64_t step = b * layer->batch_stride + t * layer->time_stride;
      for (int64_t u = 0; u < layer->units; u++)
        unit(layer, layer->x + step * layer->inputs, h, next_h, c, u);
      memcpy(h, next_h, (size_t)layer->units * sizeof *h);
      memcpy(layer->y + step * layer->units, h, (size_t)layer->units * sizeof *h);
    }
  }
  free(next_h);
}

static TF_Tensor* zeros(TF_DataType type, const int64_t* dims, int num_dims) {
  size_t size = (size_t)num_elements(dims, num_dims) * TF_DataTypeSize(type);
  TF_Tensor* tensor = TF_AllocateTensor(type, dims, num_dims, size);
  if (size) memset(TF_TensorData(tensor), 0, size);
  return tensor;
}

static TF_Tensor* copy_of(const TF_Tensor* tensor) {
  int64_t dims[MAX_DIMS];
  TF_Tensor* result = zeros(TF_FLOAT, dims, get_dims(tensor, dims));
  memcpy(TF_TensorData(result), TF_TensorData(tensor), TF_TensorByteSize(result));
  return result;
}

bool is_recurrent(const Node* node) { return !strncmp(node->op, "CudnnRNN", strlen("CudnnRNN")); }

static bool supported(const Node* node, TF_Tensor* const* inputs, int gates, int64_t params) {
  char direction[24];
  string_attr(node, "direction", direction, sizeof direction);
  return gates && !strcmp(direction, "unidirectional") && TF_TensorType(inputs[0]) == TF_FLOAT &&
         TF_NumDims(inputs[0]) == 3 && TF_NumDims(inputs[1]) == 3 &&
         params == TF_TensorElementCount(inputs[3]);
}

void run_recurrent(const Node* node, TF_Tensor* const* inputs, int num_inputs,
                   TF_Tensor** outputs, int num_outputs, TF_Status* status) {
  char mode[16];
  string_attr(node, "rnn_mode", mode, sizeof mode);
  Layer layer = {0};
  if (!strcmp(mode, "lstm")) layer.gates = LSTM_GATES;
  if (!strcmp(mode, "gru")) layer.gates = GRU_GATES;
  /* Only the third version can say that the batch comes first. */
  const bool time_major = !find_attr(node, "time_major") || bool_attr(node, "time_major");
  int64_t dims[MAX_DIMS] = {0}, state[MAX_DIMS] = {0};
  get_dims(inputs[0], dims);
  get_dims(inputs[1], state);
  layer.inputs = dims[2];
  layer.units = state[2];
  const int64_t weights = layer.gates * layer.units * (layer.inputs + layer.units);
  if (!supported(node, inputs, layer.gates, weights + 2 * layer.gates * layer.units)) {
    TF_SetStatus(status, TF_UNIMPLEMENTED, "only one float layer of LSTM or GRU is emulated");
    return;
  }
  layer.time = dims[time_major ? 0 : 1];
  layer.batch = dims[time_major ? 1 : 0];
  layer.batch_stride = time_major ? 1 : layer.time;
  layer.time_stride = time_major ? layer.batch : 1;
  dims[2] = layer.units;
  outputs[0] = zeros(TF_FLOAT, dims, 3);
  outputs[1] = copy_of(inputs[1]);
  outputs[2] = copy_of(layer.gates == LSTM_GATES ? inputs[2] : inputs[1]);
  const int64_t none = 0; /* what training would need */
  for (int i = 3; i < num_outputs; i++) outputs[i] = zeros(i == 3 ? TF_FLOAT : TF_INT8, &none, 1);
  layer.x = TF_TensorData(inputs[0]);
  layer.kernel = TF_TensorData(inputs[3]);
  layer.recurrent = layer.kernel + layer.gates * layer.units * layer.inputs;
  layer.bias = layer.kernel + weights;
  layer.recurrent_bias = layer.bias + layer.gates * layer.units;
  layer.lengths = num_inputs > 4 ? TF_TensorData(inputs[4]) : NULL;
  layer.y = TF_TensorData(outputs[0]);
  layer.h = TF_TensorData(outputs[1]);
  layer.c = TF_TensorData(outputs[2]);
  run_layer(&layer);
}
