/* Streams, events and host callbacks over one clock. */
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>

#include "emulated_gpu.h"

struct SP_Event_st {
  int64_t at_ns;
};

struct SP_Timer_st {
  int64_t start_ns, stop_ns;
};

typedef struct Callback {
  int64_t at_ns;
  SE_StatusCallbackFn function;
  void* argument;
  struct Callback* next;
} Callback;

static pthread_mutex_t clocks = PTHREAD_MUTEX_INITIALIZER;
static int64_t busy_until_ns[MAX_GPUS]; /* over all streams of a GPU */
static int next_stream_id = 1;

static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t queue_changed;
static Callback* queue; /* by time, then by age */
static pthread_once_t queue_once = PTHREAD_ONCE_INIT;

int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * INT64_C(1000000000) + time.tv_nsec;
}

static struct timespec to_timespec(int64_t moment_ns) {
  return (struct timespec){moment_ns / 1000000000, moment_ns % 1000000000};
}

void sleep_until(int64_t moment_ns) {
  static __thread bool precise;
  if (!precise) { /* Linux wakes sleepers up to 50 us late unless told otherwise */
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    precise = true;
  }
  struct timespec moment = to_timespec(moment_ns);
  while (now_ns() < moment_ns &&
         clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &moment, NULL) == EINTR) {
  }
}

void lock_clocks(void) { pthread_mutex_lock(&clocks); }

void unlock_clocks(void) { pthread_mutex_unlock(&clocks); }

void set_stream_clock(SP_Stream stream, int64_t until_ns) {
  stream->until_ns = until_ns;
  if (busy_until_ns[stream->device] < until_ns) busy_until_ns[stream->device] = until_ns;
}

void run_on_stream(SP_Stream stream, int64_t duration_ns, const char* op_type, const char* node) {
  lock_clocks();
  int64_t start = now_ns();
  if (start < stream->until_ns) start = stream->until_ns;
  set_stream_clock(stream, start + duration_ns);
  trace(KERNEL, stream, HOST, start, start + duration_ns, 0, op_type, node);
  unlock_clocks();
}

static int64_t read_clock(const int64_t* clock) {
  lock_clocks();
  int64_t moment = *clock;
  unlock_clocks();
  return moment;
}

static void raise_clock(int64_t* clock, const int64_t* least) {
  lock_clocks();
  if (*clock < *least) *clock = *least;
  unlock_clocks();
}

static void create_stream(const SP_Device* device, SP_Stream* stream, TF_Status* status) {
  *stream = calloc(1, sizeof **stream);
  (*stream)->device = device->ordinal;
  lock_clocks();
  (*stream)->id = next_stream_id++;
  unlock_clocks();
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_stream(const SP_Device* device, SP_Stream stream) { free(stream); }

static void create_dependency(const SP_Device* device, SP_Stream dependent, SP_Stream other,
                              TF_Status* status) {
  raise_clock(&dependent->until_ns, &other->until_ns);
  TF_SetStatus(status, TF_OK, "");
}

static void stream_status(const SP_Device* device, SP_Stream stream, TF_Status* status) {
  TF_SetStatus(status, TF_OK, "");
}

static void create_event(const SP_Device* device, SP_Event* event, TF_Status* status) {
  *event = calloc(1, sizeof **event);
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_event(const SP_Device* device, SP_Event event) { free(event); }

static SE_EventStatus event_status(const SP_Device* device, SP_Event event) {
  return now_ns() >= read_clock(&event->at_ns) ? SE_EVENT_COMPLETE : SE_EVENT_PENDING;
}

static void record_event(const SP_Device* device, SP_Stream stream, SP_Event event,
                         TF_Status* status) {
  lock_clocks();
  event->at_ns = stream->until_ns;
  unlock_clocks();
  TF_SetStatus(status, TF_OK, "");
}

static void wait_for_event(const SP_Device* const device, SP_Stream stream, SP_Event event,
                           TF_Status* const status) {
  raise_clock(&stream->until_ns, &event->at_ns);
  TF_SetStatus(status, TF_OK, "");
}

static void block_for_event(const SP_Device* device, SP_Event event, TF_Status* status) {
  sleep_until(read_clock(&event->at_ns));
  TF_SetStatus(status, TF_OK, "");
}

static void block_until_done(const SP_Device* device, SP_Stream stream, TF_Status* status) {
  sleep_until(read_clock(&stream->until_ns));
  TF_SetStatus(status, TF_OK, "");
}

static void synchronize(const SP_Device* device, TF_Status* status) {
  sleep_until(read_clock(&busy_until_ns[device->ordinal]));
  TF_SetStatus(status, TF_OK, "");
}

static void* run_callbacks(void* unused) {
  TF_Status* status = TF_NewStatus();
  pthread_mutex_lock(&queue_lock);
  for (;;) {
    if (!queue) {
      pthread_cond_wait(&queue_changed, &queue_lock);
    } else if (now_ns() < queue->at_ns) {
      struct timespec moment = to_timespec(queue->at_ns);
      pthread_cond_timedwait(&queue_changed, &queue_lock, &moment);
    } else {
      Callback* due = queue;
      queue = due->next;
      pthread_mutex_unlock(&queue_lock);
      TF_SetStatus(status, TF_OK, "");
      due->function(due->argument, status);
      free(due);
      pthread_mutex_lock(&queue_lock);
    }
  }
  return NULL;
}

static void start_callbacks(void) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
  pthread_cond_init(&queue_changed, &attributes);
  pthread_t thread;
  pthread_create(&thread, NULL, run_callbacks, NULL);
  pthread_detach(thread);
}

static TF_Bool host_callback(const SP_Device* device, SP_Stream stream,
                             SE_StatusCallbackFn function, void* argument) {
  pthread_once(&queue_once, start_callbacks);
  Callback* added = calloc(1, sizeof *added);
  *added = (Callback){read_clock(&stream->until_ns), function, argument, NULL};
  pthread_mutex_lock(&queue_lock);
  Callback** place = &queue;
  while (*place && (*place)->at_ns <= added->at_ns) place = &(*place)->next;
  added->next = *place;
  *place = added;
  pthread_cond_signal(&queue_changed);
  pthread_mutex_unlock(&queue_lock);
  return 1;
}

static void create_timer(const SP_Device* device, SP_Timer* timer, TF_Status* status) {
  *timer = calloc(1, sizeof **timer);
  TF_SetStatus(status, TF_OK, "");
}

static void destroy_timer(const SP_Device* device, SP_Timer timer) { free(timer); }

static void start_timer(const SP_Device* device, SP_Stream stream, SP_Timer timer,
                        TF_Status* status) {
  timer->start_ns = read_clock(&stream->until_ns);
  TF_SetStatus(status, TF_OK, "");
}

static void stop_timer(const SP_Device* device, SP_Stream stream, SP_Timer timer,
                       TF_Status* status) {
  timer->stop_ns = read_clock(&stream->until_ns);
  TF_SetStatus(status, TF_OK, "");
}

static uint64_t timer_ns(SP_Timer timer) { return (uint64_t)(timer->stop_ns - timer->start_ns); }

void fill_timer_functions(SP_TimerFns* functions) { functions->nanoseconds = timer_ns; }

void fill_clock_functions(SP_StreamExecutor* executor) {
  executor->create_stream = create_stream;
  executor->destroy_stream = destroy_stream;
  executor->create_stream_dependency = create_dependency;
  executor->get_stream_status = stream_status;
  executor->create_event = create_event;
  executor->destroy_event = destroy_event;
  executor->get_event_status = event_status;
  executor->record_event = record_event;
  executor->wait_for_event = wait_for_event;
  executor->block_host_for_event = block_for_event;
  executor->block_host_until_done = block_until_done;
  executor->synchronize_all_activity = synchronize;
  executor->host_callback = host_callback;
  executor->create_timer = create_timer;
  executor->destroy_timer = destroy_timer;
  executor->start_timer = start_timer;
  executor->stop_timer = stop_timer;
}
