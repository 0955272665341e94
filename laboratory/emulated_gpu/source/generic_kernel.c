/* One kernel for all operators: results by the CPU's kernel, time by the cost model.
 *
 * Results are computed in the first few steps that a kernel sees. Afterwards, for shapes that it
 * knows, it only moves the clock: floating-point outputs are allocated and hold what their memory
 * held before, or the last real value if that is small, so that nothing gets slow or wild. What
 * steers a model is computed for ever: other types, and shapes that depend on values.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "emulated_gpu.h"
#include "plan.h"
#include "tensorflow/c/c_api.h"

enum { MAX_PLANS = 64 };

typedef struct Kernel {
  Node* node;         /* as the graph has it; costs are computed from it */
  Node* cpu_node;     /* as the CPU runs it */
  bool channels_last; /* whether these differ */
  bool steers;        /* is computed for ever */
  int resource;       /* input that is a variable, to be read; or -1 */
  pthread_mutex_t lock;
  bool looked_at_types;
  int64_t last_step, steps_seen;
  Plan* plans[MAX_PLANS];
  int num_plans;
} Kernel;

/* One call of a kernel. */
typedef struct Call {
  TF_OpKernelContext* context;
  SP_Stream stream;
  TF_Status* status;
  int num_inputs, num_outputs;
  TF_Tensor **inputs, **outputs;
  Key key;
} Call;

/* The shapes of their floating-point outputs depend on the values of inputs. */
static const char* const dynamic_shapes[] = {
    "DynamicPartition", "DynamicStitch", "SegmentSum",   "SegmentMean", "SegmentProd",
    "SegmentMax",       "SegmentMin",    "Bincount",     "DenseBincount",
};

static void* create(TF_OpKernelConstruction* construction) {
  TF_Status* status = TF_NewStatus();
  TF_Buffer* definition = TF_OpKernelConstruction_GetNodeDef(construction, status);
  Kernel* kernel = calloc(1, sizeof *kernel);
  kernel->node = parse_node(definition->data, definition->length);
  kernel->cpu_node = parse_node(definition->data, definition->length);
  kernel->channels_last = make_channels_last(kernel->cpu_node);
  kernel->resource = make_gather(kernel->cpu_node);
  for (size_t i = 0; i < sizeof dynamic_shapes / sizeof *dynamic_shapes; i++)
    kernel->steers |= !strcmp(kernel->node->op, dynamic_shapes[i]);
  kernel->last_step = -1;
  pthread_mutex_init(&kernel->lock, NULL);
  TF_DeleteBuffer(definition);
  TF_DeleteStatus(status);
  return kernel;
}

static void delete(void* pointer) {
  Kernel* kernel = pointer;
  for (int i = 0; i < kernel->num_plans; i++) delete_plan(kernel->plans[i]);
  delete_node(kernel->node);
  delete_node(kernel->cpu_node);
  pthread_mutex_destroy(&kernel->lock);
  free(kernel);
}

/* With the kernel's lock. Types are those of the node, so once is enough. */
static void look_at_types(Kernel* kernel, const Call* call) {
  for (int i = 0; i < call->num_outputs && !is_recurrent(kernel->node); i++)
    kernel->steers |= !is_floating(TF_ExpectedOutputDataType(call->context, i));
  for (int i = 0; i < call->num_inputs; i++)
    kernel->steers |= TF_InputDatatype(call->context, i) == TF_VARIANT;
  kernel->looked_at_types = true;
}

/* With the kernel's lock: the plan for this key, or NULL. */
static Plan* known_plan(const Kernel* kernel, const Call* call) {
  for (int i = 0; call->key.num_bytes && i < kernel->num_plans; i++)
    if (plan_has_key(kernel->plans[i], &call->key)) return kernel->plans[i];
  return NULL;
}

/* Whether this step is one of the first; the plan for later ones, if there is one. */
static bool is_early(Kernel* kernel, const Call* call, Plan** plan) {
  pthread_mutex_lock(&kernel->lock);
  if (!kernel->looked_at_types) look_at_types(kernel, call);
  int64_t step = TF_GetStepId(call->context);
  if (step != kernel->last_step) {
    kernel->last_step = step;
    kernel->steps_seen++;
  }
  bool early = compute_steps() == 0 || kernel->steps_seen <= compute_steps();
  *plan = known_plan(kernel, call);
  pthread_mutex_unlock(&kernel->lock);
  return early;
}

/* Plans are kept as long as the kernel, so a call may use one without a lock. */
static void remember(Kernel* kernel, const Call* call, int64_t duration_ns) {
  if (!call->key.num_bytes) return;
  pthread_mutex_lock(&kernel->lock);
  if (!known_plan(kernel, call) && kernel->num_plans < MAX_PLANS)
    kernel->plans[kernel->num_plans++] =
        make_plan(&call->key, duration_ns, call->outputs, call->num_outputs);
  pthread_mutex_unlock(&kernel->lock);
}

static bool ok(const Call* call) { return TF_GetCode(call->status) == TF_OK; }

static void set_output(Call* call, int i) {
  TF_Tensor* output = call->outputs[i];
  size_t size = TF_TensorByteSize(output);
  if (!is_plain(TF_TensorType(output)) || !size ||
      TF_IsHostMemoryOutput(call->context, i, call->status)) {
    TF_SetOutput(call->context, i, output, call->status);
    return;
  }
  int64_t dims[MAX_DIMS];
  int num_dims = get_dims(output, dims);
  size_t used = (size_t)num_elements(dims, num_dims) * TF_DataTypeSize(TF_TensorType(output));
  TF_Tensor* result = TF_AllocateOutput(call->context, i, TF_TensorType(output), dims, num_dims,
                                        used, call->status);
  if (ok(call)) {
    memcpy(TF_TensorData(result), TF_TensorData(output), used);
    set_stale(TF_TensorData(result), false);
  }
  if (result) TF_DeleteTensor(result);
}

static void compute_really(Kernel* kernel, Call* call) {
  run_on_cpu(kernel->cpu_node, kernel->channels_last, call->inputs, call->num_inputs,
             call->outputs, call->num_outputs, call->status);
  if (!ok(call)) return;
  int64_t duration = kernel_ns(gpu_of(call->stream->device), kernel->node, call->inputs,
                               call->num_inputs, call->outputs, call->num_outputs);
  for (int i = 0; i < call->num_outputs && ok(call); i++) set_output(call, i);
  run_on_stream(call->stream, duration, kernel->node->op, kernel->node->name);
  remember(kernel, call, duration);
  for (int i = 0; i < call->num_outputs; i++) TF_DeleteTensor(call->outputs[i]);
}

static void only_move_the_clock(const Kernel* kernel, Call* call, const Plan* plan) {
  TF_SetStatus(call->status, TF_OK, "");
  for (int i = 0; i < plan->num_outputs && ok(call); i++) {
    const OutputPlan* output = &plan->outputs[i];
    TF_Tensor* result = TF_AllocateOutput(call->context, i, output->type, output->dims,
                                          output->num_dims, output->num_bytes, call->status);
    if (ok(call)) set_stale(TF_TensorData(result), !output->kept);
    if (ok(call) && output->kept && output->num_bytes)
      memcpy(TF_TensorData(result), output->kept, output->num_bytes);
    if (result) TF_DeleteTensor(result);
  }
  run_on_stream(call->stream, plan->duration_ns, kernel->node->op, kernel->node->name);
}

static void compute_with_inputs(Kernel* kernel, Call* call) {
  make_key(&call->key, call->context, call->inputs, call->num_inputs, call->status);
  Plan* plan;
  bool early = is_early(kernel, call, &plan);
  if (early || kernel->steers || !plan) {
    compute_really(kernel, call);
    /* Inputs may be left from other steps by now, and an index among them out of range. */
    if (ok(call) || early || !plan) return;
  }
  only_move_the_clock(kernel, call, plan);
}

static void get_inputs(const Kernel* kernel, Call* call) {
  for (int i = 0; i < call->num_inputs && ok(call); i++) {
    if (i == kernel->resource)
      call->inputs[i] = read_variable(call->context, i, call->status);
    else
      TF_GetInput(call->context, i, &call->inputs[i], call->status);
  }
}

static void compute(void* kernel, TF_OpKernelContext* context) {
  Call call = {.context = context, .status = TF_NewStatus()};
  call.num_inputs = TF_NumInputs(context);
  call.num_outputs = TF_NumOutputs(context);
  call.inputs = calloc((size_t)(call.num_inputs + call.num_outputs + 1), sizeof *call.inputs);
  call.outputs = call.inputs + call.num_inputs;
  call.stream = TF_GetStream(context, call.status);
  if (ok(&call)) get_inputs(kernel, &call);
  if (ok(&call)) compute_with_inputs(kernel, &call);
  if (!ok(&call)) TF_OpKernelContext_Failure(context, call.status);
  for (int i = 0; i < call.num_inputs; i++)
    if (call.inputs[i]) TF_DeleteTensor(call.inputs[i]);
  free(call.inputs);
  TF_DeleteStatus(call.status);
}

static void assign(void* pointer, TF_OpKernelContext* context) {
  const Kernel* kernel = pointer;
  TF_Status* status = TF_NewStatus();
  assign_reference(context, bool_attr(kernel->node, "use_locking"),
                   bool_attr(kernel->node, "validate_shape"));
  SP_Stream stream = TF_GetStream(context, status);
  if (TF_GetCode(status) == TF_OK)
    run_on_stream(stream, gpu_of(stream->device)->launch_ns, kernel->node->op, kernel->node->name);
  TF_DeleteStatus(status);
}

static void refuse(void* kernel, TF_OpKernelContext* context) {
  char text[256];
  TF_Status* status = TF_NewStatus();
  snprintf(text, sizeof text, "%s is not emulated; docs/emulated_gpu.md says what is",
           ((const Kernel*)kernel)->node->op);
  TF_SetStatus(status, TF_UNIMPLEMENTED, text);
  TF_OpKernelContext_Failure(context, status);
  TF_DeleteStatus(status);
}

void register_generic_kernels(void) {
  TF_Status* status = TF_NewStatus();
  for (int i = 0; i < kernel_table_size; i++) {
    const KernelEntry* entry = &kernel_table[i];
    bool assigns = !strcmp(entry->op, "Assign");
    TF_KernelBuilder* builder = TF_NewKernelBuilder(
        entry->op, "GPU", create, assigns ? assign : entry->emulated ? compute : refuse, delete);
    TF_RegisterKernelBuilderWithKernelDef(entry->kernel_def, entry->op, builder, status);
  }
  TF_DeleteStatus(status);
}
