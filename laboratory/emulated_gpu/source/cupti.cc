// What CUPTI's records of a GPU look like to TensorFlow: a guess, and all of it is here.
//
// It follows TensorFlow's sources and was never compared with a real GPU:
//   xla/backends/profiler/gpu/cupti_collector.cc     how records become planes, lines and events
//   xla/tsl/profiler/utils/xplane_schema.cc          the names of planes and of statistics
//   tensorflow/core/profiler/convert/xplane_to_step_stats.cc   what RunMetadata takes from them
// The C API for profilers (TF_InitProfiler) is no way: TensorFlow asks such profilers only when a
// session wants all device types, and FULL_TRACE of RunOptions wants GPU (profiler/lib/
// device_profiler_session.h), so its step statistics would lack the streams.
#include <cstdlib>
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "emulated_gpu.h"
#include "tsl/profiler/lib/profiler_factory.h"
#include "tsl/profiler/lib/profiler_interface.h"
#include "tsl/profiler/protobuf/profiler_options.pb.h"
#include "tsl/profiler/protobuf/xplane.pb.h"

namespace {

using tensorflow::ProfileOptions;
using tensorflow::profiler::XEvent;
using tensorflow::profiler::XLine;
using tensorflow::profiler::XPlane;
using tensorflow::profiler::XSpace;

constexpr char kHostPlane[] = "/host:CPU";
constexpr int64_t kPsPerNs = 1000;

// Adds lines and events to a plane, whose names are kept once each, by number.
class Plane {
 public:
  Plane(XPlane* plane, int64_t wall_ns) : plane_(plane), wall_ns_(wall_ns) {
    for (const auto& [id, metadata] : plane->event_metadata()) events_[metadata.name()] = id;
    for (const auto& [id, metadata] : plane->stat_metadata()) stats_[metadata.name()] = id;
    for (XLine& line : *plane->mutable_lines()) lines_[line.id()] = &line;
  }

  // Times are since the start of the trace, whose wall time a new line begins at.
  XEvent* AddEvent(int64_t line_id, const std::string& line_name, const std::string& name,
                   int64_t start_ns, int64_t end_ns) {
    XLine*& line = lines_[line_id];
    if (line == nullptr) {
      line = plane_->add_lines();
      line->set_id(line_id);
      line->set_name(line_name);
      line->set_timestamp_ns(wall_ns_);
    }
    XEvent* event = line->add_events();
    event->set_metadata_id(Number(&events_, name, plane_->mutable_event_metadata()));
    event->set_offset_ps((start_ns + wall_ns_ - line->timestamp_ns()) * kPsPerNs);
    event->set_duration_ps((end_ns - start_ns) * kPsPerNs);
    return event;
  }

  template <typename Owner>
  void AddStat(Owner* owner, const std::string& name, int64_t value) {
    auto* stat = owner->add_stats();
    stat->set_metadata_id(Number(&stats_, name, plane_->mutable_stat_metadata()));
    stat->set_int64_value(value);
  }

  // Texts are names of statistics too, which events refer to by number.
  template <typename Owner>
  void AddStat(Owner* owner, const std::string& name, const std::string& text) {
    auto* stat = owner->add_stats();
    stat->set_metadata_id(Number(&stats_, name, plane_->mutable_stat_metadata()));
    stat->set_ref_value(Number(&stats_, text, plane_->mutable_stat_metadata()));
  }

 private:
  template <typename Map>
  static int64_t Number(std::map<std::string, int64_t>* numbers, const std::string& name,
                        Map* metadata) {
    int64_t& number = (*numbers)[name];
    if (number == 0) {
      number = static_cast<int64_t>(numbers->size());
      while (metadata->contains(number)) ++number;
      (*metadata)[number].set_id(number);
      (*metadata)[number].set_name(name);
    }
    return number;
  }

  XPlane* plane_;
  int64_t wall_ns_;
  std::map<std::string, int64_t> events_, stats_;
  std::map<int64_t, XLine*> lines_;
};

const char* CopyName(RecordKind kind) {
  static const char* const names[] = {"", "MemcpyH2D", "MemcpyD2H", "MemcpyD2D", "MemcpyP2P"};
  return names[kind];
}

// The way that the driver was asked.
const char* CallName(RecordKind kind) {
  static const char* const names[] = {"cuLaunchKernel", "cuMemcpyHtoDAsync_v2",
                                      "cuMemcpyDtoHAsync_v2", "cuMemcpyDtoDAsync_v2",
                                      "cuMemcpyPeerAsync"};
  return names[kind];
}

void AddKernel(Plane* plane, const Record& record, int64_t zero_ns, int64_t correlation) {
  XEvent* event = plane->AddEvent(
      record.stream, absl::StrCat("Stream #", record.stream, "(Kernel)"),
      absl::StrCat("emulated_", record.op_type, "_kernel"), record.start_ns - zero_ns,
      record.end_ns - zero_ns);
  plane->AddStat(event, "correlation_id", correlation);
  plane->AddStat(event, "kernel_details",
                 "regs:32 static_shared:0 dynamic_shared:0 grid:1,1,1 block:128,1,1 occ_pct:100");
  // The executor annotates what a kernel launches with the node's name and type.
  if (record.node[0] != 0)
    plane->AddStat(event, "tf_op", absl::StrCat(record.node, ":", record.op_type));
}

void AddCopy(Plane* plane, const Record& record, int64_t zero_ns, int64_t correlation) {
  XEvent* event = plane->AddEvent(
      record.stream, absl::StrCat("Stream #", record.stream, "(", CopyName(record.kind), ")"),
      CopyName(record.kind), record.start_ns - zero_ns, record.end_ns - zero_ns);
  plane->AddStat(event, "correlation_id", correlation);
  plane->AddStat(event, "memcpy_details",
                 absl::StrFormat("kind_src:%s kind_dst:%s size:%d dest:%d async:1",
                                 record.kind == COPY_H2D ? "pinned" : "device",
                                 record.kind == COPY_D2H ? "pinned" : "device", record.num_bytes,
                                 record.kind == COPY_P2P ? record.target : 0));
}

void AddProperties(Plane* plane, XPlane* owner, const Gpu* gpu) {
  const std::string capability = gpu->capability;
  const size_t dot = capability.find('.');
  plane->AddStat(owner, "device_vendor", std::string("Nvidia"));
  plane->AddStat(owner, "compute_cap_major", std::atoll(capability.c_str()));
  plane->AddStat(owner, "compute_cap_minor", std::atoll(capability.substr(dot + 1).c_str()));
  plane->AddStat(owner, "memory_size", gpu->memory_bytes);
  plane->AddStat(owner, "memory_bandwidth", static_cast<int64_t>(gpu->bytes_per_s));
}

XPlane* FindOrAddPlane(XSpace* space, const std::string& name) {
  for (XPlane& plane : *space->mutable_planes())
    if (plane.name() == name) return &plane;
  XPlane* plane = space->add_planes();
  plane->set_name(name);
  return plane;
}

class Profiler : public tsl::profiler::ProfilerInterface {
 public:
  absl::Status Start() override {
    start_trace();
    return absl::OkStatus();
  }

  absl::Status Stop() override {
    stop_trace();
    return absl::OkStatus();
  }

  absl::Status CollectData(XSpace* space) override {
    int count = 0;
    int64_t zero_ns = 0, wall_ns = 0;
    Record* records = take_trace(&count, &zero_ns, &wall_ns);
    Plane host(FindOrAddPlane(space, kHostPlane), wall_ns);
    for (int device = 0; device < gpu_count(); device++) {
      XPlane* added = FindOrAddPlane(space, absl::StrCat("/device:GPU:", device));
      added->set_id(device);
      Plane plane(added, wall_ns);
      AddProperties(&plane, added, gpu_of(device));
      for (int i = 0; i < count; i++) {
        if (records[i].device != device) continue;
        (records[i].kind == KERNEL ? AddKernel : AddCopy)(&plane, records[i], zero_ns, i + 1);
        AddLaunch(&host, records[i], zero_ns, i + 1);
      }
    }
    std::free(records);
    return absl::OkStatus();
  }

 private:
  static void AddLaunch(Plane* host, const Record& record, int64_t zero_ns, int64_t correlation) {
    const int64_t at_ns = record.enqueued_ns - zero_ns;
    XEvent* event = host->AddEvent(record.thread, absl::StrCat("thread ", record.thread),
                                   CallName(record.kind), at_ns, at_ns);
    host->AddStat(event, "correlation_id", correlation);
    host->AddStat(event, "device_id", record.device);
  }
};

}  // namespace

void register_profiler(void) {
  tsl::profiler::RegisterProfilerFactory(
      [](const ProfileOptions& options) -> std::unique_ptr<tsl::profiler::ProfilerInterface> {
        const auto type = options.device_type();
        if (options.device_tracer_level() == 0) return nullptr;
        if (type == ProfileOptions::CPU || type == ProfileOptions::TPU) return nullptr;
        return std::make_unique<Profiler>();
      });
}
