/* What the parts of the emulated GPUs share.
 *
 * Time on an emulated GPU is a clock and not work: what is put on a stream moves the stream's clock
 * by what its cost model says, and whoever needs the result waits until that moment has come.
 * Device memory is host memory, so results are computed and copied at once, when they are put on a
 * stream.
 */
#ifndef EMULATED_GPU_H_
#define EMULATED_GPU_H_

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef __cplusplus
/* kernels.h defines this constant in every file that includes it; weak, the linker takes one. */
#define TF_InputRange_Args_STRUCT_SIZE \
  __attribute__((weak)) TF_InputRange_Args_STRUCT_SIZE
#endif
#include "tensorflow/c/experimental/stream_executor/stream_executor.h"
#include "tensorflow/c/kernels.h"
#include "tensorflow/c/tf_status.h"
#include "tensorflow/c/tf_tensor.h"

#define EXPORTED __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* --- description.c: what is emulated ------------------------------------------------------- */

enum { HOST = -1, MAX_GPUS = 64, NAME_BYTES = 128 };

#define PLATFORM_NAME "EMULATED"

typedef struct Gpu {
  char name[NAME_BYTES];       /* hardware name */
  char capability[16];         /* such as 7.5 */
  char pci_bus_id[16];
  int64_t memory_bytes;        /* what TensorFlow may allocate */
  int num_cores;               /* multiprocessors */
  double frequency_mhz;
  double flops_per_s;
  double bytes_per_s;          /* between the GPU and its own memory */
  int64_t launch_ns;           /* of every kernel */
  double speed;                /* divides what a kernel takes beyond its launch */
} Gpu;

typedef struct Link {
  int64_t latency_ns;
  double bytes_per_s;
} Link;

int gpu_count(void);
const Gpu* gpu_of(int device);
/* Link between two GPUs, or a GPU and HOST. */
const Link* link_of(int source, int target);
/* A kernel computes its results in so many of the steps that it sees; 0 is always. */
int64_t compute_steps(void);

/* --- clock.c: streams, events, host callbacks ---------------------------------------------- */

struct SP_Stream_st {
  int device;
  int id; /* unique in the process */
  int64_t until_ns; /* when all that was put on it is done */
};

/* CLOCK_MONOTONIC in nanoseconds. */
int64_t now_ns(void);
void sleep_until(int64_t moment_ns);
/* Guards every clock: streams, events and ports. Held for moments only. */
void lock_clocks(void);
void unlock_clocks(void);
/* With clocks locked: the stream is busy until then. */
void set_stream_clock(SP_Stream stream, int64_t until_ns);
/* Puts work on a stream: starts when the stream is free, moves its clock. */
void run_on_stream(SP_Stream stream, int64_t duration_ns, const char* op_type, const char* node);
void fill_clock_functions(SP_StreamExecutor* executor);
void fill_timer_functions(SP_TimerFns* functions);

/* --- memory.c: device memory --------------------------------------------------------------- */

void fill_memory_functions(SP_StreamExecutor* executor);
/* The GPU whose memory holds an address, or HOST. */
int owner_of(const void* address);
/* Whether the tensor that starts there was not computed: then a copy of it moves nothing either. */
void set_stale(const void* address, bool is_now);
bool is_stale(const void* address);

/* --- copies.c: memory to memory ------------------------------------------------------------ */

void fill_copy_functions(SP_StreamExecutor* executor);

/* --- cost.c: what a kernel takes ----------------------------------------------------------- */

typedef struct Node Node;

int64_t kernel_ns(const Gpu* gpu, const Node* node, TF_Tensor* const* inputs, int num_inputs,
                  TF_Tensor* const* outputs, int num_outputs);

/* --- node.c: a NodeDef --------------------------------------------------------------------- */

typedef struct Attr {
  char* name;
  uint8_t* value; /* a serialized AttrValue */
  size_t value_bytes;
} Attr;

struct Node {
  char* name;
  char* op;
  Attr* attrs;
  int num_attrs;
};

/* Parses a serialized NodeDef; never NULL. Attributes that start with _ are left out. */
Node* parse_node(const void* data, size_t num_bytes);
void delete_node(Node* node);
const Attr* find_attr(const Node* node, const char* name);
/* Text of a string attribute into `text`; empty if there is none. */
void string_attr(const Node* node, const char* name, char* text, size_t size);
bool bool_attr(const Node* node, const char* name);
int64_t int_attr(const Node* node, const char* name);
/* Numbers of a list(int) attribute, at most `max`; returns how many. */
int int_list_attr(const Node* node, const char* name, int64_t* values, int max);
void set_string_attr(Node* node, const char* name, const char* text);
void set_int_list_attr(Node* node, const char* name, const int64_t* values, int count);

/* --- delegate.c, batch_norm.c, recurrent.c, layout.c: the same operator on the CPU --------- */

/* Runs a node on host memory by TensorFlow's CPU kernel; outputs are the caller's to delete, and
 * NULL after an error.
 * channels_last: what make_channels_last said. */
void run_on_cpu(const Node* node, bool channels_last, TF_Tensor* const* inputs, int num_inputs,
                TF_Tensor** outputs, int num_outputs, TF_Status* status);

/* The same for CudnnRNN, which has no CPU kernel. */
bool is_recurrent(const Node* node);
void run_recurrent(const Node* node, TF_Tensor* const* inputs, int num_inputs,
                   TF_Tensor** outputs, int num_outputs, TF_Status* status);

/* The same for _FusedBatchNormEx, whose CPU kernel does nothing. */
bool is_fused_batch_norm(const Node* node);
void run_fused_batch_norm(const Node* node, bool channels_last, TF_Tensor* const* inputs,
                          int num_inputs, TF_Tensor** outputs, int num_outputs, TF_Status* status);

/* If the node works on NCHW, which CPU kernels do not: makes it NHWC and returns true. Its first
 * input and output then have to be permuted. */
bool make_channels_last(Node* node);
/* A permuted copy, or NULL if the tensor has not 4 dimensions. */
TF_Tensor* to_channels_last(const TF_Tensor* tensor);
TF_Tensor* to_channels_first(const TF_Tensor* tensor);

/* --- gather.c, tensorflow.cc: variables ------------------------------------------------------ */

/* If the node gathers from a variable: makes it gather from a tensor and returns the number of the
 * input that has to be read first, else -1. */
int make_gather(Node* node);
/* The value of a variable, which shares its memory. */
TF_Tensor* read_variable(TF_OpKernelContext* context, int input, TF_Status* status);
/* What Assign does to a variable that is a reference; its failures are the context's. */
void assign_reference(TF_OpKernelContext* context, bool use_locking, bool validate_shape);

/* --- tensors.c ----------------------------------------------------------------------------- */

enum { MAX_DIMS = 16 };

int get_dims(const TF_Tensor* tensor, int64_t* dims);
int64_t num_elements(const int64_t* dims, int num_dims);
/* Whether a wrong value does no harm to control flow: floating point and complex types. */
bool is_floating(TF_DataType type);
/* Whether tensors of the type are bytes that can be copied: no strings, resources, variants. */
bool is_plain(TF_DataType type);

/* --- registrations ------------------------------------------------------------------------- */

void register_generic_kernels(void);  /* generic_kernel.c */
void register_fake_work(void);        /* fake_work.c */

/* Written at build time from the GPU kernels that TensorFlow registers. */
typedef struct KernelEntry {
  const char* op;
  const char* kernel_def; /* serialized KernelDef with a higher priority; has no zero bytes */
  bool emulated;          /* otherwise it fails, where TensorFlow's own would crash */
} KernelEntry;
extern const KernelEntry kernel_table[];
extern const int kernel_table_size;

/* tensorflow.cc: lets TensorFlow show name and compute capability of each GPU. */
void register_device_names(void);

/* --- trace.c, cupti.cc: what a profiler is told -------------------------------------------- */

typedef enum RecordKind { KERNEL, COPY_H2D, COPY_D2H, COPY_D2D, COPY_P2P } RecordKind;

typedef struct Record {
  RecordKind kind;
  int device;
  int stream;
  int target;          /* of COPY_P2P */
  int64_t enqueued_ns; /* on CLOCK_MONOTONIC, as the others */
  int64_t start_ns;
  int64_t end_ns;
  int64_t num_bytes;   /* of copies */
  long thread;         /* that put it on the stream */
  char op_type[48];
  char node[160];
} Record;

/* With clocks locked. Cheap while no profiler runs. */
void trace(RecordKind kind, SP_Stream stream, int target, int64_t start_ns, int64_t end_ns,
           int64_t num_bytes, const char* op_type, const char* node);
void start_trace(void);
void stop_trace(void);
/* The records since the start, for the caller to free; the moment and wall time of the start. */
Record* take_trace(int* num_records, int64_t* start_ns, int64_t* start_wall_ns);

/* Lets TensorFlow's profilers collect the trace in the form of CUPTI's. */
void register_profiler(void);

#ifdef __cplusplus
}
#endif

#endif
